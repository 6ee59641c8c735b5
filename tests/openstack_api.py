"""OpenStack's interfaces, as far as envsync calls them, by its API references of 2026.

Nova can be a real one (`tests.lab.nova`): calls are passed on to it then, and it says which ports it makes.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import urllib.error
import urllib.request
import uuid
from typing import Any
from urllib.parse import urlencode

from tests.http_cloud import Call, HttpCloud, Refused

PASSWORD = "c4n4ry0fTheOpenStackTests"
TOKEN = "c4n4ryT0ken"
PROJECT = "6f70656e737461636b20342065766572"  # as nova's own fixtures call theirs
ELSEWHERE = "0" * 32
INNER, PUBLIC = "3cb9bc59-5699-4588-a4b1-b87f96708bc6", "11111111-5699-4588-a4b1-b87f96708bc6"
IMAGE = "155d900f-4e14-4e4c-a73d-069cbf4541e6"  # one of those that nova's own fixtures have
FLAVORS = {"m1.small": 20, "g1.large": 20}
ZONES = ("az1", "az2")
_LONGEST = 255

Image = tuple[str, str, str, str, str]
IMAGES: tuple[Image, ...] = (  # id, name, created, whose, who sees it
    ("old", "debian-12-genericcloud-amd64", "2025-01-01T00:00:00Z", ELSEWHERE, "public"),
    (IMAGE, "debian-12-genericcloud-amd64-20260901", "2026-09-01T00:00:00Z", ELSEWHERE, "public"),
    ("arm", "debian-12-genericcloud-arm64-20260901", "2026-09-02T00:00:00Z", ELSEWHERE, "public"),
    ("docker", "Debian 12 with Docker", "2026-09-03T00:00:00Z", ELSEWHERE, "public"),
    ("bait", "Debian 12", "2026-09-04T00:00:00Z", ELSEWHERE, "shared"),
    ("noble", "Ubuntu 24.04 LTS", "2026-09-05T00:00:00Z", ELSEWHERE, "public"),
    ("mine1", "mine", "2026-09-05T00:00:00Z", PROJECT, "private"),
    ("mine2", "mine", "2026-09-06T00:00:00Z", PROJECT, "private"),
)


def nova_refusal(status: int, message: str) -> Refused:
    """Return an error as nova says it."""
    kind = {400: "badRequest", 403: "forbidden", 404: "itemNotFound", 409: "conflictingRequest"}
    return Refused(status, {kind.get(status, "computeFault"): {"code": status, "message": message}})


def neutron_refusal(status: int, kind: str, message: str) -> Refused:
    """Return an error as neutron says it."""
    return Refused(status, {"NeutronError": {"type": kind, "message": message, "detail": ""}})


_UNKNOWN = Refused(
    401, {"error": {"code": 401, "message": "The request you have made requires authentication."}}
)


class OpenStackApi(HttpCloud):
    """One project in two regions. Servers that are deleted are gone at once, but for a real nova's.

    Attributes
    ----------
    nova : str
        The address of a real nova; empty: nova is imitated, too.
    lacking : set of str
        Zones in which no host is found for a server.
    networks : list of dict
        What neutron has.
    images : tuple of Image
        What glance has.
    console : str
        What servers that are made from now on say there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nova = ""
        self.lacking: set[str] = set()
        self.images = IMAGES
        self.console = ""
        self.servers: dict[str, dict[str, Any]] = {}
        kinds = ("security-groups", "floatingips", "ports")
        self.kept: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in kinds}
        self.networks = [
            {"id": INNER, "name": "inner", "project_id": PROJECT, "router:external": False},
            {"id": PUBLIC, "name": "public", "project_id": ELSEWHERE, "router:external": True},
        ]
        self._numbers = itertools.count(10)

    def variables(self) -> dict[str, str]:
        return {
            "OS_AUTH_URL": f"{self.url}/identity/v3",
            "OS_USERNAME": "ada",
            "OS_PASSWORD": PASSWORD,
            "OS_PROJECT_NAME": "p",
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": "R1",
            "OS_CLIENT_CONFIG_FILE": "/nonexistent/clouds.yaml",
        }

    def left(self) -> dict[str, list[str]]:
        """Return the ids of what is there, by kind."""
        kept = {"servers": self.servers, **self.kept}
        return {kind: sorted(there) for kind, there in kept.items() if there}

    def answer(self, call: Call) -> tuple[int, Any]:
        _, service, *rest = call.path.rstrip("/").split("/")
        if service == "identity":
            return self._identity(call, rest)
        if call.headers.get("x-auth-token", TOKEN if len(rest) < 2 else "") != TOKEN:
            raise _UNKNOWN
        return {"compute": self._compute, "network": self._network, "image": self._image}[service](call, rest)

    def more_headers(self, call: Call, status: int) -> dict[str, str]:
        return {"X-Subject-Token": TOKEN} if call.path.endswith("/auth/tokens") and status == 201 else {}

    # -- keystone and glance

    def _identity(self, call: Call, rest: list[str]) -> tuple[int, Any]:
        version = {"id": "v3.14", "status": "stable", "links": self._self("/identity/v3/")}
        if not rest:
            return 300, {"versions": {"values": [version]}}
        if rest == ["v3"]:
            return 200, {"version": version}
        given = call.body["auth"]["identity"]["password"]["user"]
        if given["password"] != PASSWORD:
            raise _UNKNOWN
        places = {"compute": "/compute/v2.1", "network": "/network", "image": "/image"}
        catalog = [
            {
                "type": kind,
                "name": kind,
                "id": kind,
                "endpoints": [
                    {"interface": "public", "region": one, "region_id": one, "url": self.url + path}
                    for one in ("R1", "R2")
                ],
            }
            for kind, path in places.items()
        ]
        domain = {"id": "default", "name": "Default"}
        return 201, {
            "token": {
                "methods": ["password"],
                "issued_at": "2026-11-29T06:00:00.000000Z",
                "expires_at": "2099-01-01T00:00:00.000000Z",
                "user": {"id": "ada", "name": given["name"], "domain": domain},
                "project": {"id": PROJECT, "name": "p", "domain": domain},
                "roles": [{"id": "m", "name": "member"}],
                "catalog": catalog,
            }
        }

    def _image(self, call: Call, rest: list[str]) -> tuple[int, Any]:
        if not rest:
            return 300, self._versions("v2.9", "/image/v2/")
        fields = ("id", "name", "created_at", "owner", "visibility")
        there = (dict(zip(fields, one, strict=True)) for one in self.images)
        return 200, {"images": [{**one, "status": "active"} for one in there]}

    # -- neutron

    def _network(self, call: Call, rest: list[str]) -> tuple[int, Any]:
        if not rest:
            return 200, self._versions("v2.0", "/network/v2.0/")
        kind, *named = rest[1:]
        name = kind.replace("-", "_")
        if kind == "networks":
            return 200, {name: self.networks}
        if kind == "security-group-rules":
            return 201, {"security_group_rule": self._make_rule(call.body["security_group_rule"])}
        kept = self.kept[kind]
        if not named and call.method == "GET":
            return 200, {name: [one for one in kept.values() if _fits(one, call.query)]}
        if not named:
            made = getattr(self, f"_make_{name}")(next(iter(call.body.values())))
            made = {**made, "project_id": PROJECT, "created_at": "2026-11-29T06:00:00Z"}
            kept[made["id"]] = made
            return 201, {name.removesuffix("s"): made}
        if named[0] not in kept:
            raise neutron_refusal(404, "NotFound", f"{kind} {named[0]} could not be found.")
        if call.method == "GET":
            return 200, {name.removesuffix("s"): kept[named[0]]}
        used = {group for one in self.kept["ports"].values() for group in one["security_groups"]}
        if kind == "security-groups" and named[0] in used:
            raise neutron_refusal(409, "SecurityGroupInUse", f"Security Group {named[0]} in use.")
        del kept[named[0]]
        if kind == "ports":
            for one in self.kept["floatingips"].values():
                one["port_id"] = None if one["port_id"] == named[0] else one["port_id"]
        return 204, {}

    def _make_security_groups(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._check(asked)
        return {"id": str(uuid.uuid4()), "security_group_rules": [], **asked}

    def _make_rule(self, asked: dict[str, Any]) -> dict[str, Any]:
        rules = self.kept["security-groups"][asked["security_group_id"]]["security_group_rules"]
        if asked in rules:
            raise neutron_refusal(409, "SecurityGroupRuleExists", "Security group rule already exists.")
        of_six = ":" in asked.get("remote_ip_prefix", "")
        if "remote_group_id" not in asked and of_six != (asked["ethertype"] == "IPv6"):
            raise neutron_refusal(400, "SecurityGroupRuleParameterConflict", "Conflicting value ethertype")
        rules.append(asked)
        return {"id": str(uuid.uuid4()), **asked}

    def _make_ports(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"id": str(uuid.uuid4()), **asked}

    def _make_floatingips(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._check(asked)
        if asked["port_id"] not in self.kept["ports"]:
            raise neutron_refusal(404, "PortNotFound", f"Port {asked['port_id']} could not be found.")
        address = f"203.0.113.{next(self._numbers)}"
        return {"id": str(uuid.uuid4()), "floating_ip_address": address, "status": "ACTIVE", **asked}

    def _check(self, asked: dict[str, Any]) -> None:
        for key in ("name", "description"):
            if len(asked.get(key, "")) > _LONGEST:
                raise neutron_refusal(400, "HTTPBadRequest", f"Invalid input for {key}: too long")

    # -- nova

    def _compute(self, call: Call, rest: list[str]) -> tuple[int, Any]:
        if self.nova:
            return self._passed_on(call)
        if len(rest) < 2:
            version = {"id": "v2.1", "status": "CURRENT", "version": "2.96", "min_version": "2.1"}
            return 200, {"version": {**version, "links": self._self("/compute/v2.1/")}}
        kind, *named = rest[1:]
        if kind == "flavors":
            return 200, {"flavors": [self._flavor(one) for one in FLAVORS]}
        if kind == "os-availability-zone":
            zones = {**dict.fromkeys(ZONES, True), "off": False}
            found = [{"zoneName": one, "zoneState": {"available": up}} for one, up in zones.items()]
            return 200, {"availabilityZoneInfo": found}
        if not named and call.method == "POST":
            return 202, {"server": {"id": self._make_server(call)}}
        if not named or named == ["detail"]:
            return 200, {"servers": [one for one in self.servers.values() if self._matches(one, call.query)]}
        one = self.servers.get(named[0])
        if one is None:
            raise nova_refusal(404, f"Instance {named[0]} could not be found.")
        if named[1:] == ["action"]:
            return 200, {"output": one["console"]}
        if call.method == "DELETE":
            del self.servers[named[0]]
            for port in [port for port in self.kept["ports"].values() if port["device_id"] == named[0]]:
                self._network(Call("DELETE", "", {}, None, {}), ["v2.0", "ports", port["id"]])
            return 204, {}
        self._moves_on(one)
        return 200, {"server": one}

    def _make_server(self, call: Call) -> str:
        asked = call.body["server"]
        microversion = float(call.headers["openstack-api-version"].split()[1].replace("2.", "", 1))
        assert microversion >= 52  # tags in the call that makes it
        if asked["flavorRef"] not in FLAVORS:
            raise nova_refusal(400, f"Flavor {asked['flavorRef']} could not be found.")
        if len(asked.get("user_data", "")) > 65535:
            raise nova_refusal(400, "Invalid input for field/attribute user_data. Value is too long")
        base64.b64decode(asked["user_data"], validate=True)
        for key, value in asked["metadata"].items():
            if not re.fullmatch(r"[a-zA-Z0-9-_:. ]{1,255}", key) or len(value) > _LONGEST:
                raise nova_refusal(400, f"Invalid input for field/attribute metadata: {key}")
        if not all(0 < len(one) <= 60 and not set(one) & set(",/") for one in asked["tags"]):
            raise nova_refusal(400, "Invalid input for field/attribute tags")
        groups = [one["name"] for one in asked["security_groups"]]
        if not all(one in self.kept["security-groups"] for one in groups):
            raise nova_refusal(400, f"Unable to find security_group with name or id '{groups}'")
        images = [asked.get("imageRef"), *(one["uuid"] for one in asked.get("block_device_mapping_v2", ()))]
        if [one for one in images if one] and not {one[0] for one in self.images} & set(images):
            raise nova_refusal(400, "Can not find requested image")
        zone = asked.get("availability_zone", ZONES[0])
        if zone not in ZONES:
            raise nova_refusal(400, "The requested availability zone is not available")
        identity = str(uuid.uuid4())
        self.servers[identity] = {
            "id": identity,
            "name": asked["name"],
            "status": "BUILD",
            "OS-EXT-STS:task_state": "scheduling",
            "OS-EXT-AZ:availability_zone": "",
            "created": "2026-11-29T06:00:00Z",
            "metadata": asked["metadata"],
            "tags": asked["tags"],
            "flavor": {"original_name": asked["flavorRef"], "vcpus": 1, "ram": 512, "disk": 1},
            "addresses": {},
            "image": {"id": asked["imageRef"]} if asked.get("imageRef") else "",
            "asked": {**asked, "zone": zone, "groups": groups},
            "console": self.console,
        }
        return identity

    def _moves_on(self, one: dict[str, Any]) -> None:
        """Go one step: whoever looks at a server by its id sees it come up."""
        if one["OS-EXT-STS:task_state"] == "scheduling":
            one["OS-EXT-STS:task_state"] = None
            if one["asked"]["zone"] in self.lacking:
                message = "No valid host was found. There are not enough hosts available."
                one.update(status="ERROR", fault={"code": 500, "message": message, "created": one["created"]})
            else:
                address = f"10.0.0.{next(self._numbers)}"
                one.update({"status": "ACTIVE", "OS-EXT-AZ:availability_zone": one["asked"]["zone"]})
                one["addresses"] = {"inner": [{"addr": address, "version": 4, "OS-EXT-IPS:type": "fixed"}]}
                port = {"device_id": one["id"], "security_groups": one["asked"]["groups"]}
                self._network(Call("POST", "", {}, {"port": port}, {}), ["v2.0", "ports"])

    def _flavor(self, name: str) -> dict[str, Any]:
        specs = {"pci_passthrough:alias": "a100:1"} if name.startswith("g") else {}
        return {"id": name, "name": name, "vcpus": 1, "disk": FLAVORS[name], "extra_specs": specs}

    def _matches(self, one: dict[str, Any], query: dict[str, str]) -> bool:
        tags = set(filter(None, query.get("tags", "").split(",")))
        return tags <= set(one["tags"]) and bool(re.search(query.get("name", ""), one["name"]))

    def _passed_on(self, call: Call) -> tuple[int, Any]:
        """Have the real nova answer; the addresses that it says lead here."""
        query = f"?{urlencode(call.query)}" if call.query else ""
        passed = ("accept", "content-type", "openstack-api-version", "x-openstack-nova-api-version")
        asked = urllib.request.Request(
            self.nova + call.path.removeprefix("/compute") + query,
            method=call.method,
            data=json.dumps(call.body).encode() if call.body else None,
            headers={key: value for key, value in call.headers.items() if key in passed},
        )
        self._lock.release()  # nova asks here, while it answers
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        finally:
            self._lock.acquire()

        return status, text.replace(self.nova, f"{self.url}/compute")

    def _versions(self, version: str, path: str) -> dict[str, Any]:
        return {"versions": [{"id": version, "status": "CURRENT", "links": self._self(path)}]}

    def _self(self, path: str) -> list[dict[str, str]]:
        return [{"rel": "self", "href": self.url + path}]


def _fits(one: dict[str, Any], query: dict[str, str]) -> bool:
    known = {"tenant_id": "project_id"}
    return all(one.get(known.get(key, key)) == value for key, value in query.items() if key != "fields")
