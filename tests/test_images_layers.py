"""Layers come straight from wheels, are what an installer would lay, and depend on nothing else."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from envsync.errors import ImageError, StoreError
from envsync.images.deflate import Member, deflated
from envsync.images.layout import Layout
from envsync.images.oci import LAYER_GZIP, Descriptor
from envsync.images.reading import members
from envsync.images.tar import MTIME, Entry, Layer, Plain
from envsync.images.wheels import Place, files_of
from envsync.plugins.unpack import lay, unpack
from envsync.store import FolderStore
from tests.images import artifact_of, lock_of
from tests.overlays import make_wheel

MINOR = "{}.{}".format(*sys.version_info[:2])
PLACE = Place(prefix="opt/env", minor=MINOR)


def made(layer: Layer) -> bytes:
    return b"".join(layer)


def layer_of(wheels: Iterable[Path], store: FolderStore, compression: str = "gzip") -> Layer:
    artifacts = [artifact_of(wheel, store) for wheel in wheels]

    def entries() -> Iterable[Entry]:
        for artifact in artifacts:
            yield from files_of(artifact, store, PLACE)

    return Layer(entries, compression=compression)


def extracted(data: bytes, folder: Path) -> Path:
    """Unpack by the system's own gzip and tar."""
    folder.mkdir()
    plain = subprocess.run(["gzip", "-dc"], input=data, capture_output=True, check=True)
    subprocess.run(["tar", "-xf", "-", "-C", folder], input=plain.stdout, check=True)
    return folder


def packed(wheel: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write the same wheel in another way."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(folder / wheel.name, "w", method) as new:
        for name in old.namelist():
            with old.open(name) as source, new.open(name, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return folder / wheel.name


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_layer_is_what_an_installer_lays(real_wheels: Path, tmp_path: Path) -> None:
    """Byte for byte what unpack and lay make of the same wheels, scripts and RECORDs included."""
    wheels = sorted(real_wheels.glob("*.whl"))[::2]
    prefix = tmp_path / "laid"
    for number, wheel in enumerate(wheels):
        folder = tmp_path / f"unpacked-{number}"
        info = unpack(str(wheel), str(folder))
        lay(str(folder), str(prefix), info, python=PLACE.python)
    found = extracted(made(layer_of(wheels, FolderStore(tmp_path))), tmp_path / "root") / "opt/env"
    assert tree(found) == tree(prefix)


def test_schemes_scripts_and_modes(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "odd/__init__.py": "",
        "odd/run.sh": "#!/bin/sh\n",
        "odd-1.data/purelib/pure.py": "P = 1\n",
        "odd-1.data/scripts/old": "#!python\nprint('old')\n",
        "odd-1.data/scripts/program": b"\x7fELF" + bytes(9000),
        "odd-1.data/data/share/odd.txt": "data",
        "odd-1.data/headers/odd.h": "#pragma once",
        "odd-1.dist-info/entry_points.txt": "[console_scripts]\nodd = odd:main\n",
        "odd-1.dist-info/direct_url.json": '{"url": "file:///somebody/secret"}',
        "odd-1.dist-info/REQUESTED": "",
    }
    wheel = make_wheel(tmp_path, "odd", "1", files, modes={"odd/run.sh": 0o100755})
    root = extracted(made(layer_of([wheel], FolderStore(tmp_path))), tmp_path / "root") / "opt/env"
    found = tree(root)
    site = f"lib/python{MINOR}/site-packages"
    assert found[f"{site}/pure.py"][0] == b"P = 1\n"
    assert found[f"{site}/odd/run.sh"][1] == 0o755
    assert found[f"{site}/odd/__init__.py"][1] == 0o644
    assert found["bin/old"] == (b"#!/opt/env/bin/python\nprint('old')\n", 0o755)
    assert found["bin/program"][1] == 0o755
    assert found["bin/odd"][0].startswith(b"#!/opt/env/bin/python\n")
    assert found["share/odd.txt"][0] == b"data"
    assert found[f"include/site/python{MINOR}/odd/odd.h"][0] == b"#pragma once"
    info = f"{site}/odd-1.dist-info"
    assert found[f"{info}/INSTALLER"][0] == b"envsync\n"
    assert not {f"{info}/direct_url.json", f"{info}/REQUESTED"} & found.keys()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_however_the_wheel_is_compressed(method: int, tmp_path: Path) -> None:
    payload = os.urandom(200_000) + bytes(3_000_000) + b"end"
    source = make_wheel(tmp_path, "packed", "1", {"packed/data": payload, "packed/empty": b""})
    wheel = packed(source, tmp_path / "other", method)
    root = extracted(made(layer_of([wheel], FolderStore(tmp_path / "store"))), tmp_path / "root") / "opt/env"
    site = root / f"lib/python{MINOR}/site-packages"
    assert (site / "packed/data").read_bytes() == payload
    assert (site / "packed/empty").read_bytes() == b""


def test_a_layer_takes_the_wheels_own_streams(tmp_path: Path) -> None:
    """No compressor has a say in a layer of wheels: what is deflated in the wheel stands in it as it is."""
    text = "".join(f"A{n} = {n}\n" for n in range(9999))
    wheel = packed(make_wheel(tmp_path, "whole", "1", {"whole/text.py": text}), tmp_path / "packed")
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo("whole/text.py")
    begin = member.header_offset + 30 + len(member.filename) + 20  # what zip64 adds
    raw = wheel.read_bytes()[begin : begin + member.compress_size]
    assert zlib.decompress(raw, -15) == text.encode()
    assert raw in made(layer_of([wheel], FolderStore(tmp_path)))


def test_the_archive_is_nobodys_and_of_one_day(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "plain", "1", {"plain/__init__.py": ""})
    data = made(layer_of([wheel], FolderStore(tmp_path)))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        found = tar.getmembers()
    assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in found} == {(0, 0, "", "", MTIME)}
    assert {one.mode for one in found if one.isdir()} == {0o755}
    assert "opt" not in {one.name for one in found}  # it is the base's, and may be a link there
    assert [one.name for one in found][:2] == ["opt/env", "opt/env/lib"]


def test_names_of_any_length_and_language(tmp_path: Path) -> None:
    paths = [
        "a" * 100,
        f"{'b' * 60}/{'c' * 99}",
        f"{'d/' * 90}end",
        f"{'e' * 120}",
        f"naïve/{'ü' * 80}",
        "f" * 99 + "/g",
    ]
    entries = [Entry(f"opt/{path}", path.encode()) for path in paths]
    entries += [Entry("opt/link", link="é" * 70), Entry("opt/far", link="x/" * 80)]
    layer = Layer(lambda: entries)
    with tarfile.open(fileobj=io.BytesIO(made(layer)), mode="r:gz") as tar:
        found = {one.name: tar.extractfile(one).read() for one in tar if one.isreg()}  # type: ignore[union-attr]
        links = {one.name: one.linkname for one in tar if one.issym()}
    assert found == {f"opt/{path}": path.encode() for path in paths}
    assert links == {"opt/link": "é" * 70, "opt/far": "x/" * 80}
    root = extracted(made(layer), tmp_path / "root")
    assert (root / "opt" / paths[2]).read_bytes() == paths[2].encode()


def test_each_iteration_gives_the_same(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "same", "1", {"same/__init__.py": "A = 1\n" * 1000})
    layer = layer_of([wheel], FolderStore(tmp_path))
    first, diff_id = made(layer), layer.diff_id
    assert made(layer) == first
    assert layer.diff_id == diff_id == f"sha256:{hashlib.sha256(gzip.decompress(first)).hexdigest()}"


def test_zstd_holds_the_same_archive(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "same", "1", {"same/__init__.py": "A = 1\n" * 100_000})
    plain, small = (layer_of([wheel], FolderStore(tmp_path), kind) for kind in ("gzip", "zstd"))
    gzipped, zstd = made(plain), made(small)
    assert plain.diff_id == small.diff_id
    layout = Layout(tmp_path / "layout")
    for data in (gzipped, zstd, gzip.decompress(gzipped)):
        digest, size = layout.put([data])
        layer = Descriptor(media_type=LAYER_GZIP, digest=digest, size=size)
        found = {member.name: content.read() for member, content in members(layout, layer)}
        assert found[f"opt/env/lib/python{MINOR}/site-packages/same/__init__.py"] == b"A = 1\n" * 100_000


def test_gzip_members_of_any_bytes() -> None:
    """Runs of blanks of every length, text, and bytes that the fixed codes are not used for."""
    parts = [b"".join(bytes(count) + b"x" for count in range(1300)), b"plain text", bytes(range(256)) * 300]
    for head in (*parts, b"", b"".join(parts)):
        assert gzip.decompress(Member(head).alone()) == head
        member = Member(head)
        data = member.begin()
        for piece, plain in deflated([b"content", b""]):
            data += piece
            member.hold(plain)
        assert gzip.decompress(data + member.end()) == head + b"content"


# Wheels that lie


def test_a_file_that_is_not_as_recorded(tmp_path: Path) -> None:
    line = f"liar/code.py,sha256={'A' * 43},7"
    wheel = make_wheel(tmp_path, "liar", "1", {"liar/code.py": "A = 1\n"}, record={"liar/code.py": line})
    with pytest.raises(
        ImageError, match=r"liar-1-py3-none-any\.whl: liar/code\.py is not what .* RECORD says"
    ):
        made(layer_of([wheel], FolderStore(tmp_path)))


def test_a_file_that_record_does_not_name(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "liar", "1", {"liar/more.py": ""}, record={"liar/more.py": None})
    with pytest.raises(ImageError, match=r"does not name liar/more\.py"):
        made(layer_of([wheel], FolderStore(tmp_path)))


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 3]


def _flip(data: bytes) -> bytes:
    at = data.index(b"big/code.py") + 200
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flip, bz2.compress])
def test_bytes_that_are_damaged(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    code = "".join(f"A{n} = {n * n}\n" for n in range(5000))
    wheel = make_wheel(tmp_path, "big", "1", {"big/code.py": code})
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(ImageError, match=r"big-1-py3-none-any\.whl"):
        made(layer_of([wheel], FolderStore(tmp_path / "store")))


def test_another_distribution_than_the_lock_says(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    wheel = make_wheel(tmp_path, "other", "1", {"other.py": ""})
    artifact = artifact_of(wheel.rename(tmp_path / "wanted-1-py3-none-any.whl"), store)
    with pytest.raises(ImageError, match="it is the wheel of other, and wanted is wanted"):
        list(files_of(artifact, store, PLACE))


def test_another_record_than_the_lock_has(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    lock = lock_of([make_wheel(tmp_path, "kept", "1", {"kept.py": ""})], store)
    (artifact,) = lock.artifacts()
    list(files_of(artifact, store, PLACE, record=lock.records["kept"]))
    with pytest.raises(ImageError, match="its RECORD is not the one that the lock has"):
        list(files_of(artifact, store, PLACE, record="0" * 64))


def test_a_wheel_that_is_not_in_the_store(tmp_path: Path) -> None:
    artifact = artifact_of(make_wheel(tmp_path, "gone", "1", {}), FolderStore(tmp_path / "one"))
    with pytest.raises(StoreError, match="there is no blob"):
        list(files_of(artifact, FolderStore(tmp_path / "two"), PLACE))


MEMORY = """
import resource, sys
from pathlib import Path
from tests.test_images_layers import layer_of
from envsync.store import FolderStore
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer = layer_of([Path(sys.argv[1])], FolderStore(sys.argv[2]), sys.argv[3])
for chunk in layer:
    pass
print(layer.plain, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """160 MiB in one file, which takes little in the wheel."""
    wheel = packed(make_wheel(tmp_path, "huge", "1", {"huge/zeros": bytes(160 << 20)}), tmp_path / "packed")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, wheel, tmp_path / "store", "gzip"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    plain, grown = map(int, done.stdout.split())
    assert plain > 160 << 20
    assert grown < 64 << 10  # KiB


def test_what_is_not_compressed_yet_is(tmp_path: Path) -> None:
    text = b"all the same " * 100_000
    layer = Layer(lambda: [Entry("opt/text", Plain(len(text), lambda: (text[:5000], text[5000:])))])
    data = made(layer)
    assert len(data) < 20_000
    root = extracted(data, tmp_path / "root")
    assert (root / "opt/text").read_bytes() == text
