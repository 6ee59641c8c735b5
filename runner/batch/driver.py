"""The driver: what a batch system's file says, done through a host, one listing for all jobs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from envsync.errors import BatchError, CommandError, HostError, SubmitError
from envsync.hooks import Hooks
from envsync.runner.batch.request import Call, Job, JobRequest, safe_name
from envsync.runner.batch.system import words
from envsync.runner.timeouts import wait_for

if TYPE_CHECKING:
    from envsync.runner.batch.system import BatchSystem
    from envsync.runner.hosts.base import Completed, Host

__all__ = ["Driver", "Patience"]

MINUTE = 60.0
_TAKEN_OUT: dict[str, Any] = {"state": "cancelled", "reason": "it was taken out of the queue while it waited"}
_LOST: dict[str, Any] = {"state": "lost", "reason": "it left the listing, and nothing tells how it ended"}
_LATELY = 60.0  # seconds within which nothing runs and is forgotten where what has run is listed for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the driver waits for others, in seconds.

    Parameters
    ----------
    answer : float
        For one command.
    silence : float
        For a login host that is not reached, or a system that does not answer, while jobs are watched.
    accounting : float
        For what became of a job that left the listing; it is lost after that.
    search : float
        For a submission whose answer was lost to show in the listing.
    word : float
        For one command, before it is told that it is waited for.
    last : float
        For what is under way when the driver is closed.
    """

    answer: float = 120.0
    silence: float = 300.0
    accounting: float = 60.0
    search: float = 60.0
    word: float = 15.0
    last: float = 10.0


class Driver:
    """Submits, watches and ends jobs.

    Parameters
    ----------
    system : BatchSystem
        What is spoken to.
    host : Host
        Where its programs are: the machine that we are on, or a login host. It is not closed.
    per_minute : int
        How many submissions there may be in a minute; an array is one.
    interval : float
        Seconds between listings.
    environment : mapping, optional
        Variables that the system's programs need. Everybody on the host can read them.
    patience : Patience
        How long to wait for others.
    hooks : Hooks, optional
        Told about what a person should know.
    heard_of : callable, optional
        Whether a job of this id is there, as far as others know: it is not lost, whatever the listing shows.

    Attributes
    ----------
    jobs : dict
        What is known of each job that was submitted here and has not been forgotten.
    """

    def __init__(
        self,
        system: BatchSystem,
        host: Host,
        *,
        per_minute: int = 30,
        interval: float = 5.0,
        environment: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        hooks: Hooks | None = None,
        heard_of: Callable[[str], bool] | None = None,
    ) -> None:
        self.system, self.host, self.interval = system, host, interval
        self.jobs: dict[str, Job] = {}
        self._per_minute = per_minute
        self._patience = patience or Patience()
        self._hooks = hooks or Hooks()
        self._heard_of = heard_of or (lambda _: False)
        self._environment = dict(environment or {})
        self._profile = ""
        self._submissions: deque[float] = deque()
        self._submitting = asyncio.Lock()
        self._cancelled: set[str] = set()
        self._left: dict[str, tuple[float, bool]] = {}  # when first missed, and whether it waited until then
        self._looked = time.monotonic()
        self._silent: float | None = None
        self._closed = False
        self._underway: asyncio.Task[tuple[str, ...]] | None = None
        self._request: JobRequest | None = None  # of what is under way

    async def check(self, request: JobRequest | None = None) -> None:
        """See whether the system can be used, and would ever run the jobs of `request`.

        Raises
        ------
        BatchError
            Its programs are not there, or it does not answer.
        SubmitError
            It would never run them: no node has as much, no such queue or account.
        HostError
            The login host is not reached.
        """
        await self._find_programs()
        done = await self._run(self.system.search(_unique("envsync")))
        self.system.found(done, "envsync")
        if request is not None:
            await self.demand(request)

    async def demand(self, request: JobRequest) -> None:
        """Make sure that the system, which can be used, would run the jobs of `request`, where it tells.

        Raises
        ------
        SubmitError
            It never would: no node has as much, no such queue or account.
        HostError
            The login host is not reached.
        """
        call = self.system.refuses(request)
        if call:
            why = self.system.refusal(await self._run(call), request)
            if why:
                raise SubmitError(
                    f"{self.system.name} would never run this job: {why}",
                    where=self.host.name,
                    hint="Ask for less, or for another queue or account.",
                )

    async def submit(self, request: JobRequest, body: str) -> tuple[str, ...]:
        """Submit jobs, all at once; wait where there were too many submissions within the last minute.

        Parameters
        ----------
        request : JobRequest
            What they ask for. Their name gets an end of its own, by which they are found again.
        body : str
            What they run, sh text.

        Returns
        -------
        tuple of str
            Their ids.

        Raises
        ------
        SubmitError
            The system refused them; or its answer was lost and they are not in its listing.
        HostError
            The login host was not reached: nothing was submitted.
        """
        request = replace(request, name=_unique(request.name))
        call = self.system.submit(request, self.system.script(request, body))
        async with self._submitting:
            await self.turn()
            self._submissions.append(time.monotonic())
            for path, content in call.files:
                await self.host.put(content, path, mode=0o700)
            # Unreachable before anything was said: that is safe to tell as it is.
            await self.host.run(":", timeout=self._patience.answer)
            self._request = request
            self._underway = asyncio.create_task(self._submit(request, call))
            # Whoever gives up meanwhile leaves no jobs behind that nobody knows: close waits for it.
            return await asyncio.shield(self._underway)

    async def poll(self) -> dict[str, Job]:
        """Look once how all jobs stand, and return those of which something is new.

        Raises
        ------
        HostError, BatchError
            The login host or the system has been silent for longer than patience lasts.
        """
        wanted = [each for each, job in self.jobs.items() if not job.ended]
        if not wanted:
            self._looked = time.monotonic()
            return {}
        try:
            seen = await self._look(wanted)
        except (HostError, BatchError) as error:
            self._bear(error)
            return {}
        self._looked = time.monotonic()
        if self._silent is not None:
            self._hooks.note(self.host.name, f"{self.system.name} answers again")
            self._silent = None
        news = {each: job for each, job in seen.items() if self.jobs.get(each) != job}
        self.jobs.update(news)
        return news

    async def watch(self, callback: Callable[[Mapping[str, Job]], None]) -> None:
        """Look every `interval` until `close`, and tell `callback` of the jobs of which something is new.

        Raises
        ------
        HostError, BatchError
            The login host or the system has been silent for longer than patience lasts.
        """
        while not self._closed:
            if news := await self.poll():
                callback(news)
            await asyncio.sleep(self.interval)

    async def cancel(self, ids: Collection[str]) -> None:
        """End jobs, whether they wait or run; silent for those that have ended.

        Raises
        ------
        BatchError
            The system refused, and there are some of them still.
        """
        ids = [each for each in ids if each not in self.jobs or not self.jobs[each].ended]
        if not ids:
            return
        self._cancelled.update(ids)
        done = await self._run(self.system.cancel(ids))
        if done.returncode != 0:
            left = self.system.listed(await self._run(self.system.listing(ids)))
            if any(each in left and left[each].state == "pending" for each in ids):
                raise BatchError(
                    f"{self.system.name} did not cancel its jobs: {words(done)}",
                    where=self.host.name,
                    hint="Cancel them on the login host by hand.",
                )

    def forget(self, ids: Collection[str]) -> None:
        """Look no longer at jobs that nobody asks for any more."""
        for id_ in ids:
            self.jobs.pop(id_, None)
            self._left.pop(id_, None)
            self._cancelled.discard(id_)

    async def close(self) -> None:
        """End all jobs that have not ended; silent when closed already."""
        self._closed = True
        if self._underway:
            await asyncio.wait([self._underway], timeout=self._patience.last)
            if not self._underway.done():
                self._underway.cancel()
                await asyncio.wait([self._underway])
                await self._adopt_lost()
        await self.cancel([each for each, job in self.jobs.items() if not job.ended])

    # -- inner

    async def _run(self, call: Call) -> Completed:
        folder = f"cd {shlex.quote(call.folder)} && " if call.folder else ""
        command = f"{self._profile}{self._exports()}{folder}exec {shlex.join(call.argv)}"
        patience = self._patience
        text = f"`{call.argv[0]}` does not answer: it is waited for {patience.answer:.0f} s at most"
        telling = asyncio.get_running_loop().call_later(
            patience.word, self._hooks.warning, self.host.name, text
        )
        try:
            return await self.host.run(command, input=call.input, check=False, timeout=patience.answer)
        finally:
            telling.cancel()

    def _exports(self) -> str:
        names = self._environment.items()
        return "".join(f"{name}={shlex.quote(value)}; export {name}; " for name, value in names)

    async def _find_programs(self) -> None:
        """Look on the PATH, then as a login shell has it: many sites put them there only."""
        tests = " && ".join(f"command -v {program} > /dev/null" for program in self.system.programs)
        for profile in ("", "[ ! -r /etc/profile ] || . /etc/profile > /dev/null 2>&1; "):
            done = await self.host.run(f"{profile}{self._exports()}{tests}", check=False)
            if done.returncode == 0:
                self._profile = profile
                return
        raise BatchError(
            f"{self.system.name} cannot be used: {', '.join(self.system.programs)} are not all on the PATH",
            where=self.host.name,
            hint="Name a host from which jobs are submitted, or the batch system that it has.",
        )

    async def _submit(self, request: JobRequest, call: Call) -> tuple[str, ...]:
        try:
            done = await self._run(call)
        except HostError as error:
            ids = await self._find_lost(request, error)
        else:
            try:
                ids = self.system.submitted(done, request)
            except SubmitError as error:
                # what it says may be a wrapper's of the site, and the jobs be there
                ids = await self._search(request) if done.returncode == 0 else ()
                if len(ids) != request.count:
                    error.where = self.host.name
                    raise
        self.jobs.update((each, Job(id=each, state="pending")) for each in ids)
        return ids

    async def _search(self, request: JobRequest) -> tuple[str, ...]:
        return self.system.found(await self._run(self.system.search(request.name)), request.name)

    async def turn(self) -> None:
        """Wait until a submission may be made; `submit` does so itself.

        This is for who can put into it what is asked for until then.
        """
        while True:
            now = time.monotonic()
            while self._submissions and now - self._submissions[0] >= MINUTE:
                self._submissions.popleft()
            if len(self._submissions) < self._per_minute:
                return
            wait = self._submissions[0] + MINUTE - now
            text = f"{self._per_minute} submissions a minute: {wait:.0f} s to go"
            self._hooks.note(self.host.name, text)
            await asyncio.sleep(wait)

    async def _find_lost(self, request: JobRequest, error: HostError) -> tuple[str, ...]:
        """Look for jobs whose submission was not answered. It is never made twice."""
        name = safe_name(request.name, self.system.limit)
        self._hooks.warning(
            self.host.name, f"the answer to a submission was lost ({error.message}): looking for {name}"
        )
        deadline = time.monotonic() + self._patience.search
        asked = False
        while True:
            try:
                ids = await self._search(request)
                asked = True
            except (HostError, BatchError):
                ids = ()
            if len(ids) == request.count:
                return ids
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(min(self.interval, 2.0))
        state = "it is not in the listing" if asked else "the listing cannot be had either"
        raise SubmitError(
            f"nobody knows whether {self.system.name} took the jobs {name}: {state}",
            where=self.host.name,
            hint=f"Look for jobs named {name} there, and cancel what you find before you submit again.",
        ) from error

    async def _adopt_lost(self) -> None:
        """Know the jobs of a submission that is waited for no longer, if they are there: they are to end."""
        assert self._request is not None
        ids: tuple[str, ...] = ()
        with contextlib.suppress(HostError, BatchError, asyncio.TimeoutError, TimeoutError):
            ids = await wait_for(self._search(self._request), self._patience.last)
        self.jobs.update((each, Job(id=each, state="pending")) for each in ids)
        if not ids:
            name = safe_name(self._request.name, self.system.limit)
            self._hooks.warning(
                self.host.name,
                f"a submission was not answered, and nobody knows whether there are jobs named {name}: "
                "they end by themselves when they start",
            )

    async def _look(self, wanted: list[str]) -> dict[str, Job]:
        shown = self.system.listed(await self._run(self.system.listing(wanted)))
        seen = {each: shown[each] for each in wanted if each in shown}
        gone = [each for each in wanted if each not in seen]
        for each in seen:
            self._left.pop(each, None)
        if gone:
            seen.update(await self._look_back(gone))
        return {each: self._own(job) for each, job in seen.items()}

    async def _look_back(self, gone: list[str]) -> dict[str, Job]:
        """Ask the accounting, which may lag behind."""
        now = time.monotonic()
        call = self.system.past(gone)
        known = self.system.ended(await self._run(call)) if call else {}
        # accounting does not count how often a job was started again
        jobs = {
            each: replace(known[each], restarts=max(known[each].restarts, self.jobs[each].restarts))
            for each in gone
            if each in known
        }
        patience = self._patience.accounting if call else min(self._patience.accounting, 2 * self.interval)
        lately = self.system.lingers and now - self._looked < _LATELY
        for id_ in gone:
            if id_ in jobs:
                continue
            if self._heard_of(id_):
                self._left.pop(id_, None)
                continue
            first, waited = self._left.setdefault(id_, (now, lately and self.jobs[id_].state == "pending"))
            borne = min(patience, 2 * self.interval) if waited else patience
            # one that was cancelled here while it waited may be in no books at all
            if id_ in self._cancelled or now - first >= borne:
                jobs[id_] = Job(id=id_, nodes=self.jobs[id_].nodes, **(_TAKEN_OUT if waited else _LOST))
        return jobs

    def _own(self, job: Job) -> Job:
        """Many systems do not say who ended a job: what was cancelled here is known here."""
        if job.id in self._cancelled and job.state in ("failed", "lost"):
            return replace(job, state="cancelled", reason=job.reason if job.state == "failed" else "")
        return job

    def _bear(self, error: HostError | BatchError) -> None:
        """Put up with silence for a while, and say so once."""
        now = time.monotonic()
        if self._silent is None:
            self._silent = now
            kind = "is not reached" if isinstance(error, HostError) else "does not answer"
            slow = isinstance(error, CommandError)
            what = self.system.name if slow or isinstance(error, BatchError) else "the login host"
            text = f"{what} {kind if not slow else 'does not answer'}: {error.message}"
            self._hooks.warning(self.host.name, f"{text}; its jobs are looked at when it is back")
        if now - self._silent >= self._patience.silence:
            raise error


def _unique(name: str) -> str:
    """Return a name that nobody else's job has, short enough to be whole everywhere."""
    return f"{safe_name(name)[:8].rstrip('-.')}-{secrets.token_hex(3)}"
