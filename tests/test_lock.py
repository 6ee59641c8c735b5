"""A lock is PEP 751, the same bytes for the same environment, and says so when somebody changed it."""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from packaging.pylock import Pylock

from envsync.errors import LockError, LockVersionError, StoreError
from envsync.lock import Artifact, Excluded, Lock, Substitution, TreeRef
from envsync.plugins.compare import compare
from envsync.store import FolderStore
from envsync.target import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TARGET = Target(python="3.11.7", libc=("glibc", "2.36"), accelerators=("nvidia 550.54",))


def artifact(name: str = "alpha", version: str = "1.0", **changes: Any) -> Artifact:
    filename = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    digest = hashlib.sha256(filename.encode()).hexdigest()
    return Artifact(
        **{
            "name": name,
            "version": version,
            "filename": filename,
            "sha256": digest,
            "url": f"https://files.example.org/{name}/{filename}",
            "index": "https://example.org/simple",
            **changes,
        }
    )


def make(*artifacts: Artifact, **rest: Any) -> Lock:
    return Lock.of(
        artifacts or [artifact("alpha"), artifact("beta", "2.0")], rest.pop("target", TARGET), **rest
    )


def full() -> Lock:
    return make(
        snapshot="5" * 64,
        records={"beta": "b" * 64, "alpha": "a" * 64},
        trees=(
            TreeRef(name="src", digest="d" * 64, position="back", kind="editable", distribution="mine"),
            TreeRef(name="cwd", digest="e" * 64, position="front", kind="cwd"),
        ),
        excluded=(
            Excluded(name="zeta", version="1", reason="z"),
            Excluded(name="eta", version="1", reason="e"),
        ),
        substitutions=(Substitution(name="beta", installed="1.9", locked="2.0", reason="no wheel"),),
    )


def changed(lock: Lock, change: Any) -> str:
    document = tomllib.loads(lock.dumps())
    change(document)
    return tomli_w.dumps(document)


def test_it_reads_what_it_writes() -> None:
    lock = full()
    again = Lock.loads(lock.dumps())
    assert again == lock
    assert again.dumps() == lock.dumps()
    assert again.artifacts() == (artifact("alpha"), artifact("beta", "2.0"))
    assert again.digest == lock.digest


def test_it_is_valid_pep_751() -> None:
    document = tomllib.loads(full().dumps())
    pylock = Pylock.from_dict(document)
    assert [package.name for package in pylock.packages] == ["alpha", "beta"]
    assert list(document["tool"]) == ["envsync"]
    assert tomllib.loads(Lock.of([], TARGET).dumps())["packages"] == []
    Pylock.from_dict(tomllib.loads(Lock.of([], TARGET).dumps()))


def test_the_order_of_what_goes_in_does_not_matter() -> None:
    artifacts = [artifact(f"p{n}") for n in range(30)]
    records = {one.name: one.sha256 for one in artifacts}
    excluded = [Excluded(name=f"x{n}", version="1", reason="r") for n in range(5)]
    texts = set()
    for seed in range(5):
        shuffle = random.Random(seed).shuffle
        items = list(records.items())
        for one in (artifacts, items, excluded):
            shuffle(one)
        texts.add(Lock.of(artifacts, TARGET, records=dict(items), excluded=excluded).dumps())
    assert len(texts) == 1


def test_the_digest_names_the_environment_and_nothing_else() -> None:
    lock = full()
    same = [
        replace(lock, trees=(), excluded=(), records={}, snapshot="0" * 64),
        make(
            artifact("alpha", url="https://mirror.example.org/alpha-1.0-py3-none-any.whl"),
            artifact("beta", "2.0"),
        ),
        make(target=replace(TARGET, libc=("glibc", "2.39"), accelerators=())),
    ]
    assert {one.digest for one in same} == {lock.digest}
    other = [
        make(artifact("alpha")),
        make(artifact("alpha", sha256="0" * 64), artifact("beta", "2.0")),
        make(target=replace(TARGET, python="3.11.9")),
        make(target=replace(TARGET, machine="aarch64")),
        make(target=replace(TARGET, libc=("musl", "1.2"))),
    ]
    assert len({one.digest for one in [*other, lock]}) == len(other) + 1


def test_credentials_and_queries_are_not_written() -> None:
    secret = "canary-55"
    lock = make(
        artifact(
            "alpha",
            url=f"https://me:{secret}@files.example.org/alpha-1.0-py3-none-any.whl?sig={secret}#{secret}",
            index=f"https://{secret}@example.org/simple",
        )
    )
    assert secret not in lock.dumps()
    assert secret not in repr(lock.artifacts())


def test_report_is_what_is_wanted() -> None:
    report = full().report()
    alpha = report["distributions"][0]
    assert (alpha["name"], alpha["version"], alpha["record"]) == ("alpha", "1.0", "a" * 64)
    assert alpha["tags"] == ["py3-none-any"]
    assert report["interpreter"] == {"implementation": "cpython", "version": "3.11.7"}
    assert report["platform"] == {"system": "linux", "machine": "x86_64", "libc": ["glibc", "2.36"]}
    assert report["trees"] == {"src": "d" * 64, "cwd": "e" * 64}
    assert "imported" not in report
    assert report["accelerators"] == ["nvidia 550.54"]
    assert "accelerators" not in make(target=replace(TARGET, accelerators=())).report()


@pytest.mark.parametrize("there", [[], ["nvidia 470.82"]])
def test_an_accelerator_that_was_locked_for_is_missed_or_found_too_old(there: list[str]) -> None:
    wanted = full().report()
    kinds = [one.kind for one in compare(wanted, {**wanted, "who": "worker", "accelerators": there})]
    assert kinds == ["driver"]
    assert not compare(wanted, {**wanted, "who": "worker"})


def test_an_edited_hash_names_the_package() -> None:
    text = full().dumps().replace(artifact("beta", "2.0").sha256, "f" * 64)
    with pytest.raises(LockError, match="this differs: beta") as caught:
        Lock.loads(text, "pylock.x.toml")
    assert caught.value.where == "pylock.x.toml"
    assert "envsync snapshot" in caught.value.hint


def test_a_package_that_was_removed_or_added_is_named() -> None:
    with pytest.raises(LockError, match="this differs: alpha"):
        Lock.loads(changed(full(), lambda document: document["packages"].pop(0)))
    extra = tomllib.loads(make(artifact("gamma")).dumps())["packages"]
    with pytest.raises(LockError, match="this differs: gamma"):
        Lock.loads(changed(full(), lambda document: document["packages"].extend(extra)))
    with pytest.raises(LockError, match="locked twice: alpha"):
        Lock.loads(changed(full(), lambda document: document["packages"].append(document["packages"][0])))


def test_an_edited_target_is_named() -> None:
    text = full().dumps().replace('python = "3.11.7"', 'python = "3.11.8"')
    with pytest.raises(LockError, match="this differs: the target"):
        Lock.loads(text)


def edit(*path: Any, value: Any) -> Any:
    """Return what sets a value deep in a document."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        assert document.get(path[-1]) != value
        document[path[-1]] = value

    return change


TABLE = ("tool", "envsync")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (edit(*TABLE, "digest", value="0" * 64), "the digest itself"),
        (edit(*TABLE, "snapshot", value="6" * 64), "snapshot"),
        (edit(*TABLE, "target", "libc", value=["glibc", "2.17"]), "the target"),
        (edit(*TABLE, "target", "accelerators", value=[]), "the target"),
        (edit(*TABLE, "records", "alpha", value="c" * 64), "records"),
        (edit(*TABLE, "trees", 0, "position", value="front"), "trees"),
        (edit(*TABLE, "excluded", value=[]), "excluded"),
        (edit(*TABLE, "substitutions", 0, "reason", value="none"), "substitutions"),
        (edit(*TABLE, "conda", value=[{"name": "x", "version": "1", "build": "0", "channel": "c"}]), "conda"),
        (edit(*TABLE, "more", value=1), "more"),
        (edit(*TABLE, "checks", "trees", value="0" * 8), "trees"),
        (edit("requires-python", value=">=3.8"), "requires-python"),
        (edit("packages", 1, "index", value="https://mirror.example.org/simple"), "beta"),
        (edit("packages", 1, "wheels", 0, "size", value=7), "beta"),
        (
            edit("packages", 0, "wheels", 0, "url", value="https://x.example.org/alpha-1.0-py3-none-any.whl"),
            "alpha",
        ),
    ],
)
def test_any_edit_is_found_and_its_part_is_named(change: Any, part: str) -> None:
    with pytest.raises(LockError, match="was changed after it was made") as caught:
        Lock.loads(changed(full(), change))
    differs = caught.value.message.partition("this differs: ")[2]
    assert differs.partition(" (")[0] == part


def test_a_version_that_its_file_contradicts() -> None:
    text = full().dumps().replace('version = "2.0"', 'version = "2.1"')
    with pytest.raises(LockError, match=r"not valid PEP 751.*packages\[1\]"):
        Lock.loads(text)


def test_schemas_of_the_future() -> None:
    with pytest.raises(LockVersionError, match="schema 2"):
        Lock.loads(full().dumps().replace("schema = 1", "schema = 2"))
    with pytest.raises(LockVersionError, match="schema None"):
        Lock.loads(full().dumps().replace("schema = 1\n", ""))
    with pytest.raises(LockVersionError, match=r"9\.0"):
        Lock.loads(full().dumps().replace('lock-version = "1.0"', 'lock-version = "9.0"'))


def test_without_our_table() -> None:
    with pytest.raises(LockError, match=r"\[tool.envsync\]") as caught:
        Lock.loads(changed(full(), lambda document: document.pop("tool")))
    assert "envsync snapshot" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("packages"), "'packages'"),
        (lambda d: d["packages"][0]["wheels"][0].pop("hashes"), r"packages\[0\].wheels\[0\].hashes"),
        (
            lambda d: d["packages"][0]["wheels"][0].update(hashes={"md5": "0" * 32}),
            "'alpha' has no valid sha256",
        ),
        (lambda d: d["packages"][0].pop("version"), "'alpha' is not locked to exactly one wheel"),
        (
            lambda d: d["packages"][0]["wheels"][0].update(url="file:///x/alpha-1.0-py3-none-any.whl"),
            "one machine",
        ),
        (
            lambda d: d["packages"][0].update(
                wheels=[{"path": "../../alpha-1.0-py3-none-any.whl", "hashes": {"sha256": "0" * 64}}]
            ),
            "outside envsync-wheels",
        ),
        (lambda d: d["tool"]["envsync"].pop("target"), "target is missing"),
        (lambda d: d["tool"]["envsync"]["target"].pop("machine"), "machine"),
        (lambda d: d["tool"]["envsync"].update(records=[]), "records is not a dict"),
        (lambda d: d["tool"]["envsync"].update(trees=[{"name": "x"}]), "not as envsync writes it"),
        (lambda d: d["tool"]["envsync"].update(excluded=["x"]), "not as envsync writes it"),
    ],
)
def test_what_is_wrong_is_named(change: Any, says: str) -> None:
    with pytest.raises(LockError, match=says):
        Lock.loads(changed(full(), change))


def test_not_toml() -> None:
    with pytest.raises(LockError, match=r"not valid TOML.*line 1"):
        Lock.loads("packages = 1 2\n")


@pytest.mark.parametrize("name", ["pylock.toml", "pylock.gpu.toml"])
def test_files(tmp_path: Path, name: str) -> None:
    lock = full()
    assert lock.write(tmp_path / name) == tmp_path / name
    again = Lock.read(tmp_path / name)
    assert again == lock
    assert again.name == {"pylock.toml": "envsync", "pylock.gpu.toml": "gpu"}[name]
    assert again.folder == tmp_path
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert str(tmp_path) not in (tmp_path / name).read_text()


@pytest.mark.parametrize("name", ["lock.toml", "pylock.a.b.toml", "pylock.toml.bak", "pylock..toml"])
def test_file_names_that_the_standard_does_not_know(tmp_path: Path, name: str) -> None:
    with pytest.raises(LockError, match="not a name"):
        full().write(tmp_path / name)
    with pytest.raises(LockError, match="not a name"):
        Lock.read(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="no such lock"):
        Lock.read(tmp_path / "pylock.toml")
    with pytest.raises(LockError, match="cannot write"):
        full().write(tmp_path / "nowhere" / "pylock.toml")
    (tmp_path / "pylock.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(LockError, match="cannot be read"):
        Lock.read(tmp_path / "pylock.toml")


def test_a_failed_write_leaves_the_old_lock(tmp_path: Path) -> None:
    full().write(tmp_path / "pylock.toml")
    before = (tmp_path / "pylock.toml").read_text()
    broken = make(artifact(path="envsync-wheels/alpha-1.0-py3-none-any.whl", url=None, index=None))
    with pytest.raises(StoreError, match=r"alpha 1\.0"):
        broken.write(tmp_path / "pylock.toml", FolderStore(tmp_path / "store"))
    assert (tmp_path / "pylock.toml").read_text() == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_local_wheels_lie_beside_the_lock(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    digest = store.put(b"a wheel")
    lock = make(
        artifact(sha256=digest, path="envsync-wheels/alpha-1.0-py3-none-any.whl", url=None, index=None)
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    lock.write(tmp_path / "a/pylock.toml", store)
    assert (tmp_path / "a/envsync-wheels/alpha-1.0-py3-none-any.whl").read_bytes() == b"a wheel"
    assert "envsync-wheels/alpha" in (tmp_path / "a/pylock.toml").read_text()
    # A lock that was read brings its wheels along, even without a store.
    Lock.read(tmp_path / "a/pylock.toml").write(tmp_path / "b/pylock.toml")
    assert (tmp_path / "b/envsync-wheels/alpha-1.0-py3-none-any.whl").read_bytes() == b"a wheel"
    # A wrong file in its place is replaced.
    (tmp_path / "b/envsync-wheels/alpha-1.0-py3-none-any.whl").write_bytes(b"other")
    lock.write(tmp_path / "b/pylock.toml", store)
    assert (tmp_path / "b/envsync-wheels/alpha-1.0-py3-none-any.whl").read_bytes() == b"a wheel"


def test_local_versions_have_their_plus_in_the_url() -> None:
    name = "torch-2.0+cpu-py3-none-any.whl"
    lock = make(
        artifact(
            "torch", "2.0+cpu", filename=name, url="https://example.org/torch-2.0%2Bcpu-py3-none-any.whl"
        )
    )
    assert Lock.loads(lock.dumps()).artifacts()[0].filename == name
