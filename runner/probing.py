"""Looks at a node of a batch system: one small job, which ends as soon as its node has been looked at."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from envsync.errors import JobFailed
from envsync.hooks import Hooks
from envsync.lock import Lock
from envsync.runner.amounts import seconds
from envsync.runner.options import run_name
from envsync.runner.processes import Launch
from envsync.runner.provision import Prepared
from envsync.runner.queues import BACKENDS, Batch
from envsync.runner.session import Environment, Session
from envsync.target import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envsync.runner.batch import Job
    from envsync.runner.jobs import Jobs
    from envsync.supply import Supply

__all__ = ["WAIT", "nodes_of", "probe_node"]

WAIT = 600.0
"""Seconds that the job may wait in the queue."""

_TIME = 300.0  # seconds that it may run, if nothing else is said: what is short starts early
_MANY = ("extra", "prologue")
_NUMBERS = ("cores", "gpus")
_FLAGS = {"true": True, "false": False}
_NOT_OURS = (  # keywords of clusters, of which there is none
    *("self", "rest", "unknown", "system", "via", "scheduler", "scheduler_cores", "scheduler_memory"),
    *("scheduler_time", "scheduler_extra"),
    *("groups", "resources", "workers_per_job", "submissions_per_minute", "grace", "environment"),
)


def nodes_of(text: str) -> tuple[Batch, float]:
    """Read which nodes are meant: ``slurm://me@login.example.org?partition=gpu&gres=gpu:1&wait=10m``.

    Parameters
    ----------
    text : str
        The system; the login host, if that is not this machine; and keywords of the system's backend
        (`envsync.runner.Slurm` and its like) that say what the job asks for. ``wait`` is how long it may wait
        in the queue.

    Returns
    -------
    Batch, float
        What to ask for, and how many seconds to wait.

    Raises
    ------
    ValueError
        It makes no sense; the message says why.
    """
    parts = urlsplit(text)
    backend = BACKENDS.get(parts.scheme)
    if backend is None:
        raise ValueError(f"{parts.scheme!r} is no batch system: it is one of {', '.join(BACKENDS)}")
    if parts.path.strip("/") or parts.fragment:
        raise ValueError(f"{text!r}: behind the login host comes ?key=value&key=value, and nothing else")
    known = _keywords(backend)
    options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        key = name.replace("-", "_")
        if key not in known:
            raise ValueError(f"{name!r} is no keyword of {parts.scheme}://: known are {', '.join(known)}")
        if key in _MANY:
            options[key] = (*options.get(key, ()), value)
        elif key in options:
            raise ValueError(f"{name!r} is given twice")
        elif key in _NUMBERS:
            if not value.isdigit():
                raise ValueError(f"{name}={value!r} is no number")
            options[key] = int(value)
        elif key in ("arrays", "gpu_per_core"):
            if value.lower() not in _FLAGS:
                raise ValueError(f"{name}={value!r} is neither true nor false")
            options[key] = _FLAGS[value.lower()]
        else:
            options[key] = value
    wait = seconds(options.pop("wait"), "wait") if "wait" in options else WAIT
    if "poll" in options:
        options["poll"] = seconds(options["poll"], "poll")
    if parts.netloc:
        options["via"] = unquote(parts.netloc)
    return backend(**options), wait


def _keywords(backend: type[Batch]) -> list[str]:
    names = {name for kind in (backend, Batch) for name in inspect.signature(kind.__init__).parameters} - set(
        _NOT_OURS
    )
    return sorted(names | {"wait"})


async def probe_node(
    backend: Batch, *, supply: Supply, wait: float = WAIT, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Submit one job, and return what its node's probe finds: the facts of a session.

    Parameters
    ----------
    backend : Batch
        What to ask for. Its time is five minutes, if it says nothing of it.
    supply : Supply
        What hosts may lack.
    wait : float
        Seconds that the job may take to start.
    hooks : Hooks, optional
        Told about progress.

    Raises
    ------
    JobFailed
        It ended first, will never start, or did not start in time: the message has the system's reason.
    BatchError, HostError, AgentError
        The batch system or a host cannot be used.
    """
    from envsync.runner.jobs import Jobs

    hooks = hooks or Hooks()
    login = backend.hosts()[-1]
    opening: dict[str, Any] = {"grace": backend.grace, "supply": supply, "hooks": hooks}
    async with login, await Session.open(login, cache=backend.cache, **opening) as session:
        jobs = await Jobs.open(
            backend=backend,
            first=_login_host(session),
            launch=_launch(hooks),
            options=None,
            encrypted=True,
            snapshot=None,
            left=None,
        )
        try:
            facts = await _probe(jobs, supply, wait, hooks)
            return facts if facts is not None else await _probe(jobs, supply, wait, hooks) or {}
        finally:
            await jobs.close()


async def _probe(jobs: Jobs, supply: Supply, wait: float, hooks: Hooks) -> dict[str, Any] | None:
    """Look at a node by one job; None if that has to bring along what it needs, as the next one does."""
    request = jobs.request(jobs.backend.group)
    request = replace(request, walltime=request.walltime or _TIME)
    request, (id_,) = await jobs.scripts.submit(request)
    jobs.requests[id_] = request
    hooks.step(jobs.first.session.host.name, f"waiting for job {id_}, to look at its node")
    trouble = asyncio.get_running_loop().create_future()
    told: set[str] = set()

    def heard(news: Mapping[str, Job]) -> None:
        job = news.get(id_)
        if job is None:
            return
        if (job.ended or jobs.backend.system.never(job)) and not trouble.done():
            trouble.set_result("is of no use" if job.ended else "will never start")
        if job.state == "pending" and job.reason and job.reason not in told:
            told.add(job.reason)
            hooks.note(jobs.first.session.host.name, f"job {id_} waits: {job.reason}")

    watching = asyncio.ensure_future(jobs.driver.watch(heard))
    call = asyncio.ensure_future(jobs.board.answer(id_))
    try:
        await asyncio.wait({call, trouble, watching}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            if watching.done():
                watching.result()
            job = jobs.job(id_)
            if trouble.done() and jobs.go_alone(job):
                return None
            why = (
                await jobs.ends.why(id_)
                if job.ended
                else f"{job.state}: {job.reason or 'no reason is given'}"
            )
            what = trouble.result() if trouble.done() else f"did not start within {wait:g} s"
            raise JobFailed(
                f"the job {id_} that was to look at a node {what}: {why}",
                where=jobs.first.session.host.name,
                hint="Ask for less or for another queue, wait longer (wait=1h), or name the driver:"
                " --for x86_64-manylinux_2_28+nvidia-550.54.",
            )
        host = call.result()
        host.name = f"{host.hello['host']} ({id_})"
        settled = await jobs.placement.settle(host)
        opening: dict[str, Any] = {"grace": jobs.backend.grace, "supply": supply, "hooks": hooks}
        async with host, settled.turn, await Session.open(host, cache=settled.cache, **opening) as session:
            facts = dict(session.facts)
    finally:
        for task in (call, watching):
            task.cancel()
        await asyncio.gather(call, watching, return_exceptions=True)
    if (request.gpus or "gpu" in request.gres) and not facts.get("gpus"):
        hooks.warning(host.name, "the job asked for GPUs, and no driver of NVIDIA answers there")
    return facts


def _login_host(session: Session) -> Prepared:
    """Return the login host as one on which nothing was made: nothing runs there but the relay."""
    target = Target.from_probe(session.facts, python="3")
    nothing = Environment(digest="", prefix="", python="", created=False, report={})
    return Prepared(session=session, lock=Lock.of([], target), environment=nothing)


def _launch(hooks: Hooks) -> Launch:
    """Return what a cluster without processes has in common: its name, and who is told."""

    def nobody(*_: Any) -> Any:
        return None

    return Launch(
        cluster=run_name("envsync-probe"),
        common={},
        credentials=nobody,
        start_timeout=0,
        hooks=hooks,
        lost=nobody,
        terminate=nobody,
        retire=nobody,
        remove=nobody,
    )
