"""Programs that the agent runs to their end, and that end with it."""

from __future__ import annotations

import errno
import os
import signal
import threading
from typing import TYPE_CHECKING, Mapping

from .layout import Problem

if TYPE_CHECKING:
    import subprocess

__all__ = ["Runner", "not_executable"]


class Runner:
    """Runs programs for the agent, and ends those that run when the agent ends."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def pids(self) -> set[int]:
        """Return the numbers of the programs that run now."""
        with self._lock:
            return {popen.pid for popen in self._running}

    def run(
        self, argv: list[str], environment: Mapping[str, str], *, output: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end; return its status, its standard error, and if wanted its standard output.

        Raises
        ------
        Problem
            It could not be started, or the agent is ending.
        """
        import subprocess  # here: an agent that only checks what is there runs nothing

        from .supervise import base_environment, die_with_parent

        with self._lock:
            if self._closed:
                raise Problem("realise", "the agent is ending")
            try:
                popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if output else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={**base_environment(), **environment},
                    start_new_session=True,
                    preexec_fn=die_with_parent(),
                )
            except OSError as error:
                raise _not_started(argv[0], error) from error
            self._running.add(popen)
        try:
            stdout, stderr = popen.communicate()
        finally:
            with self._lock:
                self._running.discard(popen)
        return subprocess.CompletedProcess(argv, popen.returncode, stdout or b"", stderr)

    def close(self) -> None:
        """End what runs, and start nothing any more."""
        with self._lock:
            self._closed = True
            for popen in self._running:
                if popen.poll() is None:
                    os.killpg(popen.pid, signal.SIGKILL)


def _not_started(program: str, error: OSError) -> Problem:
    if error.errno in (errno.EACCES, errno.EPERM):
        return not_executable(program)
    return Problem("unfit", f"{program} does not run there: {error.strerror}", "Is it made for this machine?")


def not_executable(program: str) -> Problem:
    """Return what it means that a program is in a folder from which none may run."""
    return Problem(
        "unfit",
        f"{program} may not be executed: its folder is mounted noexec, or forbids it",
        "Set cache= (or ENVSYNC_CACHE on that host) to a folder where programs may run.",
    )
