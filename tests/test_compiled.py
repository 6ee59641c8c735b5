"""Compiled code goes along to machines that run the same Python, and holds for the same sources alone."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import marshal
import py_compile
import subprocess
import sys
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, cast

import pytest

from envsync.agent.archive import build
from envsync.agent.compiling import compiling, lay_code
from envsync.agent.layout import Cache
from envsync.agent.running import Runner
from envsync.errors import StoreError
from envsync.runner import compiled, realising
from envsync.runner.compiled import compile_here, compiled_here, give
from envsync.runner.session import Session
from envsync.store import FolderStore
from tests.makes import Makes, says

SOURCES = {
    "one/__init__.py": "VALUE = 1\n",
    "one/two.py": 'TEXT = "\\d"\n',
    "three.py": "def f(): return 3\n",
}


def write(folder: Path, sources: Mapping[str, str] = SOURCES) -> dict[str, str]:
    for path, text in sources.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return {path: str(folder / path) for path in sources}


def blob_of(codes: Mapping[str, tuple[str, CodeType]], **other: str) -> bytes:
    """Return a blob, by hand: source and code by path."""
    about = {"tag": sys.implementation.cache_tag, "magic": importlib.util.MAGIC_NUMBER.hex(), **other}
    parts = {path: marshal.dumps(code) for path, (_, code) in codes.items()}
    rows = [
        [path, hashlib.sha256(source.encode()).hexdigest(), len(parts[path])]
        for path, (source, _) in codes.items()
    ]
    return zlib.compress(json.dumps({**about, "files": rows}).encode() + b"\n" + b"".join(parts.values()))


def laid(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix().split(".")[0] for path in site.rglob("*.pyc"))


def value(site: Path, code: str) -> str:
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "client"))
    sources = write(tmp_path / "here")
    monkeypatch.setattr(compiled, "files", lambda: sources)
    return FolderStore(tmp_path / "client")


@pytest.mark.filterwarnings("ignore:invalid escape sequence", "ignore:.*is an invalid escape sequence")
def test_what_is_laid_is_what_this_python_would_have_compiled(
    store: FolderStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert compiled_here(store) is None
    digest = compile_here(store)
    assert digest is not None
    assert compiled_here(store) == digest == compile_here(store)
    site = tmp_path / "there"
    write(site)
    assert lay_code(str(site), str(store.path(digest))) == 0
    told = capfd.readouterr()
    assert json.loads(told.out) == [*SOURCES]
    assert told.err == "", "of warnings about others' sources"
    for path in SOURCES:
        pyc = Path(importlib.util.cache_from_source(str(site / path)))
        data = pyc.read_bytes()
        code = cast("CodeType", marshal.loads(data[16:]))
        assert code.co_filename == path, "nothing of where it was made"
        assert str(tmp_path).encode() not in data
        pyc.unlink()
        py_compile.compile(str(site / path), quiet=2)
        assert pyc.read_bytes()[:16] == data[:16]
        assert marshal.loads(pyc.read_bytes()[16:]).co_code == code.co_code


def test_it_is_made_anew_when_a_source_was_changed(store: FolderStore, tmp_path: Path) -> None:
    digest = compile_here(store)
    (tmp_path / "here/three.py").write_text("def f(): return 33\n")
    assert compiled_here(store) is None
    assert compile_here(store) not in (None, digest)
    (tmp_path / "here/three.py").unlink()
    assert compiled_here(store) is None
    assert compile_here(store) is None


def test_it_is_used_and_only_for_the_same_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site, blob = tmp_path / "site", tmp_path / "blob"
    write(site)
    lie = compile("VALUE = 'compiled elsewhere'", "one/__init__.py", "exec")
    blob.write_bytes(blob_of({"one/__init__.py": (SOURCES["one/__init__.py"], lie)}))
    lay_code(str(site), str(blob))
    assert laid(site) == ["one/__pycache__/__init__"]
    assert value(site, "import one; print(one.VALUE)") == "compiled elsewhere"
    (site / "one/__init__.py").write_text("VALUE = 'changed later'\n")
    assert value(site, "import one; print(one.VALUE)") == "changed later"

    other = tmp_path / "other"
    write(other, {**SOURCES, "one/__init__.py": "VALUE = 2\n"})  # as long
    lay_code(str(other), str(blob))
    assert laid(other) == []
    assert capsys.readouterr().out.splitlines() == ['["one/__init__.py"]', "[]"]


@pytest.mark.parametrize("other", [{"tag": "cpython-38"}, {"magic": "00000d0a"}])
def test_another_python_takes_nothing(
    tmp_path: Path, other: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    write(site)
    code = compile("VALUE = 'compiled elsewhere'", "", "exec")
    (tmp_path / "blob").write_bytes(blob_of({"one/__init__.py": (SOURCES["one/__init__.py"], code)}, **other))
    assert lay_code(str(site), str(tmp_path / "blob")) == 0
    assert (capsys.readouterr().out, laid(site)) == ("[]\n", [])


def test_nothing_is_laid_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    write(site)
    (tmp_path / "outside.py").write_text("")
    code = compile("", "", "exec")
    names = ["../outside.py", str(tmp_path / "outside.py"), "absent.py", "three"]
    (site / "three").write_text("")
    (tmp_path / "blob").write_bytes(blob_of(dict.fromkeys(names, ("", code))))
    lay_code(str(site), str(tmp_path / "blob"))
    assert (capsys.readouterr().out, laid(tmp_path)) == ("[]\n", [])


@pytest.mark.parametrize("there", ["whole", "spoilt", "absent"])
def test_what_does_not_come_is_compiled_there(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    (tmp_path / "agent.pyz").write_bytes(build()[0])
    monkeypatch.setattr("sys.argv", [str(tmp_path / "agent.pyz")])
    site, cache = tmp_path / "site", Cache(tmp_path / "cache")
    write(site)
    lie = compile("VALUE = 'compiled elsewhere'", "", "exec")
    data = blob_of({"one/__init__.py": (SOURCES["one/__init__.py"], lie)})
    digest = hashlib.sha256(data).hexdigest()
    if there != "absent":
        cache.blob(digest).parent.mkdir(parents=True)
        cache.blob(digest).write_bytes(data if there == "whole" else data[:40])
    names = [*SOURCES, "missing.py", "../site/three.py"]
    with compiling(Runner(), sys.executable, site, names, cache.blob(digest)):
        pass
    assert laid(site) == ["__pycache__/three", "one/__pycache__/__init__", "one/__pycache__/two"]
    wanted = "compiled elsewhere" if there == "whole" else "1"
    assert value(site, "import one; print(one.VALUE)") == wanted


@pytest.mark.slow
async def test_an_environment_is_made_with_it(
    makes: Makes, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "VALUE = 'alpha'\n"
    sources = write(tmp_path / "here", {"alpha/__init__.py": source})
    monkeypatch.setattr(compiled, "files", lambda: sources)
    monkeypatch.setattr(realising, "imported", lambda: [*sources, "beta/__init__.py"])
    lie = compile("VALUE = 'compiled elsewhere'", "", "exec")
    digest = compile_here(makes.store)
    assert digest is not None
    makes.store.put(blob := blob_of({"alpha/__init__.py": (source, lie)}))
    digest = hashlib.sha256(blob).hexdigest()
    monkeypatch.setattr(realising, "compiled_here", lambda store: digest)
    session = await makes.session()
    await session.send([digest])
    made = await session.realise(makes.lock(makes.artifact("alpha"), makes.artifact("beta")))
    assert says(made, "import alpha; print(alpha.VALUE)") == "compiled elsewhere"
    compiled_there = Path(made.prefix).glob("lib/*/site-packages/*/__pycache__/*.pyc")
    assert {path.parent.parent.name for path in compiled_there} == {"alpha", "beta"}
    found = await (await makes.session()).realise(makes.lock(makes.artifact("alpha"), makes.artifact("beta")))
    assert not found.created
    assert found.report == made.report


class Link:
    """A session with a host that things can be sent to, this quick."""

    def __init__(self, rate: float, taking: Any = None, *, fails: bool = False) -> None:
        self.supply = self
        self.store = None
        self.taking = taking
        self.fails = fails
        self.sent: list[str] = []
        self._rate = rate

    async def rate(self) -> float:
        return self._rate

    async def send(self, digests: Collection[str], *, what: str = "") -> None:
        self.sent += digests
        if self.fails:
            raise StoreError("it is gone")

    async def take(self, session: Any, digests: Collection[str], what: str) -> set[str]:
        return set()


@pytest.mark.parametrize(("rate", "sent"), [(0, []), (100, []), (10_000, ["code"])])
async def test_it_is_sent_where_that_is_quicker_than_to_compile_it(
    monkeypatch: pytest.MonkeyPatch, rate: float, sent: list[str]
) -> None:
    monkeypatch.setattr(compiled, "size_of", lambda store, digest: 1000)
    for fails in (False, True):
        link = Link(rate, fails=fails)
        await give(cast("Session", link), "code")
        assert link.sent == sent


async def test_what_a_store_does_not_have_is_not_sent_instead() -> None:
    link = Link(1e9, taking=Link(0))
    await give(cast("Session", link), "code")
    assert link.sent == []


async def test_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    ended = asyncio.Event()

    async def slow(session: Session, digest: str) -> None:
        given.append(digest)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(realising, "give", slow)
    async with realising._Beside(cast("Session", None), "code") as beside:
        beside.begin()
        beside.begin()
        await asyncio.sleep(0)
    assert (given, ended.is_set()) == (["code"], True)
    async with realising._Beside(cast("Session", None), None) as beside:
        beside.begin()
    assert given == ["code"]
