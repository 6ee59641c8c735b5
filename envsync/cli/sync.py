"""``envsync sync``: a running cluster gets this environment, and every save of a source file if so wished."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.arguments import scheduler
from envsync.cli.check import describe, reach, timeout_option, tls_options
from envsync.cli.output import command as make_command
from envsync.cli.output import current, result, watch
from envsync.errors import ClusterError, EnvsyncError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client
    from watchfiles import PythonFilter

    from envsync.hooks import Hooks
    from envsync.runner.existing import SyncEnvironment
    from envsync.runner.verification import Verification

__all__ = ["command"]

_SHOWN = 3
_COARSE = 0.1  # seconds by which a file system's clock may be behind
_LOOK_UP = 1000  # ms, after which to see whether the scheduler is still the same


@make_command("sync", short_help="Make a running cluster's environment this one.")
@click.argument("address", metavar="tcp://SCHEDULER:PORT", callback=scheduler)
@click.option("--watch", "stay", is_flag=True, help="Stay, and ship every save of a source file at once.")
@click.option(
    "--restart",
    type=click.Choice(["auto", "never", "always"]),
    default="auto",
    show_default=True,
    help="Which workers nannies restart: those that have imported what differs, none, or all that change.",
)
@click.option(
    "--on-mismatch",
    type=click.Choice(["raise", "warn"]),
    default="raise",
    show_default=True,
    help="Change nothing if a process cannot be made equal, and refuse later ones; or go on without it.",
)
@click.option("--take-over", is_flag=True, help="Take the place of somebody else's environment.")
@click.option("--undo", is_flag=True, help="Give the cluster its own environment back, and end.")
@timeout_option
@tls_options
def command(
    address: str,
    stay: bool,
    restart: str,
    on_mismatch: str,
    take_over: bool,
    undo: bool,
    timeout: float,
    **tls: str | None,
) -> None:
    """Make a running cluster's environment this one: packages and local code, on every process.

    Nothing is installed there: what differs is laid over the workers' own environment, and stays, also for
    workers that come later, until --undo. Code is that of the current folder and of what is on the path.
    The exit code is 1 if a process could not be made equal.
    """
    with watch() as hooks:
        security = reach(address, tls, timeout=timeout, hooks=hooks)
        from distributed import Client

        from envsync.runner.existing import SyncEnvironment, release

        with Client(address, security=security, timeout=timeout, set_as_default=False) as client:
            if undo:
                released = client.sync(release, client, take_over=take_over)
                result({"scheduler": address, "released": released}, lambda: _undone(released))
                return
            plugin = SyncEnvironment(
                on_mismatch=on_mismatch,
                restart=restart,
                take_over=take_over,
                cwd=str(Path.cwd()),
                hooks=hooks,
            )
            began = time.time()
            try:
                found = client.register_plugin(plugin)
            except MismatchError as error:
                if error.verification is None:
                    raise
                if current().json:
                    _tell(address, error.verification)
                    raise
                click.echo(f"envsync: {error}", err=True)
                sys.exit(1)
            _tell(address, found)
            if stay:
                _stay(client, plugin, hooks, began)
    sys.exit(0 if found.ok else 1)


def _tell(address: str, found: Verification) -> None:
    wanted = "this environment"
    document = {"scheduler": address, **found.to_dict(), "wanted": wanted}
    result(document, lambda: describe(found, wanted, address))


def _undone(released: bool) -> str:
    return "the cluster has its own environment again" if released else "there was nothing to undo"


def _stay(client: Client, plugin: SyncEnvironment, hooks: Hooks, since: float) -> None:
    """Ship every save since some moment until the user has enough, or the cluster ends."""
    waiting: dict[str, bool] = {}
    lost = False
    for saved in _saves(plugin, since):
        waiting.update(saved)
        if client.status == "connecting":
            if not lost:
                hooks.warning("cluster", "its scheduler does not answer: waiting for it")
            lost = True
            continue
        if client.status != "running":
            raise ClusterError("the cluster went away", hint="See whether its scheduler still runs.")
        lost = False
        if not waiting and not plugin.is_elsewhere():
            continue
        began = time.monotonic()
        names = _named(waiting, whole=hooks.verbose)
        try:
            plugin.sync()
        except EnvsyncError as error:  # the next save may mend it
            hooks.warning("here", f"{names}: {error.message}" if names else error.message)
        except OSError as error:
            if client.status == "running":
                raise
            hooks.warning("cluster", f"its scheduler went away: {error}")
            continue  # nothing of it is lost: there may be one again in a moment
        else:
            hooks.done("here", names or "all is on every process", time.monotonic() - began)
        waiting.clear()


def _named(saved: dict[str, bool], *, whole: bool) -> str:
    """Say what became of files."""

    def said(gone: bool, how: str) -> str:
        names = sorted({Path(path).name for path, one in saved.items() if one == gone})
        few = names if whole or len(names) <= _SHOWN else [*names[:_SHOWN], f"{len(names) - _SHOWN} more"]
        verb = "is" if len(names) == 1 else "are"
        return f"{', '.join(few)} {verb} {how}" if names else ""

    return ", ".join(filter(None, (said(False, "on every process"), said(True, "gone from every process"))))


def _saves(plugin: SyncEnvironment, since: float) -> Iterator[dict[str, bool]]:
    """Yield the source files that were saved, and whether each is gone; every now and then without any."""
    from watchfiles import PythonFilter, watch

    chosen = PythonFilter(ignore_paths=())
    roots: list[Any] = [root for root in plugin.roots() if Path(root).is_dir()]
    if not roots:
        raise ClusterError(
            "there is no local code to watch",
            hint="Run it in the folder of your modules, or install your project as editable.",
        )
    for changes in watch(
        *roots,
        watch_filter=chosen,
        debounce=100,
        step=20,
        rust_timeout=_LOOK_UP,
        yield_on_timeout=True,
    ):
        # an editor may write beside a file, and rename
        saved = {path: not Path(path).exists() for _, path in changes}
        if since:  # while the cluster was first given all, nobody watched
            saved |= dict.fromkeys(_saved_since(since, roots, chosen), False)
            since = 0
        yield saved


def _saved_since(since: float, roots: list[Any], chosen: PythonFilter) -> Iterator[str]:
    """Yield the source files that were saved after a moment, in seconds since 1970."""
    from watchfiles import Change

    for root in roots:
        for folder, inner, names in os.walk(root):
            inner[:] = [name for name in inner if name not in chosen.ignore_dirs]
            for path in (f"{folder}/{name}" for name in names):
                with contextlib.suppress(OSError):
                    if chosen(Change.modified, path) and Path(path).stat().st_mtime > since - _COARSE:
                        yield path
