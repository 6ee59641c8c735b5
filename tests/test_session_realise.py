"""Environments on a host: whole or absent, and checked when they are there."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from envsync.artifacts import Artifact
from envsync.errors import AgentError, EnvsyncError, RealiseError, UnfitHostError
from envsync.lock import Lock
from envsync.plugins.compare import compare
from envsync.runner.hosts.local import Local
from envsync.runner.session import Session
from envsync.target import Target
from envsync.uv import find_uv
from tests.elsewhere import Elsewhere
from tests.index_server import IndexServer, write_wheel
from tests.makes import Makes, litter, says, tiny_disk
from tests.nvml import driver_library

__all__ = ["tiny_disk"]

pytestmark = pytest.mark.slow


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
    assert litter(makes.cache) == []


async def test_what_is_imported_first_is_compiled(makes: Makes, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["alpha/__init__.py", "missing.py", "../../../../../outside.py"]
    monkeypatch.setattr("envsync.runner.realising.imported", lambda: names)
    (makes.cache / "outside.py").parent.mkdir(parents=True, exist_ok=True)
    (makes.cache / "outside.py").write_text("")
    made = await (await makes.session()).realise(makes.lock(makes.artifact("alpha"), makes.artifact("beta")))
    compiled = {path.name.partition(".")[0] for path in Path(made.prefix).glob("lib/*/*/*/__pycache__/*.pyc")}
    parents = {path.parent.parent.name for path in Path(made.prefix).glob("lib/*/*/*/__pycache__/*.pyc")}
    assert (compiled, parents) == ({"__init__"}, {"alpha"})
    assert not (makes.cache / "__pycache__").exists()
    assert says(made, "import alpha; print(alpha.VALUE, alpha.__file__)").startswith(f"alpha {made.prefix}/")


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


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
async def test_the_driver_there_is_compared_with_the_one_that_was_locked_for(makes: Makes) -> None:
    there = Elsewhere({"LD_LIBRARY_PATH": str(driver_library(makes.folder / "driver").parent)})
    for locked, host, right in (
        ("nvidia 550.54.14", there, None),
        ("nvidia 560.28.03", there, "nvidia 550.54.14"),
        ("nvidia 550.54.14", Elsewhere({}), ""),
        ("", there, None),
    ):
        plain = makes.lock(makes.artifact("alpha"))
        target = dataclasses.replace(plain.target, accelerators=(locked,) if locked else ())
        lock = dataclasses.replace(plain, target=target)
        made = await (await makes.session(host)).realise(lock)
        assert made.report["accelerators"] == (["nvidia 550.54.14"] if host is there else [])
        found = [(one.kind, one.left, one.right) for one in compare(lock.report(), made.report)]
        assert found == ([] if right is None else [("driver", locked, right)])


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


async def test_many_sessions_make_it_once(makes: Makes) -> None:
    lock = makes.lock(*(makes.artifact(f"package-{i}") for i in range(5)))
    sessions = [await makes.session() for _ in range(16)]
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
    made = await asyncio.wait_for((await makes.session()).realise(lock), 60)
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


async def test_here_no_file_is_shared_with_the_users_own_environments(makes: Makes) -> None:
    """They are hard links into the user's uv cache, and what is edited in one changes in all."""
    theirs, wanted, uv = makes.folder / "theirs", makes.folder / "requirements.txt", find_uv()
    with IndexServer(makes.wheels) as index:
        artifact = makes.artifact("alpha", url=f"http://{index.host}", keep=False)
        artifact = dataclasses.replace(artifact, index=index.url)
        wanted.write_text(f"alpha==1.0 --hash=sha256:{artifact.sha256}\n")
        subprocess.run([uv, "venv", "-q", theirs], check=True)
        install = [uv, "pip", "install", "-q", "-p", str(theirs), "--link-mode", "hardlink", "-i", index.url]
        subprocess.run([*install, "--require-hashes", "-r", str(wanted)], check=True)
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


async def test_what_uv_says_of_a_password_is_in_no_error(
    makes: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = makes.folder / "uv-loud"
    loud.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = venv ] && exec {find_uv()} "$@"\n'
        'echo "error: $UV_INDEX_CORP_PASSWORD is refused by $UV_DEFAULT_INDEX" >&2\n'
        'echo "cause: asked for http://eve:canary-3@127.0.0.1:9/x.whl?token=canary-4" >&2\nexit 2\n'
    )
    loud.chmod(0o755)
    monkeypatch.setattr("envsync.uv.find_uv", lambda: str(loud))
    settings = {
        "UV_INDEX_CORP_PASSWORD": "canary-1",
        "UV_DEFAULT_INDEX": "http://ada:canary%2D2@127.0.0.1:9/simple",
    }
    session = await makes.session(Local())
    with pytest.raises(RealiseError, match="is refused by http://") as caught:
        await session.realise(makes.lock(makes.artifact("alpha")), environment=settings)
    assert "127.0.0.1:9" in str(caught.value)
    assert not re.search("canary", str(caught.value))


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
