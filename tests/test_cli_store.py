"""``envsync push STORE`` and ``envsync store``, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from envsync.artifacts import Artifact
from envsync.cli import cli
from envsync.lock import Lock
from envsync.stores import open_store
from envsync.stores.keeping import pushes
from envsync.stores.pushing import push
from envsync.target import Target
from tests.command import Run
from tests.lab.machines import Lab, Machine
from tests.pushed import Made
from tests.s3 import S3, SECRET

BIN = Path(sys.executable).parent


@pytest.fixture
def envsync(tmp_path: Path) -> Run:
    """Run the installed command in an empty folder, with a cache of its own."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "envsync", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "ENVSYNC_CACHE": str(tmp_path / "cache"), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock of two wheels that lie beside it, for a system that there is no uv to be sent to."""
    made = Made(tmp_path / "source", {"alpha": b"alpha" * 1000, "beta": b"beta" * 1000})
    artifacts: tuple[Artifact, ...] = made.lock.artifacts()
    target = Target(python="3.11.7", system="darwin", machine="arm64")
    return Lock.of(artifacts, target).write(tmp_path / "pylock.mine.toml", made.store)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "shared").as_uri()


@pytest.mark.slow
def test_push_twice_and_look_after_it(envsync: Run, lock: Path, url: str, tmp_path: Path) -> None:
    first = envsync("push", "--lock", lock, url)
    assert first.returncode == 0, first.stderr
    digest = Lock.read(lock).digest
    said = rf"2 files sent \(0.0 MB\), 0 were there \(0.0 MB\), [\d.]+ s: environment {digest[:12]}"
    assert re.fullmatch(f"{url}#mine: {said}\n", first.stdout)
    assert "cannot start from the store alone" in first.stderr
    again = envsync("-q", "push", "--lock", lock, url)
    assert "mine: nothing sent, 2 were there" in again.stdout
    assert again.stderr == ""
    named = envsync("--json", "push", "--lock", lock, f"{url}#other%20name")
    document = json.loads(named.stdout)
    assert document["hosts"] == []
    (one,) = document["stores"]
    assert (one["store"], one["name"], one["environment"]) == (url, "other name", digest)
    assert (one["sent"], one["files_sent"], one["files_there"], one["new"]) == (0, 0, 2, True)

    listed = envsync("store", "ls", url)
    assert [line.split("  ")[0] for line in listed.stdout.splitlines()] == ["mine", "other name"]
    assert all(digest[:12] in line and "arm64" in line for line in listed.stdout.splitlines())
    assert len(json.loads(envsync("store", "ls", "--json", url).stdout)["pushes"]) == 2
    swept = envsync("store", "gc", "--older", "0", "--dry-run", url)
    assert swept.stdout == f"{url}: would remove 0 pushes, 0 locks, 0 source trees, 0 blobs (0.0 MB)\n"
    fine = envsync("store", "verify", url)
    assert (fine.returncode, fine.stdout) == (0, f"{url}: everything is as it should be\n")

    spoilt = max(path for path in (tmp_path / "shared" / "blobs").rglob("*") if path.is_file())
    spoilt.write_bytes(b"evil")
    bad = envsync("store", "verify", "--remove", url)
    assert bad.returncode == 1
    assert f"{url}/blobs/{spoilt.parent.name}/{spoilt.name}: " in bad.stdout
    assert "2 pushes need it" in bad.stdout
    gone = envsync("store", "verify", "--json", url)
    assert gone.returncode == 1
    assert [one["why"] for one in json.loads(gone.stdout)["damaged"]] == ["it is missing"]
    assert "1 file sent" in envsync("push", "--lock", lock, url).stdout
    assert envsync("-q", "store", "verify", url).returncode == 0


@pytest.mark.slow
def test_no_secret_is_said_or_kept(envsync: Run, lock: Path, s3: S3, tmp_path: Path) -> None:
    url = f"{s3.bucket('canary')}/x"
    tries = [
        envsync("-v", "push", "--lock", lock, url),
        envsync("-v", "--json", "store", "ls", url),
        envsync("-v", "push", "--lock", lock, "s3://no-such-bucket/x"),
        envsync("-v", "store", "verify", url),
    ]
    assert [done.returncode for done in tries] == [0, 0, 3, 0], tries
    assert "bucket does not exist" in tries[2].stderr
    for done in tries:
        assert SECRET not in done.stdout + done.stderr
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]
    store = open_store(url)
    (push,) = pushes(store)
    names = [push.file, *push.documents]
    assert not [name for name in names if SECRET.encode() in store.read(name)]


def test_a_password_in_a_url_is_not_said(forked: Run, lock: Path) -> None:
    done = forked("-v", "push", "--lock", lock, "ftp://me:w0rdcanary@127.0.0.1:9/a")
    assert done.returncode == 3
    assert "error: ftp://127.0.0.1:9/a: " in done.stderr or "ftp://127.0.0.1:9/a" in done.stderr
    assert "w0rdcanary" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["push", "gopher://host/a"], 2, "no store has the scheme gopher://"),
        (["push", "file://host/a"], 2, "with three slashes"),
        (["push", "--for", "x86_64-manylinux_2_28", "node1"], 2, "hosts are probed"),
        (["push", "--cache", "/x", "file:///nowhere/a"], 2, "no host is named"),
        (["push", "--lock", "gopher://a#b", "node1"], 2, "no store has the scheme gopher://"),
        (["push", "--lock", "file:///nowhere/a#b", "node1"], 3, "nothing was pushed there"),
        (["run", "--lock", "file:///nowhere/a", "--", "true"], 3, "nothing was pushed there"),
        (["store"], 2, "Usage: envsync store"),
        (["store", "ls", "node1"], 2, "is not the URL of a store"),
        (["store", "ls", "s3a+b://x"], 2, "no store has the scheme"),
        (["store", "gc", "--keep", "0", "file:///nowhere/a"], 2, "not in the range"),
        (["store", "gc", "file:///nowhere/a"], 3, "nothing is removed"),
    ],
)
def test_what_cannot_be_done_is_said(forked: Run, arguments: list[str], code: int, words: str) -> None:
    done = forked(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_store_is_listed_as_such(forked: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    done = forked("store", "ls", url)
    assert (done.returncode, done.stdout) == (0, f"{url}: nothing was pushed there\n")


def test_what_others_wrote_does_not_reach_the_terminal_raw(forked: Run, lock: Path, url: str) -> None:
    assert forked("push", "-q", "--lock", lock, url + "#%1B%5D0;evil%07%0D").returncode == 0
    done = forked("store", "ls", url)
    assert done.stdout.startswith("\\x1b]0;evil\\x07\\r  ")
    assert not {"\x1b", "\x07", "\r"} & set(done.stdout)


def test_a_spoilt_push_is_told_and_the_others_are_listed(tmp_path: Path) -> None:
    store, made = open_store(tmp_path.as_uri()), Made(tmp_path / "source", {"alpha": b"alpha"})
    for name in ("good", "bad"):
        spoilt = push(made.lock, made.manifests, made.store, store, name=name).record.file
    (tmp_path / spoilt).write_text("[]")
    listed = CliRunner().invoke(cli, ["store", "ls", tmp_path.as_uri()])
    assert listed.exit_code == 3
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["good"]
    assert f"{spoilt}: this record is spoilt" in listed.stderr
    assert [
        one["name"]
        for one in json.loads(CliRunner().invoke(cli, ["store", "ls", "--json", tmp_path.as_uri()]).stdout)[
            "pushes"
        ]
    ] == ["good"]


def test_pushing_into_a_folder_imports_nothing_heavy(envsync: Run, lock: Path, url: str) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'fsspec', 's3fs', 'distributed', 'dask', 'rich', 'asyncssh', 'httpx'}\n"
        "atexit.register(lambda: print('heavy', *sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['envsync', '-q', 'push', '--lock', {str(lock)!r}, {url!r}]\n"
        "from envsync.cli import main; main()\n"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy"


@pytest.mark.lab
@pytest.mark.slow
def test_a_bare_host_is_given_all_from_a_store(
    envsync: Run, lab: Lab, machine: Callable[..., Machine], small_lock: Path, url: str, tmp_path: Path
) -> None:
    host = machine("bare")
    pushed = envsync("push", "--lock", small_lock, url, ENVSYNC_CACHE=os.environ["ENVSYNC_CACHE"])
    assert pushed.returncode == 0, pushed.stderr
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    given = envsync("push", "--lock", url, f"ssh://{host.name}", HOME=str(lab.home), **nowhere)
    assert given.returncode == 0, given.stderr
    assert f"{host.name}: made, verified" in given.stdout
    assert "downloading" not in given.stderr
    prefix = given.stdout.strip().rpartition(": ")[2]
    code = "import distributed; print(distributed.__version__)"
    said = host.exec(f"{prefix}/bin/python", "-c", code).decode().strip()
    assert f'version = "{said}"' in small_lock.read_text()
