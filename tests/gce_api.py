"""Compute Engine's interface, as far as envsync calls it; and what gives tokens of service accounts.

The SDK's own types read what is asked, strictly. What an operation comes to is said when it is waited for.
"""

from __future__ import annotations

import base64
import datetime
import functools
import itertools
import json
import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tests.http_cloud import Call, HttpCloud, Refused

PROJECT = "envsync-tests"
ROBOT = "tests@example.org"
READER = "reader@envsync-tests.iam.gserviceaccount.com"
REFRESH = "r3fr3sh-c4n4ry-of-a-person"
ZONES = ("europe-west1-b", "europe-west1-c", "europe-west1-d", "us-east1-b")
TYPES = {
    "n2-standard-4": ("X86_64", ZONES),
    "g2-standard-4": ("X86_64", ZONES[:1]),
    "c4a-standard-4": ("ARM64", ZONES),
}
_ACCOUNTS = "/v1/projects/-/serviceAccounts/"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")


def refusal(reason: str, message: str = "", status: int = 400) -> Refused:
    """Return an error as Google says it."""
    message = message or reason
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return Refused(status, {"error": {"code": status, "message": message, "errors": errors}})


def iam_refusal(status: int, code: str, message: str, *, reason: str = "") -> Refused:
    """Return an error as Google's newer interfaces say it."""
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    said = {"code": status, "message": message, "status": code, "details": details}
    return Refused(status, {"error": said})


@functools.cache
def _key() -> str:
    """The key of each of these service accounts: to make one takes a third of a second."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, none).decode()


class GCEApi(HttpCloud):
    """One project. Deleted instances are gone when they are looked for next.

    Parameters
    ----------
    folder : Path
        Where the credentials are put.

    Attributes
    ----------
    life : float
        Seconds that tokens of service accounts have left when they are given.
    given : list of str
        These tokens.
    creators : set of (str, str)
        Who may have tokens of which service account; a person is ``"user"``.
    """

    def __init__(self, folder: Path) -> None:
        from google.cloud import compute_v1

        super().__init__()
        self.v1: Any = compute_v1
        self.instances: dict[str, Any] = {}
        self.firewalls: dict[str, Any] = {}
        self.disks: dict[str, Any] = {}
        self.consoles: dict[str, str] = {}
        self.shortages: list[tuple[str, str]] = []
        self.life = 3600.0
        self.given: list[str] = []
        self.creators = {(ROBOT, READER), ("user", READER)}
        self._operations: dict[str, Any] = {}
        self._requests: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._file = folder / "credentials.json"
        self._file.write_text(json.dumps(self._credentials()))

    def variables(self) -> dict[str, str]:
        return {
            "GOOGLE_APPLICATION_CREDENTIALS": str(self._file),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{self.url}/compute/v1/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS": f"{self.url}/",
        }

    def left(self) -> dict[str, list[str]]:
        """Return what is there, by kind."""
        kinds = {"instances": self.instances, "firewalls": self.firewalls, "disks": self.disks}
        return {kind: sorted(kept) for kind, kept in kinds.items() if kept}

    def answer(self, call: Call) -> tuple[int, Any]:
        if call.path == "/token":
            return 200, self._log_in(dict(parse_qsl(call.body)))
        if call.path.startswith(_ACCOUNTS):
            return 200, self._impersonate(call)
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        if (
            not token.startswith(("made-for-", "eyJ")) and token not in self.given
        ):  # the second: signed by a key
            raise refusal("authError", "Invalid Credentials", 401)
        project, *path = call.path.removeprefix("/compute/v1/projects/").split("/")
        wanted = call.query.get("filter", "")
        if project == "ubuntu-os-accelerator-images":
            return 200, self._images(wanted)
        if project != PROJECT:
            raise refusal("notFound", f"The resource 'projects/{project}' was not found", 404)
        match (call.method, path):
            case "GET", ["regions"]:
                names = sorted({zone.rpartition("-")[0] for zone in ZONES})
                return 200, {"items": [{"name": name} for name in names]}
            case "GET", ["aggregated", "machineTypes"]:
                return 200, self._machine_types(wanted)
            case "GET", ["aggregated", "instances"]:
                return 200, self._scoped(
                    "instances", [self._shown(one) for one in self.instances.values()], wanted
                )
            case "GET", ["aggregated", "disks"]:
                return 200, self._scoped("disks", list(self.disks.values()), wanted)
            case "DELETE", ["zones", zone, "disks", name]:
                self.disks.pop(name)
                return 200, self._operation()
            case "POST", ["zones", zone, "instances"]:
                return 200, self._insert(zone, call)
            case "GET", ["zones", zone, "instances", name]:
                return 200, self._shown(self._there(zone, name))
            case "DELETE", ["zones", zone, "instances", name]:
                self._there(zone, name)
                del self.instances[name]
                return 200, self._operation()
            case "GET", ["zones", zone, "instances", name, "serialPort"]:
                self._there(zone, name)
                return 200, {"contents": self.consoles.get(name, "")}
            case "POST", ["zones" | "global", *_, "operations", name, "wait"]:
                return 200, self._operations[name]
            case "GET", ["global", "firewalls"]:
                pattern = re.fullmatch(r'name eq "(.*)"', wanted)
                assert pattern
                found = [one for name, one in self.firewalls.items() if re.fullmatch(pattern[1], name)]
                return 200, {"items": found}
            case "POST", ["global", "firewalls"]:
                return 200, self._insert_firewall(call.body)
            case "DELETE", ["global", "firewalls", name]:
                if self.firewalls.pop(name, None) is None:
                    raise refusal("notFound", f"{name} was not found", 404)
                return 200, self._operation()
        raise refusal("notFound", f"no such call: {call.method} {call.path}", 404)

    def _log_in(self, asked: dict[str, str]) -> Any:
        if "refresh_token" in asked and asked["refresh_token"] != REFRESH:
            said = {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}
            raise Refused(400, said)
        who = "user" if "refresh_token" in asked else ROBOT
        return {"access_token": f"made-for-{who}", "expires_in": 3600, "token_type": "Bearer"}

    def _impersonate(self, call: Call) -> Any:
        account, _, verb = call.path.removeprefix(_ACCOUNTS).partition(":")
        assert (call.method, verb) == ("POST", "generateAccessToken")
        lifetime = re.fullmatch(r"(\d+)s", call.body["lifetime"])
        if set(call.body) - {"delegates", "scope", "lifetime"} or not call.body["scope"] or not lifetime:
            raise iam_refusal(400, "INVALID_ARGUMENT", "Request contains an invalid argument.")
        if int(lifetime[1]) > 3600:
            raise iam_refusal(400, "INVALID_ARGUMENT", "The lifetime is longer than the organization allows.")
        who = call.headers.get("authorization", "").removeprefix("Bearer made-for-")
        if (who, account) not in self.creators:
            raise iam_refusal(
                403,
                "PERMISSION_DENIED",
                "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
                reason="IAM_PERMISSION_DENIED",
            )
        self.given.append(f"ya29.c4n4ry-{len(self.given) + 1}")
        end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=self.life)
        return {"accessToken": self.given[-1], "expireTime": end.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def person(self) -> str:
        """Return a file with the login of a person, as gcloud writes it."""
        file = self._file.with_name("person.json")
        login = {"client_id": "c", "client_secret": "s", "refresh_token": REFRESH, "type": "authorized_user"}
        file.write_text(json.dumps({**login, "quota_project_id": PROJECT}))
        return str(file)

    def _insert(self, zone: str, call: Call) -> Any:
        v1 = self.v1
        asked = v1.Instance.from_json(json.dumps(call.body))  # an unknown field is an error
        uuid.UUID(call.query["requestId"])
        if call.query["requestId"] in self._requests:
            return {**self._operations[self._requests[call.query["requestId"]]], "status": "RUNNING"}
        self._check(asked.name, dict(asked.labels))
        if asked.name in self.instances:
            raise refusal("alreadyExists", f"The resource '{asked.name}' already exists", 409)
        machine_type = asked.machine_type.rpartition("/")[2]
        if zone not in TYPES.get(machine_type, ("", ()))[1]:
            raise refusal("invalid", f"Machine type {machine_type} does not exist in zone {zone}")
        (disk,) = asked.disks
        if not disk.initialize_params.source_image.startswith("projects/"):
            raise refusal("invalid", "Invalid value for field 'sourceImage'")
        spot = asked.scheduling.provisioning_model == "SPOT"
        if spot and asked.scheduling.on_host_maintenance != "TERMINATE":
            raise refusal("invalid", "Spot VMs must terminate on host maintenance")
        if self.shortages:
            operation = self._operation(self.shortages.pop(0))
            self._requests[call.query["requestId"]] = operation["name"]
            return {**operation, "status": "RUNNING", "error": {"errors": []}}
        number = next(self._numbers)
        asked.zone = f"https://compute.example.org/zones/{zone}"
        asked.status = "RUNNING"
        asked.creation_timestamp = "2026-11-29T06:00:00.000-00:00"
        asked.network_interfaces[0].network_i_p = f"10.132.0.{number}"
        asked.network_interfaces[0].access_configs[0].nat_i_p = f"192.0.2.{number}"
        self.instances[asked.name] = asked
        operation = self._operation()
        self._requests[call.query["requestId"]] = operation["name"]
        return {**operation, "status": "RUNNING"}

    def _insert_firewall(self, body: Any) -> Any:
        asked = self.v1.Firewall.from_json(json.dumps(body))
        self._check(asked.name, {})
        if asked.name in self.firewalls:
            raise refusal("alreadyExists", f"The resource '{asked.name}' already exists", 409)
        kinds = {":" in one for one in asked.source_ranges}
        if len(kinds) > 1 or not (asked.source_ranges or asked.source_tags):
            raise refusal("invalid", "Invalid value for field 'sourceRanges'")
        self.firewalls[asked.name] = {**body, "creationTimestamp": "2026-11-29T06:00:00.000-00:00"}
        return {**self._operation(), "status": "RUNNING"}

    def _check(self, name: str, labels: dict[str, str]) -> None:
        if not _NAME.fullmatch(name):
            raise refusal("invalid", f"Invalid value for field 'name': {name}")
        for key, value in labels.items():
            if not (_LABEL.fullmatch(key) and _LABEL.fullmatch(value) and key[:1].isalpha()):
                raise refusal("invalid", f"Label {key}={value} violates the format")

    def _there(self, zone: str, name: str) -> Any:
        one = self.instances.get(name)
        if one is None or not one.zone.endswith(f"/{zone}"):
            raise refusal("notFound", f"The resource '{name}' was not found", 404)
        return one

    def _shown(self, one: Any) -> Any:
        return json.loads(self.v1.Instance.to_json(one, always_print_fields_with_no_presence=False))

    def _operation(self, failed: tuple[str, str] | None = None) -> Any:
        name = f"operation-{next(self._numbers)}"
        made: dict[str, Any] = {"name": name, "status": "DONE"}
        if failed is not None:
            made["error"] = {"errors": [{"code": failed[0], "message": failed[1]}]}
        self._operations[name] = made
        return made

    def _scoped(self, kind: str, found: list[Any], wanted: str) -> Any:
        items: dict[str, Any] = {
            f"zones/{zone}": {"warning": {"code": "NO_RESULTS_ON_PAGE"}} for zone in ZONES
        }
        for one in found:
            if all(_fits(one, part) for part in wanted.split(" AND ")):
                place = items[f"zones/{one['zone'].rpartition('/')[2]}"]
                place.setdefault(kind, []).append(one)
        return {"items": items}

    def _machine_types(self, wanted: str) -> Any:
        found = [
            {
                "name": name,
                "zone": f"zones/{zone}",
                "architecture": architecture,
                **({"accelerators": [{"guestAcceleratorCount": 1}]} if name[0] == "g" else {}),
            }
            for name, (architecture, zones) in TYPES.items()
            for zone in zones
        ]
        return self._scoped("machineTypes", found, wanted)

    def _images(self, wanted: str) -> Any:
        prefix = wanted.removeprefix('name eq "').removesuffix('.*"')
        names = [
            ("570-v20260101", "2026-01-01"),
            ("580-v20260901", "2026-09-01"),
            ("590-v20261001", "2026-10-01"),
        ]
        items = [
            {"name": prefix + name, "creationTimestamp": f"{date}T00:00:00.000-00:00"} for name, date in names
        ]
        return {"items": [*items[:2], {**items[2], "deprecated": {"state": "OBSOLETE"}}]}

    def _credentials(self) -> dict[str, str]:
        return {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key": _key(),
            "private_key_id": base64.b16encode(b"key").decode(),
            "client_email": ROBOT,
            "token_uri": f"{self.url}/token",
        }


def _fits(one: Any, part: str) -> bool:
    if part.endswith(":*"):
        return part.removeprefix("labels.").removesuffix(":*") in one.get("labels", {})
    match = re.fullmatch(r'(?:labels\.)?([a-z0-9_-]+)="(.*)"', part)
    assert match, part
    return bool((one.get("labels", {}) if part.startswith("labels.") else one).get(match[1]) == match[2])
