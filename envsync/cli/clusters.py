"""What the commands about clusters share: where the records are, whose are meant, how they are said."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.arguments import other_store
from envsync.cli.output import current
from envsync.cli.terminal import one_line
from envsync.runner import CLOUDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envsync.runner.records import Record

__all__ = ["account_options", "document", "everyone_option", "not_all_ended", "store_option", "tell"]

store_option = click.option(
    "--store",
    metavar="URL",
    callback=other_store,
    help="Where the records are; by default Dask's setting envsync.store, and the cache folder.",
)
everyone_option = click.option("--everyone", is_flag=True, help="Other people's too.")


def account_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which account of a cloud is meant; what is not given is as the records say."""
    for names, more in (
        (("--profile",), {"metavar": "NAME", "help": "A profile of the cloud's own configuration."}),
        (("--region",), {"multiple": True, "metavar": "NAME", "help": "Only there. May be given again."}),
        (("--on",), {"type": click.Choice(list(CLOUDS)), "help": "By default those that the records name."}),
    ):
        command = click.option(*names, **more)(command)
    return command


def tell(troubles: Iterable[str]) -> None:
    """Say on stderr what could not be read, and what clusters' users have to see to."""
    if not current().quiet:
        for text in troubles:
            click.echo(f"warning: {one_line(text)}", err=True)


@contextmanager
def not_all_ended() -> Iterator[None]:
    """Say of an interrupted block that it has ended some, and not all."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            "not all of it may have ended: ask again, or look with envsync ls and envsync reap", err=True
        )
        raise


def document(record: Record, state: str, cost: float, **more: Any) -> dict[str, Any]:
    """Return a cluster for ``--json``."""
    plain = record.to_dict()
    return {**plain, "state": state, "cost": cost, "currency": record.bill.currency, **more}
