"""The agent as one file: a zipapp of this package and the plugins. This module stays on the client."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from importlib import resources

__all__ = ["build"]

_PACKAGE = "envsync_agent"
_LEFT_OUT = frozenset({"archive.py"})
_PLUGINS = (
    *("__init__.py", "carried.py", "compare.py", "download.py", "gate.py", "limits.py", "look.py"),
    *("process.py", "scan.py", "sources.py", "spare.py", "unpack.py", "wheel.py"),
)
"""What the agent and the processes that it starts use. The others travel by value, to clusters of others."""

_MAIN = """\
import os
import sys

FILES = {files!r}

if __name__ == "__main__":
    if sys.version_info < (3, 8):
        sys.exit("the agent needs Python 3.8 or newer")
    # Unpacked beside the archive, where compiled code is kept, it starts in half the time.
    folder = os.path.dirname(os.path.abspath(__file__))
    folder = folder[:-4] if folder.endswith(".pyz") else folder
    sys.argv[0] = folder + ".pyz"
    whole = all(os.path.isfile(os.path.join(folder, name)) for name in FILES)
    sys.path.insert(0, folder if whole else sys.argv[0])
    from {package}.agent.main import main

    sys.exit(main(sys.argv[1:]))
"""


@functools.lru_cache(maxsize=1)
def build() -> tuple[bytes, str]:
    """Return the agent's zipapp and its sha256.

    The same sources give the same bytes, so that a host keeps one copy per version of envsync.
    """
    sources = {f"{_PACKAGE}/__init__.py": b""}
    for folder in ("agent", "plugins"):
        for path in resources.files(f"envsync.{folder}").iterdir():
            used = path.name not in _LEFT_OUT if folder == "agent" else path.name in _PLUGINS
            if path.name.endswith(".py") and used:
                sources[f"{_PACKAGE}/{folder}/{path.name}"] = path.read_bytes()
    sources["__main__.py"] = _MAIN.format(files=sorted(sources), package=_PACKAGE).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, sources[name], compresslevel=9)
    data = out.getvalue()
    return data, hashlib.sha256(data).hexdigest()
