"""Named profiles of Dask's configuration: backends and clusters as somebody has written them down.

::

    envsync:
      profiles:
        gpu:
          backend: slurm
          partition: gpu
          gres: "gpu:2"
          time: 4h
          n-workers: 8
        night:
          jobqueue: slurm       # what dask-jobqueue's section of that name says, and
          time: 12h             # what is said here instead
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import dask.config

from envsync import runner
from envsync.errors import ConfigurationError
from envsync.hooks import Hooks
from envsync.runner.backends import SSH, Backend, Local
from envsync.runner.batch.jobqueue_config import Mapped, from_jobqueue, says_something
from envsync.runner.clouds import Cloud
from envsync.runner.keywords import demand
from envsync.runner.limits import KEYWORDS, Limits
from envsync.runner.logged import LoggedHooks
from envsync.runner.queues import BACKENDS, Batch

__all__ = ["CLUSTER", "Profile", "backend_from_config", "make_backend", "read_profile", "takes_profile"]

_KINDS: dict[str, type[Backend]] = {
    "local": Local,
    "ssh": SSH,
    **BACKENDS,
    **{kind: getattr(runner, name) for kind, name in runner.CLOUDS.items()},
}
CLUSTER = (
    *("n_workers", "threads_per_worker", "memory_limit", "name", "lock", "store", "env", "engine"),
    *("on_mismatch", "dashboard_address", "local_directory", "start_timeout", "gpu_worker"),
    *("credentials", "impersonate"),
    *KEYWORDS,
)
"""Keywords of `SyncedCluster` that a profile may say too."""
_SECTION = "jobqueue"
_NOTHING = Batch("slurm").group.request
"""What is asked for where nothing is."""

_Init = TypeVar("_Init", bound=Callable[..., None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a profile comes to.

    Attributes
    ----------
    name : str
        Of the profile; ``jobqueue.slurm`` for a section of dask-jobqueue's configuration.
    backend : Backend
        Where the cluster runs.
    cluster : mapping
        Keywords of `SyncedCluster`.
    notes : tuple of str
        What dask-jobqueue's section says and needs no saying here, a line each.
    lost : tuple of str
        What it says and is not done here, a line each.
    """

    name: str
    backend: Backend
    cluster: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def tell(self, hooks: Hooks) -> None:
        """Tell what of dask-jobqueue's section has no meaning here."""
        for note in self.notes:
            hooks.note("here", note)
        for lost in self.lost:
            hooks.warning("here", lost)


def read_profile(name: str, **changes: Any) -> Profile:
    """Read a profile of Dask's configuration: its files, ``DASK_*`` variables, ``dask.config.set``.

    Parameters
    ----------
    name : str
        A name below ``envsync: profiles:``; or ``"jobqueue.slurm"``, a section of dask-jobqueue's.
    **changes
        Keywords of the backend that count instead of the profile's; None for those that do not. `backend`
        says which that is, where the profile does not.

    Returns
    -------
    Profile

    Raises
    ------
    ConfigurationError
        There is none of that name, or what it says makes no sense.
    """
    where = f"envsync.profiles.{name}"
    kind = changes.pop("backend", None)
    changes = {key: value for key, value in changes.items() if value is not None}
    if name.partition(".")[0] == _SECTION:
        where, given = name, {_SECTION: name.partition(".")[2]}
    else:
        given = _named(name, where)
    mapped = _mapped(given, kind or given.get("backend"), where) if _SECTION in given else None
    said = given.pop("backend", None) or (mapped.system if mapped else None)
    if kind and said and kind != said:
        raise ConfigurationError(f"it is for {said}, not for {kind}", where=where)
    kind = str(said or kind or "")
    known = _keywords(kind, where)
    changes = there(kind, changes)
    if "queue" in changes:  # it is the same, whatever the system calls it
        given.pop("partition", None)
    cluster = {
        key: _fit(key, given.pop(key), "", where) for key in CLUSTER if key in given and key not in known
    }
    try:
        demand(**cluster)
        Limits.of(**{key: cluster[key] for key in KEYWORDS if key in cluster})
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error), where=where) from error
    asked = {**given, **changes}
    if mapped is not None:
        if "partition" in asked and "partition" in known:
            asked["queue"] = asked.pop("partition")
        asked, cluster = {**mapped.backend, **asked}, {**mapped.cluster, **cluster}
    if kind == "ssh" and not asked.get("hosts"):
        raise ConfigurationError("it names no hosts", where=where, hint="Write hosts: [node1, node2].")
    backend = make_backend(kind, asked, where=where)
    notes, lost = (mapped.notes, mapped.lost) if mapped else ((), ())
    return Profile(name=name, backend=backend, cluster=cluster, notes=notes, lost=lost)


def there(kind: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what options ask by a cloud's own word for a region, where it has another."""
    cloud = _KINDS.get(kind)
    word = cloud.where if cloud is not None and issubclass(cloud, Cloud) else "region"
    return {word if key == "region" else key: value for key, value in asked.items()}


def make_backend(kind: str, asked: Mapping[str, Any], *, where: str = "") -> Backend:
    """Return a backend of what somebody has written.

    Parameters
    ----------
    kind : str
        ``local``, ``ssh``, or a batch system.
    asked : mapping
        Its keywords.
    where : str
        Where that is written.

    Raises
    ------
    ConfigurationError
        It makes no sense.
    """
    known = _keywords(kind, where)
    if unknown := [key for key in asked if key not in known]:
        there = sorted(map(_spelled, ("backend", _SECTION, *known, *CLUSTER) if where else known))
        near = [one for key in unknown for one in difflib.get_close_matches(_spelled(key), there, 1)]
        meant = f"Did you mean {', '.join(near)}? " if near else ""
        raise ConfigurationError(
            f"on {kind} there is no {', '.join(map(_spelled, unknown))}",
            where=where,
            hint=f"{meant}There are {', '.join(there)}.",
        )
    fitted = {key: _fit(key, value, known[key], where) for key, value in asked.items()}
    if issubclass(_KINDS[kind], Cloud) and not fitted.get("type"):
        raise ConfigurationError("it names no type of machine", where=where, hint="Write type: m7i.large.")
    try:
        return _KINDS[kind](**fitted)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error), where=where) from error


def backend_from_config(name: str, **changes: Any) -> Backend:
    """Return the backend of a profile, with other keywords than it says.

    Parameters
    ----------
    name : str
        A name below ``envsync: profiles:`` in Dask's configuration; or ``"jobqueue.slurm"``, a section of
        dask-jobqueue's.
    **changes
        Keywords that count instead, such as ``time="8h"``.

    Raises
    ------
    ConfigurationError
        There is none of that name, or what it says makes no sense.

    Examples
    --------
    >>> from envsync import SyncedCluster
    >>> from envsync.runner import backend_from_config
    >>> cluster = SyncedCluster(backend_from_config("gpu", time="8h"), n_workers=2)  # doctest: +SKIP
    """
    profile = read_profile(name, **changes)
    profile.tell(LoggedHooks())
    return profile.backend


def takes_profile(init: _Init) -> _Init:
    """Let a cluster's backend be a profile's name; what the profile says of the cluster comes with it."""

    @functools.wraps(init)
    def start(self: Any, backend: Backend | str | None = None, **keywords: Any) -> None:
        hooks = keywords.get("hooks") or LoggedHooks()
        if isinstance(backend, str):
            profile = read_profile(backend)
            profile.tell(hooks)
            backend, keywords = profile.backend, {**profile.cluster, **keywords}
        elif section := _unread(backend):
            hooks.note(
                "here",
                f"nothing is asked of the jobs, and dask-jobqueue's configuration is there: to have it read, "
                f"name jobqueue.{section} as the profile",
            )
        init(self, backend, **keywords)

    return cast("_Init", start)


def _named(name: str, where: str) -> dict[str, Any]:
    """Return what a profile says, with keywords as they are in Python."""
    profiles = dask.config.get("envsync.profiles", None) or {}
    if not isinstance(profiles, Mapping):
        raise ConfigurationError("that has to be names, each with what it is", where="envsync.profiles")
    by_name = {str(key).replace("_", "-"): value for key, value in profiles.items()}
    found = by_name.get(name.replace("_", "-"))
    if name.replace("_", "-") not in by_name:
        there = f"there are {', '.join(map(str, profiles))}" if profiles else "there are none"
        raise ConfigurationError(
            f"there is no profile {name!r} in Dask's configuration; {there}",
            hint=f"They are below envsync: profiles: in a file such as envsync.yaml in {_folders()}; and "
            "jobqueue.NAME is a section of dask-jobqueue's configuration.",
        )
    if not isinstance(found, Mapping):
        raise ConfigurationError("that has to be keys with values, such as backend: slurm", where=where)
    given = {str(key).replace("-", "_"): value for key, value in found.items() if value is not None}
    twice = len(given) < sum(value is not None for value in found.values())
    if twice:
        raise ConfigurationError("a key is there twice, with - and with _", where=where)
    return given


def _folders() -> str:
    """Return where Dask reads its configuration, for people."""
    home = str(Path.home())
    return ", ".join(path.replace(home, "~", 1) for path in dict.fromkeys(map(str, dask.config.paths)))


def _mapped(given: dict[str, Any], system: str | None, where: str) -> Mapped:
    """Read dask-jobqueue's section that a profile is of."""
    name = str(given.pop(_SECTION))
    sections = dask.config.get(_SECTION, None) or {}
    by_name = {str(key).replace("_", "-"): value for key, value in sections.items()}
    section = by_name.get(name.replace("_", "-"))
    if not isinstance(section, Mapping):
        written = [key for key, value in by_name.items() if isinstance(value, Mapping)]
        raise ConfigurationError(
            f"there is no section jobqueue.{name} in Dask's configuration; "
            f"there are {', '.join(written) or 'none'}",
            where="" if where.startswith(_SECTION) else where,
            hint=f"dask-jobqueue's configuration is in jobqueue.yaml, in {_folders()}.",
        )
    system = system or (name if name in (*BACKENDS, "moab") else None)
    if system not in (*BACKENDS, "moab"):
        raise ConfigurationError(
            f"of which batch system is jobqueue.{name}?",
            where=where,
            hint=f"Say backend (--on), which is one of {', '.join(BACKENDS)}.",
        )
    try:
        return from_jobqueue(section, "moab" if name == "moab" else system, name=name)
    except ValueError as error:
        raise ConfigurationError(str(error), where=f"jobqueue.{name}") from error


def _unread(backend: object) -> str:
    """Return dask-jobqueue's section for a batch system of which nothing is asked; empty if there is none."""
    if not isinstance(backend, Batch) or backend.group.request != _NOTHING:
        return ""
    section = dask.config.get(f"{_SECTION}.{backend.system.name}", None)
    return backend.system.name if isinstance(section, Mapping) and says_something(section) else ""


def _spelled(key: str) -> str:
    return key.replace("_", "-")


def _keywords(kind: str, where: str) -> dict[str, str]:
    """Return the keywords of a backend, each with what it takes, as its signature has it."""
    if kind not in _KINDS:
        said = f"there is no backend {kind!r}" if kind else "it does not say which backend"
        raise ConfigurationError(said, where=where, hint=f"Write backend: and one of {', '.join(_KINDS)}.")
    found = {}
    for one in reversed(_KINDS[kind].__mro__):
        init = vars(one).get("__init__") if one is not object else None
        if init is not None:
            for name, parameter in inspect.signature(init).parameters.items():
                if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in ("self", "system"):
                    found[name] = str(parameter.annotation)
    return found


def _fit(key: str, value: Any, takes: str, where: str) -> Any:
    """Return a value as a keyword takes it: what is text is not always text to YAML."""

    def wrong(what: str) -> ConfigurationError:
        return ConfigurationError(f"{_spelled(key)} has to be {what}, not {value!r}", where=where)

    scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    if key == "groups" and isinstance(value, Mapping):
        groups = ((name, own) for name, own in value.items() if isinstance(own, Mapping))
        inner = {
            name: {str(one).replace("-", "_"): said for one, said in own.items()} for name, own in groups
        }
        return {**value, **inner}
    if key == "lock" and isinstance(value, str):
        return str(Path(value).expanduser()) if value.startswith("~") else value
    if takes.startswith("dict[str, str]") and isinstance(value, Mapping):
        return {str(one): str(said) for one, said in value.items()}
    if takes.startswith("Sequence[str]"):
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple) or not all(
            isinstance(one, str | int | float) for one in value
        ):
            raise wrong("a list of words")
        return tuple(map(str, value))
    if takes in ("str", "str | None", "SSH | str | None", "Where | None"):
        if not scalar:
            raise wrong("text, in quotation marks if need be")
        return str(value)
    if takes.startswith("int") or key == "threads_per_worker":
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("a whole number")
    elif takes.startswith("float") and "str" not in takes and (isinstance(value, str) or not scalar):
        raise wrong("a number")
    elif takes.startswith("bool") and not isinstance(value, bool):
        raise wrong("true or false")
    elif key == "n_workers" and (isinstance(value, bool) or not isinstance(value, int | Mapping)):
        raise wrong("a whole number")
    return value
