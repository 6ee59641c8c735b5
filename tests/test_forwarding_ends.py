"""What ends: session tokens that a real service refuses then, a login in the middle, a client that dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import ClientError, RefreshWithMFAUnsupportedError

from envsync.errors import CloudError
from envsync.hooks import Hooks
from envsync.runner import forwarding
from envsync.runner.cloud.sts import Identity, Temporary
from envsync.runner.forwarding import Forwarding
from tests.forwarded import ASK, lent
from tests.lab.ceph import Ceph
from tests.small import wait_until_none

# Workers, their login's end, and their client's

EXPIRES = """
import json, time
import boto3, s3fs
from botocore.exceptions import ClientError
session = boto3.Session()
credentials = session.get_credentials()
first = credentials.get_frozen_credentials()
named = {"aws_access_key_id": first.access_key, "aws_secret_access_key": first.secret_key}
kept = boto3.client("s3", aws_session_token=first.token, **named)
opened, filesystem = session.client("s3"), s3fs.S3FileSystem()
tokens, read, refused, began = {first.token}, 0, None, time.monotonic()
while refused is None and time.monotonic() - began < 30:
    assert filesystem.cat("team/of-the-client") == b"data"
    for client in (opened, kept):
        try:
            assert client.get_object(Bucket="team", Key="of-the-client")["Body"].read() == b"data"
            read += 1
        except ClientError as error:
            if client is opened:
                raise
            refused = [error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]]
    tokens.add(credentials.get_frozen_credentials().token)
    time.sleep(0.2)
filesystem.pipe("team/of-a-worker", filesystem.cat("team/of-the-client") + b", after the end")
print(json.dumps({"tokens": len(tokens), "read": read, "refused": refused, "method": credentials.method}))
"""
"""One client has the credentials that were there at first; the others and the file system are the SDK's."""

CLIENT = (
    ASK
    + """
def asked(command):
    import os, subprocess
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, ask(), os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]

def main():
    import json, sys
    from distributed import Client
    from envsync import SyncedCluster
    from envsync.hooks import Hooks

    class Told(Hooks):
        def warning(self, where, text):
            warnings.append(text)

    lock, url, script = sys.argv[1:]
    warnings, keywords = [], {"credentials": "forward", "env": {"AWS_ENDPOINT_URL": url}, "hooks": Told()}
    with (
        SyncedCluster(n_workers=1, threads_per_worker=1, lock=lock, **keywords) as cluster,
        Client(cluster) as client,
    ):
        answers = client.submit(asked, [sys.executable, script]).result()
        print(json.dumps([*answers, warnings]), flush=True)
        sys.stdin.read()

if __name__ == "__main__":
    main()
"""
)


def refusal(s3: Any) -> str:
    """Return what a bucket's service says to a client that it does not let in; nothing if it does."""
    try:
        assert s3.get_object(Bucket="team", Key="of-the-client")["Body"].read() == b"data"
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


@pytest.mark.lab
@pytest.mark.slow
def test_workers_go_on_past_the_end_of_a_login_and_with_their_client_nobody_renews_it(
    ceph: Ceph, small_lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.login(seconds=8).items():  # renewed four seconds before the end
        monkeypatch.setenv(name, value)
    s3 = ceph.client()
    s3.create_bucket(Bucket="team")
    s3.put_object(Bucket="team", Key="of-the-client", Body=b"data")
    for name, text in (("sdk.py", EXPIRES), ("client.py", CLIENT)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, *map(str, (tmp_path / "client.py", small_lock, ceph.url, tmp_path / "sdk.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            printed, (_, given, _), file, warnings = json.loads(process.stdout.readline())
            assert Path(file).exists()
        finally:
            process.kill()
    told = json.loads(printed)
    assert (told["method"], told["refused"]) == ("container-role", ["AccessDenied", 403])
    assert told["tokens"] >= 2
    assert told["read"] > 2
    assert s3.get_object(Bucket="team", Key="of-a-worker")["Body"].read() == b"data, after the end"
    assert [text for text in warnings if "renewed" in text] == []
    # what a worker could have kept is refused soon
    keys = {"key": given["AccessKeyId"], "secret": given["SecretAccessKey"], "token": given["Token"]}
    kept, deadline = ceph.client(**keys), time.monotonic() + 60
    while not (code := refusal(kept)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert code == "AccessDenied"
    wait_until_none(Path(os.environ["ENVSYNC_CACHE"]), 50)
    assert not Path(file).exists()


@pytest.mark.lab
def test_session_tokens_are_asked_for_where_that_has_to_be_allowed(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CloudError, match=r"STS refused a session token: .*AccessDenied") as told:
        Identity().temporary()
    assert "Allow sts:GetSessionToken" in str(told.value)
    ceph.may_ask_for_sessions()
    given = Identity().temporary()
    assert 3500 < given.left() <= 3600
    names = {"key": given.access_key, "secret": given.secret_key, "token": given.token}
    assert ceph.client(**names).list_buckets()["Owner"]["ID"] == "ada"
    for wrong in ({**names, "secret": "x" * 40}, {**names, "token": ""}):
        with pytest.raises(ClientError) as refused:
            ceph.client(**wrong).list_buckets()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


# A login that ends in the middle


class Host:
    """An agent that takes what it is sent."""

    ended = None

    def __init__(self) -> None:
        self.given: list[str] = []

    def keep_secret(self, *secrets: str) -> None: ...

    async def request(self, verb: str, *, values: dict[str, str], **_: Any) -> dict[str, int]:
        assert verb == "credentials"
        self.given.append(values["AccessKeyId"])
        return {"port": 4711}


class Told(Hooks):
    def __init__(self) -> None:
        self.all: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.all.append(f"{where}: {text}")

    def note(self, where: str, text: str) -> None:
        self.all.append(f"{where}: {text}")

    async def until(self, number: int) -> str:
        deadline = time.monotonic() + 60
        while len(self.all) < number and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return self.all[number - 1]


async def test_whose_login_ends_is_warned_until_when_workers_go_on_and_when_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_LOOK", "_AGAIN", "_LEAST"):
        monkeypatch.setattr(forwarding, name, 0.01)
    given: list[Temporary | Exception] = [lent(1, seconds=3600, own=True)]

    class Login:
        def temporary(self) -> Temporary:
            if isinstance(given[-1], Exception):
                raise given[-1]
            return given[-1]

        def variables(self, port: int, folder: str) -> dict[str, str | None]:
            return {}

        def files(self, token: str) -> dict[str, bytes]:
            return {}

    hooks, host = Told(), Host()
    lending = Forwarding("aws", Login, hooks)
    await lending.open()
    await lending.on(host, "")  # type: ignore[arg-type]
    ended = CloudError("it has expired", where="aws credentials", hint="Log in again.")
    given.append(ended)
    said = await hooks.until(1)
    assert re.fullmatch(
        r"aws credentials: the workers' could not be renewed, and end at \d\d:\d\d:\d\d; it is tried again: "
        r"it has expired\n  Log in again\.",
        said,
    )
    given.append(KeyError("some SDK's own defect"))  # which shall not end it all
    assert "some SDK's own defect" in await hooks.until(2)
    given.append(lent(2, own=True))
    assert await hooks.until(3) == "aws credentials: the workers' are renewed again"
    given.append(lent(3, seconds=-1, own=True))
    while host.given[-1] != lent(3).access_key:
        await asyncio.sleep(0.01)
    given.append(ended)
    assert "the workers' have ended, and are refused; it is tried again" in await hooks.until(4)
    await asyncio.sleep(0.1)
    assert len(hooks.all) == 4, "each thing is said once"
    await lending.close()


@contextlib.contextmanager
def sts_that_says(code: str, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Have STS refuse whatever it is asked; yield what it was. Without a code it is no STS at all."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            said = f"<Error><Code>{code}</Code><Message>no more</Message></Error>"
            body = (f"<ErrorResponse>{said}</ErrorResponse>" if code else "<p>Pay for the network").encode()
            self.send_response(403 if code else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        patch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of somebody's in variables, as a page of SSO gives it: nobody says when it ends."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIATESTSTESTSTESTS0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "c4n4ry-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "c4n4ry-token")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


def test_a_session_whose_end_nobody_tells_is_asked_for_at_sts(
    session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = pytest.raises(CloudError, match=r"refuses what you are logged in with: no more \(ExpiredToken")
    with sts_that_says("ExpiredToken", monkeypatch) as asked, refused as caught:
        Identity().temporary()
    assert len(asked) == 1
    assert "Action=GetCallerIdentity" in asked[0]
    assert "Log in again" in caught.value.hint
    assert "AWS_SESSION_TOKEN" in caught.value.hint
    assert "c4n4ry" not in str(caught.value)
    # one that another service made is none of Amazon's, and may live
    with sts_that_says("InvalidClientTokenId", monkeypatch) as asked:
        assert Identity().temporary().token == "c4n4ry-token"
    assert len(asked) == 1
    with sts_that_says("", monkeypatch):
        assert Identity().temporary().token == "c4n4ry-token"
    assert Identity().temporary().own  # nobody listens there now


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RefreshWithMFAUnsupportedError(),
            r"a code of MFA is asked for, once in a process\n  Start the cluster",
        ),
        (FileNotFoundError(2, "No such file", "credential-helper"), r"credential-helper'\n  Log in again"),
    ],
)
def test_what_cannot_be_had_again_is_told_with_what_to_do(
    error: Exception, said: str, session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RefreshableCredentials) -> None:
        raise error

    identity = Identity()
    identity._credentials = RefreshableCredentials("a", "b", "c", None, None, "sso")
    monkeypatch.setattr(RefreshableCredentials, "get_frozen_credentials", refuse)
    with pytest.raises(CloudError, match=said):
        identity.temporary()
