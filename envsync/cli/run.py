"""``envsync run``: a command runs here, and ``Client()`` inside it finds a cluster in this environment."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.arguments import LIMITS, credentials_of, limit, lock_or_store, memory_limit, other_store
from envsync.cli.command_line import first_folder, python_of
from envsync.cli.credentials import client_environment, sweep
from envsync.cli.output import cache_option, current, result, terminated_as_interrupted, watch
from envsync.cli.output import command as make_command
from envsync.cli.queue import QUEUE, SYSTEMS, where
from envsync.cli.renting import RENTING
from envsync.cli.sections import sections
from envsync.runner import CLOUDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.profiles import Profile

__all__ = ["command", "run_forwarding"]

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


@make_command(
    "run",
    short_help="Run a command here, with a cluster in this environment.",
    context_settings={"allow_interspersed_args": False},
    cls=sections(
        {
            "Where the cluster runs": ("backend", "hosts", "profile"),
            "Workers": (
                *("n_workers", "threads_per_worker", "memory_limit", "gpu_worker"),
                *("credentials", "impersonate"),
            ),
            "When it ends by itself": LIMITS,
            "What runs there": ("lock_file", "store", "image", "engine", "on_mismatch", "cache"),
            "Jobs of a batch system": QUEUE.keywords,
            "Rented machines": (*RENTING.keywords, "dry_run"),
        }
    ),
)
@click.option(
    "--on",
    "backend",
    type=click.Choice(["local", "ssh", *SYSTEMS, *CLOUDS]),
    help="This machine (the default), the SSH hosts that --hosts names, jobs of a batch system, or machines "
    "that are rented.",
)
@click.option(
    "--hosts",
    metavar="A,B,C",
    help="With --on ssh: [user@]host[:port], names of ~/.ssh/config, or ssh:// addresses. The first runs the "
    "scheduler too.",
)
@click.option(
    "--profile",
    metavar="NAME",
    help="What Dask's configuration says below envsync: profiles: NAME:, or jobqueue.NAME for a section of "
    "dask-jobqueue's. Other options count instead of what it says.",
)
@click.option(
    "-n",
    "--n-workers",
    metavar="N",
    type=click.IntRange(min=1),
    help="Workers in all; by default as many as fit, with a batch system one job's, and with a cloud one "
    "machine's.",
)
@click.option("--threads-per-worker", metavar="N", type=click.IntRange(min=1), help="Threads of each worker.")
@click.option(
    "--memory-limit",
    metavar="SIZE",
    callback=memory_limit,
    help="Memory of each worker: 4GB, a fraction of the host's (0.25), auto (an even share, the default), or "
    "0 for no limit.",
)
@click.option(
    "--gpu-worker",
    type=click.Choice(["dask-cuda"]),
    help="Workers on GPUs are dask-cuda's, which has to be in this environment.",
)
@click.option(
    "--credentials",
    metavar="WHICH",
    callback=credentials_of,
    help="Who workers are for a cloud. forward: you for AWS, by short-lived tokens; instance: the role of "
    "their machine; none, the default; aws,google: both, with --impersonate.",
)
@click.option(
    "--impersonate",
    metavar="ACCOUNT",
    help="The service account of Google's whose tokens workers get. It goes with --credentials forward or "
    "aws,google.",
)
@click.option(
    "--lock",
    "lock_file",
    metavar="FILE|STORE#NAME",
    callback=lock_or_store,
    help="Run the packages of this lock, not those installed now; local code goes along as it is now. Or "
    "what was pushed to a store, local code as it was then too.",
)
@click.option(
    "--store",
    metavar="URL",
    callback=other_store,
    help="A store such as s3://bucket/team: what a host lacks and the store has, the host takes from "
    "there by itself.",
)
@click.option(
    "--env",
    "image",
    metavar="image:NAME",
    help="Run the cluster from this container image, which envsync push made: a name in a registry, with a "
    "tag or a digest.",
)
@click.option(
    "--engine",
    type=click.Choice(["podman", "docker"]),
    help="What runs the image; by default what a host has.",
)
@click.option(
    "--on-mismatch",
    type=click.Choice(["raise", "warn"]),
    help="A process whose environment is not the wanted one: never let it run a task (the default), or only "
    "warn of it.",
)
@click.option(
    "--idle-timeout",
    metavar="TIME",
    callback=limit,
    help="End the cluster when nothing was computed for so long: '20 min', 2h, or 'never'; 4 h by default "
    "where machines are rented.",
)
@click.option(
    "--max-lifetime", metavar="TIME", callback=limit, help="End it when it has lived for so long: 8h."
)
@click.option(
    "--client-timeout",
    metavar="TIME",
    callback=limit,
    help="Hosts end what was started there, and rented machines themselves, after so long without a sign of "
    "life from here.",
)
@click.option(
    "--max-cost",
    metavar="AMOUNT",
    callback=limit,
    help="End it before rented machines have cost so much: '50 USD'.",
)
@QUEUE.add
@RENTING.add
@click.option(
    "--dry-run", is_flag=True, help="Say what would be rented, where and at what price, and run nothing."
)
@cache_option
@click.argument("arguments", metavar="[--] COMMAND [ARGUMENTS]...", nargs=-1, required=True)
def command(
    backend: str | None,
    hosts: str | None,
    profile: str | None,
    n_workers: int | None,
    threads_per_worker: int | None,
    memory_limit: str | float | None,
    gpu_worker: str | None,
    credentials: str | list[str] | None,
    impersonate: str | None,
    lock_file: str | None,
    store: str | None,
    image: str | None,
    engine: str | None,
    on_mismatch: str | None,
    idle_timeout: str | None,
    max_lifetime: str | None,
    client_timeout: str | None,
    max_cost: str | None,
    cache: str | None,
    dry_run: bool,
    arguments: tuple[str, ...],
    **asked: Any,
) -> None:
    """Run COMMAND here, with a cluster in this environment for as long as it runs.

    COMMAND finds the cluster by itself: `Client()` without arguments connects to it, TLS included. Its exit
    code is the exit code of `envsync run`; signals are passed on to it. Options after COMMAND are its own.
    """
    names = [name.strip() for name in (hosts or "").split(",") if name.strip()]
    place = where(backend, names, profile, cache, asked)
    given: dict[str, Any] = {
        "n_workers": n_workers,
        "threads_per_worker": threads_per_worker,
        "memory_limit": memory_limit,
        "gpu_worker": gpu_worker,
        "credentials": credentials,
        "impersonate": impersonate,
        "lock": lock_file,
        "store": store,
        "env": image,
        "engine": engine,
        "on_mismatch": on_mismatch,
        "idle_timeout": idle_timeout,
        "max_lifetime": max_lifetime,
        "client_timeout": client_timeout,
        "max_cost": max_cost,
        "cwd": first_folder(arguments),
    }
    keywords = {**place.cluster, **{key: value for key, value in given.items() if value is not None}}
    _demand_sense(place, keywords)
    if dry_run:
        _tell_offer(place, keywords)
        return
    if shutil.which(arguments[0]) is None:  # known before anything is started
        click.echo(f"error: {arguments[0]}: there is no such command", err=True)
        sys.exit(_NOT_FOUND)
    _demand_same_environment(arguments[0])
    sweep()
    with contextlib.ExitStack() as stack:
        with watch() as hooks:
            from envsync.runner import SyncedCluster

            if not current().verbose:  # that it closed without starting up: our error says it, and why
                logging.getLogger("distributed.deploy.spec").setLevel(logging.ERROR)
            stack.enter_context(terminated_as_interrupted())
            place.tell(hooks)
            cluster = stack.enter_context(SyncedCluster(place.backend, hooks=hooks, **keywords))
            environment = stack.enter_context(client_environment(cluster.scheduler_address, cluster.security))
        if not current().quiet and not current().json:
            click.echo(
                f"cluster ready: {cluster.scheduler_address}, dashboard {cluster.dashboard_link}", err=True
            )
        code = run_forwarding(arguments, environment)
    sys.exit(code)


def _tell_offer(place: Profile, keywords: Mapping[str, Any]) -> None:
    """Say what would be rented."""
    from envsync.runner.clouds import Cloud

    if not isinstance(place.backend, Cloud):
        raise click.UsageError("--dry-run is for rented machines: nothing else costs anything")
    with watch() as hooks:
        hooks.step(place.backend.kind, f"asking for {place.backend.type}")
        found = place.backend.offer(keywords.get("n_workers"))
    result(found.to_dict(), lambda: str(found))


def _demand_sense(place: Profile, keywords: Mapping[str, Any]) -> None:
    """Refuse limits that machines cannot keep, an image where there can be none, and such credentials."""
    from envsync.runner.cloud.given import lease
    from envsync.runner.queues import Batch

    if place.backend.rents and "client_timeout" in keywords:
        try:
            lease(keywords["client_timeout"])
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    if "max_cost" in keywords and place.backend.lease is None:
        raise click.UsageError("--max-cost is for machines that are rented")
    if {"credentials", "impersonate"} & set(keywords):
        from envsync.runner.forwarding import demand_sense

        try:
            demand_sense(keywords.get("credentials", "none"), place.backend, {}, keywords.get("impersonate"))
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    image = keywords.get("env")
    if not isinstance(image, str):
        if "engine" in keywords:
            raise click.UsageError("--engine needs --env image:NAME")
        return
    if isinstance(place.backend, Batch):
        raise click.UsageError("--env image:NAME is not for batch systems yet")
    if not image.startswith("image:"):
        raise click.UsageError(f"--env takes image:NAME, not {image}")
    if "lock" in keywords:
        raise click.UsageError("--env names an image, which has a lock of its own: leave out --lock")


def _demand_same_environment(program: str) -> None:
    """Refuse a Python of another environment: the cluster would have ours, and the script its own."""
    from envsync.errors import EnvsyncError

    python = python_of(program)
    if python is None or shutil.which(python) is None:
        return
    asked = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix)"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    prefix = asked.stdout.strip()
    if prefix and Path(prefix).resolve() != Path(sys.prefix).resolve():
        what = program if python == program else f"what runs {program}"
        raise EnvsyncError(
            f"{what} is the Python of {prefix}, and this envsync reproduces {sys.prefix}",
            hint=f"Install dask-envsync there and run its envsync, or run the script with {sys.executable}.",
        )


def run_forwarding(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command, pass signals on to it, and return its exit code as a shell would.

    A terminal's Ctrl-C reaches the command from the terminal, as we share its process group: that one is not
    passed on a second time.
    """

    def forward(number: int, _frame: object) -> None:
        if number != signal.SIGINT or not _in_foreground():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    try:
        process = subprocess.Popen(arguments, env=dict(environment))
    except OSError as error:
        click.echo(f"error: {arguments[0]}: cannot be run: {error.strerror}", err=True)
        return _NOT_EXECUTABLE
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _in_foreground() -> bool:
    """Tell whether a terminal's Ctrl-C reaches our process group."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
