"""From a lock to an environment on this host: whole, or not at all.

Looking at one that is there comes first, and mostly last: what making one takes is imported when one is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from ..plugins.scan import scan
from .layout import Cache, Emit, checked_digest, disk_problem, fresh, taken_back
from .pythons import supplement

if TYPE_CHECKING:
    from .running import Runner

__all__ = [
    "SCHEMA",
    "answer",
    "existing",
    "look_at",
    "realise",
    "records",
    "remember",
    "stamp",
    "traces_of",
]

SCHEMA = 2


def realise(cache: Cache, runner: Runner, emit: Emit, request: Mapping[str, Any]) -> dict[str, Any]:
    """Make an environment, or check the one that is there.

    Parameters
    ----------
    cache : Cache
        Where it goes.
    runner : Runner
        Runs uv.
    emit : callable
        Told the steps.
    request : mapping
        ``digest`` (the lock's), ``python``, ``implementation``, ``artifacts``, ``uv`` (``{"path"}``,
        ``{"digest"}``, or None to be asked for one), ``online``, ``here`` (this is the client's machine),
        ``environment`` (for uv), ``hints`` (interpreters).

    Returns
    -------
    dict
        ``{"prefix", "python", "created", "report", "notes"}``, or what must be sent before it can be made:
        ``{"lacking": [digest], "uv": bool, "python": bool}``.

    Raises
    ------
    Problem
        It could not be made; what was there before is as it was.
    """
    digest = checked_digest(request["digest"])
    prefix = cache.environment(digest)
    there = existing(prefix)
    if there is not None:
        return there
    from .building import Build

    try:
        return Build(cache, runner, emit, request).run()
    except OSError as error:
        raise disk_problem(error, "the environment could not be made") from error


def existing(prefix: Path) -> dict[str, Any] | None:
    """Return the environment that is there, if it is still what was made.

    Where no file that a look would read was touched since the last look, what that one saw is still so.
    """
    try:
        state = json.loads((prefix / "envsync.json").read_text(encoding="utf-8"))
        interpreter, wanted, facts = state["interpreter"], state["records"], state["facts"]
        if state["schema"] != SCHEMA or stamp(prefix) != state["stamp"]:
            return None
        traces = traces_of(prefix, prefix)
        if traces != state["traces"]:
            facts = look_at(prefix, prefix, interpreter)
            if records(facts) != wanted:
                return None
            with contextlib.suppress(OSError):
                remember(prefix, {**state, "facts": facts, "traces": traces})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    supplement(interpreter["executable"])
    return answer(prefix, facts, created=False, notes=state.get("notes", []))


def remember(prefix: Path, state: Mapping[str, Any]) -> None:
    """Write down what an environment is."""
    with taken_back(fresh(prefix, ".envsync.json.")) as part:
        part.write_text(json.dumps(state), encoding="utf-8")
        part.replace(prefix / "envsync.json")


def traces_of(folder: Path, prefix: Path) -> str:
    """Return what differs whenever a look at the environment in a folder would see something else.

    That is what its site-packages hold, and which RECORD and METADATA files, written when, lie there.
    """
    agent = Path(sys.argv[0]).name  # another one may look more closely
    sha = hashlib.sha256(f"{agent}\n{prefix}\n".encode("utf-8", "surrogateescape"))
    for site in sorted(folder.glob("lib/python*/site-packages")):
        for name in sorted(os.listdir(site)):  # noqa: PTH208 - much quicker
            if name == "__pycache__":
                continue
            sha.update(f"{name}\n".encode("utf-8", "surrogateescape"))
            files = (name, f"{name}/RECORD", f"{name}/METADATA") if name.endswith(".dist-info") else ()
            for file in files or ((name,) if name.endswith((".pth", ".egg-link")) else ()):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(f"{site}/{file}")  # noqa: PTH116 - the same
                    sha.update(b"%d %d %d\n" % (status.st_mtime_ns, status.st_size, status.st_ino))
    return sha.hexdigest()


def look_at(folder: Path, prefix: Path, interpreter: Mapping[str, Any]) -> dict[str, Any]:
    """Look at the environment in a folder, and say it of `prefix`, where it is or will be."""
    sites = [str(path) for path in folder.glob("lib/python*/site-packages")]
    facts: dict[str, Any] = scan(sites)
    if folder != prefix:
        for distribution in facts["distributions"]:
            for key in ("location", "shadowed_by"):
                distribution[key] = distribution[key].replace(str(folder), str(prefix), 1)
        facts["paths"] = [path.replace(str(folder), str(prefix), 1) for path in facts["paths"]]
    keys = ("implementation", "version", "base_prefix", "soabi")
    facts["interpreter"] = {
        **{key: interpreter[key] for key in keys},
        "executable": str(prefix / "bin" / "python"),
        "prefix": str(prefix),
    }
    facts["platform"] = {key: interpreter[key] for key in ("system", "machine", "libc")}
    return facts


def records(facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what an environment is known by: version and RECORD digest of each distribution."""
    return {d["name"]: [d["version"], d["record"]] for d in facts["distributions"] if not d["shadowed_by"]}


def stamp(prefix: Path) -> list[Any]:
    """Return what tells whether the interpreter behind an environment is still the same file."""
    real = (prefix / "bin" / "python").resolve()
    status = real.stat()
    return [str(real), status.st_size, int(status.st_mtime)]


def answer(prefix: Path, facts: dict[str, Any], *, created: bool, notes: list[str]) -> dict[str, Any]:
    """Return what the client is told about an environment."""
    return {
        "prefix": str(prefix),
        "python": str(prefix / "bin" / "python"),
        "created": created,
        "report": facts,
        "notes": notes,
    }
