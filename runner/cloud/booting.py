"""A machine that boots: it is looked at until it is up and has said its host keys, or came to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncssh

from envsync.errors import BootError, CloudError
from envsync.runner.cloud.userdata import host_keys
from envsync.runner.timeouts import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.cloud.asking import Asking
    from envsync.runner.cloud.plan import Plan
    from envsync.runner.cloud.provider import Machine

__all__ = ["FORGOTTEN", "Booting", "address_of", "tail_of"]

FORGOTTEN = "the cloud does not know it any more"

_KNOCK = 1.0  # seconds that an sshd has to say what it is
_SOON, _SOON_TRIES = 0.2, 10  # seconds between two looks once it does, and how many there are at that pace
_FEW = 4  # machines; of more, each is looked at less often: consoles cost a call each
_ANSWER = 10.0  # seconds that an sshd has to answer before it is asked again
_TAIL = 30  # lines of a console
_MISSED = 2  # looks that do not show a machine which one has shown: it is no more
_AFTERWARDS = 3  # looks, after one was ended, within which whoever ends the cluster has ended more of it


class Booting:
    """One machine that boots, from when it is made.

    Parameters
    ----------
    made : Machine
        As it was made.
    asking : Asking
        Who knows how it stands.
    plan : Plan
        How long it has, and how it is known.
    where : str
        The cloud and the cluster, for errors.
    """

    def __init__(self, made: Machine, asking: Asking, plan: Plan, where: str) -> None:
        self._made = made
        self._asking = asking
        self._plan = plan
        self._where = where
        self._deadline = time.monotonic() + plan.boot
        self._console = ""  # as it was read last
        self._missed: int | None = None  # looks that did not show it since one did
        self._answering = 0  # looks since its sshd answered

    async def up(self) -> tuple[Machine, Sequence[str]]:
        """Wait until it runs and has said its host keys; return it as it is then, and those.

        Raises
        ------
        BootError
            It ended, or was not up in time.
        CloudError
            Somebody has ended the cluster; or the cloud refused.
        """
        while True:
            now = await self._look()
            if now.over:
                raise await self._ended(now)
            if keys := await self._host_keys(now):
                return now, keys
            if time.monotonic() > self._deadline:
                raise await self._too_late()
            await self._wait(address_of(now, self._plan))

    async def _look(self) -> Machine:
        """Return it as the cloud describes it; as ended when that does not know it any more."""
        made = self._made
        for one in await self._asking.describe(made.region):
            if one.id == made.id:
                self._missed = 0
                return one
        if self._missed is not None:
            self._missed += 1
        if self._missed == _MISSED:  # as some clouds do at once with what is deleted
            # a spot machine was taken back by the cloud, as far as that can be told
            return replace(made, state="ended", reason=FORGOTTEN, called_off=made.market != "spot")
        return made

    async def _ended(self, now: Machine) -> CloudError:
        """Return the error for one that ended: somebody's wish, or its own trouble."""
        why = f"while it was booting: {now.reason or now.state}"
        if now.called_off and not await self._alone():  # by stop or reap, and our record is not to be read
            return CloudError(
                f"somebody has ended {now.id} {why}",
                where=self._where,
                hint="Nothing is rented in its place. Was it `envsync stop`, or `envsync reap`?",
            )
        return BootError(
            f"{now.id} ended {why}",
            where=self._where,
            hint="Its console may say why.",
            tail=tail_of(await self._asking.console(now) or self._console),
        )

    async def _alone(self) -> bool:
        """Return whether the cluster's other machines go on: who ends a cluster ends one after the other."""
        others = await self._others()
        for _ in range(_AFTERWARDS):
            if not others:
                return False
            await asyncio.sleep(self._plan.poll)
            if others - await self._others():
                return False
        return True

    async def _others(self) -> set[str]:
        found = await self._asking.describe(self._made.region)
        return {one.id for one in found if one.id != self._made.id and not one.over}

    async def _too_late(self) -> BootError:
        return BootError(
            f"{self._made.id} was not up, or did not say its host keys, within {self._plan.boot:g} s",
            where=self._where,
            hint="The image needs systemd and cloud-init; boot_timeout= gives it longer.",
            tail=tail_of(self._console or await self._asking.console(self._made)),
        )

    async def _host_keys(self, now: Machine) -> Sequence[str]:
        """Return its host keys, none if it is not that far yet."""
        address = address_of(now, self._plan)
        if now.state != "running" or not address:
            return ()
        if self._plan.host_keys != "first":
            self._console = await self._asking.console(now)
            return host_keys(self._console)
        try:
            asking = asyncssh.get_server_host_key(
                address, 22, server_host_key_algs=["ssh-ed25519"], config=None
            )
            key = await wait_for(asking, _ANSWER)
        except (OSError, asyncssh.Error, asyncio.TimeoutError):
            return ()
        return [key.export_public_key().decode().strip()] if key is not None else ()

    async def _wait(self, address: str) -> None:
        """Wait until it is time to look again: soon, once its sshd answers."""
        if not self._answering:
            self._answering += await self._answers(address)
            return
        self._answering += 1  # its keys have been said, or will be in a moment
        soon = _SOON * max(1, self._plan.count / _FEW)
        poll = self._plan.poll
        await asyncio.sleep(min(soon, poll) if self._answering < _SOON_TRIES else poll)

    async def _answers(self, address: str) -> bool:
        """Wait until it is time to look again, or sshd answers at an address; return whether it does."""
        until = time.monotonic() + self._plan.poll
        while (left := until - time.monotonic()) > 0:
            if address:
                with contextlib.suppress(OSError, EOFError, asyncio.TimeoutError):
                    await wait_for(_banner(address), min(_KNOCK, left))
                    return True
            await asyncio.sleep(min(_SOON, max(0.0, until - time.monotonic())))
        return False


async def _banner(address: str) -> None:
    """Read the first word of an sshd, and say nothing."""
    reader, writer = await asyncio.open_connection(address, 22)
    try:
        await reader.readexactly(4)
    finally:
        writer.close()


def address_of(machine: Machine, plan: Plan) -> str:
    """Return the address at which a machine is reached; empty if it has none yet."""
    return machine.private_address if plan.private else machine.public_address


def tail_of(console: str) -> tuple[str, ...]:
    """Return the last lines of a console."""
    lines = [line.rstrip() for line in console.splitlines()]
    return tuple([line for line in lines if line][-_TAIL:])
