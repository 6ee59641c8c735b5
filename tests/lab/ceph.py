"""Ceph's gateway: an S3 and an STS whose credentials are checked, and expire.

One monitor, one object store in memory and one gateway, all from Debian; they run for as long as they are
waited for here, as this process's children.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.install import find
from tests.lab.machines import LabError
from tests.ports import free_port
from tests.small import processes_in

if TYPE_CHECKING:
    from tests.lab.registry import Authority

_PATIENCE = 60.0
# a map is agreed on at once, not after a second in which there may be more to agree on
_CONFIGURATION = """[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
[mon]
mon data = {folder}/mon
paxos propose interval = 0.05
paxos min wait = 0.01
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 268435456
osd max object name len = 1024
[client]
rgw data = {folder}/rgw
rgw frontends = beast {listening}
rgw thread pool size = 16
rgw enable usage log = false
rgw enable gc threads = false
rgw enable lc threads = false
rgw run sync thread = false
rgw sts key = abcdefghijklmnop
rgw s3 auth use sts = true
rgw sts min session duration = 2
"""


class Ceph:
    """A gateway with one user; `close` ends it.

    Parameters
    ----------
    tls : Authority, optional
        It speaks TLS, with a certificate of that one.
    address : str
        Where it listens.

    Attributes
    ----------
    url : str
        The endpoint of S3 and of STS.
    variables : dict
        The environment in which boto3 is its user, by long-lived keys.
    """

    def __init__(self, tls: Authority | None = None, *, address: str = "127.0.0.1") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="envsync-ceph-"))  # its sockets' names are to be short
        self._running: list[subprocess.Popen[bytes]] = []
        mon, port = free_port(), free_port()
        self.url = f"{'https' if tls else 'http'}://{address}:{port}"
        listening = f"endpoint={address}:{port}"
        if tls:
            listening = f"ssl_{listening} ssl_certificate={tls.certificate} ssl_private_key={tls.key}"
        self.variables = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIATESTSTESTSTESTS0",
            "AWS_SECRET_ACCESS_KEY": "c4n4ry-of-the-ceph-tests-0123456789abcde",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            **({"AWS_CA_BUNDLE": str(tls.ca)} if tls else {}),
        }
        self._trust = ssl.create_default_context(cafile=tls.ca) if tls else None
        for part in ("mon", "osd", "rgw"):
            (self.folder / part).mkdir()
        fsid = str(uuid.uuid4())
        (self.folder / "ceph.conf").write_text(
            _CONFIGURATION.format(fsid=fsid, mon=mon, listening=listening, folder=self.folder)
        )
        try:
            self._begin(fsid, mon)
        except BaseException:
            self.close()
            raise

    def _begin(self, fsid: str, mon: int) -> None:
        made = self.folder / "monmap"
        self._call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon}]", made)
        self._call("ceph-mon", "-i", "a", "--mkfs", "--monmap", made, "--keyring", os.devnull)
        self._start("ceph-mon", "-i", "a")
        identity = str(uuid.uuid4())
        self._ask("osd", "create", identity)
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        self._start_store()
        key, secret = self.variables["AWS_ACCESS_KEY_ID"], self.variables["AWS_SECRET_ACCESS_KEY"]
        user = ("--uid=ada", "--display-name=ada", f"--access-key={key}", f"--secret-key={secret}")
        self._call("radosgw-admin", "user", "create", *user, "--caps=roles=*;user-policy=*")
        gateway = self._start("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if gateway.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"Ceph's gateway does not answer: {self._tail('radosgw')}")
            time.sleep(0.05)

    def close(self) -> list[int]:
        """End it; return the processes that survived, which is a defect of the lab."""
        for process in reversed(self._running):
            _end(process)
        survivors = [*processes_in(self.folder)]
        shutil.rmtree(self.folder, ignore_errors=True)
        return survivors

    def client(self, service: str = "s3", *, key: str = "", secret: str = "", token: str = "") -> Any:
        """Return boto3's client of its user, or of whoever has these credentials."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key or self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=secret or self.variables["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=token or None,
            verify=self.variables.get("AWS_CA_BUNDLE"),
        )

    def may_ask_for_sessions(self) -> None:
        """Let its user call GetSessionToken, which nobody may who is not allowed to."""
        allowed = {"Effect": "Allow", "Action": "sts:GetSessionToken", "Resource": "*"}
        self.client("iam").put_user_policy(UserName="ada", PolicyName="asks", PolicyDocument=_policy(allowed))

    def login(self, seconds: int) -> dict[str, str]:
        """Make a role that may do all in S3; return the environment in which boto3 has it.

        Each of its sessions lives for so many seconds. (Those of GetSessionToken live 15 minutes at least.)
        """
        iam, role = self.client("iam"), f"for-{seconds}-seconds"
        who = {"Principal": {"AWS": ["arn:aws:iam:::user/ada"]}, "Action": ["sts:AssumeRole"]}
        trusts = _policy({"Effect": "Allow", **who})
        made = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trusts)["Role"]["Arn"]
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::*"}
        iam.put_role_policy(RoleName=role, PolicyName="all", PolicyDocument=_policy(allowed))
        file = self.folder / role
        # botocore would refuse to ask for less than 15 minutes
        file.write_text(
            f"[default]\nrole_arn = {made}\nsource_profile = keys\nduration_seconds = {seconds}\n"
            "parameter_validation = false\n[profile keys]\n"
            f"aws_access_key_id = {self.variables['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {self.variables['AWS_SECRET_ACCESS_KEY']}\n"
        )
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        without = {name: value for name, value in self.variables.items() if name not in keys}
        return {**without, "AWS_CONFIG_FILE": str(file)}

    # -- inner

    def _call(self, program: str, *arguments: str | Path) -> bytes:
        command = [find(program) or program, "-c", self.folder / "ceph.conf", *arguments]
        if program == "monmaptool":
            command[1:3] = []
        done = subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)
        if done.returncode:
            raise LabError(
                f"{program} failed: {(done.stdout + done.stderr)[-2000:].decode(errors='replace')}"
            )
        return done.stdout

    def _ask(self, *question: str) -> bytes:
        """Ask the monitor: while it begins it may refuse whoever asks."""
        deadline = time.monotonic() + _PATIENCE / 2
        while True:
            try:
                return self._call("ceph", *question)
            except LabError:  # noqa: PERF203 - a pause is what is wanted
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.out").open("wb") as out:
            self._running.append(
                subprocess.Popen(
                    [find(program) or program, "-f", "-c", self.folder / "ceph.conf", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            )
        return self._running[-1]

    def _start_store(self) -> None:
        """Start it until it is up: one of ten asks before it knows the cluster's name, and ends."""
        for _ in range(5):
            store = self._start("ceph-osd", "-i", "0")
            deadline = time.monotonic() + _PATIENCE / 4
            while store.poll() is None and time.monotonic() < deadline:
                if b"1 up" in self._ask("osd", "stat"):
                    return
                time.sleep(0.05)
            _end(self._running.pop())
        raise LabError(f"Ceph's store is not up: {self._tail('ceph-osd')}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5, context=self._trust):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False

    def _tail(self, program: str) -> str:
        return (self.folder / f"{program}.out").read_text(errors="replace")[-2000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _policy(statement: dict[str, Any]) -> str:
    # the gateway takes no spaces in it
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, separators=(",", ":"))


__all__ = ["Ceph"]
