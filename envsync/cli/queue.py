"""The options of a batch system, for ``envsync run --on slurm`` and its like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from envsync.runner.queues import Batch

__all__ = ["SYSTEMS", "batch_of", "queue_options"]

SYSTEMS = ("slurm", "sge", "pbs", "torque", "lsf", "htcondor", "oar")

_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--partition", "--queue", "queue"), {"metavar": "NAME", "help": "With a batch system: its queue."}),
    (("--account",), {"metavar": "NAME", "help": "Who pays."}),
    (("--time",), {"metavar": "TIME", "help": "How long each job may run: 04:00:00, 2h."}),
    (("--cores",), {"type": click.IntRange(min=1), "metavar": "N", "help": "Cores of each job."}),
    (("--memory",), {"metavar": "SIZE", "help": "Memory of each job, such as 16GB."}),
    (("--gpus",), {"type": click.IntRange(min=1), "metavar": "N", "help": "GPUs of each job."}),
    (("--gres",), {"metavar": "TEXT", "help": "Slurm's generic resources, such as gpu:a100:2."}),
    (("--constraint",), {"metavar": "TEXT", "help": "Which nodes will do, in the system's words."}),
    (
        ("--workers-per-job",),
        {"type": click.IntRange(min=1), "metavar": "N", "help": "One for each GPU by default, else one."},
    ),
    (
        ("--submit-option", "extra"),
        {
            "multiple": True,
            "metavar": "TEXT",
            "help": "A further option of the submission, such as --exclusive. May be given again.",
        },
    ),
    (("--via",), {"metavar": "HOST", "help": "The login host, by ssh; this machine if not given."}),
)


def queue_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; they come as keywords with the names of `Batch`."""
    for names, attributes in reversed(_OPTIONS):
        command = click.option(*names, **attributes)(command)
    return command


def batch_of(system: str, cache: str | None, asked: dict[str, Any]) -> Batch | None:
    """Return the backend that the options ask for; None for one that is no batch system.

    Raises
    ------
    click.UsageError
        They make no sense, or are of a batch system and none is named.
    """
    given = {key: value for key, value in asked.items() if value not in (None, ())}
    if system not in SYSTEMS:
        if given:
            name = next(names[0] for names, _ in _OPTIONS if _keyword(names) in given)
            raise click.UsageError(f"{name} is for a batch system: --on {'|'.join(SYSTEMS)}")
        return None
    from envsync.runner.queues import Batch

    try:
        return Batch(system, cache=cache, **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _keyword(names: tuple[str, ...]) -> str:
    return names[-1].lstrip("-").replace("-", "_")
