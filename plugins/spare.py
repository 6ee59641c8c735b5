"""The process of a worker, made ahead: a copy of its nanny's that has imported what workers import.

A Nanny has multiprocessing spawn its worker: a new interpreter, which imports distributed once more. The
first time, a copy of the nanny's own process takes its place here, forked before that had a thread, an event
loop or a connection: it does what the new interpreter would do, and is the nanny's child as that would be.
Later, as after a restart, there is a new interpreter: what it imports may be other code by then.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import multiprocessing.util
import os
import socket
import sys
import types
from typing import Any, Mapping, Sequence

__all__ = ["AT_START", "BEFORE", "BY_NUMPY", "keep"]

_SPAWNED = "--multiprocessing-fork"  # what multiprocessing calls processes by, and not its own helpers
_MOST = 64  # files that are passed on
_TRIM = "MALLOC_TRIM_THRESHOLD_"
_M_TRIM_THRESHOLD = -1  # of mallopt, which sets what that variable does
BEFORE = "distributed.nanny.pre-spawn-environ"
"""Where Dask's configuration has what a Nanny sets for its worker."""
BY_NUMPY = ("BLIS_", "GOTO_", "KMP_", "MKL_", "NPY_", "OMP_", "OPENBLAS_", "VECLIB_")
"""Variables that numpy and its BLAS read when numpy is imported, which distributed does where it can."""
AT_START = ("DASK_", "GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON", "TZ", *BY_NUMPY)
"""Variables that are read when an interpreter starts, or Dask is imported, and not again."""


def keep(module: str, began: Mapping[str, str]) -> bool:
    """Import a module, and fork a process that will be the first one that is spawned from here.

    To be called before anything else is begun. In the new process it does not return.

    Parameters
    ----------
    module : str
        What that process will need.
    began : mapping of str to str
        The environment variables with which this interpreter started, and numpy was imported.

    Returns
    -------
    bool
        Whether there is one: there is none where a copy might not be like a new interpreter.
    """
    importlib.import_module(module)
    util: Any = multiprocessing.util
    spawn = getattr(util, "spawnv_passfds", None)
    if spawn is None or not _is_simple():
        return False
    here, there = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        here.close()
        _become(there)
    there.close()

    def first(path: Any, arguments: list[Any], files: Sequence[int]) -> int:
        command = [os.fsdecode(argument) for argument in arguments]
        if _SPAWNED not in command:
            return int(spawn(path, arguments, files))
        util.spawnv_passfds = spawn
        with here:
            if len(files) <= _MOST and _alike(began, os.environ):
                with contextlib.suppress(OSError):
                    _give(here, command[command.index("-c") + 1], sorted(set(files)))
                    return pid
        os.waitpid(pid, 0)  # it sees that nobody will need it
        return int(spawn(path, arguments, files))

    util.spawnv_passfds = first
    return True


def _is_simple() -> bool:
    """Return whether a copy would be all of this process."""
    try:
        return len(os.listdir("/proc/self/task")) == 1  # some BLAS of numpy's starts threads, if it may
    except OSError:
        return False


def _alike(began: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Return whether an interpreter that starts with these variables is like one that started with those."""
    changed = {name for name in {*began, *now} if began.get(name) != now.get(name)}
    return not any(name.startswith(AT_START) for name in changed - {_TRIM})


def _give(connection: socket.socket, command: str, files: Sequence[int]) -> None:
    """Say what to become, and pass on the files that a new interpreter would inherit."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    connection.sendmsg([b"."], [rights])
    what = {"command": command, "files": files, "environment": dict(os.environ)}
    connection.sendall(json.dumps(what).encode())


def _become(connection: socket.socket) -> None:
    """Wait until it is needed, and do then what a new interpreter would do."""
    received = array.array("i")
    some, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(_MOST * received.itemsize))
    if not some:
        os._exit(0)
    for _, _, data in ancillary:
        received.frombytes(data[: len(data) - len(data) % received.itemsize])
    with connection, connection.makefile("rb") as stream:
        what: dict[str, Any] = json.loads(stream.read())
    _number(received, what["files"])
    os.environ.clear()
    os.environ.update(what["environment"])
    _set_trim(os.environ.get(_TRIM, ""))
    sys.argv = ["-c", _SPAWNED]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(what["command"], main.__dict__)  # noqa: S102 - multiprocessing's own words
    sys.exit(0)


def _number(received: Sequence[int], wanted: Sequence[int]) -> None:
    """Give files the numbers that they have where they come from."""
    import fcntl

    above = max([*received, *wanted]) + 1  # no number is taken that another one still has
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in received]
    for file in received:
        os.close(file)
    for file, number in zip(moved, wanted):
        os.dup2(file, number, inheritable=False)
        os.close(file)


def _set_trim(value: str) -> None:
    """Have the C library give memory back as it would, had it started with the variable."""
    if value.isdigit():
        import ctypes

        with contextlib.suppress(AttributeError, OSError):  # not every C library has it, or that variable
            ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, int(value))
