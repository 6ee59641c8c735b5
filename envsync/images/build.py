"""Images from plans: layers are made in parallel, each once, and sent while they are made."""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import IO, TYPE_CHECKING, Any

from envsync.agent.layout import TREES_PTH
from envsync.errors import ImageError, StoreError
from envsync.hooks import Hooks
from envsync.images.built import Built
from envsync.images.deflate import CHUNK
from envsync.images.oci import CONFIG, MANIFEST, Descriptor, sha256_of
from envsync.images.plan import LOCK_FILE, PYTHON, TREES, LayerPlan, Plan
from envsync.images.tar import COMPRESSIONS, Entry, Layer, Plain
from envsync.images.wheels import files_of
from envsync.libraries import SPARE
from envsync.store import recall, remember, size_of
from envsync.stores.working import each

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from envsync.artifacts import Artifact
    from envsync.images.oci import Images
    from envsync.store import Store

__all__ = ["Built", "build", "lacking", "present"]

_ASKED = 8  # questions at once: each is a round trip
_WORKERS = 4  # no more help: unpacking lets other threads run, and what is between files does not


def lacking(plan: Plan, images: Images) -> tuple[Artifact, ...]:
    """Return the wheels that `build` will read: those of layers that are not there."""
    known = {layer.key: made for layer in plan.layers if (made := _known(plan, layer)) is not None}
    there = _there(images, (descriptor for descriptor, _ in known.values()))
    absent = [one for one in plan.layers if one.key not in known or known[one.key][0].digest not in there]
    return tuple(artifact for layer in absent for artifact in layer.artifacts)


def present(plan: Plan, images: Images, tag: str | None = None) -> str | None:
    """Return the image's digest if it is there already, under that tag if one is given, asking once."""
    known = [_known(plan, layer) for layer in plan.layers]
    whole = [one for one in known if one is not None]
    if len(whole) < len(known):
        return None
    digest = sha256_of(plan.image(whole)[1])
    return digest if images.manifest_digest(tag or digest) == digest else None


def build(
    plan: Plan,
    store: Store,
    images: Images,
    *,
    tags: Sequence[str] = (),
    hooks: Hooks | None = None,
    workers: int = _WORKERS,
) -> Built:
    """Make an image, and put it where it goes. What is there is neither made nor sent.

    Parameters
    ----------
    plan : Plan
        What it is made of.
    store : Store
        Holds the wheels that `lacking` names, the files of the trees, and the interpreter.
    images : Images
        Where it goes.
    tags : sequence of str
        What it is called there.
    hooks : Hooks, optional
        Told about progress.
    workers : int
        How many layers are made at once.

    Raises
    ------
    ImageError
        A wheel lies, or something cannot be written. No manifest was put: nobody sees half an image.
    StoreError
        Something is not in the store.
    """
    return _Building(plan, store, images, hooks or Hooks()).run(tags, workers)


class _Building:
    """The making of one image."""

    def __init__(self, plan: Plan, store: Store, images: Images, hooks: Hooks) -> None:
        self.plan = plan
        self.store = store
        self.images = images
        self.hooks = hooks
        self.sent = 0
        self._stopped = False
        self._lock = threading.Lock()
        self._total = 0

    def run(self, tags: Sequence[str], workers: int) -> Built:
        plan, images = self.plan, self.images
        first = next(iter(tags), None)
        made: dict[str, tuple[Descriptor, str]] = {}
        if (digest := present(plan, images, first)) is None:
            todo, copied = self._todo(made)
            self._check_store(todo)
            for note in plan.notes:
                self.hooks.note("here", note)
            self._total = sum(one.size for one in copied) + sum(one.weight for one in todo)
            if todo or copied:
                began = time.monotonic()
                self.hooks.step("here", f"making {len(todo)} of {len(plan.layers)} layers")
                self._all(todo, copied, made, workers)
                self.hooks.done(
                    "here", f"made {len(todo)} layer{'s' * (len(todo) != 1)}", time.monotonic() - began
                )
            titles = tuple(layer.title for layer in todo)
            layers = [made[layer.key] for layer in plan.layers]
            config, manifest = plan.image(layers)
            described = Descriptor.of(config, CONFIG)
            if images.size(described.digest) is None:
                images.put([config], digest=described.digest, size=described.size)
            digest = images.put_manifest(manifest, MANIFEST, first)
            self.sent += len(config) + len(manifest)
        else:
            titles, layers = (), [known for one in plan.layers if (known := _known(plan, one)) is not None]
            manifest = plan.image(layers)[1]
        for tag in tags[1:]:
            if images.manifest_digest(tag) != digest:
                images.put_manifest(manifest, MANIFEST, tag)
        descriptors = tuple(descriptor for descriptor, _ in layers)
        return Built(
            manifest=Descriptor.of(manifest, MANIFEST),
            size=sum(one.size for one in (*plan.base.manifest.layers, *descriptors)),
            layers=descriptors,
            made=titles,
            sent=self.sent,
        )

    def _todo(self, made: dict[str, tuple[Descriptor, str]]) -> tuple[list[LayerPlan], list[Descriptor]]:
        """Return the layers that have to be made, and the base's that are not there; note the others."""
        below = self.plan.base.manifest.layers
        known = {one.key: found for one in self.plan.layers if (found := _known(self.plan, one)) is not None}
        there = _there(self.images, (*below, *(descriptor for descriptor, _ in known.values())))
        made.update((key, one) for key, one in known.items() if one[0].digest in there)
        todo = [layer for layer in self.plan.layers if layer.key not in made]
        return todo, [layer for layer in below if layer.digest not in there]

    def _check_store(self, todo: Sequence[LayerPlan]) -> None:
        wanted = {one.sha256: one for layer in todo for one in layer.artifacts}
        missing = sorted(wanted[one].filename for one in wanted.keys() - self.store.has(wanted))
        if missing:
            raise StoreError(
                f"wheels of the image are not in the store: {', '.join(missing[:5])}"
                + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
                hint="Make the lock again on the machine whose environment it describes (envsync snapshot).",
            )

    def _all(
        self,
        todo: Sequence[LayerPlan],
        copied: Sequence[Descriptor],
        made: dict[str, tuple[Descriptor, str]],
        workers: int,
    ) -> None:
        """Make and copy layers at once, the largest first; the first error ends them all."""
        jobs: list[tuple[int, Any, Any]] = [(one.weight, self._make, one) for one in todo]
        jobs += [(one.size, self._copy, one) for one in copied]
        jobs.sort(key=lambda job: -job[0])
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="envsync-layer") as pool:
            futures: dict[Future[Any], Any] = {pool.submit(act, one): one for _, act, one in jobs}
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                self._stopped = True
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            for future, one in futures.items():
                if isinstance(one, LayerPlan):
                    made[one.key] = future.result()

    def _make(self, planned: LayerPlan) -> tuple[Descriptor, str]:
        layer = Layer(
            lambda: _entries(self.plan, planned, self.store), compression=self.plan.options.compression
        )
        digest, size = self.images.put(_Watched(self, layer))
        media_type = COMPRESSIONS[self.plan.options.compression]
        descriptor = Descriptor(media_type=media_type, digest=digest, size=size)
        remember("layers", planned.key, {"digest": digest, "diff_id": layer.diff_id, "size": size})
        return descriptor, layer.diff_id

    def _copy(self, blob: Descriptor) -> None:
        base = self.plan.base
        if blob.urls and base.images.size(blob.digest) is None:
            return  # to be had there only
        here = self.images.name.partition("/")[0]
        if base.reference is not None and base.reference.registry == here:
            if base.reference.name == self.images.name:
                return
            if self.images.mount(blob.digest, base.reference.repository):
                return
        self.images.put(_Watched(self, _Blob(base.images, blob.digest)), digest=blob.digest, size=blob.size)

    def went(self, count: int) -> None:
        """Take note of bytes that were sent."""
        if self._stopped:
            raise ImageError("the image is not made any more: another of its layers failed")
        with self._lock:
            self.sent += count
            done = min(self.sent, self._total)
        self.hooks.progress("here", done, self._total, "B")


class _Watched:
    """Chunks that are counted when they go; each iteration is from the start."""

    def __init__(self, building: _Building, chunks: Any) -> None:
        self._building = building
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._building.went(len(chunk))
            yield chunk


class _Blob:
    """A blob of other images, as chunks."""

    def __init__(self, images: Images, digest: str) -> None:
        self._images = images
        self._digest = digest

    def __iter__(self) -> Iterator[bytes]:
        return self._images.open(self._digest)


def _there(images: Images, blobs: Iterable[Descriptor]) -> set[str]:
    """Return the digests of those blobs that are there, asking about several at once."""
    there: set[str] = set()

    def look(blob: Descriptor) -> None:
        if images.size(blob.digest) == blob.size:
            there.add(blob.digest)

    each({blob.digest: blob for blob in blobs}.values(), look, _ASKED)
    return there


def _known(plan: Plan, layer: LayerPlan) -> tuple[Descriptor, str] | None:
    """Return descriptor and diff id of a layer that was made before."""
    value = recall("layers", layer.key)
    try:
        media_type = COMPRESSIONS[plan.options.compression]
        descriptor = Descriptor.from_dict({**value, "mediaType": media_type})
        return descriptor, str(value["diff_id"])
    except (TypeError, KeyError, ImageError):
        return None


# What is in a layer


def _entries(plan: Plan, layer: LayerPlan, store: Store) -> Iterator[Entry]:
    if layer.kind == "wheels":
        for artifact in layer.artifacts:
            record = plan.lock.records.get(artifact.name, "")
            yield from files_of(artifact, store, plan.place, record=record)
    elif layer.kind == "interpreter":
        yield from _interpreter(plan, store)
    elif layer.kind == "links":
        yield from _links(plan)
    else:
        yield from _trees(plan, store)


def _links(plan: Plan) -> Iterator[Entry]:
    prefix, minor = plan.place.prefix, plan.place.minor
    yield Entry(f"{prefix}/bin/python", link=plan.python)
    for name in ("python3", f"python{minor}"):
        yield Entry(f"{prefix}/bin/{name}", link="python")
    yield Entry(f"{prefix}/lib64", link="lib")
    yield Entry(f"{prefix}/{plan.place.site}/envsync.pth", TREES_PTH.encode())
    home = plan.python.rpartition("/")[0]
    text = f"home = {home}\nimplementation = CPython\nversion = {plan.version}\n"
    yield Entry(f"{prefix}/pyvenv.cfg", f"{text}include-system-site-packages = false\n".encode())


def _interpreter(plan: Plan, store: Store) -> Iterator[Entry]:
    """Yield the files of an archive of `envsync.interpreter.pack`."""
    assert plan.interpreter is not None
    with store.open(plan.interpreter.digest) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
        for member in archive:
            path = f"{PYTHON}/{member.name}"
            folder, _, name = member.name.rpartition("/")
            if folder == SPARE and name not in plan.spare:
                path = f"{PYTHON}/{SPARE.rpartition('/')[0]}/{name}"  # the base has none: it is found there
            if member.issym():
                yield Entry(path, link=member.linkname)
                continue
            content = archive.extractfile(member)
            assert content is not None
            chunks = functools.partial(_chunks, content)
            yield Entry(path, Plain(member.size, chunks), executable=bool(member.mode & 0o100))


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(CHUNK), b"")


def _trees(plan: Plan, store: Store) -> Iterator[Entry]:
    yield Entry(LOCK_FILE, _text(plan.lock.dumps().encode()))
    for tree in sorted(plan.trees, key=lambda one: one.digest):
        # what was left out, and why, is of one machine only
        about = {key: value for key, value in tree.to_dict().items() if key != "left_out"}
        text = json.dumps(about, sort_keys=True, separators=(",", ":"))
        yield Entry(f"{TREES}/{tree.digest}.json", _text(text.encode()))
        for path, sha256, mode in tree.files:
            yield Entry(
                f"{TREES}/{tree.digest}/{path}", _blob(store, sha256, path), executable=bool(mode & 0o100)
            )


def _text(data: bytes) -> Plain:
    return Plain(len(data), lambda: (data,))


def _blob(store: Store, digest: str, path: str) -> Plain:
    """Return a file of a tree, checked while it is read."""

    def chunks() -> Iterator[bytes]:
        sha = hashlib.sha256()
        with store.open(digest) as file:
            while chunk := file.read(CHUNK):
                sha.update(chunk)
                yield chunk
        if sha.hexdigest() != digest:
            raise ImageError(f"{path}: the store holds other bytes than its digest {digest} says")

    return Plain(size_of(store, digest), chunks)
