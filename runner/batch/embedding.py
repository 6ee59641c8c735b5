"""The script of a job that brings along what its carrier needs, for nodes that do not see the folder."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

__all__ = ["NAMES", "NO_FOLDER", "NO_PYTHON", "brought", "finding_python"]

NO_PYTHON, NO_FOLDER = 70, 74
"""Exit codes of a job: no Python for the carrier; no folder that its file could be put into."""

_HANGS = 60  # seconds after which a Python that does not answer is none: it may lie on a disk that is away
_NEWEST = 20  # minor versions of Python 3 that are looked for
NAMES = (
    *("python3", "/usr/bin/python3", "/usr/libexec/platform-python"),
    *(f"python3.{minor}" for minor in range(_NEWEST, 7, -1)),
)
"""What a Python may be called on a node."""

_LOOK = "import sys, ssl, zlib; sys.exit(sys.version_info < (3, 8))"

# What is secret comes by standard input, and is in a folder for this user only.
_UNPACK = """\
import base64, os, sys, tempfile
settings, agent = map(base64.b64decode, sys.stdin.buffer.read().split(b"."))
try:
    folder = tempfile.mkdtemp(prefix="envsync-job-")
    for name, data in (("carrier.json", settings), (sys.argv[2], agent)):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
except OSError as error:
    print("envsync: %s has no folder for temporary files: %s" % (os.uname()[1], error), file=sys.stderr)
    sys.exit({no_folder})
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
agent, settings = os.path.join(folder, sys.argv[2]), os.path.join(folder, "carrier.json")
os.execv(sys.executable, [sys.executable, "-I", "-S", agent, "carry", settings, sys.argv[1]])
"""


def finding_python(names: Sequence[str], run: str) -> str:
    """Return sh text that runs something with the first Python that will do, as ``$python``.

    Parameters
    ----------
    names : sequence of str
        Programs to try.
    run : str
        What does not return.
    """
    return f"""envsync_try() {{
    if timeout {_HANGS} true; then timeout {_HANGS} "$@"; else "$@"; fi
}}
for python in {" ".join(map(quote, dict.fromkeys(names)))}; do
    if envsync_try "$python" -I -S -c {quote(_LOOK)} 2> /dev/null; then
{run}
    fi
done
echo "envsync: $(hostname) has no Python 3.8 or newer: prologue=['module load python'] may bring one" >&2
exit {NO_PYTHON}
"""


def brought(
    identity: str, agent: bytes, digest: str, settings: Mapping[str, Any], names: Sequence[str]
) -> str:
    """Return sh text that becomes a carrier, with nothing but a Python on its node.

    Parameters
    ----------
    identity : str
        What the shell makes the job's id of.
    agent : bytes
        The agent's file, and its `digest`.
    settings : mapping
        The carrier's: see `envsync.agent.carrier.carry`.
    names : sequence of str
        Pythons to try.
    """
    parts = [json.dumps(settings).encode(), agent]
    text = ".\n".join("\n".join(textwrap.wrap(base64.b64encode(part).decode(), 76)) for part in parts)
    unpack = quote(_UNPACK.format(no_folder=NO_FOLDER))
    run = f"""        exec "$python" -I -S -c {unpack} "{identity}" agent-{digest}.pyz << 'END'
{text}
END"""
    return f"umask 077\n{finding_python(names, run)}"
