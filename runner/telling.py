"""Nothing is left out in silence: what of an environment and of local code does not ship is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envsync.hooks import Hooks
    from envsync.snapshot import Snapshot
    from envsync.trees import Manifest

__all__ = ["tell_edited", "tell_findings", "tell_left_out"]

# Reasons that every project has, and nobody misses.
_USUAL = frozenset(
    (
        *("version control", "a cache", "bytecode", "a virtual environment", "build output", "hidden"),
        "hidden, and not in a package",
        *("JavaScript packages", "Dask's scratch space", "belongs to a lock", "a lock"),
        *("written by envsync build", "images", "a store"),
    )
)
_WANTED = frozenset(("ignored by .gitignore", "a notebook"))  # left out by somebody's own wish
_SHOWN = 3


def tell_findings(snapshot: Snapshot, hooks: Hooks, *, locked: bool = False) -> None:
    """Tell what a person should look at in an environment.

    Parameters
    ----------
    snapshot : Snapshot
        The environment.
    hooks : Hooks
        Told, once for each finding that is more than a note.
    locked : bool
        Whether a lock stands for what is installed, so that only what is with folders matters.
    """
    for one in snapshot.findings:
        if one.severity != "note" and (not locked or one.subject.startswith("/")):
            hooks.warning("here", f"{one.subject}: {one.text}")


def tell_left_out(manifests: Iterable[Manifest], hooks: Hooks, *, before: Iterable[Manifest] = ()) -> None:
    """Tell which files of source trees do not ship, one line for each tree.

    Parameters
    ----------
    manifests : iterable of Manifest
        The trees.
    hooks : Hooks
        Told by a note where all of it was asked for, in a .gitignore for instance, else by a warning.
    before : iterable of Manifest
        The trees as they were told of before: what was left out then is not told again.
    """
    told = {manifest.name: set(manifest.left_out) for manifest in before}
    for manifest in manifests:
        new = [entry for entry in manifest.left_out if entry not in told.get(manifest.name, ())]
        missed = [entry for entry in new if entry[1] not in _USUAL]
        if not missed:
            continue
        grave = sorted(missed, key=lambda entry: entry[1] in _WANTED)
        few = len(missed) if hooks.verbose else _SHOWN
        shown = ", ".join(f"{path} ({why})" for path, why in grave[:few])
        more = f" and {len(missed) - few} more" if len(missed) > few else ""
        hint = "" if hooks.verbose else " (envsync snapshot -v shows all)"
        text = f"source tree {manifest.name}: {len(missed)} left out: {shown}{more}{hint}"
        tell = hooks.note if grave[0][1] in _WANTED else hooks.warning
        tell("here", text)


def tell_edited(snapshot: Snapshot, hooks: Hooks) -> None:
    """Warn of packages that were edited in place, and ship as their index has them.

    Parameters
    ----------
    snapshot : Snapshot
        The environment. Packages that are of no index ship as they are, and are not told of.
    hooks : Hooks
        Told, once for each package.
    """
    from envsync.edited import touched_files
    from envsync.plan import from_index

    found: dict[str, list[str]] = {}
    for one in touched_files(each for each in snapshot.winners if from_index(each)):
        found.setdefault(one.subject, []).append(one.text)
    for name, texts in found.items():
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 and not hooks.verbose else ""
        said = ", ".join(texts) if hooks.verbose else texts[0]
        hooks.warning(
            "here",
            f"{name} {said}{more}; what ships is the index's own: reinstall it, or install your copy "
            "from a folder of yours",
        )
