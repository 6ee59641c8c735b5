"""EC2's interface on loopback: moto's, made stricter where it lets pass what EC2 refuses.

What moto lacks and envsync relies on is added: a token makes one machine however often it is used, user-data
has a largest size, groups in use are not deleted, network interfaces get the tags that were asked for, a spot
request whose machine ended is open again if it is persistent, and closed if not; one that was cancelled stays
known. Calls can be made to fail.
"""

from __future__ import annotations

import base64
import copy
import functools
import json
import logging
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

DEBIAN, UBUNTU = "136693071363", "099720109477"
_LARGEST = 16384  # bytes of user-data
_NO_TOKEN = "ABCDE"  # what moto takes for none
_GPU = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)"
_LOADERS: dict[str | None, Any] = {}
_IMAGES = [  # the older first: moto has each made when it is read
    ("ami-0000000000000de11", "debian-12-amd64-20260101-1", DEBIAN, "x86_64"),
    ("ami-0000000000000de12", "debian-12-amd64-20260901-2", DEBIAN, "x86_64"),
    ("ami-0000000000000de1a", "debian-12-arm64-20260901-2", DEBIAN, "arm64"),
    ("ami-0000000000000bad1", "debian-12-amd64-20261001-9", "210987654321", "x86_64"),
    ("ami-0000000000000d1a1", f"{_GPU} 20260911", "amazon", "x86_64"),
    ("ami-0000000000000d1a2", f"{_GPU} 20261006", "amazon", "x86_64"),
    ("ami-0000000000000d1a3", _GPU.replace("Learning", "Learning ARM64") + " 20251205", "amazon", "arm64"),
    ("ami-0000000000000ub24", "ubuntu/images/hvm-ssd/ubuntu-24.04-amd64", UBUNTU, "x86_64"),
]


@dataclass(frozen=True)
class Fault:
    """A call that fails.

    Parameters
    ----------
    code, message : str
        As EC2 says it.
    status : int
        HTTP's.
    after : bool
        Whether what was asked for was done, and only the answer is lost.
    where : callable
        Whether it is about this call, given its parameters.
    """

    code: str
    message: str
    status: int
    after: bool
    where: Callable[[dict[str, Any]], bool]


class EC2Api:
    """EC2, STS and S3 of moto on loopback; `close` ends it. One at a time in a process.

    Attributes
    ----------
    url : str
        Its endpoint.
    variables : dict
        The environment in which boto3 uses it and nothing else.
    asked : list of (str, dict)
        The calls so far, and their parameters.
    machines : list
        moto's instances, as they were made.
    """

    def __init__(self) -> None:
        _import_moto()
        from moto.core.base_backend import BackendDict
        from moto.server import ThreadedMotoServer

        BackendDict.reset()  # what another has left

        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.machines: list[Any] = []
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._tokens: dict[str, tuple[object, Any]] = {}
        self._making, self._removing = threading.Lock(), threading.Lock()
        self._undo: list[Callable[[], None]] = []
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._patch()
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.variables = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIATESTSTESTSTESTS0",
            "AWS_SECRET_ACCESS_KEY": "c4n4ry-of-the-cloud-tests-0123456789abcd",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def close(self) -> None:
        """End it."""
        self._server.stop()
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have boto3 in this process use it."""
        before = {name: os.environ.get(name) for name in (*self.variables, "AWS_PROFILE", "AWS_REGION")}
        try:
            for name in before:
                os.environ.pop(name, None)
            os.environ.update(self.variables)
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    @functools.cache  # noqa: B019 - it lives as long as a module's tests
    def client(self, region: str = "eu-west-1", service: str = "ec2") -> Any:
        """Return boto3's client, for looking at what is there without envsync."""
        import boto3

        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key="x",
        )

    def fail(
        self,
        action: str,
        code: str,
        message: str = "",
        *,
        times: int = 1,
        after: bool = False,
        where: Callable[[dict[str, Any]], bool] = lambda asked: True,
    ) -> None:
        """Have the next calls of an action fail.

        Parameters
        ----------
        action : str
            Such as ``"RunInstances"``.
        code, message : str
            What EC2 says.
        times : int
            How many of them.
        after : bool
            Whether what was asked for is done all the same: the answer is lost.
        where : callable
            Only those calls, by their parameters.
        """
        busy = {"RequestLimitExceeded": 503, "InternalError": 500, "InsufficientInstanceCapacity": 500}
        status = busy.get(code, 400)
        self._faults[action] += [Fault(code, message or code, status, after, where)] * times

    def left(self, region: str = "eu-west-1") -> dict[str, list[str]]:
        """Return what is there of all that clusters make, by kind; the default group is nobody's."""
        client = self.client(region)
        alive = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
        reservations = client.describe_instances(Filters=[alive])["Reservations"]
        groups = client.describe_security_groups()["SecurityGroups"]
        requests = client.describe_spot_instance_requests()["SpotInstanceRequests"]
        kinds = {
            "instances": [one["InstanceId"] for each in reservations for one in each["Instances"]],
            "volumes": [one["VolumeId"] for one in client.describe_volumes()["Volumes"]],
            "groups": [one["GroupId"] for one in groups if one["GroupName"] != "default"],
            "keys": [one["KeyName"] for one in client.describe_key_pairs()["KeyPairs"]],
            "interfaces": [
                one["NetworkInterfaceId"] for one in client.describe_network_interfaces()["NetworkInterfaces"]
            ],
            "requests": [
                one["SpotInstanceRequestId"] for one in requests if one["State"] in ("open", "active")
            ],
            "addresses": [one["PublicIp"] for one in client.describe_addresses()["Addresses"]],
            "templates": [
                one["LaunchTemplateId"] for one in client.describe_launch_templates()["LaunchTemplates"]
            ],
        }
        return {kind: found for kind, found in kinds.items() if found}

    # -- what a lab of machines does more

    def made(self, instance: Any) -> None:
        """An instance was made."""

    def ended(self, instance: Any) -> None:
        """An instance is being ended, or stopped."""

    def console(self, instance: Any) -> str:
        """Return what an instance has written to its console."""
        return ""

    # -- inner

    def _replace(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Any]) -> None:
        """Replace a method by one that is made of it."""
        original = getattr(owner, name)
        own = name in vars(owner)
        setattr(owner, name, make(original))
        self._undo.append(lambda: setattr(owner, name, original) if own else delattr(owner, name))

    def _patch(self) -> None:
        import botocore.session
        from moto.ec2.models.instances import Instance, InstanceBackend
        from moto.ec2.models.security_groups import SecurityGroupBackend
        from moto.ec2.models.spot_requests import SpotRequestBackend
        from moto.ec2.responses import EC2Response

        # each session of boto3's would read anew what it needs to know of services, for 0.2 s
        self._replace(
            botocore.session, "create_loader", lambda original: lambda paths=None: _loader(original, paths)
        )
        self._replace(EC2Response, "call_action", lambda original: lambda it: self._call(original, it))
        self._replace(EC2Response, "get_console_output", lambda _: lambda it: self._console(it))
        self._replace(
            InstanceBackend,
            "run_instances",
            lambda original: lambda it, *a, **k: self._alone(self._run, original, it, *a, **k),
        )
        for name in ("terminate", "stop"):
            self._replace(Instance, name, self._ending)
        self._replace(
            SecurityGroupBackend,
            "delete_security_group",
            lambda original: lambda it, **k: self._delete_group(original, it, **k),
        )
        self._replace(SpotRequestBackend, "cancel_spot_instance_requests", lambda _: _cancel)

    def _call(self, original: Callable[..., Any], response: Any) -> Any:
        action = response._get_action()
        asked = {key: values[0] for key, values in response.querystring.items()}
        self.asked.append((action, asked))
        fault = next((fault for fault in self._faults[action] if fault.where(asked)), None)
        if fault is None:
            return original(response)
        self._faults[action].remove(fault)
        if fault.after:
            original(response)
        error = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
        body = f"<Response><Errors>{error}</Errors><RequestID>lab</RequestID></Response>"
        return fault.status, {"Content-Type": "text/xml"}, body

    def _alone(self, make: Callable[..., Any], *a: Any, **k: Any) -> Any:
        """Make one after the other: a token may be used again while its first call is still on its way."""
        with self._making:
            return make(*a, **k)

    def _run(
        self,
        original: Callable[..., Any],
        backend: Any,
        image_id: str,
        count: int,
        user_data: Any,
        security_group_names: list[str],
        **more: Any,
    ) -> Any:
        from moto.ec2.exceptions import EC2ClientError

        if user_data and len(base64.b64decode(user_data.as_bytes())) > _LARGEST:
            raise EC2ClientError("InvalidParameterValue", "User data is limited to 16384 bytes")
        token = str(more.get("client_token", _NO_TOKEN))
        same = (image_id, count, more.get("instance_type"), more.get("placement"), more.get("subnet_id"))
        if token in self._tokens and token != _NO_TOKEN:
            asked, answer = self._tokens[token]
            if asked != same:
                raise EC2ClientError("IdempotentParameterMismatch", "The token was used for something else")
            return answer
        tags = dict(more.get("tags", {}))
        answer = original(backend, image_id, count, user_data, security_group_names, **more)
        self._tokens[token] = (same, answer)
        for instance in answer.instances:
            for interface in instance.nics.values():
                interface.delete_on_termination = True
                interface.add_tags(tags.get("network-interface", {}))
            self.machines.append(instance)
            self.made(instance)
        return answer

    def _ending(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def end(instance: Any, *rest: Any, **more: Any) -> Any:
            self.ended(instance)
            with self._removing:  # two may end it at once: moto would fail the second, and forget to say so
                if instance._state.name == "terminated":
                    return copy.copy(instance._state)
                state = original(instance, *rest, **more)
                for request in instance.ec2_backend.spot_instance_requests.values():
                    if request.instance is instance:
                        request.state = "open" if request.type == "persistent" else "closed"
                return state

        return end

    def _console(self, response: Any) -> Any:
        from moto.core.responses import ActionResult
        from moto.core.types import Base64EncodedString

        instance = response.ec2_backend.get_instance(response._get_param("InstanceId"))
        text = Base64EncodedString.from_raw_string(self.console(instance)[-65536:])
        return ActionResult({"InstanceId": instance.id, "Output": text})

    def _delete_group(self, original: Callable[..., Any], backend: Any, **more: Any) -> Any:
        from moto.ec2.exceptions import EC2ClientError

        for instance in self.machines:
            if instance.ec2_backend is backend and instance._state.name != "terminated":
                for group in instance.security_groups:
                    if more.get("group_id") == group.id or more.get("name") == group.name:
                        raise EC2ClientError("DependencyViolation", f"{group.id} has a dependent object")
        return original(backend, **more)


def _loader(make: Callable[[str | None], Any], paths: str | None) -> Any:
    """Return what reads descriptions of services, one in a process."""
    if paths not in _LOADERS:
        _LOADERS[paths] = make(paths)
    return _LOADERS[paths]


def _cancel(backend: Any, identities: list[str]) -> list[Any]:
    from moto.ec2.exceptions import EC2ClientError

    known = backend.spot_instance_requests
    for one in identities:
        if one not in known:
            raise EC2ClientError("InvalidSpotInstanceRequestID.NotFound", f"There is no request '{one}'")
        known[one].state = "cancelled"
    return [known[one] for one in identities]


def _import_moto() -> None:
    """Import it with its checks on, and the images that we look for instead of the thousands it knows."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name in ("EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "ENABLE_AMI_VALIDATION", "ENABLE_KEYPAIR_VALIDATION"):
        os.environ[f"MOTO_{name}"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.json"
        common = {
            "state": "available",
            "public": True,
            "virtualization_type": "hvm",
            "image_type": "machine",
            "hypervisor": "xen",
            "root_device_type": "ebs",
            "root_device_name": "/dev/xvda",
            "platform": "",
            "sriov": "simple",
            "description": "",
        }
        images = [
            {
                **common,
                "ami_id": ami,
                "image_location": name,
                "name": name,
                "owner_id": owner,
                "architecture": architecture,
            }
            for ami, name, owner, architecture in _IMAGES
        ]
        file.write_text(json.dumps(images))
        os.environ["MOTO_AMIS_PATH"] = str(file)
        import moto.ec2.models.amis  # noqa: F401 - it reads the file as it is imported
