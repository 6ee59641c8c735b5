"""Base images without a hub: the lab's Debian trees as OCI layouts, made once and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from zlib_ng import zlib_ng

from envsync.images.layout import Layout
from envsync.images.oci import CONFIG, LAYER_GZIP, MANIFEST, Config, Descriptor, Manifest, Platform, sha256_of
from tests.lab.install import ATTEMPTS
from tests.lab.roots import cache, root_tree

TREES = {"bare": "bare", "python": "python"}
"""What runs: of which of the lab's trees."""

EXTRACTED = {
    "arm64": ("--architectures=arm64", "--include=python3.11,libpython3.11-stdlib,libstdc++6", "bookworm"),
    "musl": ("--include=musl", "bookworm"),
}
"""What only lies there: packages that are unpacked, no more, so that any machine can do it."""

TAG = "base"
_FORMAT = 1
_LEFT_OUT = (
    "./dev/*",
    "./proc/*",
    "./sys/*",
    "./usr/share/*",
    "./var/cache/*",
    "./var/log/*",
    "./usr/lib/*/perl*",
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base_layout(kind: str) -> Path:
    """Return an OCI layout that holds a base image, tagged `TAG`: whole or absent, made by one process."""
    if kind in TREES:
        source = root_tree(TREES[kind]).name
    else:
        source = f"{kind}-{hashlib.sha256(' '.join(EXTRACTED[kind]).encode()).hexdigest()[:12]}"
    layout = cache() / f"image-{source}-{_FORMAT}"
    if layout.is_dir():
        return layout
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"image-{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layout.is_dir():
            part = layout.with_name(f".{layout.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            platform = Platform(architecture="arm64" if kind == "arm64" else "amd64")
            with _tar(kind) as tar:
                put_image(Layout(part), [read(tar)], platform=platform)
            part.rename(layout)
    return layout


@contextlib.contextmanager
def _tar(kind: str) -> Iterator[IO[bytes]]:
    """Yield the tar archive of a base."""
    if kind in TREES:
        left_out = [f"--exclude={one}" for one in _LEFT_OUT]
        options = ["--sort=name", "--numeric-owner", "--one-file-system", "--anchored", *left_out]
        command = ["tar", "-C", str(root_tree(TREES[kind])), *options, "-cf", "-", "."]
    else:
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", *EXTRACTED[kind], "-"]
    with tempfile.TemporaryFile() as file:
        for attempt in range(1, ATTEMPTS + 1):
            file.seek(0)
            file.truncate()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False
            )
            if done.returncode == 0:
                break
            time.sleep(3 * attempt)
        else:
            text = done.stderr.decode(errors="replace")[-2000:]
            raise RuntimeError(f"the base image {kind} could not be made, {ATTEMPTS} times:\n{text}")
        file.seek(0)
        yield file


def read(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(1 << 20), b"")


def put_image(
    layout: Layout,
    layers: Iterable[Iterable[bytes]],
    *,
    platform: Platform,
    tag: str | None = TAG,
    run: dict[str, object] | None = None,
) -> Descriptor:
    """Put an image of tar archives into a layout, and return its manifest's descriptor."""
    described, diff_ids = [], []
    for chunks in layers:
        sha = hashlib.sha256()

        def packed(chunks: Iterable[bytes] = chunks, sha: hashlib._Hash = sha) -> Iterator[bytes]:
            packer = zlib_ng.compressobj(1, zlib_ng.DEFLATED, 31)
            for chunk in chunks:
                sha.update(chunk)
                yield packer.compress(chunk)
            yield packer.flush()

        digest, size = layout.put(packed())
        described.append(Descriptor(media_type=LAYER_GZIP, digest=digest, size=size))
        diff_ids.append(f"sha256:{sha.hexdigest()}")
    settings = {"Env": [f"PATH={_PATH}"], "Cmd": ["sh"], **(run or {})}
    config = Config(platform=platform, run=settings, diff_ids=tuple(diff_ids)).to_bytes()
    layout.put([config])
    text = Manifest(config=Descriptor.of(config, CONFIG), layers=tuple(described)).to_bytes()
    layout.put_manifest(text, MANIFEST, tag)
    assert layout.size(sha256_of(text)) == len(text)
    return Descriptor.of(text, MANIFEST)
