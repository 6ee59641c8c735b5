"""The image for a type of machine, and what a machine of it will be. A client of boto3 is given to it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError
from envsync.runner.cloud.provider import Expected
from envsync.runner.cloud.systems import system_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["expected"]

DEBIAN, AMAZON = "136693071363", "amazon"
"""Debian's own account, the same in every region; and Amazon's."""

_PLAIN = {"x86_64": "debian-12-amd64-2*", "arm64": "debian-12-arm64-2*"}
_GPU = {
    "x86_64": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
    "arm64": "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
}
_GPU_DISK = 100  # GiB: the image is some 50, and an environment with CUDA is there twice, packed and not
_TOO_OLD = frozenset({"V100", "K80", "M60", "K520"})  # NVIDIA's open kernel modules do not drive them
_MACHINES = {"arm64": "aarch64"}
# the driver from an image's date on, as AWS's release notes have it; what is older is not told
_DRIVERS = (
    ("20260901", "595.91.07"),
    ("20260605", "595.71.05"),
    ("20260428", "595.58.03"),
    ("20251205", "580.105.08"),
)


def expected(client: Any, region: str, machine_type: str, *, image: str, owner: str) -> Expected:
    """Find the image, and tell what a machine of it will be.

    Parameters
    ----------
    client : boto3's client
        Of the region.
    region, machine_type : str
        Where, and what.
    image : str
        An image's id, or a name pattern whose newest image is taken; by default Debian's own, or for NVIDIA
        GPUs Amazon's with their driver.
    owner : str
        Whose images a name pattern is about.

    Raises
    ------
    CloudError
        There is none.
    """
    found = client.describe_instance_types(InstanceTypes=[machine_type])["InstanceTypes"][0]
    architecture = found["ProcessorInfo"]["SupportedArchitectures"][-1]
    gpus = [one for one in found.get("GpuInfo", {}).get("Gpus", ()) if one.get("Manufacturer") == "NVIDIA"]
    if image.startswith("ami-"):
        (chosen,) = client.describe_images(ImageIds=[image])["Images"]
    else:
        if gpus and not image:
            _demand_driver(machine_type, gpus, region)
        pattern = image or (_GPU if gpus else _PLAIN).get(architecture, "")
        owner = owner or ("" if image else AMAZON if gpus else DEBIAN)
        chosen = _newest(client, region, pattern, architecture, owner)
    name = str(chosen.get("Name", ""))
    system = system_of(name)
    return Expected(
        image=str(chosen["ImageId"]),
        name=name,
        machine=_MACHINES.get(architecture, architecture),
        libc=("glibc", system.libc) if system else None,
        python=system.python if system else "",
        gpus=sum(int(one.get("Count", 1)) for one in gpus),
        driver=_driver(name) if gpus else "",
        disk=_GPU_DISK if gpus and not image else 0,
    )


def _newest(client: Any, region: str, pattern: str, architecture: str, owner: str) -> Mapping[str, Any]:
    asked: dict[str, Any] = {"Owners": [owner]} if owner else {}
    found = client.describe_images(
        Filters=[
            {"Name": "name", "Values": [pattern]},
            {"Name": "architecture", "Values": [architecture]},
            {"Name": "state", "Values": ["available"]},
        ],
        **asked,
    )["Images"]
    if not found:
        raise CloudError(
            f"there is no image called {pattern!r} for {architecture}" + (f" of {owner}" if owner else ""),
            where=region,
            hint="Name another: EC2(..., image='ami-...'), or a name pattern with image_owner=.",
        )
    newest: Mapping[str, Any] = max(found, key=lambda each: (each["CreationDate"], each["Name"]))
    return newest


def _driver(name: str) -> str:
    """Return the driver of one of Amazon's images with NVIDIA's, empty if that is not known."""
    dated = re.search(r"Nvidia Driver GPU AMI .* (20\d{6})$", name)
    return next((driver for since, driver in _DRIVERS if dated and dated[1] >= since), "")


def _demand_driver(machine_type: str, gpus: list[Any], region: str) -> None:
    old = sorted({str(one.get("Name", "")) for one in gpus} & _TOO_OLD)
    if old:
        raise CloudError(
            f"Amazon's image has no driver for GPUs as old as those of {machine_type} ({', '.join(old)})",
            where=region,
            hint="Name an image with NVIDIA's proprietary driver: EC2(..., image=..., image_owner='amazon'); "
            "or take g4dn, g5, g6 or later.",
        )
