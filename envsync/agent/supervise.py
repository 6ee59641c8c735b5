"""The processes that the agent starts, and the end of each."""

from __future__ import annotations

import base64
import collections
import contextlib
import ctypes
import json
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any, Mapping

from .family import descendants, end_all
from .layout import Cache, Emit, Problem, checked_name, disk_problem, remove
from .owner import write_owner

__all__ = ["MARKER", "PATIENT", "Child", "base_environment", "die_with_parent", "run_after", "spawn"]

MARKER = b"@envsync "
PATIENT = "ENVSYNC_PATIENT"
"""The variable that is set in jobs: their systems send signals to every process, which the carrier hears for
all of them; the others go on while what they hold is saved, and end when their input ends."""

_TAIL = 30  # lines
_LONGEST = 64 * 1024  # bytes of one line
_AFTER = 30.0  # seconds
_WIDEST = 2000  # characters of a line of the tail
_TAKEN = ("PYTHON", "VIRTUAL_ENV", "CONDA_", "UV_", "PIP_", "__PYVENV_LAUNCHER__")


def die_with_parent() -> Any | None:
    """Return what makes a child die when the thread that started it does, for `Popen`'s preexec_fn.

    The kernel does that on Linux only. All is looked up here: between fork and exec nothing may be loaded.
    """
    try:
        prctl = ctypes.CDLL(None, use_errno=False).prctl
    except (OSError, AttributeError):
        return None
    asked = (
        ctypes.c_int(1),
        ctypes.c_ulong(signal.SIGKILL),
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
    )
    parent = os.getpid()

    def arrange() -> None:
        prctl(*asked)
        if os.getppid() != parent:  # it died before this was arranged
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange


def base_environment() -> dict[str, str]:
    """Return the agent's environment without what would lead another interpreter astray.

    Nor has it the settings of uv and pip: passwords of indexes are among them.
    """
    return {key: value for key, value in os.environ.items() if not key.startswith(_TAKEN)}


def spawn(cache: Cache, emit: Emit, request: Mapping[str, Any]) -> Child:
    """Start a process; to be called from a thread that lives as long as the agent.

    Parameters
    ----------
    cache : Cache
        Where its run folder is made.
    emit : callable
        Told what it says (``said``), its other lines (``log``) and its end (``exit``).
    request : mapping
        ``cluster name argv env files cwd after``: as `Session.spawn` has them, the files' contents in base64.

    Raises
    ------
    Problem
        It could not be started.
    """
    cluster, name = checked_name(request["cluster"]), checked_name(request["name"])
    folder = cache.runs / cluster / name
    files = [folder / checked_name(path) for path in request["files"]]
    given = [*files, folder / "owner"]
    after = [str(part) for part in request.get("after") or ()]
    if len({*given, folder / "log"}) != len(files) + 2:
        raise Problem("usage", f"process {name} cannot be given a file called owner or log")
    with contextlib.ExitStack() as failing:
        failing.callback(_remove_all, given)
        try:
            for each in (cache.runs, folder.parent, folder):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
                each.chmod(0o700)
            # first: whatever follows can be swept
            write_owner(folder, files=[path.name for path in files], after=after)
            for path in files:
                _write(path, base64.b64decode(request["files"][path.name]))
            log = os.fdopen(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", 0)
        except OSError as error:
            raise disk_problem(error, f"process {name} could not be prepared") from error
        failing.callback(log.close)
        popen = _start(request, name, folder)
        failing.pop_all()
    return Child(f"{cluster}/{name}", popen, log, folder, given, emit, after)


def _start(request: Mapping[str, Any], name: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = base_environment()
    for key, value in request["env"].items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    argv = list(request["argv"])
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=request["cwd"] or folder,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
    except (OSError, ValueError) as error:
        raise Problem(
            "process",
            f"process {name} could not be started: {argv[0]}: {getattr(error, 'strerror', None) or error}",
            "Look whether the program is there and may be executed.",
        ) from error


def _remove_all(paths: list[Path]) -> None:
    for path in paths:
        remove(path)


class Child:
    """A process that was started, its log and its end.

    Parameters
    ----------
    key : str
        ``cluster/name``.
    popen : subprocess.Popen
        The leader of its own process group.
    log : binary file
        Closed at its end.
    folder : Path
        Its run folder.
    files : list of Path
        What it was given to read, and whose it is; removed at its end, since keys are among it.
    emit : callable
        Where its events go.
    after : list of str
        A command that is run when it has ended, such as one that removes its container; empty for none.
    """

    def __init__(
        self,
        key: str,
        popen: subprocess.Popen[bytes],
        log: Any,
        folder: Path,
        files: list[Path],
        emit: Emit,
        after: list[str],
    ) -> None:
        self.key = key
        self.pid = popen.pid
        self.ended = threading.Event()
        self._popen = popen
        self._log = log
        self._folder = folder
        self._files = files
        self._emit = emit
        self._after = after
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self._alive = threading.Lock()  # while held, the leader's number is not given to another
        self._reaped = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, daemon=True).start()

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; silent if it has ended."""
        with self._alive:
            if not self._reaped:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)

    def hand(self, files: Mapping[str, str], line: str) -> None:
        """Give it files, whose contents are in base64, then a line of its standard input.

        Raises
        ------
        Problem
            They could not be written, or it reads nothing any more.
        """
        paths = {self._folder / checked_name(name): data for name, data in files.items()}
        assert self._popen.stdin is not None
        if self.ended.is_set():
            raise Problem("process", f"process {self.key} has ended")
        try:
            # first: whatever follows can be swept
            names = [path.name for path in (*self._files, *paths) if path.name != "owner"]
            write_owner(self._folder, files=names, after=self._after)
            self._files += paths
            for path, data in paths.items():
                _write(path, base64.b64decode(data))
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()
        except ValueError as error:  # it was told to end
            raise Problem("process", f"process {self.key} ends") from error
        except OSError as error:
            raise disk_problem(error, f"process {self.key} could not be given what it waits for") from error
        finally:
            if self.ended.is_set():  # meanwhile: who removes what it was given has been here
                _remove_all([*paths, self._folder / "owner"])

    def stop(self, grace: float) -> None:
        """End it: end of its input and SIGTERM, `grace` seconds, SIGKILL; what left its group, too."""
        if self.ended.is_set():
            return
        family = descendants([self.pid])
        with contextlib.suppress(OSError, ValueError):
            assert self._popen.stdin is not None
            self._popen.stdin.close()
        self.signal(signal.SIGTERM)
        if not self.ended.wait(grace):
            family.update(descendants([self.pid]))
            self.signal(signal.SIGKILL)
            self.ended.wait(_AFTER if self._after else 5)
        end_all(family)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        source = self._popen.stdout.fileno()
        rest, cut = b"", False
        while True:
            try:
                data = os.read(source, _LONGEST)
            except OSError:
                break
            *lines, rest = (rest + data).split(b"\n")
            if cut and lines:
                lines = lines[not lines[0] :]  # a line that was cut ends where it was cut
                cut = False
            if rest and (not data or len(rest) > _LONGEST):
                lines.append(rest)
                rest, cut = b"", True
            self._take(lines)
            if not data:
                break

    def _take(self, lines: list[bytes]) -> None:
        plain: list[str] = []
        for line in lines:
            said = _said(line)
            if said is None:
                plain.append(line.decode(errors="replace").rstrip("\r"))
                with contextlib.suppress(OSError):  # a full disk is no reason to end it
                    self._log.write(line + b"\n")
            else:
                self._emit({"event": "said", "key": self.key, "data": said})
        self._tail.extend(line[:_WIDEST] for line in plain)
        if plain:
            self._emit({"event": "log", "key": self.key, "lines": plain})

    def _wait(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        # Its number stays its own until it is reaped, so what is left of its group can be ended safely.
        self.signal(signal.SIGTERM)
        self._reader.join(1.0)
        with self._alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self._popen.wait()
            self._reaped = True
        run_after(self._after)
        self._reader.join(1.0)
        with contextlib.suppress(OSError):
            self._log.close()
        _remove_all(self._files)
        self._emit({"event": "exit", "key": self.key, "code": code, "tail": list(self._tail)})
        self.ended.set()
        _remove_all(self._files)  # what it was handed in that moment


def run_after(command: list[str]) -> None:
    """Run what is to be run when a process has ended, silently: mostly there is nothing left to do."""
    if command:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=base_environment(),
                start_new_session=True,
                timeout=_AFTER,
                check=False,
            )


def _said(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(MARKER):
        return None
    try:
        said = json.loads(line[len(MARKER) :])
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _write(path: Path, content: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR), "wb") as file:
        file.write(content)
