"""Environments on a host: whole or absent, checked when they are there, made from whatever is at hand."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from envsync.artifacts import Artifact
from envsync.errors import (
    AgentError,
    CorruptBlobError,
    EnvsyncError,
    RealiseError,
    StoreError,
    UnfitHostError,
)
from envsync.hooks import Hooks
from envsync.indexes import IndexSettings
from envsync.lock import Lock
from envsync.runner.hosts.base import Host
from envsync.runner.hosts.local import Local
from envsync.runner.session import Environment, Session
from envsync.store import FolderStore
from envsync.supply import Supply
from envsync.target import Target
from envsync.uv import find_uv
from tests.elsewhere import Elsewhere
from tests.index_server import IndexServer, write_wheel

pytestmark = pytest.mark.slow


class Told(Hooks):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []

    def step(self, where: str, what: str) -> None:
        self.steps.append(what)

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)


class Makes:
    """A client: wheels, a store and sessions to a host that has a cache of its own."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.store = FolderStore(folder / "store")
        self.cache = folder / "cache"
        self.hooks = Told()
        self.stack = stack
        self.supply = Supply(self.store, IndexSettings(), hooks=self.hooks)

    def artifact(self, name: str, *, version: str = "1.0", url: str = "", keep: bool = True) -> Artifact:
        wheel = write_wheel(self.wheels, name, version, body=f"VALUE = {name!r}\n")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if keep:
            self.store.put(wheel)
        return Artifact(
            name=name,
            version=version,
            filename=wheel.name,
            sha256=digest,
            url=f"{url}/files/{wheel.name}" if url else None,
            path=None if url else f"envsync-wheels/{wheel.name}",
        )

    def lock(self, *artifacts: Artifact, python: str = "") -> Lock:
        here = Target.current()
        target = Target(python=python or here.python, machine=here.machine, libc=here.libc)
        return Lock.of(artifacts, target)

    async def session(self, host: Host | None = None) -> Session:
        # A host that is not this machine is given uv as a blob; the installed one does here.
        opened = await Session.open(
            host or Elsewhere({"UV_CACHE_DIR": None}),
            cache=str(self.cache),
            supply=self.supply,
            hooks=self.hooks,
        )
        return await self.stack.enter_async_context(opened)


@pytest.fixture
def uv_asked_for() -> list[Target]:
    return []


@pytest.fixture
async def makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv_asked_for: list[Target]
) -> AsyncIterator[Makes]:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))

    async def installed(self: Supply, target: Target, *, here: bool = False) -> str:
        uv_asked_for.append(target)
        return self.store.put(Path(find_uv()))

    # The index is not asked for a static uv by these tests: the installed one runs here just as well.
    monkeypatch.setattr(Supply, "uv", installed)
    async with AsyncExitStack() as stack:
        yield Makes(tmp_path, stack)


def says(environment: Environment, code: str, **variables: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [environment.python, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, **variables},
    ).stdout.strip()


def litter(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "envs").iterdir() if path.name.startswith("."))


async def test_made_once_then_found_and_checked(makes: Makes) -> None:
    lock = makes.lock(makes.artifact("alpha"), makes.artifact("beta"))
    session = await makes.session()
    made = await session.realise(lock)
    assert made.created
    assert made.prefix == str(makes.cache / "envs" / lock.digest)
    assert says(made, "import alpha, beta; print(alpha.VALUE, beta.VALUE)") == "alpha beta"
    assert {d["name"]: d["version"] for d in made.report["distributions"]} == {"alpha": "1.0", "beta": "1.0"}
    assert all(d["location"].startswith(made.prefix + "/") for d in made.report["distributions"])
    assert made.report["interpreter"]["executable"] == made.python
    found = await (await makes.session()).realise(lock)
    assert not found.created
    assert found.report == made.report
    assert await session.report(found) == made.report
    assert litter(makes.cache) == []


async def test_uv_is_asked_for_only_where_it_is_needed(makes: Makes, uv_asked_for: list[Target]) -> None:
    """It comes from the index: a host that has the environment must not need that."""
    lock = makes.lock(makes.artifact("alpha"))
    host = Elsewhere({"UV_CACHE_DIR": None})
    await (await makes.session(host)).realise(lock)
    assert len(uv_asked_for) == 1
    assert (
        len([command for command in host.commands if " receive " in command]) == 1
    )  # uv and wheels in one go
    await (await makes.session(host)).realise(lock)
    await (await makes.session(Local())).realise(lock)
    assert len(uv_asked_for) == 1
    another = makes.lock(makes.artifact("alpha"), makes.artifact("beta"))
    await (await makes.session(host)).realise(another)
    assert len(uv_asked_for) == 2
    assert len([command for command in host.commands if " receive " in command]) == 2  # beta alone


async def test_what_the_agent_reports_is_what_a_scan_in_it_sees(makes: Makes) -> None:
    made = await (await makes.session()).realise(makes.lock(makes.artifact("alpha")))
    scan = Path(__file__).parent.parent / "plugins" / "scan.py"
    done = subprocess.run([made.python, "-I", scan], capture_output=True, check=True)
    seen = json.loads(done.stdout)
    for key in ("distributions", "interpreter", "platform"):
        assert made.report[key] == seen[key]


async def test_an_empty_lock_is_an_empty_environment(makes: Makes) -> None:
    made = await (await makes.session()).realise(makes.lock())
    assert made.report["distributions"] == []
    assert says(made, "print(6 * 7)") == "42"


async def test_source_trees_are_imported_behind_and_before_the_packages(makes: Makes) -> None:
    made = await (await makes.session()).realise(makes.lock(makes.artifact("alpha")))
    tree = makes.folder / "tree"
    (tree / "alpha").mkdir(parents=True)
    (tree / "alpha" / "__init__.py").write_text("VALUE = 'tree'")
    (tree / "local.py").write_text("VALUE = 'local'")
    code = "import alpha, local, sys; print(alpha.VALUE, local.VALUE)"
    assert says(made, code, ENVSYNC_TREES=f"{tree}") == "alpha local"
    assert says(made, code, PYTHONPATH=f"{tree}") == "tree local"


async def test_two_sessions_make_it_once(makes: Makes) -> None:
    lock = makes.lock(*(makes.artifact(f"package-{i}") for i in range(5)))
    sessions = [await makes.session() for _ in range(4)]
    made = await asyncio.gather(*(session.realise(lock) for session in sessions))
    assert sum(environment.created for environment in made) == 1
    assert litter(makes.cache) == []


async def test_one_that_was_changed_is_made_anew(makes: Makes) -> None:
    lock = makes.lock(makes.artifact("alpha"))
    session = await makes.session()
    made = await session.realise(lock)
    (record,) = Path(made.prefix).glob("lib/python*/site-packages/alpha-1.0.dist-info/RECORD")
    record.write_text(record.read_text().replace("alpha/__init__.py,sha256=", "alpha/__init__.py,sha256=x"))
    again = await session.realise(lock)
    assert again.created
    assert "made anew" in " ".join(makes.hooks.notes)
    assert again.report == made.report
    assert litter(makes.cache) == []


@pytest.mark.parametrize("change", ["record", "same size", "added", "removed", "loose"])
async def test_whatever_is_changed_by_hand_is_seen(makes: Makes, change: str) -> None:
    lock = makes.lock(makes.artifact("alpha"), makes.artifact("beta"))
    session = await makes.session()
    made = await session.realise(lock)
    (record,) = Path(made.prefix).glob("lib/python*/site-packages/alpha-1.0.dist-info/RECORD")
    text, site = record.read_text(), record.parent.parent
    if change == "record":
        record.write_text(text + "alpha/more.py,sha256=abc,3\n")
    elif change == "same size":
        record.write_text(text.replace("sha256=", "sha512="))
    elif change == "added":
        gamma = shutil.copytree(record.parent, site / "gamma-1.0.dist-info")
        for file in (gamma / "RECORD", gamma / "METADATA"):
            file.write_text(file.read_text().replace("alpha", "gamma"))
    elif change == "removed":
        shutil.rmtree(record.parent)
    else:
        (site / "loose.py").write_text("")  # no package's: reported, and no reason to make it anew
        found = await session.realise(lock)
        assert not found.created
        assert [Path(path).name for path in found.report["unowned"]] == ["loose.py"]
        return
    again = await session.realise(lock)
    assert again.created
    assert again.report == made.report


async def test_what_was_looked_at_is_not_read_again(makes: Makes) -> None:
    lock = makes.lock(makes.artifact("alpha"))
    made = await (await makes.session()).realise(lock)
    (record,) = Path(made.prefix).glob("lib/python*/site-packages/alpha-1.0.dist-info/RECORD")
    text, status = record.read_text(), record.stat()
    record.write_text(text.replace("sha256=", "sha512="))
    os.utime(record, ns=(status.st_atime_ns, status.st_mtime_ns))  # nobody does that by accident
    found = await (await makes.session()).realise(lock)
    assert not found.created
    assert found.report == made.report
    os.utime(record)
    record.write_text(text)  # as it was, but written anew: read, found right, remembered
    for _ in range(2):
        found = await (await makes.session()).realise(lock)
        assert not found.created


async def test_a_cache_that_was_moved_says_where_it_is_now(makes: Makes) -> None:
    lock = makes.lock(makes.artifact("alpha"))
    await (await makes.session()).realise(lock)
    makes.cache = makes.cache.rename(makes.folder / "moved")
    found = await (await makes.session()).realise(lock)
    assert not found.created
    assert found.report["paths"][0].startswith(f"{makes.folder}/moved/")
    assert says(found, "import alpha; print(alpha.VALUE)") == "alpha"


async def hanging(makes: Makes, session: Session, lock: Lock) -> asyncio.Future[object]:
    """Begin to realise with an uv that installs once the file "go" is there, and return when it runs."""
    slow = makes.folder / "uv-slow"
    wait = f"while [ $1 = pip ] && [ ! -e {makes.folder}/go ]; do sleep 0.1; done"
    slow.write_text(f'#!/bin/sh\n{wait}\nexec {find_uv()} "$@"\n')
    digest = makes.store.put(slow)
    artifacts = [
        {"name": a.name, "version": a.version, "filename": a.filename, "sha256": a.sha256}
        for a in lock.artifacts()
    ]
    await session.send([digest, *(a.sha256 for a in lock.artifacts())])
    pending = asyncio.ensure_future(
        session.request(
            "realise",
            digest=lock.digest,
            python=lock.target.python,
            artifacts=artifacts,
            uv={"digest": digest},
        )
    )
    while not list((makes.cache / "envs").glob(".building-*/bin/python")):
        await asyncio.sleep(0.05)
        assert not pending.done()
    return pending


async def test_a_crash_leaves_nothing_that_counts(makes: Makes) -> None:
    """The agent is killed while uv runs; the next try finds no environment and makes a whole one."""
    lock = makes.lock(makes.artifact("alpha"))
    session = await makes.session()
    pending = await hanging(makes, session, lock)
    os.kill(session.facts["pid"], 9)
    with pytest.raises(AgentError, match="agent ended"):
        await pending
    assert not (makes.cache / "envs" / lock.digest).exists()
    assert len(litter(makes.cache)) == 2  # the lock and the half
    made = await asyncio.wait_for((await makes.session()).realise(lock), 15)
    assert made.created
    assert litter(makes.cache) == []


async def test_a_session_closed_meanwhile_takes_back_what_it_began(makes: Makes) -> None:
    lock = makes.lock(makes.artifact("alpha"))
    session = await makes.session()
    pending = await hanging(makes, session, lock)
    await session.close()
    with pytest.raises(EnvsyncError):
        await pending
    assert list((makes.cache / "envs").iterdir()) == []


async def test_one_that_lost_its_lock_takes_what_another_made(makes: Makes) -> None:
    """As on a machine that was asleep while it made one: the others did not wait for it."""
    lock = makes.lock(makes.artifact("alpha"))
    pending = await hanging(makes, await makes.session(), lock)
    shutil.rmtree(makes.cache / "envs" / f".lock-{lock.digest}")
    made = await (await makes.session()).realise(lock)
    assert made.created
    (makes.folder / "go").touch()
    answer = await pending
    assert isinstance(answer, dict)
    assert (answer["prefix"], answer["created"]) == (made.prefix, False)
    assert litter(makes.cache) == []


async def test_waiting_for_another_is_said(makes: Makes) -> None:
    lock = makes.lock(makes.artifact("alpha"))
    session = await makes.session()
    folder = makes.cache / "envs" / f".lock-{lock.digest}"
    folder.mkdir(parents=True)
    (folder / "owner").write_text('{"host": "node7", "pid": "42", "token": "x"}')
    pending = asyncio.ensure_future(session.realise(lock))
    while not [step for step in makes.hooks.steps if "waiting for process 42 on node7" in step]:
        await asyncio.sleep(0.05)
        assert not pending.done()
    for path in (folder / "owner", folder):
        path.unlink() if path.is_file() else path.rmdir()
    assert (await pending).created


async def test_wheels_come_from_the_index_where_the_host_reaches_it(makes: Makes) -> None:
    with IndexServer(makes.wheels) as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}", keep=False)
        made = await (await makes.session()).realise(makes.lock(artifact))
        assert any(path.startswith("/files/alpha") for path, _ in index.requests)
    assert made.created
    assert not makes.store.has([artifact.sha256])
    assert says(made, "import alpha; print(alpha.VALUE)") == "alpha"


async def test_wheels_come_from_the_client_where_it_does_not(makes: Makes) -> None:
    artifact = makes.artifact("alpha", url="http://127.0.0.1:9", keep=False)
    asked: list[set[str]] = []

    async def fetch(digests: object) -> None:
        asked.append(set(digests))  # type: ignore[call-overload]
        makes.store.put(makes.wheels / artifact.filename)

    made = await (await makes.session()).realise(makes.lock(artifact), fetch=fetch)
    assert made.created
    assert asked == [{artifact.sha256}]


class Asked:
    """Puts wheels into the store when it is asked for them, and keeps what it was asked for."""

    def __init__(self, makes: Makes) -> None:
        self.names: list[list[str]] = []
        self._makes = makes

    async def __call__(self, digests: Collection[str]) -> None:
        names = []
        for wheel in sorted(self._makes.wheels.glob("*.whl")):
            if hashlib.sha256(wheel.read_bytes()).hexdigest() in digests:
                self._makes.store.put(wheel)
                names.append(wheel.name.partition("-")[0])
        self.names.append(names)


@pytest.fixture
def partial(tmp_path: Path) -> Callable[..., IndexServer]:
    """Make an index that has some of the wheels."""

    def make(*names: str, **settings: str) -> IndexServer:
        folder = tmp_path / "-".join(["index", *names])
        for name in names:
            write_wheel(folder, name, "1.0", body=f"VALUE = {name!r}\n")
        return IndexServer(folder, **settings)

    return make


async def test_a_local_wheel_alone_comes_from_the_client(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    with partial("alpha", "beta") as index:
        url = f"http://{index.host}"
        lock = makes.lock(
            makes.artifact("alpha", url=url, keep=False),
            makes.artifact("beta", url=url, keep=False),
            makes.artifact("local", keep=False),
        )
        asked = Asked(makes)
        made = await (await makes.session()).realise(lock, fetch=asked)
        assert asked.names == [["local"]]
        assert {path for path, _ in index.requests} == {
            f"/files/{name}-1.0-py3-none-any.whl" for name in ("alpha", "beta")
        }
    assert says(made, "import alpha, local; print(alpha.VALUE, local.VALUE)") == "alpha local"


async def test_a_server_that_is_not_reached_is_no_reason_to_ask_for_anothers_wheels(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    with partial("alpha") as index:
        lock = makes.lock(
            makes.artifact("alpha", url=f"http://{index.host}", keep=False),
            makes.artifact("beta", url="http://127.0.0.1:9", keep=False),
        )
        asked = Asked(makes)
        await (await makes.session()).realise(lock, fetch=asked)
    assert asked.names == [["beta"]]


async def test_a_file_that_the_index_lost_is_asked_for_alone(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    names = ("alpha", "beta", "gamma")
    with partial("alpha", "gamma") as index:
        lock = makes.lock(*(makes.artifact(n, url=f"http://{index.host}", keep=False) for n in names))
        asked = Asked(makes)
        made = await (await makes.session()).realise(lock, fetch=asked)
    assert asked.names == [["beta"]]
    assert made.created
    assert "1 of 3" in " ".join(makes.hooks.notes)


async def test_an_index_that_wants_a_password_gives_nothing_and_the_others_all(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    """A host is given no password."""
    with partial("alpha") as public, partial("beta", "gamma", username="me", password="sesame") as private:
        lock = makes.lock(
            makes.artifact("alpha", url=f"http://{public.host}", keep=False),
            makes.artifact("beta", url=f"http://{private.host}", keep=False),
            makes.artifact("gamma", url=f"http://{private.host}", keep=False),
        )
        asked = Asked(makes)
        await (await makes.session()).realise(lock, fetch=asked)
    assert asked.names == [["beta", "gamma"]]


async def test_an_index_that_loses_file_after_file_is_given_up(
    makes: Makes, partial: Callable[..., IndexServer]
) -> None:
    names = [f"package{i}" for i in range(6)]
    with partial("alpha") as index:
        lock = makes.lock(*(makes.artifact(n, url=f"http://{index.host}", keep=False) for n in names))
        asked = Asked(makes)
        made = await (await makes.session()).realise(lock, fetch=asked)
    assert [len(some) for some in asked.names] == [1, 1, 4]
    assert made.created


async def test_an_index_that_answers_and_fails_is_no_dead_end(makes: Makes) -> None:
    with IndexServer(makes.folder / "nothing") as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}")
        made = await (await makes.session()).realise(makes.lock(artifact))
        assert index.requests
    assert made.created


async def test_a_wheel_that_nobody_has(makes: Makes) -> None:
    artifact = makes.artifact("alpha", keep=False)
    with pytest.raises(StoreError):
        await (await makes.session()).realise(makes.lock(artifact))
    assert not (makes.cache / "envs").exists() or litter(makes.cache) == []


async def test_a_store_with_other_bytes(makes: Makes) -> None:
    artifact = makes.artifact("alpha")
    blob = makes.store.path(artifact.sha256)
    assert blob is not None
    blob.write_bytes(b"damaged")
    with pytest.raises(CorruptBlobError, match=artifact.sha256):
        await (await makes.session()).realise(makes.lock(artifact))


async def test_a_blob_that_was_damaged_on_the_host_is_named_and_fetched_anew(makes: Makes) -> None:
    artifact, lock = makes.artifact("alpha"), makes.lock(makes.artifact("alpha"))
    session = await makes.session()
    await session.send([artifact.sha256])
    blob = makes.cache / "blobs" / artifact.sha256[:2] / artifact.sha256
    other = write_wheel(makes.folder / "other", "alpha", "1.0", body="VALUE = 'evil'\n")
    blob.write_bytes(other.read_bytes())
    with pytest.raises(RealiseError, match="wheel of alpha is not the one that was locked"):
        await session.realise(lock)
    assert litter(makes.cache) == []
    made = await session.realise(lock)
    assert says(made, "import alpha; print(alpha.VALUE)") == "alpha"


async def test_a_wheel_for_another_machine_is_named(makes: Makes) -> None:
    wheel = write_wheel(makes.wheels, "alien", "1.0", tag="cp311-cp311-win_amd64")
    artifact = Artifact(
        name="alien",
        version="1.0",
        filename=wheel.name,
        sha256=makes.store.put(wheel),
        path=f"envsync-wheels/{wheel.name}",
    )
    with pytest.raises(RealiseError, match="alien") as caught:
        await (await makes.session()).realise(makes.lock(artifact))
    assert "elsewhere" in str(caught.value)
    assert "envsync snapshot --for" in str(caught.value)
    assert litter(makes.cache) == []


async def test_the_same_minor_version_stands_in_and_is_noted(makes: Makes) -> None:
    here = Target.current()
    if not [p for p in (await makes.session()).facts["pythons"] if p["version"].startswith("3.11.")]:
        pytest.skip("needs a Python 3.11 on this machine")
    lock = makes.lock(makes.artifact("alpha"), python="3.11.0")
    made = await (await makes.session()).realise(lock)
    assert made.report["interpreter"]["version"].startswith("3.11.")
    assert [note for note in makes.hooks.notes if "stands in for 3.11.0" in note]
    assert here.machine == made.report["platform"]["machine"]


async def test_here_what_uv_unpacked_before_is_enough(makes: Makes) -> None:
    """On the client's machine a warm uv cache does without the store and without the index."""
    with IndexServer(makes.wheels) as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}", keep=False)
        first = await (await makes.session(Local())).realise(makes.lock(artifact))
        assert first.created
        asked = len(index.requests)
    subprocess.run(["rm", "-rf", first.prefix], check=True)
    second = await (await makes.session(Local())).realise(makes.lock(artifact))
    assert second.created
    assert len(index.requests) == asked
    assert not makes.store.has([artifact.sha256])


async def test_here_no_file_is_shared_with_the_users_own_environments(makes: Makes) -> None:
    """They are hard links into the user's uv cache, and what is edited in one changes in all."""
    theirs, wanted, uv = makes.folder / "theirs", makes.folder / "requirements.txt", find_uv()
    with IndexServer(makes.wheels) as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}", keep=False)
        artifact = dataclasses.replace(artifact, index=index.url)
        wanted.write_text(f"alpha==1.0 --hash=sha256:{artifact.sha256}\n")
        subprocess.run([uv, "venv", "-q", theirs], check=True)
        install = [uv, "pip", "install", "-q", "-p", theirs, "--link-mode", "hardlink", "-i", index.url]
        subprocess.run([*install, "--require-hashes", "-r", wanted], check=True)
        made = await (await makes.session(Local())).realise(makes.lock(artifact))
    (edited,) = theirs.glob("lib/python*/site-packages/alpha/__init__.py")
    assert edited.stat().st_nlink > 1  # the user's own cache has it too
    edited.write_text("VALUE = 'edited in place'")
    assert says(made, "import alpha; print(alpha.VALUE)") == "alpha"
    again = await (await makes.session(Local())).realise(makes.lock(artifact, makes.artifact("beta")))
    assert says(again, "import alpha; print(alpha.VALUE)") == "alpha"


async def test_secrets_for_uv_stay_on_this_machine(makes: Makes) -> None:
    with IndexServer(makes.wheels, username="someone", password="canary-in-a-cage") as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}")
        lock = makes.lock(artifact)
        settings = {"UV_INDEX_SOME_PASSWORD": "canary-in-a-cage"}
        host = Elsewhere({})
        session = await makes.session(host)
        await session.realise(lock, environment=settings)
    for path in makes.cache.rglob("*"):
        if path.is_file():
            assert b"canary-in-a-cage" not in path.read_bytes(), path
    assert not [command for command in host.commands if "canary" in command]


async def test_a_full_disk_is_said_and_leaves_nothing(makes: Makes, tiny_disk: Callable[[int], Path]) -> None:
    makes.cache = tiny_disk(120)
    big = write_wheel(makes.wheels, "big", "1.0", body="X = '''" + "x" * 90_000_000 + "'''\n")
    artifact = Artifact(
        name="big",
        version="1.0",
        filename=big.name,
        sha256=makes.store.put(big),
        path=f"envsync-wheels/{big.name}",
    )
    session = await makes.session()
    with pytest.raises(UnfitHostError, match="full") as caught:
        await session.realise(makes.lock(artifact))
    assert "ENVSYNC_CACHE" in str(caught.value)
    assert not (makes.cache / "envs").exists() or litter(makes.cache) == []


async def test_no_programs_may_run_in_the_cache(makes: Makes, tiny_disk: Callable[..., Path]) -> None:
    makes.cache = tiny_disk(200, "noexec")
    with pytest.raises(UnfitHostError, match="noexec") as caught:
        await (await makes.session()).realise(makes.lock(makes.artifact("alpha")))
    assert "ENVSYNC_CACHE" in str(caught.value)


@pytest.fixture
async def tiny_disk(tmp_path: Path) -> AsyncIterator[Callable[..., Path]]:
    """Mount small disks, where that is allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    mounted: list[Path] = []

    def mount(megabytes: int, *options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        chosen = ",".join([f"size={megabytes}m", *options])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", chosen, "tiny", folder], check=False)
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)
