"""Images are made of what changed, are the same wherever they are made, and hold nothing of this machine."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from envsync.errors import ImageError, StoreError
from envsync.hooks import Hooks
from envsync.images.base import Base
from envsync.images.build import Built, build, lacking, present
from envsync.images.inspecting import inspect
from envsync.images.layout import Layout
from envsync.images.oci import LAYER_GZIP, Platform
from envsync.images.plan import LARGE, Options, Plan, plan
from envsync.images.reference import Reference
from envsync.lock import Lock
from envsync.store import FolderStore
from envsync.trees import Manifest as Tree
from tests.images import artifact_of, base_of_here, contents, documents, here, lock_of, tree_of
from tests.lab.bases import TAG
from tests.overlays import make_wheel
from tests.test_store import needs_mounts

MINOR = "{}.{}".format(*sys.version_info[:2])
SITE = f"opt/envsync/env/lib/python{MINOR}/site-packages"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVSYNC_CACHE", str(folder / "cache"))
        return base_of_here(
            folder / "base",
            Env=["PATH=/usr/local/bin:/usr/bin", "LANG=C.UTF-8", "PYTHONPATH=/somewhere/else"],
            User="nobody",
            WorkingDir="/work",
            Entrypoint=["/entry"],
            Labels={"org.opencontainers.image.title": "the base", "theirs": "kept"},
        )


class Bench:
    """A clean place to make images in: a cache, a store and a layout."""

    def __init__(self, folder: Path, base: Base, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.base = base
        self.patch = patch
        self.store = FolderStore(folder / "store")
        self.layout = Layout(folder / "layout")
        self.use()

    def use(self) -> None:
        self.patch.setenv("ENVSYNC_CACHE", str(self.folder / "cache"))

    def wheels(self, **versions: str) -> list[Path]:
        return [
            make_wheel(self.folder / "wheels", name, version, {f"{name}.py": f"VERSION = {version!r}\n" * 50})
            for name, version in versions.items()
        ]

    def plan(self, wheels: Iterable[Path], trees: Iterable[Tree] = (), **options: object) -> Plan:
        return plan(lock_of(wheels, self.store), trees, self.base, Options(**options))  # type: ignore[arg-type]

    def build(self, planned: Plan, **keywords: object) -> Built:
        return build(planned, self.store, self.layout, **keywords)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, base, monkeypatch)


SEVEN = {"alpha": "1.0", "beta": "1.0", "gamma": "1.0", "delta": "2.0", "eps": "1.0", "zeta": "3", "eta": "1"}


def test_the_same_in_two_clean_folders(tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []
    for name in ("here", "there"):
        bench = Bench(tmp_path / name, base, monkeypatch)
        monkeypatch.setenv("TZ", "Asia/Tokyo" if name == "there" else "UTC")
        before = os.umask(0o077 if name == "there" else 0o022)
        try:
            tree = tree_of("proj", {"proj.py": "A = 1\n", "data/x.csv": "1,2\n"}, bench.store)
            made = bench.build(
                bench.plan(bench.wheels(**SEVEN), [tree]), tags=["t"], workers=1 + len(digests)
            )
        finally:
            os.umask(before)
        digests.append(made.digest)
        assert bench.layout.manifest_digest("t") == made.digest
    assert digests[0] == digests[1]


def test_what_is_in_it(bench: Bench) -> None:
    front = tree_of("proj", {"proj.py": "A = 1\n"}, bench.store)
    back = tree_of("more", {"more.py": "B = 1\n"}, bench.store, "back")
    planned = bench.plan(bench.wheels(alpha="1.0"), [front, back])
    made = bench.build(planned, tags=["t"])
    manifest, config = documents(bench.layout, "t")
    files = contents(bench.layout, manifest)
    assert files[f"{SITE}/alpha.py"].startswith(b"VERSION = '1.0'\n")
    assert files["opt/envsync/env/bin/python"].decode() == f"/usr/local/bin/python{MINOR}"
    assert b"home = /usr/local/bin\n" in files["opt/envsync/env/pyvenv.cfg"]
    assert b"ENVSYNC_TREES" in files[f"{SITE}/envsync.pth"]
    assert files[f"opt/envsync/trees/{front.digest}/proj.py"] == b"A = 1\n"
    assert Lock.loads(files["opt/envsync/pylock.toml"].decode()) == planned.lock
    assert not [path for path in files if path.endswith(".pyc")]
    assert files.keys() >= set(contents(bench.layout, replace(manifest, layers=manifest.layers[:1])))
    assert config.variables() == {
        "PATH": "/opt/envsync/env/bin:/usr/local/bin:/usr/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"/opt/envsync/trees/{front.digest}",
        "ENVSYNC_TREES": f"/opt/envsync/trees/{back.digest}",
    }
    kept = {key: config.run[key] for key in ("User", "WorkingDir", "Entrypoint", "Cmd")}
    assert kept == {"User": "nobody", "WorkingDir": "/work", "Entrypoint": ["/entry"], "Cmd": ["python"]}
    labels = config.labels()
    assert labels["theirs"] == "kept"
    assert "org.opencontainers.image.title" not in labels  # it is the base's
    assert labels["org.envsync.lock"] == manifest.annotations["org.envsync.lock"] == planned.lock.digest
    assert manifest.annotations["org.opencontainers.image.base.digest"] == bench.base.digest
    assert config.rest["created"] == manifest.annotations["org.opencontainers.image.created"]
    assert len(config.diff_ids) == len(manifest.layers) == len(made.layers) + 1
    assert sum(not one.get("empty_layer") for one in config.history) == len(manifest.layers)
    assert {layer.media_type for layer in manifest.layers} == {LAYER_GZIP}
    assert any("PYTHONPATH would change" in note for note in planned.notes)


def test_unchanged_nothing_is_made_or_read(bench: Bench) -> None:
    planned = bench.plan(bench.wheels(**SEVEN))
    first = bench.build(planned, tags=["t"])
    assert set(first.made) == {layer.title for layer in planned.layers}
    nothing = FolderStore(bench.folder / "nothing")
    again = build(planned, nothing, bench.layout, tags=["t"])
    assert (again.digest, again.made, again.sent) == (first.digest, (), 0)
    assert lacking(planned, bench.layout) == ()
    assert present(planned, bench.layout, "t") == present(planned, bench.layout) == first.digest
    assert present(planned, bench.layout, "another") is None
    named = build(planned, nothing, bench.layout, tags=["another", "third"])
    assert (named.digest, named.made) == (first.digest, ())
    assert bench.layout.tags() == ["another", "t", "third"]


def test_an_edit_of_local_code_makes_the_last_layer(bench: Bench) -> None:
    wheels = bench.wheels(**SEVEN)
    first = bench.build(
        bench.plan(wheels, [tree_of("proj", {"proj.py": "A = 1\n"}, bench.store)]), tags=["t"]
    )
    edited = bench.plan(wheels, [tree_of("proj", {"proj.py": "A = 2\n"}, bench.store)])
    assert lacking(edited, bench.layout) == ()
    second = bench.build(edited, tags=["t"])
    assert second.made == ("the lock and proj",)
    assert second.layers[:-1] == first.layers[:-1]
    assert second.layers[-1] != first.layers[-1]
    assert second.sent < 20_000


class Slow(Layout):
    """Says whether a blob is there once it has been asked about another one as well."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.both = threading.Barrier(2, timeout=20)
        self.asked: list[str] = []

    def size(self, digest: str) -> int | None:
        self.asked.append(digest)
        if len(self.asked) <= 2:
            self.both.wait()
        return super().size(digest)


def test_layers_are_asked_about_at_once(bench: Bench) -> None:
    wheels = bench.wheels(**SEVEN)
    bench.build(bench.plan(wheels), tags=["t"])
    edited = bench.plan(wheels, [tree_of("proj", {"proj.py": "A = 1\n"}, bench.store)])
    slow = Slow(bench.layout.folder)
    made = build(edited, bench.store, slow, tags=["t"])
    assert made.made == ("the lock and proj",)
    layers = [layer.digest for layer in (*bench.base.manifest.layers, *made.layers[:-1])]
    assert sorted(slow.asked[: len(layers)]) == sorted(layers), "each once"


def test_one_changed_package_makes_one_bucket(bench: Bench) -> None:
    first = bench.build(bench.plan(bench.wheels(**SEVEN)), tags=["t"])
    planned = bench.plan(bench.wheels(**{**SEVEN, "gamma": "2.0"}))
    wanted = [one.name for one in lacking(planned, bench.layout)]
    assert "gamma" in wanted
    second = bench.build(planned, tags=["t"])
    pairs = list(zip(first.layers, second.layers, strict=True))
    changed = [number for number, (old, new) in enumerate(pairs) if old != new]
    assert len(changed) == len(second.made) == 2  # that bucket, and the lock
    assert changed[-1] == len(pairs) - 1
    titles = [layer.title for layer in planned.layers if "gamma" in [one.name for one in layer.artifacts]]
    assert list(second.made[:1]) == titles


def test_large_wheels_have_layers_of_their_own(bench: Bench) -> None:
    lock = lock_of(bench.wheels(**SEVEN), bench.store)
    sizes = {"beta": LARGE, "zeta": LARGE * 9, "eta": LARGE - 1}
    artifacts = [replace(one, size=sizes.get(one.name, one.size)) for one in lock.artifacts()]
    layers = plan(Lock.of(artifacts, here(), records=lock.records), [], bench.base).layers
    alone = [layer.title for layer in layers if layer.kind == "wheels"][:2]
    assert alone == ["beta 1.0", "zeta 3"]
    names = [artifact.name for layer in layers for artifact in layer.artifacts]
    assert sorted(names) == sorted(SEVEN)
    many = [replace(artifacts[0], name=f"n{number}", size=LARGE) for number in range(200)]
    assert len(plan(Lock.of(many, here()), [], bench.base).layers) < 80


def test_zstd_holds_the_same_files(bench: Bench) -> None:
    wheels = bench.wheels(**SEVEN)
    bench.build(bench.plan(wheels), tags=["gzip"])
    bench.build(bench.plan(wheels, compression="zstd"), tags=["zstd"])
    gzipped, zstd = (documents(bench.layout, tag) for tag in ("gzip", "zstd"))
    assert gzipped[1].diff_ids == zstd[1].diff_ids
    kinds = [layer.media_type.rpartition("+")[2] for layer in zstd[0].layers]
    assert kinds[:2] == ["gzip", "zstd"]  # the base's stays as it is
    with pytest.raises(ImageError, match="'lzma'"):
        Options(compression="lzma")


def test_annotations(bench: Bench) -> None:
    revision = {"org.opencontainers.image.revision": "abc"}
    named = replace(bench.base, reference=Reference.parse("registry.example.org/base:1"))
    planned = plan(lock_of(bench.wheels(alpha="1.0"), bench.store), [], named, Options(annotations=revision))
    bench.build(planned, tags=["t"])
    manifest, config = documents(bench.layout, "t")
    for found in (manifest.annotations, config.labels()):
        assert found["org.opencontainers.image.revision"] == "abc"
        assert found["org.opencontainers.image.base.name"] == "registry.example.org/base:1"


# What is told of an image


def test_an_image_is_inspected(bench: Bench) -> None:
    tree = tree_of("proj", {"proj.py": "A = 1\n"}, bench.store)
    planned = bench.plan(bench.wheels(alpha="1.0", beta="1.0"), [tree])
    made = bench.build(planned, tags=["t"])
    found = inspect(bench.layout, "t")
    assert (found.digest, found.lock, found.base) == (made.digest, planned.lock, bench.base.digest)
    assert found.trees == (replace(tree, left_out=()),)
    assert found.size == made.size
    assert found.report() == {**planned.lock.report(), "who": f"image {made.digest[7:19]}"}
    told = json.loads(json.dumps(found.to_dict()))
    assert told["packages"] == [["alpha", "1.0"], ["beta", "1.0"]]
    assert told["layers"][-1]["made_by"] == "envsync: the lock and proj"
    assert inspect(bench.layout, made.digest) == found


def test_an_image_of_somebody_else(bench: Bench) -> None:
    with pytest.raises(ImageError, match=r"has no label org\.envsync\.lock"):
        inspect(bench.base.images, TAG)
    with pytest.raises(ImageError, match="there is no image 'x'"):
        inspect(bench.base.images, "x")


def test_a_label_that_lies(bench: Bench) -> None:
    planned = bench.plan(bench.wheels(alpha="1.0"), annotations={"org.envsync.lock": "0" * 64})
    bench.build(planned, tags=["t"])
    with pytest.raises(ImageError, match="another lock than its label says"):
        inspect(bench.layout, "t")


# What may go wrong


def test_a_wheel_that_lies_leaves_nothing(bench: Bench) -> None:
    bad = make_wheel(
        bench.folder, "liar", "1", {"liar.py": ""}, record={"liar.py": f"liar.py,sha256={'A' * 43},0"}
    )
    lock = Lock.of([artifact_of(one, bench.store) for one in (*bench.wheels(**SEVEN), bad)], here())
    with pytest.raises(ImageError, match=r"liar\.py is not what the wheel's RECORD says"):
        bench.build(plan(lock, [], bench.base), tags=["t"])
    assert bench.layout.manifest("t") is None
    assert not list(bench.layout.folder.rglob(".unfinished-*"))


def test_wheels_that_are_not_in_the_store(bench: Bench) -> None:
    planned = bench.plan(bench.wheels(**SEVEN))
    with pytest.raises(StoreError, match=r"not in the store: alpha-1\.0\S+, .* and 2 more"):
        build(planned, FolderStore(bench.folder / "empty"), bench.layout)
    assert not bench.layout.folder.exists()


def test_a_file_of_a_tree_that_is_damaged(bench: Bench) -> None:
    tree = tree_of("proj", {"proj.py": "A = 1\n"}, bench.store)
    path = bench.store.path(tree.files[0][1])
    assert path is not None
    path.write_bytes(b"A = 2\n")
    with pytest.raises(ImageError, match=r"proj\.py: the store holds other bytes"):
        bench.build(bench.plan([], [tree]), tags=["t"])


def test_a_layer_that_was_removed_is_made_again(bench: Bench) -> None:
    planned = bench.plan(bench.wheels(**SEVEN))
    first = bench.build(planned, tags=["t"])
    gone = first.layers[1]
    (bench.layout.folder / "blobs/sha256" / gone.digest[7:]).unlink()
    assert lacking(planned, bench.layout) == planned.layers[1].artifacts
    again = bench.build(planned, tags=["new"])
    assert again.made == (planned.layers[1].title,)
    assert again.digest == first.digest
    assert bench.layout.size(gone.digest) == gone.size


def test_a_memory_that_is_damaged(bench: Bench) -> None:
    planned = bench.plan(bench.wheels(**SEVEN))
    first = bench.build(planned, tags=["t"])
    for file in (bench.folder / "cache/memory/layers").iterdir():
        file.write_text('{"digest": "sha256:12", "size": "much"}')
    assert bench.build(planned, tags=["t"]).digest == first.digest


def test_two_at_once(bench: Bench) -> None:
    planned = bench.plan(bench.wheels(**SEVEN), [tree_of("proj", {"proj.py": ""}, bench.store)])
    found: list[str] = []

    def push(tag: str) -> None:
        found.append(bench.build(planned, tags=[tag]).digest)

    threads = [threading.Thread(target=push, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert bench.layout.tags() == ["t0", "t1", "t2", "t3"]


class Failing(Layout):
    """A layout that breaks after so many blobs, as a registry may."""

    left = 2

    def put(self, chunks: Iterable[bytes], **known: object) -> tuple[str, int]:
        if self.left == 0:
            raise ImageError("the connection is gone", where=self.name)
        self.left -= 1
        return super().put(chunks, **known)  # type: ignore[arg-type]


def test_an_interrupted_build_goes_on_where_it_was(bench: Bench) -> None:
    planned = bench.plan(bench.wheels(**SEVEN))
    with pytest.raises(ImageError, match="the connection is gone"):
        build(planned, bench.store, Failing(bench.layout.folder), workers=1, tags=["t"])
    assert bench.layout.manifest("t") is None
    whole = bench.build(planned, tags=["t"])
    assert 0 < len(whole.made) < len(planned.layers)


def test_a_folder_that_cannot_be_written(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    with pytest.raises(ImageError, match="the image cannot be written"):
        build(bench.plan([]), bench.store, Layout(bench.folder / "file" / "layout"))


@needs_mounts
def test_a_full_disk_is_told_and_nothing_half_is_left(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from envsync.errors import ImageError\n"
        "from envsync.images.layout import Layout\n"
        "layout = Layout(sys.argv[1] + '/images')\n"
        "layout.put([b'small'])\n"
        "try: layout.put([bytes(1 << 19)] * 4)\n"
        "except ImageError as error: print(error)\n"
        "print('left:', sorted(len(f) for _, _, files in os.walk(sys.argv[1]) for f in files))\n"
    )
    command = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    arguments = ["sh", "-c", command, "sh", str(tmp_path), sys.executable, code]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"oci:{tmp_path}/images: the image cannot be written: the disk is full\n")
    assert "Make room there" in done.stdout
    assert done.stdout.endswith(f"left: {[len('oci-layout'), 64]}\n"), (
        "the blob that fitted, and nothing else"
    )


def test_progress_is_told(bench: Bench) -> None:
    class Told(Hooks):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []
            self.texts: list[str] = []

        def progress(self, where: str, done: int, total: int, unit: str) -> None:
            self.seen.append((done, total))

        def step(self, where: str, what: str) -> None:
            self.texts.append(what)

        def note(self, where: str, text: str) -> None:
            self.texts.append(text)

    told = Told()
    planned = bench.plan(bench.wheels(**SEVEN))
    bench.build(planned, hooks=told)
    assert f"making {len(planned.layers)} of {len(planned.layers)} layers" in told.texts
    assert all(0 < done <= total for done, total in told.seen)


# Nothing of this machine


@pytest.fixture
def confided(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Secrets where people have them: pip.conf, an index's URL, netrc, variables, an ignored file."""
    canary = {name: f"canary-{name}-51c7" for name in ("pip", "url", "netrc", "variable", "docker", "wheel")}
    home = bench.folder / "home"
    (home / ".config/pip").mkdir(parents=True)
    (home / ".docker").mkdir()
    (home / ".config/pip/pip.conf").write_text(
        f"[global]\nindex-url = https://me:{canary['pip']}@index.example.org/simple\n"
    )
    (home / ".netrc").write_text(f"machine index.example.org login me password {canary['netrc']}\n")
    (home / ".docker/config.json").write_text(
        json.dumps({"auths": {"example.org": {"auth": canary["docker"]}}})
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("UV_INDEX_URL", f"https://me:{canary['url']}@index.example.org/simple")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary["variable"])
    return canary


def test_no_secret_and_no_path_of_this_machine_is_in_it(bench: Bench, confided: Mapping[str, str]) -> None:
    """Looked for in every blob, unpacked: layers, configuration and manifest."""
    url = f"https://me:{confided['url']}@index.example.org/files/alpha-1.0-py3-none-any.whl?token={confided['url']}"
    wheel = make_wheel(
        bench.folder / "wheels",
        "alpha",
        "1.0",
        {
            "alpha.py": "",
            "alpha-1.0.dist-info/direct_url.json": json.dumps({"url": f"file:///{confided['wheel']}"}),
        },
    )
    artifact = replace(artifact_of(wheel, bench.store), path=None, url=url, index=url)
    tree = replace(
        tree_of("proj", {"proj.py": "A = 1\n"}, bench.store),
        left_out=((f"{confided['pip']}.env", "ignored"),),
    )
    planned = plan(Lock.of([artifact], here()), [tree], bench.base)
    bench.build(planned, tags=["t"])
    own = re.compile(
        "|".join([*confided.values(), re.escape(str(bench.folder)), re.escape(str(Path.home()))]).encode()
    )
    blobs = list((bench.layout.folder / "blobs/sha256").iterdir())
    manifest, _ = documents(bench.layout, "t")
    theirs = {layer.digest[7:] for layer in bench.base.manifest.layers}
    for blob in [*blobs, bench.layout.folder / "index.json"]:
        if blob.name in theirs:
            continue  # the base here is made of this machine's files
        data = blob.read_bytes()
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        assert not own.search(text), blob
    assert b"index.example.org" in contents(bench.layout, manifest)["opt/envsync/pylock.toml"]


# Others read it


def test_the_layout_is_as_the_specification_has_it(bench: Bench) -> None:
    """What is named exists, and is what its digest says; files can be read by everybody."""
    bench.build(bench.plan(bench.wheels(**SEVEN)), tags=["t"])
    folder = bench.layout.folder
    assert json.loads((folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((folder / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "t"}
    for file in folder.rglob("*"):
        assert file.stat().st_mode & 0o444 == 0o444 or file.is_dir(), file
    manifest, config = documents(bench.layout, "t")
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        data = b"".join(bench.layout.open(layer.digest))
        assert len(data) == layer.size
        shown = subprocess.run(["sha256sum"], input=gzip.decompress(data), capture_output=True, check=True)
        assert f"sha256:{shown.stdout.split()[0].decode()}" == diff_id


def test_a_platform_that_is_not_this_one(bench: Bench) -> None:
    """The configuration is the base's: an image for another machine is made here without running anything."""
    machine = "aarch64" if here().machine == "x86_64" else "x86_64"
    platform = Platform.of("linux", machine)
    other = replace(bench.base, config=replace(bench.base.config, platform=platform))
    lock = lock_of(bench.wheels(alpha="1.0"), bench.store, replace(here(), machine=machine))
    bench.build(plan(lock, [], other), tags=["t"])
    assert inspect(bench.layout, "t", platform).config.platform == platform
