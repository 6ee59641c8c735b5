"""What a job runs on its node: it calls back, and is a machine's shell for whoever is there.

Batch systems start things on machines that nobody can reach, so the connection is made from there. Over it
the client starts commands, feeds and reads them, and opens TCP connections; when it is lost, or the job is
ended, everything that was started ends, and this process with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Mapping

from .family import adopt, descendants, end_all
from .frames import (
    DATA,
    END,
    EOF,
    ERRORS,
    EXIT,
    HELLO,
    INPUT,
    MORE,
    NOTICE,
    OPEN,
    OUTPUT,
    REFUSED,
    START,
    Link,
    Receiver,
    Sender,
    copy,
    room_of,
)
from .layout import remove
from .supervise import PATIENT, die_with_parent

__all__ = ["carry"]

NO_WAY, LOST, ASKED = 71, 72, 0
"""Exit codes: nobody was reached, the connection was lost, the client had no more to do."""

_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_CLIENT = "scheduler.envsync.invalid"  # whose certificate can be a server's
_DIAL = 10.0  # seconds for one try
_PAUSE = 1.0  # seconds between two tries, to begin with
_AHEAD = 2.0  # times that notice, between a signal that comes early and the end
_TERM = 5.0  # seconds that processes have when all ends


def carry(path: str, name: str) -> int:
    """Serve one client over a connection made from here, until it is gone; return an exit code.

    Parameters
    ----------
    path : str
        A JSON file: ``ways`` (pairs of host and port, tried in turn), ``ca``, ``cert`` and ``key`` (PEM files
        beside it), ``grace`` (seconds without a sign of life), ``notice`` (seconds between a signal to the
        job and its end, which the client has to save what it can) and ``variables`` (what to tell of the
        environment). Its last words go into ``NAME.said`` beside it.

        Where no folder is shared it came with the job's script, and has ``authority`` (a PEM text) and
        ``token`` instead of a key: then whoever answers shows a certificate of that authority, and is told
        the token. Its folder is removed at the end.
    name : str
        Whose carrier this is.
    """
    file = Path(path).resolve()
    return asyncio.run(_Carrier(name, json.loads(file.read_text()), file.parent).run())


class _Carrier:
    def __init__(self, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        self.settings = settings
        self.token: str = settings.get("token", "")
        self.folder = folder
        self.name = name
        self.grace = float(settings["grace"])
        self.streams: dict[int, _Stream] = {}
        self.signals: list[int] = []
        self.link: Any = None
        self.over: Any = None
        self.why = ""

    async def run(self) -> int:
        adopt()
        loop = asyncio.get_running_loop()
        self.over = loop.create_future()
        for number in _HEARD:
            loop.add_signal_handler(number, self.signalled, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        began = time.monotonic()
        dialling = asyncio.ensure_future(self.dial())
        await asyncio.wait({dialling, self.over}, return_when=asyncio.FIRST_COMPLETED)
        code = LOST
        if dialling.done() and not dialling.result():
            code, self.why = NO_WAY, self.why or "nobody was reached"
        elif not dialling.done():
            dialling.cancel()
        if code == LOST and self.link is not None:
            alive = asyncio.ensure_future(self.link.keep_alive(self.grace))
            code = await self.over
            alive.cancel()
        await self.end_all()
        self.last_words(code, time.monotonic() - began)
        return code

    async def dial(self) -> bool:
        """Connect by the first way that is open; try again for a while."""
        until = time.monotonic() + self.grace
        pause = _PAUSE
        while True:
            for host, port in self.settings["ways"]:
                self.why = await self.trouble_with(host, int(port))
                if not self.why:
                    return True
            if time.monotonic() + pause > until:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 10.0)

    async def trouble_with(self, host: str, port: int) -> str:
        """Connect; return why that did not work."""
        try:
            await asyncio.wait_for(self.connect(host, port), _DIAL)
        except (OSError, asyncio.TimeoutError, ssl.SSLError) as error:
            return f"{host}:{port}: {str(error) or 'no answer'}"
        return ""

    async def connect(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        where = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        sock = socket.socket(where[0][0], socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, where[0][4])
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first = {"carrier": self.name, **({"enrol": True} if self.token else {})}
            await loop.sock_sendall(sock, json.dumps(first).encode() + b"\n")
            link: Any = Link(self.take, lambda why: self.lost(link, why))
            # whoever joins the two sides sees nothing of what they say, and could say nothing to either
            if self.token:
                await loop.create_connection(
                    lambda: link, sock=sock, ssl=self.trust(), server_hostname=_CLIENT
                )
            else:
                await loop.connect_accepted_socket(lambda: link, sock, ssl=self.context())
            self.link = link
        except BaseException:
            sock.close()
            raise
        variables = {name: os.environ[name] for name in self.settings["variables"] if name in os.environ}
        link.say(
            HELLO,
            host=socket.gethostname(),
            pid=os.getpid(),
            python=sys.executable,
            agent=sys.argv[0],
            token=self.token,
            variables=variables,
            scratch=tempfile.gettempdir(),
        )

    def trust(self) -> ssl.SSLContext:
        """Whoever answers has to be the client: what is said after that is for nobody else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.settings["authority"])
        return context

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.folder / self.settings["cert"], self.folder / self.settings["key"])
        context.load_verify_locations(self.folder / self.settings["ca"])
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def take(self, kind: int, stream: int, payload: bytes) -> None:
        known = self.streams.get(stream)
        if kind == START:
            self.streams[stream] = one = _Command(self, stream, json.loads(payload))
            one.begin()
        elif kind == OPEN:
            self.streams[stream] = there = _Connection(self, stream, json.loads(payload))
            there.begin()
        elif kind == END and not stream:
            # what was told to end does not end well: systems would take it for done
            self.finish(128 + self.signals[0] if self.signals else ASKED, "the client closed it")
        elif known is not None:
            known.take(kind, payload)

    def lost(self, link: Any, why: str) -> None:
        if link is self.link:  # and not a try that took too long
            self.finish(LOST, f"the connection was lost: {why}")

    def finish(self, code: int, why: str) -> None:
        if not self.over.done():
            self.why = self.why or why
            self.over.set_result(code)

    def signalled(self, number: int) -> None:
        """The batch system, or a person, signals the job: tell the client, which may still save something."""
        self.signals.append(number)
        if self.link is not None:
            self.link.say(NOTICE, signal=number)
        name = signal.Signals(number).name
        wait = float(self.settings["notice"]) if self.link is not None and self.link.open else 0.0
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            wait *= _AHEAD  # systems send these long before they end a job
        asyncio.get_running_loop().call_later(wait, self.finish, 128 + number, f"the job was sent {name}")

    async def end_all(self) -> None:
        """End all that was started here, whoever started it."""
        family = descendants([os.getpid()])
        for one in list(self.streams.values()):
            one.end_input()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, end_all, family, _TERM)
        tasks = [one.task for one in self.streams.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)
        await loop.run_in_executor(None, end_all, descendants([os.getpid()]))
        if self.link is not None:
            self.link.close()

    def last_words(self, code: int, seconds: float) -> None:
        """Leave on the disk how it ended, for when nobody was there to be told."""
        words = {"code": code, "why": self.why, "signals": self.signals, "seconds": round(seconds, 1)}
        if self.token:  # nobody would find them
            sys.stderr.write(f"envsync: {self.why}\n")
            remove(self.folder)
            return
        path = self.folder / f"{self.name.replace('/', '_')}.said"
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            part.write_text(json.dumps({**words, "host": socket.gethostname()}))
            part.replace(path)


class _Stream:
    """A command or a connection here, and its pipes to the client."""

    def __init__(self, carrier: _Carrier, number: int, asked: Mapping[str, Any]) -> None:
        self.carrier = carrier
        self.number = number
        self.asked = asked
        self.input = Receiver(carrier.link, number, INPUT)
        self.senders = {pipe: Sender(carrier.link, number, pipe) for pipe in (OUTPUT, ERRORS)}
        self.task: Any = None

    def begin(self) -> None:
        self.task = asyncio.ensure_future(self._live())

    async def _live(self) -> None:
        try:
            await self.live()
        finally:
            self.carrier.streams.pop(self.number, None)

    async def live(self) -> None:
        raise NotImplementedError

    def take(self, kind: int, payload: bytes) -> None:
        pipe = payload[:1]
        if kind == DATA:
            self.input.feed(payload[1:])
        elif kind == EOF and pipe == INPUT:
            self.input.end()
        elif kind == EOF:
            self.senders[pipe].stop()
        elif kind == MORE:
            self.senders[pipe].more(room_of(payload))

    def end_input(self) -> None:
        self.input.end()
        for sender in self.senders.values():
            sender.stop()


class _Command(_Stream):
    process: Any = None

    def begin(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        super().begin()

    async def live(self) -> None:
        try:
            await self.run()
        finally:
            self.begun.set()
            self.ended.set()

    async def run(self) -> None:
        link = self.carrier.link
        try:
            self.process = process = await asyncio.create_subprocess_exec(
                "sh",
                "-c",
                self.asked["command"],
                stdin=asyncio.subprocess.PIPE if self.asked["input"] else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                preexec_fn=die_with_parent(),
                env={**os.environ, PATIENT: "1"},
            )
        except OSError as error:
            link.say(REFUSED, self.number, message=str(error))
            return
        self.begun.set()
        feeding = asyncio.ensure_future(self.feed())
        reading = [
            asyncio.ensure_future(copy(lambda one=stream: one.read(1 << 16), self.senders[pipe]))  # type: ignore[misc]
            for pipe, stream in ((OUTPUT, process.stdout), (ERRORS, process.stderr))
        ]
        code = await process.wait()
        self.ended.set()
        self.input.refuse()
        link.say(EXIT, self.number, code=code)
        feeding.cancel()
        await asyncio.wait(reading)

    async def feed(self) -> None:
        stdin = self.process.stdin
        if stdin is None:
            return
        try:
            while True:
                data = await self.input.read()
                if not data:
                    break
                stdin.write(data)
                await stdin.drain()
        except (OSError, RuntimeError):
            self.input.refuse()  # it reads no more
        finally:
            stdin.close()

    def take(self, kind: int, payload: bytes) -> None:
        if kind == END:
            self.ending = asyncio.ensure_future(self.end(float(json.loads(payload)["grace"])))
        else:
            super().take(kind, payload)

    async def end(self, grace: float) -> None:
        """End its process group: TERM, a little time, KILL; what its leader left behind too."""
        await self.begun.wait()
        if self.process is None:
            return
        pid = self.process.pid
        family = descendants([pid])
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGTERM)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ended.wait(), grace)
            family.update(descendants([pid]))
            os.killpg(pid, signal.SIGKILL)
        end_all(family)


class _Connection(_Stream):
    async def live(self) -> None:
        link = self.carrier.link
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(self.asked["host"], self.asked["port"]), _DIAL
            )
        except (OSError, asyncio.TimeoutError) as error:
            link.say(REFUSED, self.number, message=str(error) or "no answer")
            return
        output = asyncio.ensure_future(copy(lambda: reader.read(1 << 16), self.senders[OUTPUT]))
        try:
            while True:
                data = await self.input.read()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            await output
        except OSError:
            self.input.refuse()
        finally:
            output.cancel()
            self.senders[OUTPUT].end()
            writer.close()
