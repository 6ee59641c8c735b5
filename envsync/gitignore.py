"""What git would ignore: the .gitignore files of every level, and .git/info/exclude. Works without git."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["IgnoreRules"]


INSIDE = -1  # "data/**" is about what lies in data/, not about data/ itself


class _File:
    """The rules of one file, for paths relative to the folder that they hold in."""

    def __init__(self, base: str, lines: list[str]) -> None:
        from pathspec import GitIgnoreSpec  # many folders have no rules

        self.base = base
        lines = [f"{line}*/" if line.endswith("/**/") else line for line in lines]
        self._all = GitIgnoreSpec.from_lines(lines)
        self._each = [(GitIgnoreSpec.from_lines([line]), _depth(line)) for line in reversed(lines)]

    def verdict(self, path: str, *, folder: bool) -> bool | None:
        """Say whether the last rule that matches ignores the path; None if none does."""
        # No pattern holds a newline, and the regular expressions' dot does not match one.
        relative = path[len(self.base) :].lstrip("/").replace("\n", "\x01")
        end = "/" if folder else ""
        if self._all.check_file(relative + end).include is None:
            return None
        # pathspec takes a pattern that matches a folder to match all that is below it too. Git does not:
        # after "!/a", what lies in a/ is still judged by the other rules.
        name = relative.rpartition("/")[2]
        depth = relative.count("/") + 1
        for spec, wanted in self._each:
            if wanted in (None, INSIDE, 0, depth):
                asked = (name if wanted == 0 else relative) + ("" if wanted == INSIDE else end)
                include = spec.check_file(asked).include
                if include is not None:
                    return include
        return None


def _depth(line: str) -> int | None:
    """Return how many components a path has that a rule matches; 0: any, its name alone counts."""
    body = line.removeprefix("!").rstrip(" ")
    if body.endswith("/**"):
        return INSIDE
    if "**" in body:
        return None
    body = body.removesuffix("/")
    return body.removeprefix("/").count("/") + 1 if "/" in body else 0


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The rules that hold in one folder, the nearest last."""

    levels: tuple[_File, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> IgnoreRules:
        """Return the rules that hold in a folder, its own included.

        Those of the checkout around it count, unless the checkout ignores the folder as a whole: then it
        was never that checkout's to judge (a home folder under git that ignores everything).
        """
        above: list[Path] = []
        for each in (folder, *folder.parents):
            above.append(each)
            if os.path.lexists(each / ".git"):  # never raises
                break
        else:
            return cls().entered(folder)
        rules = cls()
        for each in reversed(above):
            if each != folder or len(above) == 1:
                rules = rules.entered(each)
            elif rules.ignores(str(folder), folder=True):
                return cls().entered(folder)
            else:
                rules = rules.entered(folder)
        return rules

    def entered(self, folder: Path) -> IgnoreRules:
        """Return the rules that hold in a folder right below, with what it adds; a checkout starts anew."""
        levels = self.levels
        if os.path.lexists(folder / ".git"):
            levels = _level(folder, _exclude_file(folder / ".git"))
        return IgnoreRules(levels + _level(folder, folder / ".gitignore"))

    def ignores(self, path: str, *, folder: bool) -> bool:
        """Say whether a path (absolute, below the folder, not below an ignored one) is ignored."""
        for level in reversed(self.levels):
            verdict = level.verdict(path, folder=folder)
            if verdict is not None:
                return verdict
        return False


def _level(base: Path, file: Path | None) -> tuple[_File, ...]:
    if file is None:
        return ()
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError:
        return ()
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return (_File(str(base), [line for line in lines if line and not line.startswith("#")]),)


def _exclude_file(git: Path) -> Path | None:
    """Return .git/info/exclude; of a worktree or submodule, where .git is a file that points elsewhere."""
    if git.is_dir():
        return git / "info" / "exclude"
    try:
        real = (git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        common = real / "commondir"
        if common.exists():
            real = (real / common.read_text(encoding="utf-8").strip()).resolve()
    except (OSError, ValueError):
        return None
    return real / "info" / "exclude"
