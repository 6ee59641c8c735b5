"""Where ``envsync run`` has its cluster: its options, a profile of the configuration, or both."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.arguments import demand_hosts
from envsync.cli.renting import RENTING, rented
from envsync.cli.sections import OptionTable
from envsync.runner import CLOUDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.profiles import Profile

__all__ = ["QUEUE", "QUEUE_OPTIONS", "SYSTEMS", "where"]

SYSTEMS = ("slurm", "sge", "pbs", "torque", "lsf", "htcondor", "oar")

_AT_LEAST_ONE = click.IntRange(min=1)
_ROWS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--via",), {"metavar": "HOST", "help": "The login host, by ssh; this machine if not given."}),
    (("--partition", "--queue", "queue"), {"metavar": "NAME", "help": "The queue."}),
    (("--account",), {"metavar": "NAME", "help": "Who pays."}),
    (("--project",), {"metavar": "NAME", "help": "For what, where a system has that besides."}),
    (("--time",), {"metavar": "TIME", "help": "How long each job may run: 04:00:00, 2h."}),
    (("--cores",), {"type": _AT_LEAST_ONE, "metavar": "N", "help": "Cores of each job."}),
    (("--memory",), {"metavar": "SIZE", "help": "Memory of each job, such as 16GB."}),
    (("--gpus",), {"type": _AT_LEAST_ONE, "metavar": "N", "help": "GPUs of each job."}),
    (("--gres",), {"metavar": "TEXT", "help": "Slurm's generic resources, such as gpu:a100:2."}),
    (("--constraint",), {"metavar": "TEXT", "help": "Which nodes will do, in the system's words."}),
    (
        ("--workers-per-job",),
        {"type": _AT_LEAST_ONE, "metavar": "N", "help": "One for each GPU by default, else one."},
    ),
    (
        ("--extra",),
        {
            "multiple": True,
            "metavar": "TEXT",
            "help": "A further option of the submission, such as --exclusive. May be given again.",
        },
    ),
    (
        ("--prologue",),
        {
            "multiple": True,
            "metavar": "LINE",
            "help": "A line of the job's shell that runs first. May be given again.",
        },
    ),
    (("--shell",), {"metavar": "PATH", "help": "That shell; /bin/sh by default."}),
    (
        ("--scheduler",),
        {
            "type": click.Choice(["client", "login", "job"]),
            "help": "Where the scheduler runs: here (the default without --via), on the login host, or in a "
            "job of its own (the default with it).",
        },
    ),
    (("--scheduler-cores",), {"type": _AT_LEAST_ONE, "metavar": "N", "help": "Of the scheduler's own job."}),
    (("--scheduler-memory",), {"metavar": "SIZE", "help": "Of the scheduler's own job."}),
    (("--scheduler-time",), {"metavar": "TIME", "help": "Of the scheduler's own job; --time by default."}),
    (
        ("--interface",),
        {"metavar": "ADDRESS", "help": "The login host's, as nodes reach it, if they do not find it."},
    ),
    (
        ("--poll",),
        {
            "type": click.FloatRange(min=0, min_open=True),
            "metavar": "SECONDS",
            "help": "Between two looks at the jobs; 5 by default.",
        },
    ),
    (
        ("--site",),
        {
            "multiple": True,
            "metavar": "KEY=VALUE",
            "help": "What the site calls things, such as parallel-environment=mpi of Grid Engine. May be "
            "given again.",
        },
    ),
    (
        ("--placement",),
        {
            "type": click.Choice(("auto", "shared", "node")),
            "help": "Where the environment lies: in the cache folder, which nodes share, or on each node.",
        },
    ),
    (
        ("--scratch",),
        {"metavar": "DIR", "help": "The folder of a node for it, such as '/local/$USER'."},
    ),
)
QUEUE = OptionTable(_ROWS)
QUEUE_OPTIONS = QUEUE.keywords
"""The keywords that they come as: the names of `Batch`, and ``site``."""


def where(
    on: str | None, hosts: Sequence[str], profile: str | None, cache: str | None, asked: dict[str, Any]
) -> Profile:
    """Return where the cluster runs: what the options say, and where they say nothing the profile.

    Raises
    ------
    click.UsageError
        They make no sense together, or one of them does not.
    """
    from envsync.errors import ConfigurationError, HostError

    given = {key: value for key, value in asked.items() if value not in (None, ())}
    if profile is None:
        _demand_fitting(on or "local", hosts, given)
    demand_hosts(hosts, "--hosts")
    demand_hosts([given["via"]] if "via" in given else [], "--via")
    given |= {key: value for key, value in (("cache", cache), ("hosts", tuple(hosts))) if value}
    given |= _pairs("--site", given.pop("site", ()))
    given |= _pairs("--cloud-option", given.pop("cloud_option", ()))
    try:
        importlib.import_module("dask.config")  # reads its files
    except (TypeError, ValueError) as error:
        raise click.UsageError(
            f"Dask's configuration cannot be read: {error}\n  See the files in ~/.config/dask. To YAML the "
            "keys on, off, yes and no are no text unless they are in quotation marks."
        ) from error
    from envsync.runner.profiles import Profile, make_backend, read_profile, there
    from envsync.runner.queues import Batch

    try:
        if profile is not None:
            found = read_profile(profile, backend=on, **rented(given))
        else:
            kind = on or "local"
            found = Profile(name="", backend=make_backend(kind, there(kind, rented(given))))
    except (ConfigurationError, HostError) as error:
        raise click.UsageError(str(error)) from error
    if isinstance(found.backend, Batch):
        found = replace(found, cluster={"n_workers": found.backend.group.workers_per_job, **found.cluster})
    return found


def _demand_fitting(on: str, hosts: Sequence[str], given: dict[str, Any]) -> None:
    if on == "ssh" and not hosts:
        raise click.UsageError("--on ssh needs --hosts")
    if on != "ssh" and hosts:
        raise click.UsageError("--hosts needs --on ssh")
    if on in CLOUDS:
        if not given.get("type"):
            raise click.UsageError(f"--on {on} needs --instance-type")
        return
    if renting := RENTING.first_of(given):
        raise click.UsageError(
            f"{renting} is for rented machines: --on {'|'.join(CLOUDS)}, or a --profile of some"
        )
    if on not in SYSTEMS and given:
        raise click.UsageError(
            f"{QUEUE.first_of(given)} is for a batch system: --on {'|'.join(SYSTEMS)}, or a --profile of one"
        )


def _pairs(option: str, words: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE``, the value as in a file of the configuration."""
    import yaml

    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{option} {word}: that is not KEY=VALUE")
        try:
            found[key.replace("-", "_")] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            raise click.UsageError(f"{option} {word}: that is no value") from None
    return found
