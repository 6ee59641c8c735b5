"""``envsync run``: a command runs here, and ``Client()`` inside it finds a cluster in this environment."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.command_line import first_folder, python_of
from envsync.cli.output import cache_option, current, terminated_as_interrupted, watch
from envsync.cli.output import command as make_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from distributed.security import Security

__all__ = ["client_environment", "command", "run_forwarding"]

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


@make_command("run", context_settings={"ignore_unknown_options": True})
@click.option(
    "--on", "backend", type=click.Choice(["local", "ssh"]), default="local", show_default=True, help="Where."
)
@click.option("--hosts", metavar="A,B,C", help="With --on ssh: [user@]host[:port], or ssh:// URLs.")
@click.option(
    "-n", "--n-workers", type=click.IntRange(min=1), help="Workers in all; by default as many as fit."
)
@click.option("--threads-per-worker", type=click.IntRange(min=1), help="Threads of each worker.")
@click.option("--memory-limit", metavar="SIZE", help="Of each worker, such as 4GB.")
@click.option("--lock", "lock_file", metavar="FILE", help="Run this lock, not the environment as it is now.")
@click.option(
    "--on-mismatch",
    type=click.Choice(["raise", "warn"]),
    default="raise",
    show_default=True,
    help="What to do about a process whose environment is not the wanted one.",
)
@cache_option
@click.argument("arguments", metavar="-- COMMAND [ARGUMENTS]...", nargs=-1, required=True)
def command(
    backend: str,
    hosts: str | None,
    n_workers: int | None,
    threads_per_worker: int | None,
    memory_limit: str | None,
    lock_file: str | None,
    on_mismatch: str,
    cache: str | None,
    arguments: tuple[str, ...],
) -> None:
    """Start a cluster in this environment, run COMMAND here with it, and end the cluster.

    COMMAND finds the cluster by itself: `Client()` without arguments connects to it, TLS included. Its exit
    code is the exit code of `envsync run`; signals are passed on to it.
    """
    names = [name.strip() for name in (hosts or "").split(",") if name.strip()]
    if backend == "ssh" and not names:
        raise click.UsageError("--on ssh needs --hosts")
    if backend == "local" and names:
        raise click.UsageError("--hosts needs --on ssh")
    if shutil.which(arguments[0]) is None:  # known before anything is started
        click.echo(f"error: {arguments[0]}: there is no such command", err=True)
        sys.exit(_NOT_FOUND)
    _demand_same_environment(arguments[0])
    keywords: dict[str, Any] = {
        "n_workers": n_workers,
        "threads_per_worker": threads_per_worker,
        "memory_limit": memory_limit,
        "lock": lock_file,
        "on_mismatch": on_mismatch,
        "cwd": first_folder(arguments),
    }
    keywords = {key: value for key, value in keywords.items() if value is not None}
    with contextlib.ExitStack() as stack:
        with watch() as hooks:
            from envsync.runner import SSH, Local, SyncedCluster

            if not current().verbose:  # that it closed without starting up: our error says it, and why
                logging.getLogger("distributed.deploy.spec").setLevel(logging.ERROR)
            stack.enter_context(terminated_as_interrupted())
            place = SSH(names, cache=cache) if backend == "ssh" else Local(cache=cache) if cache else None
            cluster = stack.enter_context(SyncedCluster(place, hooks=hooks, **keywords))
            environment = stack.enter_context(client_environment(cluster.scheduler_address, cluster.security))
        if not current().quiet and not current().json:
            click.echo(
                f"cluster ready: {cluster.scheduler_address}, dashboard {cluster.dashboard_link}", err=True
            )
        code = run_forwarding(arguments, environment)
    sys.exit(code)


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


@contextlib.contextmanager
def client_environment(address: str, security: Security | None) -> Iterator[dict[str, str]]:
    """Yield an environment in which ``Client()`` connects to a cluster.

    Parameters
    ----------
    address : str
        The scheduler's, as this machine reaches it.
    security : distributed.security.Security or None
        Certificates that are in memory are written to files that only this user can read, for as long as the
        block runs; the environment names the files.
    """
    added = {"DASK_SCHEDULER_ADDRESS": address}
    with tempfile.TemporaryDirectory(prefix="envsync-run-") as folder:
        if security is not None and security.require_encryption:
            added["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "True"
            tls = security.get_tls_config_for_role("client")
            for name, key, variable in (
                ("ca.pem", "ca_file", "CA_FILE"),
                ("cert.pem", "cert", "CLIENT__CERT"),
                ("key.pem", "key", "CLIENT__KEY"),
            ):
                value = tls.get(key)
                if isinstance(value, str) and value:
                    path = _as_file(value, Path(folder) / name)
                    added[f"DASK_DISTRIBUTED__COMM__TLS__{variable}"] = path
        yield {**os.environ, **added}


def _as_file(value: str, file: Path) -> str:
    """Return the path of a certificate or key that may be its own text, as distributed allows."""
    if "\n" not in value:
        return value
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(value)
    return str(file)


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
