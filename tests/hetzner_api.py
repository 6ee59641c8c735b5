"""Hetzner Cloud's interface, as far as envsync calls it, by its API reference of 2026."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from typing import Any

from tests.http_cloud import Call, HttpCloud, Refused

TOKEN = "c4n4ry0fTheHetznerTests"
LOCATIONS = ("fsn1", "nbg1", "ash")
_TYPES = {"cx33": ("x86", 80, "0.0088", ("fsn1", "nbg1")), "cax21": ("arm", 80, "0.0104", ("fsn1",))}
_IMAGES = [
    (101, "debian-12", "system", "x86", "Debian 12", "debian", "12"),
    (102, "debian-12", "system", "arm", "Debian 12", "debian", "12"),
    (103, None, "snapshot", "x86", "mine", "ubuntu", "24.04"),
    (104, None, "snapshot", "x86", "made elsewhere", "unknown", None),
]
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def refusal(code: str, message: str = "", status: int = 422) -> Refused:
    """Return an error as Hetzner says it."""
    return Refused(status, {"error": {"code": code, "message": message or code, "details": None}})


class HetznerApi(HttpCloud):
    """One project. Servers that are deleted are gone at once."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, dict[int, dict[str, Any]]] = {"servers": {}, "firewalls": {}, "ssh_keys": {}}
        self._numbers = itertools.count(1000)

    def variables(self) -> dict[str, str]:
        return {"HCLOUD_TOKEN": TOKEN, "HCLOUD_ENDPOINT": self.url}

    def left(self) -> dict[str, list[str]]:
        """Return the names of what is there, by kind."""
        return {kind: [one["name"] for one in kept.values()] for kind, kept in self.kept.items() if kept}

    def answer(self, call: Call) -> tuple[int, Any]:
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            raise refusal("unauthorized", "the token you are using is invalid", 401)
        _, kind, *rest = call.path.split("/")
        if kind == "pricing":
            return 200, {"pricing": self._pricing()}
        fixed = {"locations": self._locations, "server_types": self._types, "images": self._images}
        if kind == "images" and rest:
            found = [one for one in self._images() if str(one["id"]) == rest[0]]
            if not found:
                raise refusal("not_found", f"image with ID '{rest[0]}' not found", 404)
            return 200, {"image": found[0]}
        if kind in fixed:
            return 200, _page(kind, [one for one in fixed[kind]() if _fits(one, call.query)])
        kept = self.kept.get(kind)
        if kept is None:
            return 200, _page(kind, [])
        if not rest:
            if call.method == "POST":
                return 201, getattr(self, f"_make_{kind}")(call.body)
            return 200, _page(kind, [one for one in kept.values() if _fits(one, call.query)])
        one = kept.get(int(rest[0]))
        if one is None:
            raise refusal("not_found", f"{kind} with ID '{rest[0]}' not found", 404)
        if call.method == "DELETE":
            return self._delete(kind, one)
        if rest[1:] == ["actions", "set_rules"]:
            one["rules"] = [
                {"destination_ips": [], "description": None, **each} for each in call.body["rules"]
            ]
            return 201, {"actions": []}
        return 200, {kind.rstrip("s").replace("ssh_keys", "ssh_key"): one}

    def _make_servers(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._check(asked, "servers")
        types = {one["name"]: one for one in self._types()}
        if asked["server_type"] not in types:
            raise refusal("invalid_input", "invalid input in field 'server_type'")
        kind = types[asked["server_type"]]
        if asked["location"] not in {one["name"] for one in kind["locations"]}:
            raise refusal("invalid_input", "unsupported location for server type")
        image = next((one for one in self._images() if one["id"] == asked["image"]), None)
        if image is None or image["architecture"] != kind["architecture"]:
            raise refusal("invalid_input", "invalid input in field 'image'")
        if len(asked.get("user_data", "")) > 32768:
            raise refusal("invalid_input", "invalid input in field 'user_data'")
        for key, kept in (("ssh_keys", "ssh_keys"),):
            if not all(one in self.kept[kept] for one in asked.get(key, ())):
                raise refusal("not_found", "SSH key not found", 404)
        number = next(self._numbers)
        firewalls = [one["firewall"] for one in asked.get("firewalls", ())]
        made = {
            "id": number,
            "name": asked["name"],
            "labels": asked.get("labels", {}),
            "status": "running",
            "created": "2026-11-29T06:00:00+00:00",
            "location": {"id": 1, "name": asked["location"]},
            "server_type": kind,
            "image": image,
            "public_net": {
                "ipv4": {"id": number, "ip": f"192.0.2.{number % 250}", "blocked": False, "dns_ptr": ""},
                "ipv6": None,
                "floating_ips": [],
                "firewalls": [{"id": one, "status": "applied"} for one in firewalls],
            },
            "private_net": [],
            "volumes": [],
            "protection": {"delete": False, "rebuild": False},
        }
        self.kept["servers"][number] = made
        password = None if asked.get("ssh_keys") else "made-up"
        return {"server": made, "action": _ACTION, "next_actions": [], "root_password": password}

    def _make_firewalls(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._check(asked, "firewalls")
        for rule in asked["rules"]:
            if not 1 <= len(rule["source_ips"]) <= 100:
                raise refusal("invalid_input", "invalid input in field 'rules'")
        rules = [{"destination_ips": [], "description": None, **one} for one in asked["rules"]]
        made = {
            **asked,
            "id": next(self._numbers),
            "created": "2026-11-29T06:00:00+00:00",
            "applied_to": [],
            "rules": rules,
        }
        self.kept["firewalls"][made["id"]] = made
        return {"firewall": made, "actions": []}

    def _make_ssh_keys(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._check(asked, "ssh_keys")
        digest = hashlib.md5(base64.b64decode(asked["public_key"].split()[1])).hexdigest()
        fingerprint = ":".join(re.findall("..", digest))
        if any(one["fingerprint"] == fingerprint for one in self.kept["ssh_keys"].values()):
            raise refusal("uniqueness_error", "SSH key with the same fingerprint already exists", 409)
        made = {
            **asked,
            "id": next(self._numbers),
            "fingerprint": fingerprint,
            "created": "2026-11-29T06:00:00+00:00",
        }
        self.kept["ssh_keys"][made["id"]] = made
        return {"ssh_key": made}

    def _check(self, asked: dict[str, Any], kind: str) -> None:
        for key, value in asked.get("labels", {}).items():
            if not (
                _LABEL.fullmatch(key) and _LABEL.fullmatch(value) and len(key) <= 63 and len(value) <= 63
            ):
                raise refusal("invalid_input", f"invalid input in field 'labels': {key}={value}")
        if not _NAME.fullmatch(asked["name"]):
            raise refusal("invalid_input", "invalid input in field 'name'")
        if any(one["name"] == asked["name"] for one in self.kept[kind].values()):
            raise refusal("uniqueness_error", f"{kind} name is already used", 409)

    def _delete(self, kind: str, one: dict[str, Any]) -> tuple[int, Any]:
        if kind == "firewalls":
            for server in self.kept["servers"].values():
                if one["id"] in [each["id"] for each in server["public_net"]["firewalls"]]:
                    raise refusal("resource_in_use", "firewall is still in use")
        del self.kept[kind][one["id"]]
        return (200, {"action": _ACTION}) if kind == "servers" else (204, {})

    def _locations(self) -> list[dict[str, Any]]:
        return [{"id": number, "name": name} for number, name in enumerate(LOCATIONS, 1)]

    def _types(self) -> list[dict[str, Any]]:
        return [
            {
                "id": number,
                "name": name,
                "architecture": architecture,
                "disk": disk,
                "locations": [
                    {"id": 1, "name": one, "deprecation": None, "available": True, "recommended": True}
                    for one in where
                ],
            }
            for number, (name, (architecture, disk, _, where)) in enumerate(_TYPES.items(), 1)
        ]

    def _images(self) -> list[dict[str, Any]]:
        fields = ("id", "name", "type", "architecture", "description", "os_flavor", "os_version")
        return [
            {
                **dict(zip(fields, one, strict=True)),
                "created": "2026-01-01T00:00:00+00:00",
                "status": "available",
            }
            for one in _IMAGES
        ]

    def _pricing(self) -> dict[str, Any]:
        def hourly(net: str, where: tuple[str, ...]) -> list[dict[str, Any]]:
            return [{"location": one, "price_hourly": {"net": net, "gross": "9"}} for one in where]

        return {
            "currency": "EUR",
            "vat_rate": "19.000000",
            "server_types": [
                {"id": number, "name": name, "prices": hourly(net, where)}
                for number, (name, (_, _, net, where)) in enumerate(_TYPES.items(), 1)
            ],
            "primary_ips": [{"type": "ipv4", "prices": hourly("0.0008", LOCATIONS)}],
        }


_ACTION = {"id": 1, "command": "x", "status": "success", "progress": 100}


def _page(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    pagination = {"page": 1, "per_page": 50, "previous_page": None, "next_page": None, "last_page": 1}
    return {kind: found, "meta": {"pagination": {**pagination, "total_entries": len(found)}}}


def _fits(one: dict[str, Any], query: dict[str, str]) -> bool:
    for key in ("name", "fingerprint", "architecture", "type"):
        if key in query and one.get(key) != query[key]:
            return False
    for part in filter(None, query.get("label_selector", "").split(",")):
        key, equals, value = part.partition("==")
        if key not in one["labels"] or (equals and one["labels"][key] != value):
            return False
    return True
