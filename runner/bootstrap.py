"""From a host with nothing but a POSIX shell to an agent that says hello."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import re
import secrets
import shlex
import sys
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envsync.agent.archive import build
from envsync.errors import AgentError, EnvsyncError, HostError, UnfitHostError
from envsync.runner.hosts.local import Local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from envsync.hooks import Hooks
    from envsync.interpreter import InterpreterArchive
    from envsync.runner.hosts.base import Channel, Host
    from envsync.supply import Supply
    from envsync.target import Target

__all__ = ["Findings", "script", "start_agent", "target_of"]

_MARK = "@envsync "
_CHUNK = 256 * 1024
_MOVE = "Set cache= (or ENVSYNC_CACHE on that host) to a folder there that you can write."
_NEWEST = 20  # minor versions of Python 3 that are looked for

# Written for dash and busybox. What it says begins with @envsync; login scripts may say more.
_SCRIPT = """\
say() { printf '@envsync %s\\n' "$*"; }
libc() {
  getconf GNU_LIBC_VERSION 2>/dev/null && return
  ldd --version 2>&1 && return
  for file in /lib/ld-musl-*.so.1 /lib*/libc.so.6 /lib/*/libc.so.6 /usr/lib*/libc.so.6; do
    if [ -x "$file" ]; then "$file" 2>&1; return; fi
  done
}
flat() { printf '%s' "$*" | tr '\\n' ' '; }
cache=@CACHE@
[ -n "$cache" ] || cache=${ENVSYNC_CACHE:-}
case $cache in
'')
  if [ ! -d "${HOME:-}/" ] || [ -z "${HOME:-}" ]; then say homeless "${HOME:-}"; exit 0; fi
  cache=$HOME/.cache/envsync ;;
'~/'*) cache=$HOME/${cache#'~/'} ;;
/*) ;;
*) cache=$(pwd)/$cache ;;
esac
try=$cache/.try.$$
if ! why=$(
  LC_ALL=C; export LC_ALL; umask 077
  { mkdir -p "$cache/bin" "$cache/pythons" "$cache/blobs" && echo try > "$try"; } 2>&1
); then
  rm -f "$try" 2>/dev/null
  say cache "$cache"
  say unwritable "$(flat "$why")"
  exit 0
fi
rm -f "$try"
unpacked=$cache/bin/agent-@DIGEST@
agent=$unpacked.pyz
start=$unpacked/__main__.py
[ -f "$start" ] || start=$agent
become() { exec "$python" -I -S "$start" serve "$cache" @GRACE@ @HINTS@; }
if [ @KNOWN@ = yes ] && [ -f "$agent" ] && [ -f "$unpacked/python" ]; then
  if read -r python < "$unpacked/python" && [ -x "$python" ]; then become; fi
fi
which='import sys; print("%d.%d.%d" % sys.version_info[:3])'
good='import sys, importlib.util as u
wants = "json", "ctypes", "fcntl", "tarfile", "zlib"
sys.exit(sys.version_info < (3, 8) or not all(map(u.find_spec, wants)))'
python=
unfit=
for name in @HINTS@ @NAMES@ "$cache"/pythons/*/bin/python3 /usr/local/bin/python3 /opt/*/bin/python3; do
  case $name in
  */*) [ -x "$name" ] || continue; path=$name ;;
  *) path=$(command -v "$name" 2>/dev/null) || continue ;;
  esac
  if "$path" -I -S -c "$good" </dev/null >/dev/null 2>&1; then python=$path; break; fi
  version=$("$path" -c "$which" </dev/null 2>/dev/null) && unfit="$unfit@envsync unfit $version $path
"
done
if [ -n "$python" ] && [ ! -f "$agent" ] && [ @SIZE@ -gt 0 ]; then
  say want
  part=$cache/bin/.agent-@PART@
  if (umask 077; head -c @SIZE@ > "$part") 2>/dev/null && [ "$(wc -c < "$part")" -eq @SIZE@ ]; then
    mv -f "$part" "$agent"
    say cache "$cache"
    say python "$python"
    say agent "$agent"
    say machine "$(uname -m)"
    set -- "$cache"/bin/uv-*
    [ -e "$1" ] || say bare
  fi
  rm -f "$part"
fi
if [ -n "$python" ] && [ -f "$agent" ]; then
  become
fi
say cache "$cache"
say system "$(uname -s)"
say machine "$(uname -m)"
say libc "$(flat "$(libc </dev/null)")"
say free "$(df -Pk "$cache" 2>/dev/null | tail -n 1)"
[ -z "$python" ] || say python "$python"
[ ! -f "$agent" ] || say agent "$agent"
printf '%s' "$unfit"
for tool in tar gzip; do if command -v $tool >/dev/null 2>&1; then say tool $tool; fi; done
printf '#!/bin/sh\\nexit 0\\n' > "$try" && chmod 700 "$try"
"$try" 2>/dev/null || say noexec
rm -f "$try"
say end
"""

_UNPACK = """\
final=@FINAL@
part=@PART@
[ ! -d "$final" ] || exit 0
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM PIPE
LC_ALL=C; export LC_ALL
umask 077
mkdir -p "$part" && cd "$part" || exit 71
@TAR@ || exit 71
cd /
"$part/bin/python3" -I -S -c 'import os, sys
try:
    os.rename(*sys.argv[1:])
except OSError:
    if not os.path.isdir(sys.argv[2]):
        raise' "$part" "$final" || exit 72
"""


def script(
    digest: str,
    *,
    cache: str | None,
    grace: float,
    hints: Sequence[str] = (),
    known: bool = True,
    size: int = 0,
) -> str:
    """Return the shell text that becomes the agent, or says what is lacking.

    Parameters
    ----------
    digest : str
        The agent's.
    cache : str, optional
        The cache folder; the host's own default if not given.
    grace : float
        Seconds, for the agent.
    hints : sequence of str
        Interpreters that are known to be there.
    known : bool
        Whether the one that ran the agent the last time is taken without looking at it.
    size : int
        Bytes of the agent's file, which it reads from its input after it has said ``want``; 0 if they will
        not come that way.
    """
    names = ["python3", *(f"python3.{minor}" for minor in range(_NEWEST, 7, -1)), "python3.7", "python"]
    values = {
        "CACHE": shlex.quote(cache or ""),
        "DIGEST": digest,
        "GRACE": f"{grace:g}",
        "KNOWN": "yes" if known else "no",
        "HINTS": shlex.join(hints),
        "NAMES": " ".join(names),
        "SIZE": str(size),
        "PART": secrets.token_hex(6),
    }
    return _filled(_SCRIPT, values)


@dataclass(slots=True)
class Findings:
    """What the shell found on a host that has no agent yet."""

    cache: str = ""
    system: str = ""
    machine: str = ""
    libc: tuple[str, str] | None = None
    free: int | None = None
    python: str = ""
    agent: str = ""
    unfit: list[str] = field(default_factory=list)
    tools: set[str] = field(default_factory=set)
    noexec: bool = False
    homeless: str | None = None
    unwritable: str | None = None
    lines: int = 0

    def add(self, line: str) -> None:
        """Take in one line."""
        self.lines += 1
        key, _, value = line.partition(" ")
        if key in ("cache", "system", "machine", "python", "agent", "homeless", "unwritable"):
            setattr(self, key, value.strip())
        elif key == "unfit":
            self.unfit.append(value)
        elif key == "tool":
            self.tools.add(value)
        elif key == "noexec":
            self.noexec = True
        elif key == "libc":
            self.libc = _libc(value)
        elif key == "free":
            columns = value.split()
            self.free = int(columns[3]) * 1024 if len(columns) > 4 and columns[3].isdigit() else None

    def pythons(self) -> str:
        """Return in words which interpreters were found that are no use."""
        if not self.unfit:
            return "no Python at all"
        return "only " + ", ".join(
            f"Python {version} at {path}"
            for version, _, path in (entry.partition(" ") for entry in self.unfit)
        )


async def start_agent(
    host: Host,
    *,
    cache: str | None,
    grace: float,
    supply: Supply,
    hooks: Hooks,
    bare: Callable[[Findings], None] | None = None,
) -> tuple[Channel, dict[str, Any]]:
    """Start the agent on a host, shipping it and an interpreter where they are lacking.

    Parameters
    ----------
    host, cache, grace, supply, hooks
        As `Session.open` has them.
    bare : callable, optional
        Told what the shell found where the agent's file has just come, and there is no uv either.

    Returns
    -------
    Channel, dict
        To the agent, and its hello: ``cache agent python version pid``.

    Raises
    ------
    UnfitHostError
        The host cannot run it.
    AgentError
        It did not start.
    """
    data, digest = build()
    hints = _here(supply) if isinstance(host, Local) else []
    tried: set[str] = set()
    known = True
    while True:
        size = 0 if "agent" in tried else len(data)
        text = script(digest, cache=cache, grace=grace, hints=hints, known=known, size=size)
        channel = await host.start(text)
        try:
            hello, findings = await _first_words(channel, data, bare)
            if hello is not None:
                return channel, hello
            code = await channel.wait()
            tail = (await channel.read_stderr()).decode(errors="replace").strip()
        except BaseException:
            await channel.close()
            raise
        await channel.close()
        if known and not findings.lines:  # the interpreter of the last time may be another one by now
            known = False
            continue
        lacking = _lacking(findings)
        if not findings.lines or lacking & tried or not lacking | {*_trouble(findings)}:
            raise AgentError(
                f"the agent did not start (exit status {code})",
                where=host.name,
                hint="\n  ".join(["it said:", *tail.splitlines()[-10:]])
                if tail
                else "Log in and try: sh -c true",
            )
        _check(findings, host.name)
        if "python" in lacking:
            await _ship_python(host, findings, supply, hooks)
        if "agent" in lacking:
            await host.put(data, f"{findings.cache}/bin/agent-{digest}.pyz", mode=0o600)
        tried |= lacking


def _here(supply: Supply) -> list[str]:
    """Return the interpreters of this machine that are known: this process's, and the snapshot's."""
    found = [str(getattr(sys, "_base_executable", "") or sys.executable)]
    if supply.snapshot is not None:
        own = supply.snapshot.interpreter
        found.append(f"{own.base_prefix}/bin/python{'.'.join(own.version.split('.')[:2])}")
    return found


async def _first_words(
    channel: Channel, agent: bytes, bare: Callable[[Findings], None] | None
) -> tuple[dict[str, Any] | None, Findings]:
    """Read what the shell found, or the agent's hello; the shell is sent the agent if it wants it."""
    findings = Findings()
    while line := await channel.readline():
        text = line.decode(errors="replace").rstrip("\n")
        if text == f"{_MARK}want":
            with contextlib.suppress(HostError):  # it could not keep it, and will say more
                await channel.write(agent)
        elif text == f"{_MARK}bare" and bare is not None:
            bare(findings)
        elif text.startswith(_MARK):
            findings.add(text[len(_MARK) :])
        elif text.startswith('{"event":"hello"'):
            return json.loads(text), findings
    return None, findings


def _lacking(findings: Findings) -> set[str]:
    return {name for name in ("python", "agent") if not getattr(findings, name)}


def _trouble(findings: Findings) -> set[str]:
    return {name for name in ("homeless", "unwritable") if getattr(findings, name) is not None}


def _check(findings: Findings, where: str) -> None:
    """Raise what keeps this host from being used at all."""
    if findings.homeless is not None:
        home = f"the home folder {findings.homeless} is not there" if findings.homeless else "HOME is not set"
        raise UnfitHostError(f"there is no place for the cache: {home}", where=where, hint=_MOVE)
    if findings.unwritable is not None:
        full = any(words in findings.unwritable for words in ("No space left", "quota"))
        why = "its disk is full" if full else findings.unwritable
        raise UnfitHostError(
            f"the cache folder {findings.cache} cannot be written: {why}",
            where=where,
            hint=f"Make room there. {_MOVE}" if full else _MOVE,
        )
    if findings.system != "Linux":
        raise UnfitHostError(
            f"it runs {findings.system or 'an unknown system'}", where=where, hint="Hosts need Linux as yet."
        )


async def _ship_python(host: Host, findings: Findings, supply: Supply, hooks: Hooks) -> None:
    if findings.noexec:
        raise UnfitHostError(
            f"there is {findings.pythons()}, and programs in {findings.cache} may not be executed (noexec?)",
            where=host.name,
            hint="Set cache= (or ENVSYNC_CACHE on that host) to a folder where programs may run.",
        )
    if "tar" not in findings.tools:
        raise UnfitHostError(
            f"there is {findings.pythons()} and no tar to unpack one with",
            where=host.name,
            hint="Install Python 3.8 or newer, or tar.",
        )
    began = time.monotonic()
    hooks.step(host.name, f"sending Python: {findings.pythons()} there")
    try:
        archive = await supply.interpreter(target_of(findings, supply))
    except EnvsyncError as error:
        raise UnfitHostError(
            f"there is {findings.pythons()}, and none can be sent: {error.message}",
            where=host.name,
            hint=f"Install Python 3.8 or newer there. {error.hint}".strip(),
        ) from error
    if findings.free is not None and findings.free < 4 * archive.size:
        raise UnfitHostError(
            f"Python {archive.version} needs {4 * archive.size / 1e6:.0f} MB in {findings.cache}, "
            f"and there are {findings.free / 1e6:.0f} MB",
            where=host.name,
            hint=f"Make room there. {_MOVE}",
        )
    gzip = "gzip" in findings.tools
    done = await host.run(
        _unpack_script(findings.cache, archive, gzip=gzip),
        input=_archive(supply, archive, hooks, host.name, unzip=not gzip),
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode == 72:
            message = f"Python {archive.version} was sent and does not run there: {said[-500:]}"
            hint = "Install Python 3.8 or newer there."
        elif "No space left" in said or "quota" in said:
            message = f"Python {archive.version} could not be unpacked: the disk of {findings.cache} is full"
            hint = f"Make room there. {_MOVE}"
        else:
            message = f"Python {archive.version} could not be unpacked: {said[-500:]}"
            hint = "Try again; or install Python 3.8 or newer there."
        raise UnfitHostError(message, where=host.name, hint=hint)
    hooks.done(host.name, f"sent Python {archive.version}", time.monotonic() - began)


def _unpack_script(cache: str, archive: InterpreterArchive, *, gzip: bool) -> str:
    folder = f"{cache}/pythons"
    name = f"{archive.version}-{archive.digest[:8]}"
    values = {
        "FINAL": shlex.quote(f"{folder}/{name}"),
        "PART": shlex.quote(f"{folder}/.unpacking-{secrets.token_hex(6)}"),
        "TAR": "gzip -dc | tar xof -" if gzip else "tar xof -",
    }
    return _filled(_UNPACK, values)


def _filled(text: str, values: dict[str, str]) -> str:
    """Put values, which are shell words already, into the places of a text."""
    return re.sub(r"@([A-Z]+)@", lambda place: values[place.group(1)], text)


async def _archive(
    supply: Supply, archive: InterpreterArchive, hooks: Hooks, where: str, *, unzip: bool
) -> AsyncIterator[bytes]:
    done = 0
    opener = zlib.decompressobj(wbits=31)
    with await asyncio.to_thread(supply.store.open, archive.digest) as file:
        while data := await asyncio.to_thread(file.read, _CHUNK):
            done += len(data)
            yield opener.decompress(data) if unzip else data
            hooks.progress(where, done, archive.size, "B")


def target_of(findings: Findings, supply: Supply) -> Target:
    """Return what is given to a host, as far as its shell tells."""
    from envsync.target import Target

    version = supply.snapshot.interpreter.version if supply.snapshot else platform.python_version()
    return Target(python=version, system="linux", machine=findings.machine, libc=findings.libc)


def _libc(text: str) -> tuple[str, str] | None:
    """Return the C library, from the words of getconf, ldd, the library or its loader."""
    if "musl" in text:
        found = re.search(r"Version (\d+(?:\.\d+)+)", text)
        return ("musl", found.group(1) if found else "")
    found = re.search(r"(?:glibc|GLIBC|GNU libc\)|release version) (\d+\.\d+)", text)
    return ("glibc", found.group(1)) if found else None
