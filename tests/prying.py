"""Another user of a host, who looks for what is not his wherever he can."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

NOBODY = 65534

_PRY = """
import json, os, socket, sys

asked = json.load(sys.stdin)  # not by arguments, which are looked at
folder = os.open(asked["folder"], os.O_RDONLY)  # that there is no way to it shall not be what keeps him out
os.setgroups([])
os.setgid(asked["user"])
os.setuid(asked["user"])  # from now on nothing can be imported
found, tokens = [], [""]

def look(data, where):
    found.extend([name, where] for name, secret in asked["secrets"].items() if secret.encode() in data)

def read(path, at=None):
    try:
        file = os.open(path, os.O_RDONLY, dir_fd=at)
    except OSError:
        return b""
    try:
        return os.read(file, 1 << 20)
    except OSError:
        return b""
    finally:
        os.close(file)

for pid in filter(str.isdigit, os.listdir("/proc")):
    for kind in ("cmdline", "environ"):
        look(read(f"/proc/{pid}/{kind}"), kind)
try:
    for top, _, names, at in os.fwalk(".", dir_fd=folder):
        for name in names:
            data = read(name, at)
            look(data, f"file {name}")
            if name == "aws-token" and data:
                tokens.append(data.decode())
except PermissionError:  # not even into that one
    pass
for cloud, port in asked["ports"].items():
    paths = {"aws": "/credentials", "google": "/computeMetadata/v1/instance/service-accounts/default/token"}
    for token in tokens:
        connection = socket.socket()
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        more = f"Authorization: {token}\\r\\n" if token else ""
        who = f"Host: 127.0.0.1:{port}\\r\\nMetadata-Flavor: Google\\r\\n{more}"
        connection.sendall(f"GET {paths[cloud]} HTTP/1.0\\r\\n{who}\\r\\n".encode())
        answer = b""
        while data := connection.recv(4096):
            answer += data
        look(answer, f"port of {cloud}")
print(json.dumps(found))
"""


def pry(
    user: int, secrets: Mapping[str, str], folder: Path, ports: Mapping[str, int]
) -> set[tuple[str, str]]:
    """Look, as a user, at processes' arguments and environments, below a folder, and at ports of loopback.

    Parameters
    ----------
    user : int
        Who looks; it takes root to be another.
    secrets : mapping of str to str
        What is looked for, by name.
    folder : Path
        With envsync's cache.
    ports : mapping of str to int
        Where agents listen, by cloud. AWS's is shown what was found of tokens.

    Returns
    -------
    set of (str, str)
        What was found, and where.
    """
    asked = {"user": user, "secrets": {**secrets}, "folder": str(folder), "ports": {**ports}}
    command = [sys.executable, "-c", _PRY]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Iterable[tuple[str, str]] = json.loads(done.stdout)
    return {(name, where) for name, where in found}
