"""Who we are to a registry: passwords, tokens, helpers, certificates; and that nobody else hears of it."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from envsync.errors import RegistryError, RegistryLoginError
from envsync.images.auth import find_login
from envsync.images.challenges import Challenge, read_challenges
from envsync.images.reference import Reference
from envsync.images.registry import Registry
from tests.lab.registry import Authority, DockerRegistry, Proxy, TokenServer, answers
from tests.test_registry import digest, image_of

pytestmark = pytest.mark.lab

CANARY = "hunter2-canary"
IDENTITY = "identity-canary"
USER = "ada"
SMALL = b"a layer"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home where nobody has logged in."""
    for name in (
        "REGISTRY_AUTH_FILE",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "SSL_CERT_FILE",
        "DOCKER_CONFIG",
    ):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    (folder / ".docker").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    with stamina.set_testing(True, attempts=2):
        yield folder


@pytest.fixture(scope="module")
def closed(
    docker_registry: DockerRegistry, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerRegistry]:
    """A registry that wants a password, over TLS; what it has is that of the open one, too."""
    folder = tmp_path_factory.mktemp("closed")
    with DockerRegistry(folder, login=(USER, CANARY), tls=authority, store=docker_registry.store) as registry:
        yield registry


@pytest.fixture(scope="module")
def tokens(authority: Authority) -> Iterator[TokenServer]:
    with TokenServer(authority, login=(USER, CANARY), identity=IDENTITY, readers=["reader"]) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(
    docker_registry: DockerRegistry, tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A registry that wants tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    with (
        DockerRegistry(folder, tokens=tokens, store=docker_registry.store) as registry,
        Proxy(registry) as one,
    ):
        yield one


@pytest.fixture(autouse=True)
def no_requests(guarded: Proxy, tokens: TokenServer) -> None:
    """What earlier tests asked is forgotten."""
    guarded.requests.clear()
    tokens.requests.clear()
    tokens.given.clear()
    tokens.anonymous, tokens.stale = "", 0


def basic(user: str = USER, password: str = CANARY) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def log_in(home: Path, host: str, **entry: str) -> None:
    (home / ".docker/config.json").write_text(json.dumps({"auths": {host: entry or basic()}}))


def repository(host: str, name: str = "", *, plain_http: bool = False) -> Registry:
    return Registry(Reference.parse(f"{host}/{name or 'lab/' + os.urandom(4).hex()}"), plain_http=plain_http)


def push(host: str, name: str = "", *, plain_http: bool = False) -> Registry:
    with repository(host, name, plain_http=plain_http) as registry:
        registry.put([SMALL])
        assert registry.size(digest(SMALL)) == len(SMALL)
    return registry


# TLS


def test_an_authority_of_ones_own_is_named_in_the_environment(
    closed: DockerRegistry, authority: Authority, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(home, closed.host)
    with pytest.raises(RegistryError, match="a certificate that is not trusted here") as caught:
        push(closed.host)
    assert "SSL_CERT_FILE" in caught.value.hint
    assert f"certs.d/{closed.host}/ca.crt" in caught.value.hint
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    push(closed.host)


@pytest.mark.parametrize("tool", ["docker", "containers"])
def test_an_authority_of_ones_own_is_where_engines_have_it(
    closed: DockerRegistry, authority: Authority, home: Path, tool: str
) -> None:
    log_in(home, closed.host)
    folder = home / ".config" / tool / "certs.d" / closed.host
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
    push(closed.host)


def test_plain_http_is_for_loopback_or_whoever_asks(
    docker_registry: DockerRegistry, closed: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from envsync.images import answers as reaching

    push(docker_registry.host)
    # from here on this machine is any other
    monkeypatch.setattr(reaching, "is_loopback", lambda host: False)
    with pytest.raises(RegistryError, match="does not speak TLS") as caught:
        push(docker_registry.host)
    assert "--plain-http" in caught.value.hint
    push(docker_registry.host, plain_http=True)


# passwords


@pytest.fixture
def trusting(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))


@pytest.mark.usefixtures("trusting")
def test_nobody_logged_in(closed: DockerRegistry) -> None:
    with pytest.raises(RegistryLoginError, match=r"wants a login .* none here") as caught:
        push(closed.host)
    assert f"docker login {closed.host}" in caught.value.hint


@pytest.mark.usefixtures("trusting")
def test_a_wrong_password(closed: DockerRegistry, home: Path) -> None:
    log_in(home, closed.host, **basic(password="wrong-" + CANARY))
    with pytest.raises(RegistryLoginError, match="does not take our user name and password") as caught:
        push(closed.host)
    assert str(home / ".docker/config.json") in caught.value.hint
    assert CANARY not in str(caught.value)


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("place", ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "~/.config"])
def test_where_logins_are_kept(
    closed: DockerRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file = {
        "REGISTRY_AUTH_FILE": tmp_path / "auth.json",
        "DOCKER_CONFIG": tmp_path / "docker" / "config.json",
        "XDG_RUNTIME_DIR": tmp_path / "run" / "containers" / "auth.json",
        "~/.config": home / ".config" / "containers" / "auth.json",
    }[place]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"auths": {closed.host: basic()}}))
    if place.isupper():
        value = {
            "REGISTRY_AUTH_FILE": file,
            "DOCKER_CONFIG": file.parent,
            "XDG_RUNTIME_DIR": tmp_path / "run",
        }
        monkeypatch.setenv(place, str(value[place]))
    push(closed.host)


def test_the_entry_for_the_longest_part_of_a_name_counts(home: Path) -> None:
    entries = {
        "r.example.org": basic("all"),
        "r.example.org/team": basic("team"),
        "https://old.example.org/v1/": basic("old"),
    }
    (home / ".docker/config.json").write_text(json.dumps({"auths": entries}))

    def who(registry: str, repository: str) -> str:
        login = find_login(registry, repository).login
        return "" if login is None else login.username

    assert who("r.example.org", "team/analysis") == "team"
    assert who("r.example.org", "teams/analysis") == "all"
    assert who("old.example.org", "x/y") == "old"
    assert who("other.example.org", "x/y") == ""


def test_the_public_hub_goes_by_an_old_name(home: Path) -> None:
    from envsync.images.auth import HUB

    log_in(home, f"https://index.{HUB}/v1/")
    found = find_login(HUB, "library/python")
    assert found.login is not None
    assert found.login.password == CANARY


@pytest.mark.parametrize(
    "text", ["no json " + CANARY, json.dumps({"auths": {"r.example.org": {"auth": "no+base64=" + CANARY}}})]
)
def test_a_file_that_is_damaged_is_named(home: Path, text: str) -> None:
    (home / ".docker/config.json").write_text(text)
    with pytest.raises(RegistryError) as caught:
        find_login("r.example.org")
    assert caught.value.where == str(home / ".docker/config.json")
    assert CANARY not in "".join(traceback.format_exception(caught.value))


# helpers

_HELPER = f"""#!{sys.executable} -I
import json, pathlib, sys
here = pathlib.Path(__file__).parent
server = sys.stdin.read()
(here / "asked").write_text(json.dumps([sys.argv[1:], server]))
sys.exit("broken") if "broken" in server else None
if "unknown" in server:
    print("credentials not found in native keychain")
    sys.exit(1)
user, secret = ((here / name).read_text() for name in ("user", "secret"))
print(json.dumps({{"ServerURL": server, "Username": user, "Secret": secret}}))
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper called ``lab``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker-credential-lab"
    program.write_text(_HELPER)
    program.chmod(0o755)
    (folder / "user").write_text(USER)
    (folder / "secret").write_text(CANARY)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("how", ["credsStore", "credHelpers"])
def test_a_helper_is_asked_on_its_standard_input(
    closed: DockerRegistry, home: Path, helper: Path, how: str
) -> None:
    value = "lab" if how == "credsStore" else {closed.host: "lab"}
    # docker leaves an empty entry where a helper has the login
    (home / ".docker/config.json").write_text(json.dumps({how: value, "auths": {closed.host: {}}}))
    push(closed.host)
    assert json.loads((helper / "asked").read_text()) == [["get"], closed.host]


def test_a_helper_that_has_an_identity_token(
    guarded: Proxy, tokens: TokenServer, home: Path, helper: Path
) -> None:
    (home / ".docker/config.json").write_text(json.dumps({"credsStore": "lab"}))
    (helper / "user").write_text("<token>")
    (helper / "secret").write_text(IDENTITY)
    push(guarded.host)
    assert {one.method for one in tokens.requests} == {"POST"}


@pytest.mark.parametrize(
    ("name", "server", "trouble"),
    [
        ("absent", "r.example.org", "docker-credential-absent is not there"),
        ("../lab", "r.example.org", "docker-credential-../lab is not there"),
        ("lab", "broken.example.org", r"docker-credential-lab failed (exit status 1)"),
        ("lab", "unknown.example.org", ""),
    ],
)
@pytest.mark.usefixtures("helper")
def test_what_may_be_the_matter_with_a_helper(home: Path, name: str, server: str, trouble: str) -> None:
    (home / ".docker/config.json").write_text(json.dumps({"credsStore": name}))
    found = find_login(server)
    assert (found.login, found.trouble) == (None, trouble)


@pytest.mark.usefixtures("trusting")
def test_a_helper_that_is_not_there_is_named_when_a_login_is_wanted(
    closed: DockerRegistry, home: Path
) -> None:
    (home / ".docker/config.json").write_text(json.dumps({"credsStore": "absent"}))
    with pytest.raises(RegistryLoginError, match="docker-credential-absent is not there"):
        push(closed.host)


# tokens


def test_a_token_is_had_for_what_is_to_be_done(guarded: Proxy, tokens: TokenServer, home: Path) -> None:
    log_in(home, guarded.host)
    with repository(guarded.host, "lab/tokens") as registry:
        manifest = image_of(registry, SMALL)
        registry.put_manifest(manifest, "application/vnd.oci.image.manifest.v1+json", "v1")
        assert registry.manifest_digest("v1") == "sha256:" + hashlib.sha256(manifest).hexdigest()
    assert len(tokens.given) == 2, "one to push, one to pull; both used again"
    sent = {one.headers.get("authorization", "").partition(" ")[0] for one in guarded.requests[1:]}
    assert sent == {"Bearer"}, "the password goes to the token server once that is known"


def test_anybody_may_have_a_token_to_pull(guarded: Proxy, tokens: TokenServer, home: Path) -> None:
    log_in(home, guarded.host)
    push(guarded.host, "lab/public")
    (home / ".docker/config.json").unlink()
    tokens.anonymous = "pull"
    with repository(guarded.host, "lab/public") as registry:
        assert registry.size(digest(SMALL)) == len(SMALL)
        with pytest.raises(RegistryLoginError, match="wants a login"):
            registry.put([b"else"])


def test_a_token_that_has_expired_is_renewed_once(guarded: Proxy, tokens: TokenServer, home: Path) -> None:
    log_in(home, guarded.host)
    tokens.stale = 1
    push(guarded.host)
    assert len(tokens.given) == 3, "the first had expired; one to push, one to pull"


def test_tokens_that_are_never_good_are_an_error(guarded: Proxy, tokens: TokenServer, home: Path) -> None:
    log_in(home, guarded.host)
    tokens.stale = 99
    with pytest.raises(RegistryLoginError, match="does not let us push to"):
        push(guarded.host)
    assert len(tokens.given) == 2


def test_a_token_that_is_about_to_expire_is_not_used(
    guarded: Proxy, tokens: TokenServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    log_in(home, guarded.host)
    with repository(guarded.host) as registry:
        registry.put([SMALL])
        later = time.monotonic() + 280
        monkeypatch.setattr(time, "monotonic", lambda: later)
        registry.put([b"else"])
    assert len(tokens.given) == 2
    assert [one.status for one in guarded.requests].count(401) == 1


def test_no_right_to_push(guarded: Proxy, home: Path) -> None:
    log_in(home, guarded.host)
    push(guarded.host, "lab/others")
    log_in(home, guarded.host, **basic("reader"))
    with repository(guarded.host, "lab/others") as registry:
        assert registry.size(digest(SMALL)) == len(SMALL)
        with pytest.raises(RegistryLoginError, match="does not let us push to lab/others") as caught:
            registry.put([b"else"])
    assert "Ask whoever runs the registry" in caught.value.hint


def test_a_wrong_password_at_the_token_server(guarded: Proxy, home: Path) -> None:
    log_in(home, guarded.host, **basic(password="wrong"))
    with pytest.raises(RegistryLoginError, match="does not take our user name and password"):
        push(guarded.host)


def test_an_identity_token_is_exchanged(guarded: Proxy, tokens: TokenServer, home: Path) -> None:
    log_in(home, guarded.host, identitytoken=IDENTITY)
    push(guarded.host)
    assert {one.method for one in tokens.requests} == {"POST"}
    assert not any(IDENTITY in one.path for one in [*tokens.requests, *guarded.requests])


def test_a_mount_asks_for_the_right_to_its_source(guarded: Proxy, tokens: TokenServer, home: Path) -> None:
    log_in(home, guarded.host)
    push(guarded.host, "lab/source")
    with repository(guarded.host, "lab/target") as registry:
        assert registry.mount(digest(SMALL), "lab/source")
    scopes = tokens.requests[-1].path
    assert "repository%3Alab%2Fsource%3Apull" in scopes
    assert "repository%3Alab%2Ftarget%3Apull%2Cpush" in scopes


def test_a_login_is_not_sent_for_a_token_without_tls(guarded: Proxy, home: Path) -> None:
    log_in(home, guarded.host)
    where = 'Bearer realm="http://auth.example.org/token",service="lab"'
    guarded.fault("POST", "*", answers(401, {"WWW-Authenticate": where}))
    with pytest.raises(RegistryLoginError, match=r"http://auth\.example\.org/token, which is not over TLS"):
        push(guarded.host)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ('Basic realm="a, b"', [Challenge(scheme="basic", realm="a, b")]),
        (
            'Bearer realm="https://a.example.org/t?x=1",service="s",scope="repository:x:pull,push"',
            [
                Challenge(
                    scheme="bearer",
                    realm="https://a.example.org/t?x=1",
                    service="s",
                    scope="repository:x:pull,push",
                )
            ],
        ),
        (
            'Negotiate, Bearer realm=r, error="invalid_token", Basic realm="q"',
            [
                Challenge(scheme="negotiate"),
                Challenge(scheme="bearer", realm="r", error="invalid_token"),
                Challenge(scheme="basic", realm="q"),
            ],
        ),
        ("", []),
    ],
)
def test_challenges(header: str, wanted: list[Challenge]) -> None:
    assert read_challenges([header]) == wanted


# who hears of it


def test_whoever_it_redirects_to_hears_no_login(
    guarded: Proxy, docker_registry: DockerRegistry, home: Path
) -> None:
    log_in(home, guarded.host)
    push(guarded.host, "lab/elsewhere")
    with Proxy(docker_registry) as bucket:
        path = f"/v2/lab/elsewhere/blobs/{digest(SMALL)}"
        location = f"http://{bucket.host}{path}?signature={CANARY}"
        guarded.fault("GET", path, lambda handler: handler.answer(307, {"Location": location}))
        with repository(guarded.host, "lab/elsewhere") as registry:
            assert registry.size(digest(SMALL)) == len(SMALL)  # it has a token from here on
            assert b"".join(registry.open(digest(SMALL))) == SMALL
            assert guarded.asked("GET", path)[-1].headers["authorization"].startswith("Bearer ")
        assert [one.path for one in bucket.requests] == [f"{path}?signature={CANARY}"]
        assert "authorization" not in bucket.requests[0].headers


def test_no_secret_is_shown_anywhere(
    guarded: Proxy,
    tokens: TokenServer,
    docker_registry: DockerRegistry,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    log_in(home, guarded.host)
    shown: list[str] = []
    with Proxy(docker_registry) as bucket, repository(guarded.host, "lab/canary") as registry:
        registry.put([SMALL])
        path = f"/v2/lab/canary/blobs/{digest(SMALL)}"
        location = f"http://{bucket.host}{path}?signature={CANARY}"
        guarded.fault("GET", path, lambda handler: handler.answer(307, {"Location": location}))
        bucket.fault("GET", "*", answers(500), times=1)
        b"".join(registry.open(digest(SMALL)))
        # a registry that repeats what it heard
        for status in (400, 403, 500):
            told = json.dumps(
                {"errors": [{"code": "NO", "message": f"{CANARY} {tokens.given[-1]}"}]}
            ).encode()
            guarded.fault("POST", "*", answers(status, body=told), times=2)
            with pytest.raises(RegistryError) as caught:
                registry.put([b"else"])
            shown += traceback.format_exception(caught.value)
        shown += [repr(one) for one in (registry, registry.connection, registry.connection.logins)]
        shown += [repr(registry.connection.logins.found), repr(registry.connection.logins._tokens)]
    shown += [record.getMessage() for record in caplog.records]
    shown += capfd.readouterr()
    text = "\n".join(shown)
    assert "HTTP Request: GET" in text, "requests are logged"
    secrets = [CANARY, basic()["auth"], *tokens.given, "?_state"]
    assert [secret for secret in secrets if secret in text] == []
