"""What an image is made of: its layers by what is in them, and its documents. Nothing is read or written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from envsync.errors import ImageError
from envsync.images.base import Base, fit, have_of
from envsync.images.built import SCHEMA
from envsync.images.oci import CONFIG, Config, Descriptor, Manifest
from envsync.images.tar import COMPRESSIONS
from envsync.images.wheels import Place
from envsync.target import version_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from envsync.artifacts import Artifact
    from envsync.interpreter import InterpreterArchive
    from envsync.lock import Lock
    from envsync.trees import Manifest as Tree

__all__ = ["LOCK_FILE", "LOCK_LABEL", "ROOT", "TREES_LABEL", "LayerPlan", "Options", "Plan", "plan"]

ROOT = "opt/envsync"
LOCK_FILE = f"{ROOT}/pylock.toml"
TREES = f"{ROOT}/trees"
PYTHON = f"{ROOT}/python"
LOCK_LABEL = "org.envsync.lock"
TREES_LABEL = "org.envsync.trees"
CREATED = "1980-01-02T00:00:00Z"

BUCKETS = 16
LARGE = 16 << 20  # bytes of a wheel that has a layer of its own
MOST_LARGE = 60  # an engine takes about 120 layers, and the base has some
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MISLEADING = ("PYTHONPATH", "PYTHONHOME")
_KEPT = ("os.version", "os.features")  # of what a configuration may say besides
_ANNOTATION = "org.opencontainers.image."


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user may want otherwise.

    Attributes
    ----------
    compression : str
        Of layers: ``"gzip"`` or ``"zstd"``.
    annotations : mapping of str to str
        More of them, such as ``org.opencontainers.image.revision``.
    """

    compression: str = "gzip"
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise ImageError(
                f"layers cannot be compressed with {self.compression!r}",
                hint=f"Choose {' or '.join(COMPRESSIONS)}.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer, by what is in it.

    Attributes
    ----------
    kind : str
        ``"interpreter"``, ``"wheels"``, ``"links"`` or ``"trees"``.
    title : str
        What it is, for a person.
    key : str
        Names its bytes.
    artifacts : tuple of Artifact
        Its wheels, sorted by name.
    """

    kind: str
    title: str
    key: str
    artifacts: tuple[Artifact, ...] = ()

    @property
    def weight(self) -> int:
        """Bytes that it is made of, as far as that is known."""
        return sum(artifact.size or 0 for artifact in self.artifacts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An image before it is made.

    Attributes
    ----------
    lock : Lock
        With references to the trees that are in the image.
    trees : tuple of envsync.trees.Manifest
        In the order of the path.
    base : Base
        What it goes on top of.
    interpreter : InterpreterArchive or None
        What is put on top of a base without a Python that fits.
    python : str
        The path of the interpreter that the environment is of.
    version : str
        Its version.
    layers : tuple of LayerPlan
        Above those of the base, lowest first.
    options : Options
        As they were asked for.
    notes : tuple of str
        What a person should know.
    """

    lock: Lock
    trees: tuple[Tree, ...]
    base: Base
    interpreter: InterpreterArchive | None
    python: str
    version: str
    layers: tuple[LayerPlan, ...]
    options: Options
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> Place:
        """Where the environment is."""
        return Place(prefix=f"{ROOT}/env", minor=self.lock.target.minor)

    @property
    def spare(self) -> tuple[str, ...]:
        """The libraries that the interpreter brings and the base has itself."""
        return self.base.facts.libraries

    def image(self, made: Sequence[tuple[Descriptor, str]]) -> tuple[bytes, bytes]:
        """Return configuration and manifest, given descriptor and diff id of each layer."""
        config = self._config([diff_id for _, diff_id in made]).to_bytes()
        manifest = Manifest(
            config=Descriptor.of(config, CONFIG),
            layers=(
                *(layer.as_oci() for layer in self.base.manifest.layers),
                *(descriptor for descriptor, _ in made),
            ),
            annotations=self.annotations(),
        )
        return config, manifest.to_bytes()

    def annotations(self) -> dict[str, str]:
        """Return what manifest and configuration say of the image."""
        found = {
            f"{_ANNOTATION}created": CREATED,
            f"{_ANNOTATION}base.digest": self.base.digest,
            LOCK_LABEL: self.lock.digest,
            TREES_LABEL: " ".join(tree.digest for tree in self.trees),
        }
        if self.base.reference is not None:
            found[f"{_ANNOTATION}base.name"] = str(replace(self.base.reference, digest=""))
        return {**{key: value for key, value in found.items() if value}, **self.options.annotations}

    def _config(self, diff_ids: list[str]) -> Config:
        base = self.base.config
        history = [*base.history]
        # each layer has an entry, or tools that list them are led astray
        unsaid = len(base.diff_ids) - sum(not one.get("empty_layer") for one in history)
        history += [{"created": CREATED, "created_by": "the base image"}] * unsaid
        history += [{"created": CREATED, "created_by": f"envsync: {one.title}"} for one in self.layers]
        run = {
            **base.run,
            "Env": [f"{name}={value}" for name, value in self._variables().items()],
            "Cmd": ["python"],
            "Labels": {**_own(base.labels()), **self.annotations()},
        }
        return Config(
            platform=base.platform,
            run=run,
            diff_ids=(*base.diff_ids, *diff_ids),
            history=tuple(history),
            rest={
                "created": CREATED,
                **{key: value for key, value in base.rest.items() if key in _KEPT},
            },
        )

    def _variables(self) -> dict[str, str]:
        base = self.base.config.variables()
        found = {name: value for name, value in base.items() if name not in _MISLEADING}
        found["PATH"] = f"/{self.place.prefix}/bin:{base.get('PATH') or _PATH}"
        for name, position in (("PYTHONPATH", "front"), ("ENVSYNC_TREES", "back")):
            folders = [f"/{TREES}/{tree.digest}" for tree in self.trees if tree.position == position]
            if folders:
                found[name] = ":".join(folders)
        return found


def plan(
    lock: Lock,
    trees: Iterable[Tree],
    base: Base,
    options: Options | None = None,
    *,
    interpreter: InterpreterArchive | None = None,
) -> Plan:
    """Decide what an image is made of.

    Parameters
    ----------
    lock : Lock
        The environment. Its target is what the image is for.
    trees : iterable of envsync.trees.Manifest
        Local code, in the order of the path.
    base : Base
        What it goes on top of.
    options : Options, optional
        What is wanted otherwise.
    interpreter : InterpreterArchive, optional
        What `interpreter_for` found for it.

    Raises
    ------
    ImageError
        Base, lock and interpreter do not go together.
    """
    options, trees = options or Options(), tuple(trees)
    lock = replace(lock, trees=tuple(tree.reference() for tree in trees))
    python = fit(base, lock.target)
    notes = []
    if python is None:
        _check_interpreter(base, lock, interpreter)
        assert interpreter is not None
        path, version = f"/{PYTHON}/bin/python{lock.target.minor}", interpreter.version
    else:
        interpreter, path, version = None, python.path, python.version
        lacking = sorted({"libgcc_s.so.1", "libstdc++.so.6"} - set(base.facts.libraries))
        if lacking:
            notes.append(
                f"the base image has no {' and no '.join(lacking)}, which compiled packages may need"
            )
    if version != lock.target.python:
        notes.append(f"Python {version} ({path}) stands in for {lock.target.python}")
    dropped = [name for name in _MISLEADING if base.config.variables().get(name)]
    if dropped:
        notes.append(f"the base image's {' and '.join(dropped)} would change what is imported: left out")
    made = Plan(
        lock=lock,
        trees=trees,
        base=base,
        interpreter=interpreter,
        python=path,
        version=version,
        layers=(),
        options=options,
        notes=tuple(notes),
    )
    return replace(made, layers=tuple(_layers(made)))


def _check_interpreter(base: Base, lock: Lock, interpreter: InterpreterArchive | None) -> None:
    target, have = lock.target, base.facts.libc
    why = ""
    if interpreter is None:
        why = "and there is none to put on top"
    elif interpreter.machine != target.machine:
        why = f"and the one that is to go on top is for {interpreter.machine}"
    elif interpreter.version.split(".")[:2] != target.minor.split("."):
        why = f"and the one that is to go on top is {interpreter.version}"
    elif interpreter.libc is not None and have is not None:
        kind, version = interpreter.libc
        if kind != have[0] or version_numbers(version) > version_numbers(have[1]):
            why = f"and the one that is to go on top needs {kind} {version}, where the base has {have[1]}"
    if why:
        raise ImageError(
            f"the base image has no Python {target.minor} ({have_of(base)}), {why}",
            where=base.name,
            hint=f"Choose a base with Python {target.minor}.",
        )


def _layers(made: Plan) -> Iterable[LayerPlan]:
    lock, options, place = made.lock, made.options, made.place
    about: list[Any]
    if made.interpreter is not None:
        about = ["interpreter", made.interpreter.digest, made.spare]
        yield _layer(options, "interpreter", f"Python {made.version}", about, compressed=True)
    artifacts = sorted(lock.artifacts(), key=lambda one: one.name)
    by_size = sorted(artifacts, key=lambda one: (-(one.size or 0), one.name))
    large = {one.name for one in by_size[:MOST_LARGE] if (one.size or 0) >= LARGE}
    groups: dict[tuple[int, str], list[Artifact]] = {}
    for artifact in artifacts:
        if artifact.name in large:
            groups[0, artifact.name] = [artifact]
        else:
            bucket = hashlib.sha256(artifact.name.encode()).digest()[0] % BUCKETS
            groups.setdefault((1, f"{bucket:02}"), []).append(artifact)
    for _, group in sorted(groups.items()):
        few = ", ".join(f"{one.name} {one.version}" for one in group[:3])
        title = few + (f" and {len(group) - 3} more" if len(group) > 3 else "")
        wheels = [[one.name, one.sha256, lock.records.get(one.name, "")] for one in group]
        about = ["wheels", place.prefix, place.minor, wheels]
        yield _layer(options, "wheels", title, about, artifacts=tuple(group))
    about = ["links", place.prefix, made.python, made.version]
    yield _layer(options, "links", "the environment's interpreter", about)
    about = ["trees", lock.dumps(), [[tree.digest, tree.kind, tree.distribution] for tree in made.trees]]
    names = ", ".join(tree.name for tree in made.trees)
    yield _layer(options, "trees", f"the lock{' and ' if names else ''}{names}", about, compressed=True)


def _layer(
    options: Options,
    kind: str,
    title: str,
    about: Any,
    *,
    artifacts: tuple[Artifact, ...] = (),
    compressed: bool = False,
) -> LayerPlan:
    """Name a layer; `compressed`: some of it is, so that the compressor's version has a part in the bytes."""
    with_ = [options.compression]
    if options.compression == "zstd":
        with_.append(_version_of("zstandard"))
    elif compressed:
        with_.append(_version_of("zlib-ng"))
    text = json.dumps([SCHEMA, with_, about], separators=(",", ":"))
    return LayerPlan(
        kind=kind, title=title, key=hashlib.sha256(text.encode()).hexdigest(), artifacts=artifacts
    )


def _version_of(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError as error:
        raise ImageError(
            f"layers are to be compressed with {distribution}, which is not installed",
            hint="Install dask-envsync[zstd], or let layers be compressed with gzip.",
        ) from error


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    """Return a base's labels without those that say what the base is."""
    return {key: value for key, value in labels.items() if not key.startswith((_ANNOTATION, "org.envsync."))}
