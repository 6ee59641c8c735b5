"""What is sent to Azure's Resource Manager: plain JSON, as its documentation has it. Pure."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError
from envsync.runner.cloud.labels import as_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import MachineRequest, Tags

__all__ = [
    "ADMIN",
    "CREATED",
    "FIREWALL",
    "MACHINES",
    "NETWORK",
    "as_azure_tags",
    "check_arguments",
    "firewall",
    "group_of",
    "image_reference",
    "machine_name",
    "machine_to_make",
    "network",
    "region_name",
]

ADMIN = "envsyncadmin"
"""Azure wants to know who may log in and become root; cloud-init makes it, with the cluster's key."""
CREATED = "envsync:created"
"""A tag: Azure does not say when a resource group was made."""
MACHINES, FIREWALL, NETWORK = "envsync-machines", "envsync-firewall", "envsync-network"
_ADDRESSES = "10.89.0.0/16"  # of a network that is the cluster's own and joined to no other
_ALL = "0.0.0.0/0"
_DISK = "StandardSSD_LRS"  # what every type can have
_FORBIDDEN = re.compile(r"[<>%&\\?/]|^(microsoft|azure|windows)", re.IGNORECASE)
_LONGEST_KEY, _LONGEST_VALUE, _MOST = 512, 256, 50


def region_name(name: str) -> str:
    """Return a region's name as Azure writes it in identities: ``"West Europe"`` is ``"westeurope"``."""
    return re.sub(r"\s", "", name).lower()


def group_of(cluster: str, region: str) -> str:
    """Return the name of a cluster's resource group in a region."""
    return as_name(f"envsync-{cluster}-{region}", longest=80)


def machine_name(cluster: str, token: str) -> str:
    """Return the name of a request's machine: there are no two of a name in a resource group."""
    return as_name(f"envsync-{cluster}-{token[:12]}")


def check_arguments(
    regions: Sequence[str],
    image: str,
    subnet: str,
    identity: str,
    *,
    public: bool,
) -> None:
    """Refuse what cannot be right, before Azure is asked for anything.

    Parameters
    ----------
    regions, image, subnet, identity, public
        As `AzureProvider` has them.

    Raises
    ------
    CloudError
        Something is wrong.
    """

    def refused(text: str, hint: str) -> CloudError:
        return CloudError(text, where="azure", hint=hint)

    if not regions:
        hint = "Name one: Azure(..., region='westeurope'), --region, or set AZURE_DEFAULTS_LOCATION."
        raise refused("no region is given", hint)
    for region in regions:
        if not re.fullmatch(r"[a-z0-9]+", region):
            hint = "`az account list-locations --query '[].name'` shows them: westeurope."
            raise refused(f"{region!r} is no region", hint)
    if image and not re.fullmatch(r"/.+|[^/:\s]+(:[^/:\s]+){3}", image):
        raise refused(
            f"{image!r} is no image", "Write publisher:offer:sku:version, or an id that begins with /."
        )
    if subnet and not re.fullmatch(r"(?i)/subscriptions/.+/virtualNetworks/[^/]+/subnets/[^/]+", subnet):
        raise refused(f"{subnet!r} is no subnet's id", "`az network vnet subnet show --query id` shows it.")
    if identity and not identity.lower().startswith("/subscriptions/"):
        raise refused(f"{identity!r} is no identity's id", "`az identity show --query id` shows it.")
    if not (public or subnet):
        raise refused(
            "machines without public addresses, in a network of their own, cannot be reached",
            "Name a subnet that you reach: Azure(..., private=True, subnet='/subscriptions/...').",
        )


# -- tags


def as_azure_tags(tags: Tags) -> dict[str, str]:
    """Return tags as Azure takes them; ``Name`` is left out, as resources have names.

    Raises
    ------
    CloudError
        One of the user's own cannot be one at Azure.
    """
    given = {key: value for key, value in tags.to_dict().items() if key != "Name"}
    wrong = [
        key
        for key, value in given.items()
        if not key or _FORBIDDEN.search(key) or len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE
    ]
    twice = len({key.lower() for key in given}) < len(given)
    if wrong or twice or len(given) >= _MOST:
        said = (
            f"{', '.join(wrong)} cannot be a tag" if wrong else "a tag is there twice, or there are too many"
        )
        raise CloudError(
            f"{said} at Azure",
            where="azure",
            hint="Names have none of <>%&\\?/, and do not begin with microsoft, azure or windows; small and "
            f"capital letters are the same. Values have at most {_LONGEST_VALUE} characters.",
        )
    return given


# -- what is made


def firewall(
    region: str, tags: Mapping[str, str], machines: str, reached_from: Sequence[str]
) -> dict[str, Any]:
    """Return what may reach the machines: ssh from where the user said, themselves, and nothing else.

    Parameters
    ----------
    region, tags
        Of the security group.
    machines : str
        The id of the application security group that all machines of the cluster are in.
    reached_from : sequence of str
        Networks.
    """
    themselves = [{"id": machines}]
    anywhere = {"sourcePortRange": "*", "destinationAddressPrefix": "*", "direction": "Inbound"}
    old, new = ([one for one in reached_from if (":" in one) == six] for six in (False, True))
    rules: list[tuple[str, dict[str, Any]]] = [
        (
            name,
            {
                **anywhere,
                "priority": priority,
                "access": "Allow",
                "protocol": "Tcp",
                # everybody has a word of its own, which a list may not have in it
                **({"sourceAddressPrefix": "*"} if _ALL in sources else {"sourceAddressPrefixes": sources}),
                "destinationPortRange": "22",
            },
        )
        for name, priority, sources in (("ssh", 100, old), ("ssh6", 110, new))
        if sources
    ]
    rules.append(
        (
            "themselves",
            {
                "priority": 200,
                "direction": "Inbound",
                "access": "Allow",
                "protocol": "*",
                "sourceApplicationSecurityGroups": themselves,
                "sourcePortRange": "*",
                "destinationApplicationSecurityGroups": themselves,
                "destinationPortRange": "*",
            },
        )
    )
    none = {"priority": 4096, "access": "Deny", "protocol": "*", "sourceAddressPrefix": "*"}
    rules.append(("none", {**anywhere, **none, "destinationPortRange": "*"}))
    return {
        "location": region,
        "tags": dict(tags),
        "properties": {"securityRules": [{"name": name, "properties": rule} for name, rule in rules]},
    }


def network(region: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Return the cluster's own network, of one subnet."""
    return {
        "location": region,
        "tags": dict(tags),
        "properties": {
            "addressSpace": {"addressPrefixes": [_ADDRESSES]},
            "subnets": [{"name": MACHINES, "properties": {"addressPrefix": _ADDRESSES}}],
        },
    }


def machine_to_make(
    request: MachineRequest, *, path: str, subnet: str, identity: str, public: bool
) -> dict[str, Any]:
    """Return the virtual machine to make, with its interface, address and disk, which go with it.

    Parameters
    ----------
    request : MachineRequest
        What is asked for.
    path : str
        The id of what is in the cluster's resource group, up to the kind.
    subnet : str
        The subnet's id.
    identity : str
        The id of a managed identity; empty for none.
    public : bool
        Whether it has a public address.
    """
    region, spot = request.shared.region, request.market == "spot"
    name, tags = machine_name(request.tags.cluster, request.token), as_azure_tags(request.tags)
    machines = f"{path}/Microsoft.Network/applicationSecurityGroups/{MACHINES}"
    address: dict[str, Any] = {
        "primary": True,
        "subnet": {"id": subnet},
        "applicationSecurityGroups": [{"id": machines}],
    }
    if public:
        address["publicIPAddressConfiguration"] = {
            "name": name,
            "tags": tags,
            "sku": {"name": "Standard", "tier": "Regional"},
            "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
        }
    interface = {
        "name": name,
        "tags": tags,
        "properties": {
            "primary": True,
            "deleteOption": "Delete",
            "networkSecurityGroup": {"id": f"{path}/Microsoft.Network/networkSecurityGroups/{FIREWALL}"},
            "ipConfigurations": [{"name": name, "properties": address}],
        },
    }
    disk: dict[str, Any] = {
        "name": name,
        "createOption": "FromImage",
        "deleteOption": "Delete",
        "managedDisk": {"storageAccountType": _DISK},
    }
    if request.disk:
        disk["diskSizeGB"] = request.disk
    key = {"path": f"/home/{ADMIN}/.ssh/authorized_keys", "keyData": request.shared.key}
    made: dict[str, Any] = {
        "location": region,
        "tags": tags,
        "properties": {
            "hardwareProfile": {"vmSize": request.type},
            "storageProfile": {"imageReference": image_reference(request.shared.image), "osDisk": disk},
            "osProfile": {
                "computerName": name,
                "adminUsername": ADMIN,
                "customData": base64.b64encode(request.user_data.encode()).decode(),
                "linuxConfiguration": {"disablePasswordAuthentication": True, "ssh": {"publicKeys": [key]}},
            },
            # with it the interface and its address are made in this one call
            "networkProfile": {
                "networkApiVersion": "2022-11-01",
                "networkInterfaceConfigurations": [interface],
            },
            "diagnosticsProfile": {"bootDiagnostics": {"enabled": True}},
        },
    }
    if request.zone and request.zone != region:
        made["zones"] = [request.zone.rpartition("-")[2]]
    if spot:
        made["properties"] |= {
            "priority": "Spot",
            "evictionPolicy": "Delete",
            "billingProfile": {"maxPrice": -1},  # up to the price on demand
        }
    if identity:
        made["identity"] = {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
    return made


def image_reference(image: str) -> dict[str, str]:
    """Return an image as a machine names it.

    Parameters
    ----------
    image : str
        ``"publisher:offer:sku:version"``, or an id that begins with ``/``.
    """
    if not image.startswith("/"):
        return dict(zip(("publisher", "offer", "sku", "version"), image.split(":"), strict=True))
    first = image.split("/")[1].lower()
    return {
        {"communitygalleries": "communityGalleryImageId", "sharedgalleries": "sharedGalleryImageId"}.get(
            first, "id"
        ): image
    }
