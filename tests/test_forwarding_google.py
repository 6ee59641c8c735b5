"""Short-lived tokens of Google's on workers: whose they are, who gets them, what of a login goes along."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina
from distributed import Client
from google.auth import iam
from google.auth.compute_engine import _metadata
from google.oauth2 import credentials as logins

from envsync.agent.credentials import Endpoint, service_of
from envsync.agent.metadata import owner_of
from envsync.errors import CloudError
from envsync.plugins.process import _reach_directly
from envsync.runner import GCE, SSH, SyncedCluster
from envsync.runner.cloud.gce_tokens import Identity, variables
from envsync.runner.forwarding import demand_sense
from tests.gce_api import PROJECT, READER, REFRESH, ROBOT, GCEApi, iam_refusal

TOKEN = "/computeMetadata/v1/instance/service-accounts/default/token"
FLAVOR = {"Metadata-Flavor": "Google"}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GCEApi]:
    """Google, and a person who is logged in."""
    with GCEApi(tmp_path) as api, api.used(), stamina.set_testing(True, attempts=8, cap=True):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", api.person())
        monkeypatch.setattr(logins, "_GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{api.url}/token")
        yield api


def values(number: int = 1, *, seconds: float = 3600) -> dict[str, Any]:
    whose = {"account": READER, "project": PROJECT, "universe": "googleapis.com", "scopes": ["all"]}
    return {"token": f"ya29.c4n4ry-{number}", "seconds": seconds, **whose}


def endpoint(number: int = 1, **more: Any) -> Endpoint:
    made = Endpoint(service_of({"cloud": "google", "token": "unused"}))
    made.put(values(number, **more))
    return made


def asked(port: int, path: str = TOKEN, headers: dict[str, str] = FLAVOR) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.headers["Metadata-Flavor"] == "Google"
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def environment(port: int, **more: str) -> dict[str, str]:
    """Return that of a worker, on a host where somebody else is logged in."""
    theirs = {**os.environ, "GOOGLE_APPLICATION_CREDENTIALS": "/theirs.json", "NO_GCE_CHECK": "true", **more}
    made = {**theirs, **variables(port, "/run-folder")}
    return {name: value for name, value in made.items() if value is not None}


# What is sent


def test_a_person_is_never_sent_but_the_account_that_they_may_be(api: GCEApi) -> None:
    token = Identity(READER).temporary()
    assert (token.value, token.account, token.project) == (api.given[0], READER, PROJECT)
    assert 3590 < token.left() <= 3600
    (call,) = [call for call in api.asked if call.path.endswith(f"/{READER}:generateAccessToken")]
    assert call.body["lifetime"] == "3600s"
    assert call.body["scope"] == ["https://www.googleapis.com/auth/cloud-platform"]
    sent = json.dumps(token.to_dict())
    assert REFRESH not in sent
    assert "made-for-user" not in sent
    assert token.value not in repr(token)
    compute = "123-compute@developer.gserviceaccount.com"  # which does not say whose it is
    api.creators.add(("user", compute))
    assert Identity(compute).temporary().project == ""
    for wrong in (-7200, 4 * 3600):  # what a clock here says that is wrong
        api.life = wrong
        assert 3590 < Identity(READER).temporary().left() <= 3600


def test_whoever_is_logged_in_as_the_account_needs_nobody_to_let_them(
    api: GCEApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = api.variables()["GOOGLE_APPLICATION_CREDENTIALS"]
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", key)
    assert Identity(ROBOT).temporary().value == f"made-for-{ROBOT}"  # never the key
    assert api.given == []
    # on a machine that has the account, or in a task of a cluster whose workers have it
    machine = endpoint(7)
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, f"127.0.0.1:{machine.port}")
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", f"127.0.0.1:{machine.port}")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    assert Identity(READER).temporary().value == "ya29.c4n4ry-7"
    assert api.given == []
    # gcloud auth application-default login --impersonate-service-account=...
    url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{READER}:generateAccessToken"
    login = {
        "type": "impersonated_service_account",
        "service_account_impersonation_url": url,
        "source_credentials": json.loads(Path(api.person()).read_text()),
    }
    (tmp_path / "login.json").write_text(json.dumps(login))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))
    monkeypatch.setattr(
        iam, "_IAM_ENDPOINT", api.url + "/v1/projects/-/serviceAccounts/{}:generateAccessToken"
    )
    api.creators = {("user", READER)}
    assert Identity(READER).temporary().value == api.given[0]


def test_what_google_refuses_is_told_with_what_to_do(api: GCEApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.creators.clear()
    with pytest.raises(
        CloudError, match=rf"refused a token of {READER}: Permission .*getAccessToken"
    ) as told:
        Identity(READER).temporary()
    assert f"add-iam-policy-binding {READER}" in told.value.hint
    assert "roles/iam.serviceAccountTokenCreator" in told.value.hint
    assert len([call for call in api.asked if "generateAccessToken" in call.path]) == 1  # not again
    off = iam_refusal(403, "PERMISSION_DENIED", "It is disabled in project 1", reason="SERVICE_DISABLED")
    for refused, hint in (
        (off, "gcloud services enable iamcredentials.googleapis.com"),
        (iam_refusal(404, "NOT_FOUND", "Not found; Gaia id not found for email"), "Is its name right?"),
        (iam_refusal(401, "UNAUTHENTICATED", "Invalid credentials"), "Log in again"),
    ):
        api.fail("generateAccessToken", refused)
        with pytest.raises(CloudError) as told:
            Identity(READER).temporary()
        assert hint in told.value.hint

    api.creators.add(("user", READER))
    api.fail("generateAccessToken", iam_refusal(503, "UNAVAILABLE", "Try again"), times=2)
    assert Identity(READER).temporary().value == api.given[-1]

    login = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    login.write_text(login.read_text().replace(REFRESH, "revoked"))
    with pytest.raises(CloudError, match=r"does not take the login.*expired or revoked") as told:
        Identity(READER).temporary()
    assert "gcloud auth application-default login" in told.value.hint
    login.unlink()
    with pytest.raises(
        CloudError, match=r"nobody is logged in here: File .*person.json was not found"
    ) as told:
        Identity(READER).temporary()
    assert "gcloud auth application-default login" in told.value.hint


@pytest.mark.parametrize(
    ("credentials", "whom", "env", "error", "said"),
    [
        ("forward", "ada@example.org", {}, ValueError, "a service account, such as"),
        ("forward", "x/../y@p.iam.gserviceaccount.com", {}, ValueError, "a service account, such as"),
        ("none", READER, {}, ValueError, "credentials='forward' goes with it"),
        ("forward", READER, {"GOOGLE_APPLICATION_CREDENTIALS": "x"}, TypeError, "GOOGLE_APPLICATION"),
        ("forward", READER, {"GCE_METADATA_HOST": "x"}, TypeError, "GCE_METADATA_HOST"),
    ],
)
def test_what_makes_no_sense_is_refused_first(
    credentials: str, whom: str, env: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        SyncedCluster(SSH(["node1"]), credentials=credentials, impersonate=whom, env=env)


def test_what_makes_sense() -> None:
    demand_sense("forward", SSH(["node1"]), {"AWS_PROFILE": "x", "GOOGLE_CLOUD_PROJECT": "x"}, READER)
    demand_sense("instance", GCE("n2-standard-4", service_account=READER), {})
    with pytest.raises(ValueError, match="service_account="):
        demand_sense("instance", GCE("n2-standard-4"), {})


# The endpoint

SDK = """
import json, sys
import google.auth, google.auth.transport.requests
credentials, project = google.auth.default()
request = google.auth.transport.requests.Request()
for line in sys.stdin:
    headers = {}
    credentials.before_request(request, "GET", "https://example.org", headers)
    account = credentials.service_account_email
    kind, universe = type(credentials).__module__, credentials.universe_domain
    print(json.dumps([project, account, headers["authorization"], universe, kind]), flush=True)
"""


def test_googles_library_finds_it_by_itself_and_gets_the_next_one_in_an_open_session() -> None:
    made = endpoint(1, seconds=200)  # the library asks at each use in a token's last minutes
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SDK],
        env=environment(made.port, **proxies),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    with process:
        for number, seconds in ((1, 200), (2, 3600), (2, 3600)):
            made.put(values(number, seconds=seconds))
            print("ask", file=process.stdin, flush=True)
            said = json.loads(process.stdout.readline())
            assert said[:4] == [PROJECT, READER, f"Bearer ya29.c4n4ry-{number}", "googleapis.com"]
            assert said[4] == "google.auth.compute_engine.credentials"
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (TOKEN, {}, 403),
        (TOKEN, {"Metadata-Flavor": "Amazon"}, 403),
        (TOKEN, {**FLAVOR, "X-Forwarded-For": "192.0.2.1"}, 403),
        (TOKEN, {**FLAVOR, "Host": "rebound.example.org"}, 403),
        (TOKEN.replace("default", "another"), FLAVOR, 404),
        (TOKEN.replace("token", "identity?audience=x"), FLAVOR, 404),
        ("/computeMetadata/v1/instance/attributes/", FLAVOR, 404),
    ],
)
def test_it_answers_as_a_metadata_server_does_and_no_more(
    path: str, headers: dict[str, str], status: int
) -> None:
    made = endpoint()
    good, text = asked(made.port)
    answer = json.loads(text)
    assert (good, answer["access_token"], answer["token_type"]) == (200, "ya29.c4n4ry-1", "Bearer")
    assert 3000 < answer["expires_in"] <= 3600
    code, said = asked(made.port, path, headers)
    assert code == status
    assert "c4n4ry" not in said
    made.put({**values(seconds=0), "project": ""})
    assert asked(made.port)[0] == 503  # which the library asks again
    assert asked(made.port, "/computeMetadata/v1/project/project-id")[0] == 404


GIVING = """
import json, os, sys
from envsync.agent.credentials import Endpoint, service_of
os.setuid(1)  # what gives them out is no root, as on most hosts
made = Endpoint(service_of({"cloud": "google", "token": "unused"}))
made.put(json.loads(sys.argv[1]))
print(made.port, flush=True)
sys.stdin.read()
"""
ANOTHER = """
import os, socket, sys
user, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.setuid(user)  # from now on nothing can be imported
connection = socket.socket()
connection.connect(("127.0.0.1", port))
asked = f"GET {path} HTTP/1.0\\r\\nHost: 127.0.0.1:{port}\\r\\nMetadata-Flavor: Google\\r\\n\\r\\n"
connection.sendall(asked.encode())
while data := connection.recv(4096):
    os.write(1, data)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be another user")
def test_another_user_of_the_host_is_refused_by_the_kernels_word() -> None:
    command = [sys.executable, "-c", GIVING, json.dumps(values())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as giving:
        assert giving.stdin
        assert giving.stdout
        port = giving.stdout.readline().strip()
        said = {}
        for user in (0, 1, 2, 65534):
            command = [sys.executable, "-c", ANOTHER, str(user), port, TOKEN]
            said[user] = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        giving.stdin.close()
    assert "c4n4ry-1" in said.pop(1)
    for answer in said.values():
        assert answer.startswith("HTTP/1.0 403")
        assert answer.rstrip().endswith("not for other users")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_says_whose_an_open_connection_is(family: socket.AddressFamily) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.socket(family) as client:
            client.connect(("::ffff:127.0.0.1" if family == socket.AF_INET6 else "127.0.0.1", port))
            taken, peer = server.accept()
            with taken:
                assert owner_of(peer, ("127.0.0.1", port)) == os.geteuid()
                assert owner_of((peer[0], peer[1] ^ 1), ("127.0.0.1", port)) is None
                client.close()  # from now on it is nobody's, which the kernel shows as root's
                assert owner_of(peer, ("127.0.0.1", port)) is None


def test_no_proxy_is_asked_for_what_is_on_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, after in (("", "127.0.0.1"), ("a,b", "a,b,127.0.0.1"), ("*", "*"), ("127.0.0.1", "127.0.0.1")):
        monkeypatch.setenv("no_proxy", known)
        monkeypatch.setenv("NO_PROXY", "")
        _reach_directly("127.0.0.1:4711")
        assert os.environ["no_proxy"] == after
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", "c")
    _reach_directly("")
    assert "no_proxy" not in os.environ
    _reach_directly("127.0.0.1:4711")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "c,127.0.0.1"


# In a cluster

WORK = """
import json, sys, time
import google.auth
from google.auth.transport.requests import AuthorizedSession
credentials, project = google.auth.default()
session, seen, deadline = AuthorizedSession(credentials), [], time.monotonic() + 60
while len(seen) < 2 and time.monotonic() < deadline:
    answer = session.get(f"{sys.argv[1]}/compute/v1/projects/{project}/regions")
    assert answer.status_code == 200, answer.text
    if credentials.token not in seen:
        seen.append(credentials.token)
    time.sleep(0.1)
print(json.dumps([project, credentials.service_account_email, *seen]))
"""


@pytest.mark.slow
async def test_tasks_are_the_account_beyond_a_tokens_end_and_what_is_long_lived_stays_here(
    api: GCEApi, small_lock: Path
) -> None:
    api.life = 4  # renewed when half of it is over
    keywords: dict[str, Any] = {"lock": small_lock, "threads_per_worker": 1, "asynchronous": True}
    keywords["env"] = {"http_proxy": "http://127.0.0.1:9"}  # where nobody listens
    async with (
        SyncedCluster(n_workers=1, credentials="forward", impersonate=READER, **keywords) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        environ = (await client.run(lambda: dict(os.environ))).popitem()[1]
        assert "GOOGLE_APPLICATION_CREDENTIALS" not in environ
        assert await client.run_on_scheduler(lambda: "GCE_METADATA_HOST" in __import__("os").environ)
        command = [sys.executable, "-c", WORK, api.url]  # with the library, which a worker's own has not
        done: subprocess.CompletedProcess[str] = await client.submit(
            lambda command: __import__("subprocess").run(command, capture_output=True, text=True), command
        )
        assert done.returncode == 0, done.stderr
        project, account, *seen = json.loads(done.stdout)
        assert (project, account) == (PROJECT, READER)
        assert len(set(seen)) == 2
        assert set(seen) <= set(api.given)
        port = int(environ["GCE_METADATA_HOST"].rpartition(":")[2])
        assert asked(port)[0] in (200, 503)  # the second at the moment when one has ended
        written = [path for path in Path(os.environ["ENVSYNC_CACHE"]).glob("runs/**/*") if path.is_file()]
        assert written
        for secret in (REFRESH, "made-for-user", "c4n4ry"):
            assert not [path for path in written if secret.encode() in path.read_bytes()]
            assert secret not in json.dumps(environ)
    with pytest.raises(urllib.error.URLError):
        asked(port)
