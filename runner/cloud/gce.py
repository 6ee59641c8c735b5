"""Google Compute Engine, through google-cloud-compute.

That is imported nowhere else but in `gce_errors`; what is sent is built in `gce_messages`.

An instance is known by its name, which is of the request's token. What is not in a region (rules of the
firewall have neither a place nor labels) has the region in its name, and its tags in its description.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import stamina

from envsync.errors import CloudError
from envsync.runner.cloud.gce_errors import (
    but_for,
    check,
    missing,
    translated,
    unreachable,
    worth_another_try,
)
from envsync.runner.cloud.gce_messages import (
    SCOPE,
    STATES,
    described,
    firewall_rules,
    found_as,
    group_of,
    instance_of,
    machine_of,
)
from envsync.runner.cloud.given import zones_of
from envsync.runner.cloud.labels import as_labels, as_tags
from envsync.runner.cloud.patience import Patience
from envsync.runner.cloud.provider import (
    CLUSTER,
    Expected,
    Found,
    Machine,
    MachineRequest,
    Price,
    Provider,
    Shared,
    Tags,
)
from envsync.runner.cloud.systems import system_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envsync.runner.cloud.provider import Market

__all__ = ["GCEProvider"]

# Google's Debian has no cloud-init; Ubuntu's images have it
_IMAGES = {"X86_64": "ubuntu-2404-lts-amd64", "ARM64": "ubuntu-2404-lts-arm64"}
_GPU_PROJECT = "ubuntu-os-accelerator-images"
_GPU_IMAGES = {
    "X86_64": "ubuntu-accelerator-2404-amd64-with-nvidia-",
    "ARM64": "ubuntu-accelerator-2404-arm64-with-nvidia-",
}
_MACHINES = {"X86_64": "x86_64", "ARM64": "aarch64"}
_DONE = 300.0  # seconds that an operation may take
_CALL = 60.0


class GCEProvider(Provider):
    """Compute Engine, with Google's application default credentials.

    Parameters
    ----------
    regions : sequence of str
        Where machines may be made, the first choice first, such as ``"europe-west1"``.
    zones : sequence of str
        Only in these zones, such as ``"europe-west1-b"``, in this order.
    project : str
        The project; that of the credentials if empty.
    image : str
        ``"projects/P/global/images/I"``, or ``".../images/family/F"``; Ubuntu 24.04 if empty, with NVIDIA's
        driver for types that have GPUs.
    network, subnetwork : str
        The names of the network, and of the region's subnet of it.
    service_account : str
        The address of a service account for machines that use Google Cloud themselves; none otherwise.
    reached_from : sequence of str
        Networks that may reach the machines' sshd.
    """

    name = "gce"
    gone_on_shutdown = False
    left_on_shutdown = (
        "Google keeps an instance that has shut itself down, and bills its disk until it is deleted. Should "
        "this computer lose its power or the network, `envsync reap` does that, from anywhere"
    )

    def __init__(
        self,
        regions: Sequence[str],
        *,
        zones: Sequence[str] = (),
        project: str = "",
        image: str = "",
        network: str = "default",
        subnetwork: str = "",
        service_account: str = "",
        reached_from: Sequence[str] = ("0.0.0.0/0",),
    ) -> None:
        try:
            import google.auth
            from google.cloud import compute_v1
        except ImportError as error:
            raise missing() from error
        self._v1: Any = compute_v1
        with translated("account"):
            self._credentials, found = google.auth.default(scopes=[SCOPE])
        self._project = project or found or ""
        if not self._project:
            raise CloudError(
                "no project is given, and the credentials have none",
                where="gce",
                hint="Name one: GCE(..., project='my-project'), or set GOOGLE_CLOUD_PROJECT.",
            )
        chosen = tuple(regions) or tuple(filter(None, [os.environ.get("CLOUDSDK_COMPUTE_REGION")]))
        if not chosen:
            raise CloudError(
                "no region is given",
                where="gce",
                hint="Name one: GCE(..., region='europe-west1'), --region europe-west1, or set "
                "CLOUDSDK_COMPUTE_REGION.",
            )
        self.regions = chosen
        self._zones = zones_of(zones, chosen, "gce")
        self._image = image
        self._network = network
        self._subnetwork = subnetwork
        self._service_account = service_account
        self._reached_from = tuple(reached_from)
        self._own = threading.local()
        caller = stamina.RetryingCaller(attempts=8, timeout=180.0, wait_initial=0.5, wait_max=20.0)
        self._patience = Patience(caller, worth=worth_another_try, unreachable=unreachable)
        self._types: dict[tuple[str, str], dict[str, Any]] = {}
        self._at: dict[str, str] = {}  # zones of instances

    def zones(self, region: str, machine_type: str) -> tuple[str, ...]:
        """Return the zones that have a type. See `Provider.zones`."""
        with translated(region):
            there = sorted(self._find_type(region, machine_type))
        wanted = tuple(zone for zone in self._zones if zone.startswith(f"{region}-"))
        return tuple(zone for zone in wanted if zone in there) if wanted else tuple(there)

    def open(self, region: str, machine_type: str, tags: Tags, public_key: str) -> Shared:  # noqa: ARG002
        """Make the firewall's rules, look the image up; keys come with each machine. See `Provider.open`."""
        group = group_of(tags.cluster, region)
        with translated(region, machine_type):
            image = self._image or self._find_image(region, self._demand_type(region, machine_type))
            made = []
            for rule in firewall_rules(
                self._v1, group, region, tags, network=self._network, reached_from=self._reached_from
            ):
                with but_for("alreadyExists"):
                    made.append(self._call("firewalls", "insert_unary", firewall_resource=rule))
            for operation in made:
                self._done("global_operations", operation)
        return Shared(region=region, key="", group=group, image=image)

    def create(self, request: MachineRequest) -> Machine:
        """Insert one instance, and wait until Google has found room for it. See `Provider.create`."""
        region, zone = request.shared.region, request.zone
        with translated(zone or region, request.type):
            instance = instance_of(
                self._v1,
                request,
                network=self._network,
                subnetwork=self._subnetwork,
                service_account=self._service_account,
                accelerated=bool(self._find_type(region, request.type)[zone].accelerators),
            )
            with but_for("alreadyExists"):
                asked = partial(
                    self._call,
                    "instances",
                    "insert_unary",
                    zone=zone,
                    instance_resource=instance,
                    # however often it is asked with one identity, one operation comes of it
                    request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, request.token)),
                )
                self._done("zone_operations", asked(), zone=zone)
            self._at[instance.name] = zone
            made = self._call("instances", "get", zone=zone, instance=instance.name)
            if as_tags(made.labels).get(CLUSTER) != request.tags.cluster:
                raise CloudError(f"somebody else has an instance called {made.name}", where=f"gce {zone}")
        return machine_of(made, region)

    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        """Return a cluster's instances. See `Provider.describe`."""
        labels = as_labels({CLUSTER: cluster}).items()
        with translated(region):
            found = self._instances(region, " AND ".join(f'labels.{key}="{value}"' for key, value in labels))
            return tuple(machine_of(one, region) for one in found)

    def terminate(self, region: str, ids: Sequence[str]) -> None:
        """Delete instances. See `Provider.terminate`."""
        with translated(region):
            for one in ids:
                zone = self._zone_of(region, one)
                if zone:
                    with but_for("notFound"):
                        self._call("instances", "delete_unary", zone=zone, instance=one)

    def console(self, region: str, identity: str) -> str:
        """Return the first serial port's output. See `Provider.console`."""
        with translated(region):
            zone = self._zone_of(region, identity)
            if zone:
                with but_for("notFound"):
                    return str(
                        self._call(
                            "instances", "get_serial_port_output", zone=zone, instance=identity
                        ).contents
                    )
        return ""

    def close(self, region: str, cluster: str) -> tuple[str, ...]:
        """Delete the firewall's rules, if no machine needs them any more. See `Provider.close`."""
        if self.describe(region, cluster):
            return (group_of(cluster, region),)
        with translated(region):
            self._delete_rules(group_of(cluster, region))
        return ()

    def price(self, region: str, machine_type: str, market: Market, zone: str = "") -> Price | None:  # noqa: ARG002
        """Return None: Google tells prices in its billing catalogue alone. See `Provider.price`."""
        return None

    def expected(self, region: str, machine_type: str) -> Expected:
        """Return the image, and what is known of machines from it. See `Provider.expected`.

        Of NVIDIA's driver an image's name says no more than the branch: it is not told.
        """
        with translated(region, machine_type):
            found = self._demand_type(region, machine_type)
            image = self._image or self._find_image(region, found)
        name = image.rpartition("/")[2]
        system = system_of(name)
        return Expected(
            image=image,
            name=name,
            machine=_MACHINES[_architecture(found)],
            libc=("glibc", system.libc) if system else None,
            python=system.python if system else "",
            gpus=sum(one.guest_accelerator_count for one in found.accelerators),
        )

    def everywhere(self) -> tuple[str, ...]:
        """Return all regions. See `Provider.everywhere`."""
        with translated("account"):
            return tuple(sorted(str(one.name) for one in self._call("regions", "list")))

    def found(self, region: str) -> tuple[Found, ...]:
        """Return instances, disks without one, and firewalls. See `Provider.found`."""
        ours = f"labels.{next(iter(as_labels({CLUSTER: ''})))}:*"
        found = []
        with translated(region):
            for one in self._instances(region, ours):
                state = STATES.get(one.status, "pending")
                found.append(found_as("machine", one.name, as_tags(one.labels), one, state))
            for disk in self._everywhere("disks", region, ours):
                if not disk.users:
                    zone = disk.zone.rpartition("/")[2]
                    found.append(
                        found_as("disk", f"{zone}/{disk.name}", as_tags(disk.labels), disk, disk.status)
                    )
            rules = self._call("firewalls", "list", filter='name eq "envsync-.*-none"')
            for rule in rules:
                tags = described(rule)
                if tags.pop("region", "") == region:
                    found.append(found_as("group", rule.name.removesuffix("-none"), tags, rule, ""))
        return tuple(found)

    def remove(self, region: str, found: Found) -> bool:
        """Delete an instance, a disk or a firewall. See `Provider.remove`."""
        if found.kind == "machine":
            self.terminate(region, [found.id])
        elif found.kind == "group":
            return not self.close(region, found.cluster)
        else:
            zone, _, name = found.id.partition("/")
            with translated(region), but_for("notFound"):
                self._call("disks", "delete_unary", zone=zone, disk=name)
        return True

    # -- inner

    def _client(self, kind: str) -> Any:
        """Return the client of a kind of resource, one for each thread."""
        clients = vars(self._own)
        if kind not in clients:
            name = "".join(part.title() for part in kind.split("_"))
            # gcloud's own variable, for a private endpoint
            endpoint = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "").partition("/compute/")[0]
            options = {"api_endpoint": endpoint.rstrip("/")} if endpoint else {}
            clients[kind] = getattr(self._v1, f"{name}Client")(
                credentials=self._credentials, client_options=options
            )
        return clients[kind]

    def _call(self, kind: str, method: str, **asked: Any) -> Any:
        """Make a call, again if Google was busy or the answer is lost; lists are read to their end."""
        call: Callable[..., Any] = getattr(self._client(kind), method)

        def once() -> Any:
            answer = call(request={"project": self._project, **asked}, retry=None, timeout=_CALL)
            return list(answer) if method in ("list", "aggregated_list") else answer

        return self._patience.call(once)

    def _done(self, kind: str, operation: Any, **where: str) -> None:
        """Wait until an operation is done; Google says at its end alone whether there was room."""
        deadline = time.monotonic() + _DONE
        while operation.status != self._v1.Operation.Status.DONE:
            if time.monotonic() > deadline:
                raise CloudError(f"Google has not done it within {_DONE:g} s: {operation.name}", where="gce")
            operation = self._call(kind, "wait", operation=operation.name, **where)
        check(operation)

    def _everywhere(self, kind: str, region: str, wanted: str) -> Iterator[Any]:
        """Go through what there is in a region's zones."""
        for place, scoped in self._call(kind, "aggregated_list", filter=wanted):
            if place.rpartition("/")[2].startswith(f"{region}-"):
                yield from getattr(scoped, kind)

    def _instances(self, region: str, wanted: str) -> list[Any]:
        found = list(self._everywhere("instances", region, wanted))
        self._at.update({one.name: one.zone.rpartition("/")[2] for one in found})
        return found

    def _zone_of(self, region: str, identity: str) -> str:
        if identity not in self._at:
            self._instances(region, f'name="{identity}"')
        return self._at.get(identity, "")

    def _find_type(self, region: str, machine_type: str) -> dict[str, Any]:
        """Return what a type is in each zone of a region that has it."""
        key = (region, machine_type)
        if key not in self._types:
            found = self._everywhere("machine_types", region, f'name="{machine_type}"')
            self._types[key] = {one.zone.rpartition("/")[2]: one for one in found}
        return self._types[key]

    def _demand_type(self, region: str, machine_type: str) -> Any:
        """Return what a type is, in whichever zone."""
        found = self._find_type(region, machine_type)
        if not found:
            raise CloudError(
                f"{region} has no machine type {machine_type}",
                where=f"gce {region}",
                hint="Are the names right? `gcloud compute machine-types list` shows them.",
            )
        return next(iter(found.values()))

    def _find_image(self, region: str, found: Any) -> str:
        architecture = _architecture(found)
        if not found.accelerators:
            return f"projects/ubuntu-os-cloud/global/images/family/{_IMAGES[architecture]}"
        prefix = _GPU_IMAGES[architecture]
        request = {"filter": f'name eq "{prefix}.*"'}
        client = self._client("images")
        images = [
            one
            for one in client.list(request={"project": _GPU_PROJECT, **request}, retry=None, timeout=_CALL)
            if not one.deprecated.state
        ]
        if not images:
            raise CloudError(
                f"{_GPU_PROJECT} has no image called {prefix}*",
                where=f"gce {region}",
                hint="Name one that has NVIDIA's driver: GCE(..., image='projects/.../images/...').",
            )
        newest = max(images, key=lambda one: (one.creation_timestamp, one.name))
        return f"projects/{_GPU_PROJECT}/global/images/{newest.name}"

    def _delete_rules(self, group: str) -> None:
        """Delete the rules; that which keeps others out last: by it the group is found."""
        for name in ("ssh", "ssh6", "in", "none"):
            with but_for("notFound"):
                operation = self._call("firewalls", "delete_unary", firewall=f"{group}-{name}")
                self._done("global_operations", operation)


def _architecture(machine_type: Any) -> str:
    """Return whose images a type takes: older types do not say."""
    said = str(machine_type.architecture)
    return said if said in _IMAGES else "X86_64"
