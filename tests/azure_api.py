"""Azure's Resource Manager, as far as envsync calls it; its token service, boot diagnostics and prices.

The SDK's own models say which fields there are: one that they do not know is an error. What is made is there
at once and not ready at the first look; what is deleted is gone at the next one, if nobody says else.
"""

from __future__ import annotations

import base64
import itertools
import re
import ssl
import time
from pathlib import Path
from typing import Any

from envsync.runner.tls import Authority
from tests.azure_models import unknown_field
from tests.azure_refusal import refusal
from tests.azure_schedules import SCHEDULES, Schedules
from tests.http_cloud import Call, HttpCloud, Refused

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
SECRET, TOKEN = "the-header-of-the-identity", "the-token-of-the-tests"
REGIONS = {"westeurope": ("1", "2", "3"), "northcentralus": ()}
_SMALL = {"CpuArchitectureType": "x64", "HyperVGenerations": "V1,V2"}
TYPES: dict[str, dict[str, str]] = {
    "Standard_D4s_v5": _SMALL,
    "Standard_D4ps_v6": {"CpuArchitectureType": "Arm64", "HyperVGenerations": "V2"},
    "Standard_NC4as_T4_v3": {**_SMALL, "GPUs": "1"},
    "Standard_D2_v2": {**_SMALL, "HyperVGenerations": "V1"},
    "Standard_B2s": {**_SMALL, "LowPriorityCapable": "False"},
}
_MACHINE = "Microsoft.Compute/virtualMachines"
_NETWORKS = "Microsoft.Network/virtualNetworks"
_INTERFACES, _ADDRESSES = "Microsoft.Network/networkInterfaces", "Microsoft.Network/publicIPAddresses"
_GROUPS = "Microsoft.Network/networkSecurityGroups"
_APPLICATIONS = "Microsoft.Network/applicationSecurityGroups"
_DISKS = "Microsoft.Compute/disks"
# what Azure's documentation says is needed besides
_IMPLIED = {
    f"{_MACHINE}/write": [
        f"{_DISKS}/write",
        f"{_INTERFACES}/write",
        f"{_INTERFACES}/join/action",
        f"{_ADDRESSES}/write",
        f"{_ADDRESSES}/join/action",
        f"{_NETWORKS}/subnets/join/action",
        f"{_GROUPS}/join/action",
        f"{_APPLICATIONS}/joinIpConfiguration/action",
    ],
    f"{_MACHINE}/delete": [f"{_DISKS}/delete", f"{_INTERFACES}/delete", f"{_ADDRESSES}/delete"],
    f"{_GROUPS}/write": [f"{_APPLICATIONS}/joinNetworkSecurityRule/action"],
}
_TAG = re.compile(r"[^<>%&\\?/]{1,512}")


class AzureApi(HttpCloud):
    """One subscription.

    Parameters
    ----------
    folder : Path
        Where the certificate is put that its clients have to trust.

    Attributes
    ----------
    groups, resources : dict
        What there is: resource groups by name, all else by its id.
    consoles : dict of str to str
        What machines have written.
    says : str
        What others have.
    shortages : list of (str, str)
        What the next machines come to after Azure has begun to make them.
    lingers : bool
        Whether machines and groups that are deleted are seen once more.
    leaks : list of str
        Paths to which credentials were sent that have no business there.
    role : frozenset of str or None
        The actions that the identity may do, as a role's definition has them; None for all.
    authorised : set of str
        The actions that were needed since there is a role.
    registered : set of str
        The resource providers that the subscription is registered to use, of those that it may not be.
    clock : float
        What time it is there; `pass_time` moves it.
    """

    def __init__(self, folder: Path) -> None:
        from azure.mgmt.compute import models as compute
        from azure.mgmt.network import models as network

        self._models = {
            _MACHINE: compute.VirtualMachine,
            _NETWORKS: network.VirtualNetwork,
            _GROUPS: network.NetworkSecurityGroup,
            _APPLICATIONS: network.ApplicationSecurityGroup,
        }
        authority = Authority("azure")
        mine = authority.issue("scheduler", ["127.0.0.1"])
        self._trusted, chain = folder / "ca.pem", folder / "azure.pem"
        self._trusted.write_text(mine.ca)
        chain.write_text(mine.cert + mine.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        super().__init__(context)
        self.groups: dict[str, dict[str, Any]] = {}
        self.resources: dict[str, dict[str, Any]] = {}
        self.consoles: dict[str, str] = {}
        self.says = ""
        self.shortages: list[tuple[str, str]] = []
        self.restricted: list[dict[str, Any]] = []
        self.prices: list[dict[str, Any]] = []
        self.lingers = False
        self.leaks: list[str] = []
        self.role: frozenset[str] | None = None
        self.authorised: set[str] = set()
        self.registered = {"Microsoft.DevTestLab"}
        self.clock = 1795932000.0
        self._schedules = Schedules(self.resources)
        self._numbers, self._operations = itertools.count(1), itertools.count(1)
        self._headers: dict[int, dict[str, str]] = {}

    def variables(self) -> dict[str, str]:
        return {
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "IDENTITY_ENDPOINT": f"{self.url}/token",
            "IDENTITY_HEADER": SECRET,
            "REQUESTS_CA_BUNDLE": str(self._trusted),
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "AZURE_RESOURCE_MANAGER_ENDPOINT": self.url,
            "AZURE_RETAIL_PRICES_ENDPOINT": f"{self.url}/prices",
        }

    def left(self) -> list[str]:
        """Return the ids of all that is there."""
        return sorted([*self.groups, *self.resources])

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return the machines by their names."""
        return {one["name"]: one for one in self._of(_MACHINE)}

    def now(self) -> float:
        return self.clock

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and schedules do what they are for."""
        with self._lock:
            self.clock += seconds
            self._schedules.run(self.clock)

    def more_headers(self, call: Call, status: int) -> dict[str, str]:
        return self._headers.pop(id(call), {})

    def answer(self, call: Call) -> tuple[int, Any]:
        if call.path == "/token":
            assert call.headers["x-identity-header"] == SECRET
            return 200, {"access_token": TOKEN, "expires_on": str(int(time.time()) + 86400)}
        if call.path.startswith(("/console/", "/prices")):
            return self._in_public(call)
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            raise refusal("InvalidAuthenticationToken", "The access token is invalid.", 401)
        assert call.query["api-version"]
        match = re.fullmatch(rf"/subscriptions/{SUBSCRIPTION}(/.*)", call.path)
        if match is None:
            raise refusal("SubscriptionNotFound", "The subscription could not be found.", 404)
        parts = [part for part in match[1].split("/") if part]
        parts[0] = parts[0].lower()
        self._authorise(call.method, parts)
        match (call.method, parts):
            case "GET", ["operations", _]:
                return 200, {"status": "Succeeded"}
            case "GET", ["providers", "Microsoft.Compute"]:
                shown = ["West Europe", "North Central US"]
                kinds = [{"resourceType": "virtualMachines", "locations": shown}]
                return 200, {"namespace": "Microsoft.Compute", "resourceTypes": kinds}
            case "GET", ["providers", "Microsoft.Compute", "skus"]:
                return 200, {"value": self._skus(call.query["$filter"])}
            case "GET", ["providers", "Microsoft.Compute", "virtualMachines"]:
                only = call.query.get("statusOnly") == "true"
                return 200, {"value": [self._shown(one, only=only) for one in self._of(_MACHINE)]}
            case "GET", ["resourcegroups"]:
                tag = re.fullmatch(r"tagName eq '(.*)'", call.query["$filter"])
                assert tag
                found = [self._group(name) for name in list(self.groups)]
                return 200, {"value": [one for one in found if one and tag[1] in one.get("tags", {})]}
            case method, ["resourcegroups", name]:
                return self._in_groups(method, name.lower(), call)
            case "GET", ["resourcegroups", name, "resources"]:
                self._need(name)
                return 200, {"value": [one for one in self.resources.values() if _group_of(one) == name]}
            case method, ["resourcegroups", name, "providers", space, kind, *rest]:
                self._need(name.lower())
                return self._in_group(method, name.lower(), f"{space}/{kind}", rest, call)
        raise refusal("NotFound", f"no such call: {call.method} {call.path}", 404)

    def _authorise(self, method: str, parts: list[str]) -> None:
        if self.role is None:
            return
        verb = {"PUT": "write", "DELETE": "delete"}.get(method, "read")
        match parts:
            case ["providers", _]:
                needed = ["Microsoft.Resources/subscriptions/providers/read"]
            case ["providers", space, kind]:
                needed = [f"{space}/{kind}/read"]
            case ["resourcegroups", _, "providers", space, kind, _, action]:
                needed = [f"{space}/{kind}/{action}/action"]
            case ["resourcegroups", _, "providers", space, kind, *_]:
                needed = [f"{space}/{kind}/{verb}"]
                needed += _IMPLIED.get(needed[0], ())
            case _:
                needed = ["/".join(["Microsoft.Resources/subscriptions/resourceGroups", *parts[2:], verb])]
        self.authorised.update(needed)
        lacking = [one for one in needed if one not in self.role]
        if lacking:
            raise refusal("AuthorizationFailed", f"no authorization to perform {', '.join(lacking)}", 403)

    def _in_public(self, call: Call) -> tuple[int, Any]:
        if "authorization" in call.headers:
            self.leaks.append(call.path)
        if call.path == "/prices":
            wanted = re.findall(r"(\w+) eq '([^']*)'", call.query["$filter"])
            found = [one for one in self.prices if all(one.get(key) == value for key, value in wanted)]
            return 200, {"Items": found}
        said = self.consoles.get(call.path.rpartition("/")[2], self.says)
        if call.query.get("sig") != "signature" or not said:
            raise Refused(404, "<Error><Code>BlobNotFound</Code></Error>")
        return 200, said

    def _in_groups(self, method: str, name: str, call: Call) -> tuple[int, Any]:
        if method == "PUT":
            self._check_tags(call.body)
            body = {**call.body, "name": name, "properties": {"provisioningState": "Succeeded"}}
            self.groups[name] = {"id": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{name}", **body}
            return 201, self.groups[name]
        found = self._need(name)
        if method == "DELETE":
            found["properties"]["provisioningState"] = "Deleting"
            found["looks"] = 1 if self.lingers else 0
            return self._begun(call, 202, "")
        return 200, {key: value for key, value in found.items() if key != "looks"}

    def _in_group(self, method: str, group: str, kind: str, rest: list[str], call: Call) -> tuple[int, Any]:
        if not rest:
            return 200, {"value": [self._shown(one) for one in self._of(kind) if _group_of(one) == group]}
        identity = self._id(group, kind, rest[0])
        found = self.resources.get(identity)
        if found is not None and found.get("gone"):
            del self.resources[identity]
            found = None
        if method == "PUT" and kind == SCHEDULES:
            if "Microsoft.DevTestLab" not in self.registered:
                said = "The subscription is not registered to use namespace 'Microsoft.DevTestLab'."
                raise refusal("MissingSubscriptionRegistration", said)
            self._check_tags(call.body)
            return self._schedules.put(identity, rest[0], call.body, self.clock)
        if method == "PUT":
            return self._put(group, kind, rest[0], call)
        if found is None:
            raise refusal("ResourceNotFound", f"The Resource '{kind}/{rest[0]}' was not found.", 404)
        if rest[1:] == ["retrieveBootDiagnosticsData"]:
            link = f"{self.url}/console/{rest[0]}?sig=signature"
            return 200, {"serialConsoleLogBlobUri": link}
        if method == "DELETE":
            self._delete(identity, found)
            return self._begun(call, 202, "")
        shown = self._shown(found, view=call.query.get("$expand") == "instanceView")
        self._come_up(found)
        return 200, shown

    def _put(self, group: str, kind: str, name: str, call: Call) -> tuple[int, Any]:
        identity = self._id(group, kind, name)
        model = self._models[kind]
        if unknown := unknown_field(call.body, model, kind):
            raise refusal("InvalidRequestContent", f"Could not find member {unknown}", 400)
        self._check_tags(call.body)
        for rule in call.body.get("properties", {}).get("securityRules", ()):
            said = rule["properties"]
            listed = said.get("sourceAddressPrefixes", [])
            if (
                "*" in listed
                or len({":" in one for one in listed}) > 1
                or ("sourceAddressPrefix" in said and listed)
            ):
                raise refusal("SecurityRuleInvalidAddressPrefix", rule["name"], 400)
        for rule in call.body.get("properties", {}).get("securityRules", ()):
            for one in rule["properties"].get("sourceAddressPrefixes", ()):
                if not re.fullmatch(r"[\da-f.:]+(/\d+)?", one):
                    said = f"Security rule has invalid Address prefix. Value provided: {one}"
                    raise refusal("SecurityRuleInvalidAddressPrefix", said, 400)
        disk = call.body.get("properties", {}).get("storageProfile", {}).get("osDisk", {})
        if 0 < disk.get("diskSizeGB", 0) < 30:
            said = (
                "The specified disk size is smaller than the size of the corresponding disk in the VM image"
            )
            raise refusal("OperationNotAllowed", f"{said}: 30 GB. This is not allowed.")
        if call.body["location"] not in REGIONS:
            raise refusal("LocationNotAvailableForResourceType", status=400)
        if identity in self.resources and call.headers.get("if-none-match") == "*":
            raise refusal("PreconditionFailed", "The condition was not met.", 412)
        made = {**call.body, "id": identity, "name": name, "type": kind}
        made["properties"] = {**call.body.get("properties", {}), "provisioningState": "Updating"}
        if kind == _MACHINE:
            made["properties"]["provisioningState"] = "Creating"
            self._make(group, name, made)
        status = 200 if identity in self.resources else 201
        self.resources[identity] = made
        return self._begun(call, status, self._shown(made))

    def _make(self, group: str, name: str, made: dict[str, Any]) -> None:
        inner = made["properties"]
        size, zones = inner["hardwareProfile"]["vmSize"], made.get("zones", [])
        if size not in TYPES:
            raise refusal("InvalidParameter", f"The value {size} of parameter 'vmSize' is invalid.", 400)
        if inner.get("priority") == "Spot" and TYPES[size].get("LowPriorityCapable") == "False":
            raise refusal("OperationNotAllowed", f"The VM size {size} does not support Azure Spot.")
        if not set(zones) <= set(REGIONS[made["location"]]):
            raise refusal("InvalidAvailabilityZone", f"The zones {zones} are not supported.", 400)
        image = inner["storageProfile"]["imageReference"]
        if image.get("publisher") not in (None, "Canonical", "microsoft-dsvm"):
            raise refusal("PlatformImageNotFound", "The platform image is not available.", 404)
        assert base64.b64decode(inner["osProfile"]["customData"], validate=True)
        made["failure"] = self.shortages.pop(0) if self.shortages else None
        made["power"] = "starting"
        inner["timeCreated"] = "2026-11-29T06:00:00.1234567+00:00"
        number = next(self._numbers)
        (interface,) = inner["networkProfile"]["networkInterfaceConfigurations"]
        (address,) = interface["properties"]["ipConfigurations"]
        for needed in (
            interface["properties"]["networkSecurityGroup"]["id"],
            address["properties"]["subnet"]["id"].partition("/subnets/")[0],
            *(one["id"] for one in address["properties"]["applicationSecurityGroups"]),
        ):
            if needed not in self.resources:
                raise refusal("NotFound", f"{needed} was not found.", 404)
        shown: dict[str, Any] = {"privateIPAddress": f"10.89.0.{number + 3}"}
        asked = address["properties"].get("publicIPAddressConfiguration")
        if asked:
            public = {"ipAddress": f"127.255.0.{number}"}
            outer = self._add(group, _ADDRESSES, f"{asked['name']}-{number}", asked, public)
            shown["publicIPAddress"] = {"id": outer.upper()}  # it writes ids as it likes
        values = {
            "virtualMachine": {"id": self._id(group.upper(), _MACHINE, name)},
            "ipConfigurations": [{"name": "x", "properties": shown}],
        }
        self._add(group, _INTERFACES, f"{interface['name']}-{number}", interface, values)
        disk = inner["storageProfile"]["osDisk"]
        self._add(group, _DISKS, disk["name"], {"tags": made["tags"]}, {})

    def _add(self, group: str, kind: str, name: str, asked: dict[str, Any], values: dict[str, Any]) -> str:
        identity = self._id(group, kind, name)
        made = {"id": identity, "name": name, "type": kind, "tags": asked.get("tags", {})}
        self.resources[identity] = {**made, "properties": values}
        return identity

    def _come_up(self, found: dict[str, Any]) -> None:
        """Have it made by the next look."""
        inner = found["properties"]
        if inner["provisioningState"] in ("Creating", "Updating"):
            inner["provisioningState"] = "Failed" if found.get("failure") else "Succeeded"
            if "power" in found:
                found["power"] = "" if found.get("failure") else "running"

    def _delete(self, identity: str, found: dict[str, Any]) -> None:
        name = found["name"]
        if found["type"] == _MACHINE:  # with what is deleted with it
            (interface,) = found["properties"]["networkProfile"]["networkInterfaceConfigurations"]
            (address,) = interface["properties"]["ipConfigurations"]
            public = address["properties"].get("publicIPAddressConfiguration", {})
            goes = {
                _INTERFACES: interface["properties"]["deleteOption"],
                _ADDRESSES: public.get("properties", {}).get("deleteOption"),
                _DISKS: found["properties"]["storageProfile"]["osDisk"]["deleteOption"],
            }
            for other, one in list(self.resources.items()):
                if one["name"].startswith(name) and goes.get(one["type"]) == "Delete":
                    del self.resources[other]
            if self.lingers:
                found["properties"]["provisioningState"] = "Deleting"
                found["gone"] = True
                return
        del self.resources[identity]

    def _shown(self, found: dict[str, Any], *, view: bool = False, only: bool = False) -> dict[str, Any]:
        """Return a resource; a machine's view when it is asked for, and nothing else if that alone is."""
        inner = {key: value for key, value in found["properties"].items() if key != "osProfile"}
        if view or only:
            made = inner["provisioningState"].lower()
            failure = found.get("failure")
            statuses = [{"code": f"ProvisioningState/{made}", "level": "Info"}]
            if failure and made == "failed":
                statuses = [{"code": f"ProvisioningState/failed/{failure[0]}", "message": failure[1]}]
            if found["power"]:
                statuses.append({"code": f"PowerState/{found['power']}", "level": "Info"})
            inner["instanceView"] = {"statuses": statuses}
        if only:
            return {"id": found["id"].upper(), "name": found["name"], "properties": inner}
        hidden = ("failure", "power", "gone", "due")
        return {**{key: value for key, value in found.items() if key not in hidden}, "properties": inner}

    def _of(self, kind: str) -> list[dict[str, Any]]:
        found = [one for one in self.resources.values() if one["type"] == kind]
        for one in [one for one in found if one.get("gone")]:
            if one["gone"] is True:  # it is seen once more
                one["gone"] = 1
            else:
                del self.resources[one["id"]]
        return [one for one in found if one["id"] in self.resources]

    def _need(self, name: str) -> dict[str, Any]:
        found = self._group(name)
        if found is None:
            raise refusal("ResourceGroupNotFound", f"Resource group '{name}' could not be found.", 404)
        return found

    def _group(self, name: str) -> dict[str, Any] | None:
        found = self.groups.get(name)
        if found is not None and "looks" in found:
            if found["looks"]:
                found["looks"] -= 1
                return found
            del self.groups[name]
            for one in [one for one in self.resources.values() if _group_of(one) == name]:
                del self.resources[one["id"]]
            return None
        return found

    def _id(self, group: str, kind: str, name: str) -> str:
        return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/{kind}/{name}"

    def _begun(self, call: Call, status: int, body: Any) -> tuple[int, Any]:
        """Answer as for what takes a while."""
        link = f"{self.url}/subscriptions/{SUBSCRIPTION}/operations/{next(self._operations)}?api-version=1"
        self._headers[id(call)] = {"Azure-AsyncOperation": link, "Location": link, "Retry-After": "10"}
        return status, body

    def _check_tags(self, body: dict[str, Any]) -> None:
        tags = body["tags"]
        wrong = [key for key, value in tags.items() if not _TAG.fullmatch(key) or len(value) > 256]
        if wrong or len(tags) > 50 or len({key.lower() for key in tags}) < len(tags):
            raise refusal("InvalidTagNameCharacters", f"The tag names {wrong} are not supported.", 400)

    def _skus(self, wanted: str) -> list[dict[str, Any]]:
        region = wanted.removeprefix("location eq '").removesuffix("'")
        if region not in REGIONS:
            return []
        return [
            {
                "resourceType": "virtualMachines",
                "name": name,
                "locations": [region],
                "locationInfo": [{"location": region, "zones": list(REGIONS[region])[::-1]}],
                "capabilities": [{"name": key, "value": value} for key, value in can.items()],
                "restrictions": self.restricted,
            }
            for name, can in TYPES.items()
        ] + [{"resourceType": "disks", "name": "StandardSSD_LRS", "locations": [region]}]


def _group_of(one: dict[str, Any]) -> str:
    return str(one["id"]).split("/")[4].lower()


def price(service: str, name: str, amount: float, product: str, **more: Any) -> dict[str, Any]:
    """Return a line of the list of prices."""
    return {
        "serviceName": service,
        "priceType": "Consumption",
        "armRegionName": "westeurope",
        "skuName": name,
        "retailPrice": amount,
        "currencyCode": "USD",
        "unitOfMeasure": "1 Hour",
        "productName": product,
        "effectiveStartDate": "2026-10-01T00:00:00Z",
        **more,
    }
