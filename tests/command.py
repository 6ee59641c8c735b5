"""The command in a process of its own, forked from one that has imported what all commands import.

It says, writes and ends as the installed one does, of which other tests are, but for the start of an
interpreter: that is most of what it takes to be told of a wrong argument.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

_FORKING = """\
import importlib, json, os, signal, sys
import envsync.cli

for module in envsync.cli._COMMANDS.values():
    importlib.import_module(module)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(120)
        for number, path in enumerate([os.devnull, asked["out"], asked["err"]]):
            file = os.open(path, os.O_RDWR)
            os.dup2(file, number)
            os.close(file)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.argv = ["envsync", *asked["arguments"]]
        sys.exit(envsync.cli.main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def forking() -> Iterator[Callable[[dict[str, object]], int]]:
    """Run commands in processes forked from one that has imported them; what each ended with."""
    with subprocess.Popen(
        [sys.executable, "-c", _FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def ended(asked: dict[str, object]) -> int:
            into.write(json.dumps(asked) + "\n")
            into.flush()
            return int(out.readline())

        yield ended


@pytest.fixture
def forked(forking: Callable[[dict[str, object]], int], tmp_path: Path) -> Run:
    """Run the command in an empty folder, with a cache of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    out, err = tmp_path / "out", tmp_path / "err"

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [*map(str, arguments)]
        out.write_bytes(b"")
        err.write_bytes(b"")
        status = forking(
            {
                "arguments": argv,
                "cwd": str(folder),
                "env": {**os.environ, "ENVSYNC_CACHE": str(tmp_path / "cache"), **environment},
                "out": str(out),
                "err": str(err),
            }
        )
        return subprocess.CompletedProcess(argv, status, out.read_text(), err.read_text())

    return run
