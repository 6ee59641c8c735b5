"""This machine in the guise of another: a host that is not `Local`, with an environment of its own."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import AsyncIterable, Mapping
from pathlib import Path

from envsync.runner.hosts.base import Channel, Completed, Host
from envsync.runner.hosts.local import Local

TOOLS = (
    *("sh", "cat", "chmod", "cp", "df", "echo", "env", "getconf", "gzip", "head", "ldd", "ln", "ls", "mkdir"),
    *("mktemp", "mv", "pwd", "rm", "rmdir", "sleep", "tail", "tar", "tr", "uname", "wc"),
)


class Elsewhere(Host):
    """Runs everything through `Local`, with other environment variables and, if wanted, another shell.

    Parameters
    ----------
    environment : mapping
        Set before each command; None takes one away.
    shell : str, optional
        Runs the commands' text instead of ``sh``.
    """

    def __init__(self, environment: Mapping[str, str | None], *, shell: str = "") -> None:
        self.name = "elsewhere"
        self.commands: list[str] = []
        self._local = Local()
        self._shell = shell
        self._words = [f"unset {name}" for name, value in environment.items() if value is None]
        self._words += [
            f"{name}={shlex.quote(value)}; export {name}"
            for name, value in environment.items()
            if value is not None
        ]

    def _there(self, command: str) -> str:
        self.commands.append(command)
        text = f"exec {self._shell} -c {shlex.quote(command)}" if self._shell else command
        return "\n".join([*self._words, text])

    async def run(
        self,
        command: str,
        *,
        input: bytes | AsyncIterable[bytes] | None = None,  # noqa: A002 - the seam's name
        check: bool = True,
        timeout: float | None = None,
    ) -> Completed:
        return await self._local.run(self._there(command), input=input, check=check, timeout=timeout)

    async def start(self, command: str) -> Channel:
        return await self._local.start(self._there(command))

    async def forward(self, host: str, port: int) -> int:
        return await self._local.forward(host, port)

    async def close(self) -> None:
        await self._local.close()


def tools(folder: Path, *, without: tuple[str, ...] = (), busybox: str = "") -> Path:
    """Make a folder of links to the plain programs of a small system, for a PATH that has nothing else.

    With `busybox` they are all that one program.
    """
    folder.mkdir(parents=True)
    for name in TOOLS:
        found = busybox or shutil.which(name)
        if found is not None and name not in without:
            (folder / name).symlink_to(found)
    return folder
