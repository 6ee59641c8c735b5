"""One scheduler or worker process of a cluster, as its configuration file says.

``process scheduler|worker CONFIG.json`` starts distributed's Scheduler, or its Nanny, in the interpreter that
runs this. With ``- FIRST.json`` it sets what that says of Dask and of processors, imports what it takes, and
then reads the name of its configuration: a line of standard input. It writes one line to its standard output,
``@envsync {"address": ...}`` when it listens or ``@envsync {"error": ...}`` when it cannot, and closes
gracefully when its standard input ends or on SIGTERM.
Where the variable ``ENVSYNC_PATIENT`` is set (in jobs) no signal ends it: what it holds is saved first.

The configuration holds::

    options      keyword arguments of Scheduler, Nanny or Worker
    class        the class of a worker in full, a Nanny or a Worker; distributed's Nanny if not given
    cuda         instead of a class: options of dask-cuda's worker, for the one GPU that this process sees
    addresses    what a scheduler may listen on, if its options do not say: where ssh arrived, or the first
    dask         Dask's configuration, laid over the one found here
    tls          {"ca", "cert", "key"}: file names, relative to the configuration's folder
    env          environment variables for this process and its children; null takes one away
    cpus         the cores that this process and its children may use
    wanted       the Report that every process is compared with
    on_mismatch  "raise", "warn" or "ignore"
    report_timeout  seconds that a worker has to report its environment
    limits       of a scheduler: when it ends by itself; see `limits.Limits`
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

from .limits import ended

__all__ = ["main"]

PORT_TAKEN = 3
MISMATCH = 4
_METHOD = "distributed.worker.multiprocessing-method"

Config = Dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run one process until it is told to end; return its exit status."""
    if len(argv) != (3 if "-" in argv else 2) or argv[0] not in ("scheduler", "worker"):
        print("usage: process scheduler|worker [- FIRST.json | CONFIG.json]", file=sys.stderr)  # noqa: T201
        return 2
    role, path = argv[:2]
    began = dict(os.environ)
    if path == "-":
        # some of it is read when distributed is imported, and not again
        first: Config = json.loads(Path(argv[2]).read_text(encoding="utf-8"))
        _set(first)
        if role == "worker":  # under a nanny: others are not begun ahead
            began = _as_its_worker(began)
        importlib.import_module("distributed")
        path = _line()
        if not path:
            return 0
    config: Config = json.loads(Path(path).read_text(encoding="utf-8"))
    for variable, value in (config.get("env") or {}).items():
        os.environ.pop(variable, None)
        if value is not None:
            os.environ[variable] = value
    _reach_directly(os.environ.get("GCE_METADATA_HOST", ""))
    _set(config)
    import dask.config

    if role == "worker" and _has_nanny(config):
        if "distributed" not in sys.modules:
            began = _as_its_worker(began)
        if dask.config.get(_METHOD, None) == "spawn":
            from .spare import keep

            keep("distributed", began)
    try:
        return asyncio.run(_run(role, config, str(Path(path).resolve().parent)))
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever started us must hear of it
        traceback.print_exc()
        taken = _port_taken(error)
        if taken:
            _say({"error": {"kind": "port", "message": taken}})
            return PORT_TAKEN
        _say({"error": {"kind": "start", "message": _reason(error)}})
        return 1


def _as_its_worker(began: Mapping[str, str]) -> dict[str, str]:
    """Have numpy, which distributed imports, find what a Nanny sets for its worker: that may be a copy of it.

    Returns the variables with which this began, and numpy is imported.
    """
    import dask.config

    from .spare import BEFORE, BY_NUMPY

    for name, value in (dask.config.get(BEFORE, None) or {}).items():
        if name.startswith(BY_NUMPY) and value is not None:
            os.environ.setdefault(name, str(value))  # a Nanny leaves what is set, too
    known = {name: value for name, value in began.items() if not name.startswith(BY_NUMPY)}
    return {**known, **{name: value for name, value in os.environ.items() if name.startswith(BY_NUMPY)}}


def _reach_directly(host: str) -> None:
    """Have no proxy asked for a host: google-auth would ask it for what is on this one's loopback."""
    name = host.partition(":")[0]
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if name and known.strip() != "*" and name not in known.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{known},{name}".strip(",")


def _set(config: Config) -> None:
    """Use the processors and the settings of Dask that a configuration has."""
    if config.get("cpus") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(config["cpus"]) & os.sched_getaffinity(0) or os.sched_getaffinity(0))
    import dask.config

    dask.config.update(dask.config.config, config.get("dask") or {}, priority="new")


def _line() -> str:
    """Return the next line of standard input, and no byte more; empty at its end."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1)
        if not data:
            return ""
        line += data
    return line.decode().strip()


def _has_nanny(config: Config) -> bool:
    """Return whether it is a Nanny of distributed's own."""
    return not config.get("class") and config.get("cuda") is None


async def _run(role: str, config: Config, folder: str) -> int:
    ending = asyncio.Event()
    _watch(ending)
    starting = asyncio.ensure_future((_scheduler if role == "scheduler" else _worker)(config, folder))
    told = asyncio.ensure_future(ending.wait())
    await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        # told to end before it came up; there is nothing yet that a graceful end would save
        return 0
    server, hello, status = starting.result()
    _say(hello)
    if server is None:
        return int(status)
    if config.get("limits"):
        from .limits import Limits

        Limits(server, config["limits"], _say).install()
    closed = asyncio.ensure_future(server.finished())
    await asyncio.wait({closed, told}, return_when=asyncio.FIRST_COMPLETED)
    if not closed.done():
        await server.close(reason="envsync-told-to-end")
    return 0


async def _scheduler(config: Config, folder: str) -> Any:
    from distributed.scheduler import Scheduler

    options = dict(config.get("options") or {})
    if not options.get("host") and not options.get("interface") and config.get("addresses"):
        options["host"] = _address(config["addresses"])
    security = _security(config, folder)
    wanted: Mapping[str, Any] | None = config.get("wanted")
    policy = config.get("on_mismatch", "raise")
    gate: Any = None
    own: list[dict[str, Any]] = []
    if wanted is not None and policy != "ignore":
        from .gate import Gate
        from .look import check, refuses

        own = check(wanted, where=os.environ.get("ENVSYNC_HOST", ""), process="scheduler")
        if policy == "raise" and refuses(own):
            message = "the scheduler's environment is not the wanted one"
            error = {"kind": "mismatch", "message": message, "differences": own}
            return None, {"error": error}, MISMATCH
        gate = Gate(wanted, on_mismatch=policy, report_timeout=float(config.get("report_timeout", 60)))
        gate.own = own
    scheduler = Scheduler(security=security, **options)
    if gate is not None:
        gate.install(scheduler)
    await scheduler
    dashboard = scheduler.services.get("dashboard")
    hello = {
        "address": scheduler.address,
        "dashboard": None if dashboard is None else dashboard.port,
        "differences": own,
        "pid": os.getpid(),
    }
    return scheduler, hello, 0


async def _worker(config: Config, folder: str) -> Any:
    options = dict(config.get("options") or {})
    scheduler = options.pop("scheduler")
    security = _security(config, folder)
    server: Any
    if config.get("cuda") is not None:
        server = _cuda_nanny(scheduler, security, options, config["cuda"])
    else:
        module, _, name = (config.get("class") or "distributed.nanny.Nanny").rpartition(".")
        server = getattr(importlib.import_module(module), name)(scheduler, security=security, **options)
    await server
    server.handlers["envsync_ended"] = ended(_say)
    address = getattr(server, "worker_address", None) or server.address
    hello = {"address": address, "pid": os.getpid(), "differences": []}
    if config.get("wanted") is not None and config.get("on_mismatch", "raise") != "ignore":
        verdict = await server.scheduler.envsync_verdict(address=address)
        hello["differences"] = verdict.get("differences", [])
        if verdict["state"] == "refused":
            message = verdict.get("trouble") or "the worker's environment is not the wanted one"
            await server.close()
            error = {"kind": "mismatch", "message": message, "differences": hello["differences"]}
            return None, {"error": error}, MISMATCH
    return server, hello, 0


def _cuda_nanny(scheduler: str, security: Any, options: dict[str, Any], cuda: Mapping[str, Any]) -> Any:
    """Return the Nanny that dask-cuda makes for this process's GPU: with its spilling, RMM's pool and UCX.

    A whole CUDAWorker is a group of Nannies, one for each visible GPU. There is one here, and it is looked
    after as any other is.
    """
    import inspect

    worker: Any = importlib.import_module("dask_cuda").CUDAWorker
    unknown = sorted(set(cuda) - set(inspect.signature(worker.__init__).parameters))
    if unknown:
        raise TypeError(f"this version of dask-cuda does not know {', '.join(unknown)}")
    resources = options.pop("resources", None)
    limit = options.pop("memory_limit", None) or None  # 0 is no limit here, and no memory there
    made = worker(scheduler, security=security, memory_limit=limit, **options, **cuda)
    (nanny,) = made.nannies
    nanny.resources = resources  # it reads them from a text
    # It binds workers to all cores beside the GPU; we have bound this process, to those that are ours.
    plugins = nanny.worker_kwargs.get("plugins") or ()
    nanny.worker_kwargs["plugins"] = [one for one in plugins if type(one).__name__ != "CPUAffinity"]
    return nanny


def _address(addresses: Sequence[str]) -> str:
    """Return the one of this host's addresses that others are likeliest to reach."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    arrived = connection[2] if len(connection) == 4 else ""
    return arrived if arrived in addresses else addresses[0]


def _security(config: Config, folder: str) -> Any:
    from distributed.security import Security

    tls = config.get("tls")
    if not tls:
        return Security(require_encryption=False)
    cert, key = (os.path.join(folder, tls[part]) for part in ("cert", "key"))
    fields: dict[str, Any] = {"tls_ca_file": os.path.join(folder, tls["ca"])}
    for role in ("scheduler", "worker", "client"):
        # a task's own client (worker_client, get_client) speaks with its worker's certificate
        fields[f"tls_{role}_cert"] = cert
        fields[f"tls_{role}_key"] = key
    return Security(require_encryption=True, **fields)


def _watch(ending: asyncio.Event) -> None:
    """Set the event when standard input ends, or on a signal, unless that is for somebody else."""
    loop = asyncio.get_running_loop()
    patient = bool(os.environ.get("ENVSYNC_PATIENT"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if patient else ending.set)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU) if patient else ():
        loop.add_signal_handler(number, lambda: None)

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(ending.set)

    threading.Thread(target=read, name="envsync-stdin", daemon=True).start()


def _say(data: Mapping[str, Any]) -> None:
    sys.stdout.write("@envsync " + json.dumps(data, default=str) + "\n")
    sys.stdout.flush()


def _port_taken(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return str(error)
        error = error.__cause__ or error.__context__
    return ""


def _reason(error: BaseException) -> str:
    """Return the first cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
