"""Short-lived AWS credentials on workers: what is sent, who gets it, what reads it, and what is left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import dask.config
import pytest
from click.testing import CliRunner
from distributed import Client

from envsync import runner
from envsync.agent.credentials import PATH, ContainerCredentials, Endpoint
from envsync.cli import cli
from envsync.errors import CloudError
from envsync.hooks import Hooks
from envsync.runner import EC2, SSH, SyncedCluster, forwarding
from envsync.runner.backends import Local
from envsync.runner.cloud.sts import TOKEN, Identity, Temporary, variables
from envsync.runner.forwarding import demand_sense, forwardings, pause
from tests.forwarded import ASK_GOOGLE, GOOGLE_TOKEN, READER, asking, lend_google, lent
from tests.lab.ec2_api import EC2Api
from tests.prying import NOBODY, pry


@pytest.fixture(scope="module")
def aws() -> Iterator[EC2Api]:
    with EC2Api() as api, api.used():
        yield api


# The endpoint


def asked(port: int, path: str = PATH, token: str | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if token is not None:
        request.add_header("Authorization", token)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_endpoint_gives_them_to_whoever_has_the_token_and_to_nobody_else() -> None:
    endpoint = Endpoint(ContainerCredentials("right"))
    endpoint.put(lent(1).to_dict())
    assert asked(endpoint.port, token="right") == (200, lent(1).to_dict())
    for path, token, status in ((PATH, None, 403), (PATH, "wrong", 403), ("/other", "right", 404)):
        code, said = asked(endpoint.port, path, token)
        assert code == status
        assert "c4n4ry" not in said
    endpoint.put(lent(2).to_dict())
    assert asked(endpoint.port, token="right")[1]["AccessKeyId"] == lent(2).access_key


# What is sent


def test_long_lived_keys_become_a_session_token(aws: EC2Api) -> None:
    identity = Identity()
    given = identity.temporary()
    assert identity.region == "eu-west-1"
    assert not given.own
    assert given.token
    assert given.access_key != aws.variables["AWS_ACCESS_KEY_ID"]
    assert 3500 < given.left() <= 3600
    assert given.secret_key not in repr(given)
    assert given.token not in repr(given)


def test_a_session_of_the_client_is_forwarded_as_it_is_and_read_again(
    aws: EC2Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    text = "[sso]\naws_access_key_id=ASIA{0}\naws_secret_access_key=s{0}\naws_session_token=t{0}\n"
    file.write_text(text.format(1))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    identity = Identity("sso")
    first = identity.temporary()
    assert (first.access_key, first.token, first.own) == ("ASIA1", "t1", True)
    file.write_text(text.format(2))  # as a login writes it
    assert identity.temporary().access_key == "ASIA2"
    assert first.to_dict()["Expiration"].endswith("Z")  # nobody has told it: an SDK asks again before

    with pytest.raises(CloudError, match="could not be found"):
        Identity("nobody")
    file.write_text("")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(CloudError, match="none here that could be forwarded"):
        Identity()


def test_when_sts_refuses_nothing_long_lived_goes_instead(
    aws: EC2Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = "<Error><Code>AccessDenied</Code><Message>not you</Message></Error>"
            body = f"<ErrorResponse>{said}</ErrorResponse>".encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(CloudError, match=r"STS refused a session token: not you \(AccessDenied\)") as caught:
        Identity().temporary()
    server.server_close()
    assert "never sent to machines" in str(caught.value)
    assert aws.variables["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_they_are_renewed_before_workers_ask_for_others() -> None:
    assert 1790 < pause(lent(seconds=3600)) <= 1800
    assert 3600 - pause(lent(seconds=3600)) > 15 * 60  # SDKs ask from then on
    assert 440 < pause(lent(seconds=900)) <= 450
    assert 1 < pause(lent(seconds=4)) <= 2
    assert pause(lent(seconds=0.5)) == 1
    assert pause(lent(seconds=-5)) == 60  # the clock here is wrong
    assert pause(lent(seconds=12 * 3600, own=True)) == 60  # whoever logs in again is noticed
    assert 14 < pause(lent(seconds=30, own=True)) <= 15


# What makes no sense


@pytest.mark.parametrize(
    ("asked", "backend", "env", "error", "said"),
    [
        ("mine", Local(), {}, ValueError, "'forward', 'instance' or 'none'"),
        ("aws", Local(), {}, ValueError, r"or of \['aws', 'google'\], not 'aws'"),
        ([], Local(), {}, ValueError, r"not \[\]"),
        (["aws", "azure"], Local(), {}, ValueError, "azure"),
        (["aws", "google"], Local(), {}, ValueError, "impersonate= has to name the service account"),
        (["aws"], SSH(["node1"]), {"AWS_PROFILE": "x"}, TypeError, "AWS_PROFILE"),
        ("instance", SSH(["node1"]), {}, ValueError, "machines of a cloud"),
        ("instance", EC2("m7i.large"), {}, ValueError, "instance_profile="),
        ("forward", SSH(["node1"]), {"AWS_PROFILE": "x"}, TypeError, "AWS_PROFILE"),
    ],
)
def test_what_cannot_be_done_is_refused_first(
    asked: str | list[str], backend: Any, env: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        SyncedCluster(backend, credentials=asked, env=env)


def test_what_makes_sense() -> None:
    demand_sense("none", SSH(["node1"]), {"AWS_PROFILE": "x"})
    demand_sense("forward", SSH(["node1"]), {"AWS_DEFAULT_REGION": "eu-north-1", "AWS_ENDPOINT_URL": "x"})
    demand_sense("instance", EC2("m7i.large", instance_profile="readers"), {})
    demand_sense(["google", "aws"], SSH(["node1"]), {}, READER)
    for one, clouds in (("none", 0), ("instance", 0), ("forward", 1), (["aws"], 1), (["aws", "google"], 2)):
        assert len(forwardings(one, READER, None, Hooks())) == clouds


def test_the_command_and_profiles_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def start(_: Any, **keywords: Any) -> None:
        asked.append((keywords["credentials"], keywords.get("impersonate")))
        raise CloudError("not today")

    def run(*words: str) -> str:
        return CliRunner().invoke(cli, ["run", *words, "--", "true"]).output

    monkeypatch.setattr(runner, "SyncedCluster", start)
    both = {"backend": "local", "credentials": ["aws", "google"], "impersonate": READER}
    with dask.config.set({"envsync.profiles": {"both": both}}):
        assert "not today" in run("--profile", "both")
        assert "not today" in run("--profile", "both", "--credentials", "forward")
    assert "not today" in run("--credentials", "aws,google", "--impersonate", READER)
    assert "not today" in run("--credentials", "forward")
    two = ["aws", "google"]
    assert asked == [(two, READER), ("forward", READER), (two, READER), ("forward", None)]
    for words, said in (
        (("aws,google",), "has to name the service account"),
        (("azure",), "'forward', 'instance' or 'none'"),
        (("instance",), "machines of a cloud"),
        (("none", "--impersonate", READER), "goes with it"),
    ):
        assert said in " ".join(run("--credentials", *words).split())
    assert len(asked) == 4


# In a cluster

SDK = """
import json, os, sys, time
import boto3, s3fs
session = boto3.Session()
credentials = session.get_credentials()
first = credentials.get_frozen_credentials().access_key
print(json.dumps({"method": credentials.method, "first": first, "region": session.region_name}), flush=True)
filesystem = s3fs.S3FileSystem()
filesystem.pipe("team/of-a-worker", filesystem.cat("team/of-the-client") + b", read")
deadline = time.monotonic() + 90
while credentials.get_frozen_credentials().access_key == first and time.monotonic() < deadline:
    time.sleep(0.05)
session.client("s3").put_object(Bucket="team", Key="later", Body=b"with the others")
print(json.dumps({"second": credentials.get_frozen_credentials().access_key}), flush=True)
"""


class Told(Hooks):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.warnings.append(text)

    def note(self, where: str, text: str) -> None:
        if where.endswith("credentials"):
            self.notes.append(text)


@pytest.mark.slow
async def test_an_sdk_in_a_worker_reads_and_writes_and_its_open_session_gets_the_next_ones(
    aws: EC2Api, small_lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = aws.client(service="s3")
    s3.create_bucket(Bucket="team", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3.put_object(Bucket="team", Key="of-the-client", Body=b"data")
    monkeypatch.setattr(forwarding, "_LOOK", 0.1)
    monkeypatch.setattr(forwarding, "_AGAIN", 0.1)
    renewed: list[int] = []
    moment = {"then": False, "fails": 3}

    def temporary(self: Identity) -> Temporary:
        if not moment["then"]:
            return lent(1, seconds=500, own=True)  # SDKs ask at each use in the last ten minutes
        if moment["fails"]:
            moment["fails"] -= 1
            raise CloudError("the login has expired")
        renewed.append(1)
        return lent(2)

    monkeypatch.setattr(Identity, "temporary", temporary)
    script = tmp_path / "sdk.py"
    script.write_text(SDK)
    hooks = Told()
    keywords: dict[str, Any] = {"lock": small_lock, "threads_per_worker": 1, "asynchronous": True}
    keywords |= {**lend_google(monkeypatch), "credentials": ["aws", "google"]}
    async with (
        SyncedCluster(n_workers=1, hooks=hooks, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        environ = (await client.run(lambda: dict(os.environ))).popitem()[1]
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(environ)
        assert environ["AWS_DEFAULT_REGION"] == "eu-west-1"
        token = Path(environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
        assert token.name == TOKEN
        assert token.stat().st_mode & 0o777 == 0o600
        assert await client.run_on_scheduler(
            lambda: "AWS_CONTAINER_CREDENTIALS_FULL_URI" in __import__("os").environ
        )

        python = sys.executable  # with SDKs, which the worker's own environment has not
        command = [python, str(script)]
        running = client.submit(
            lambda command: __import__("subprocess").run(command, capture_output=True, text=True), command
        )
        for _ in range(600):
            if s3.list_objects_v2(Bucket="team", Prefix="of-a-worker").get("KeyCount"):
                break
            await asyncio.sleep(0.1)
        moment["then"] = True
        done: subprocess.CompletedProcess[str] = await asyncio.wait_for(running, 120)
        assert done.returncode == 0, done.stderr
        first, second = map(json.loads, done.stdout.splitlines())
        assert first == {"method": "container-role", "first": lent(1).access_key, "region": "eu-west-1"}
        assert second == {"second": lent(2).access_key}
        assert renewed == [1]
        (warning,) = [text for text in hooks.warnings if "renewed" in text]
        until = r"the workers' could not be renewed, and end at ..:..:..; it is tried again: "
        assert re.fullmatch(f"{until}the login has expired", warning)
        assert hooks.notes == ["the workers' are renewed again"]
        assert s3.get_object(Bucket="team", Key="of-a-worker")["Body"].read() == b"data, read"
        assert s3.get_object(Bucket="team", Key="later")["Body"].read() == b"with the others"

        # a worker that comes later has them too
        await cluster.scale(2)
        await client.wait_for_workers(2, timeout=150)
        both = await client.run(lambda: __import__("os").environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
        (uri,) = set(both.values())
        assert uri == environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
        port = int(uri.rpartition(":")[2].partition("/")[0])
        secret = token.read_text()
        assert asked(port, token=secret)[1]["AccessKeyId"] == lent(2).access_key
        written = [path for path in Path(os.environ["ENVSYNC_CACHE"]).glob("runs/**/*") if path.is_file()]
        assert written
        assert not [path for path in written if b"c4n4ry" in path.read_bytes()]

        # both clouds' at once; and what another user of this host finds, and what this one
        assert {*(await client.run(asking(ASK_GOOGLE))).values()} == {GOOGLE_TOKEN}
        ports = {"aws": port, "google": int(environ["GCE_METADATA_HOST"].rpartition(":")[2])}
        if os.geteuid() == 0:
            secrets = {"token": secret, "key": lent(2).secret_key, "google's": GOOGLE_TOKEN}
            looked = secrets, Path(os.environ["ENVSYNC_CACHE"], "runs"), ports
            assert await asyncio.to_thread(pry, NOBODY, *looked) == set()
            ours = {("token", f"file {TOKEN}"), ("key", "port of aws"), ("google's", "port of google")}
            assert await asyncio.to_thread(pry, 0, *looked) == ours
    for each in ports.values():
        with pytest.raises(urllib.error.URLError):
            asked(each, token=secret)
    assert not token.exists()


async def test_nothing_is_rented_where_there_is_nothing_to_forward(
    aws: EC2Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(CloudError, match="none here that could be forwarded"):
        await forwardings("forward", None, None, Hooks())[0].open()


def test_the_variables_lead_past_whoever_the_host_is() -> None:
    made = variables(4711, "/runs/c/worker-0", "eu-west-1")
    assert made["AWS_ACCESS_KEY_ID"] is None
    assert made["AWS_CONFIG_FILE"] == made["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert "AWS_DEFAULT_REGION" not in variables(1, "", "")
