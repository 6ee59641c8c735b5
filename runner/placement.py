"""Where the environment of a job lies: on the folder that nodes and login host share, or on each node."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from envsync.errors import CommandError, UnfitHostError
from envsync.runner.passing import FromFolder, Passing
from envsync.runner.transfer import agent_command

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.runner.hosts.carried import CarriedHost
    from envsync.runner.provision import Prepared
    from envsync.runner.queues import Placed
    from envsync.runner.taking import Giver

__all__ = ["Placement", "Settled", "choose"]

_SLOW = 0.010  # seconds to read one small file; a disk takes a hundredth of it, a good shared folder a tenth
_FEW = 100  # files, below which nothing is concluded
_PATIENCE = 60.0  # seconds that a node has to look at its folders


@dataclass(frozen=True, slots=True)
class Settled:
    """Where a node has its environment.

    Attributes
    ----------
    cache : str
        The cache folder there.
    giver : Giver or None
        Who gives it what it lacks; None where the folder is shared.
    turn : Lock
        Held while it is made there: jobs on one node share it.
    """

    cache: str
    giver: Giver | None
    turn: asyncio.Lock

    @property
    def on_node(self) -> bool:
        """Whether the cache is the node's own."""
        return self.giver is not None


class Placement:
    """Decides for the jobs of one cluster: once, where it can.

    Parameters
    ----------
    asked : {"auto", "shared", "node"}
        What the user said.
    scratch : str
        The folder that the user named for what is on nodes; empty for what there is.
    variables : tuple of str
        Those of the batch system that name such a folder.
    first : Prepared
        The login host.
    mark : str
        A file of its cache that nobody can know who does not see it.
    passing : Passing
        Who gives nodes what they lack.
    hooks : Hooks
        Told the choice and its reason, once.
    """

    def __init__(
        self,
        asked: Placed,
        *,
        scratch: str,
        variables: tuple[str, ...],
        first: Prepared,
        mark: str,
        passing: Passing,
        hooks: Hooks,
    ) -> None:
        self.asked = asked
        self.passing = passing
        self._scratch = scratch
        self._variables = variables
        self._first = first
        self._mark = mark
        self._hooks = hooks
        self._deciding = asyncio.Lock()
        self._decided: Literal["shared", "node"] | None = None if asked == "auto" else asked
        self._turns: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._told: set[str] = set()

    async def settle(self, host: CarriedHost) -> Settled:
        """Return where a job's node has its environment.

        Raises
        ------
        UnfitHostError
            It can have it nowhere.
        HostError
            The node was lost.
        """
        cache = self._first.session.cache
        answer = None
        if not host.alone:  # it has read the folder
            async with self._deciding:
                if self._decided is None:
                    answer = await self._look(host, read=f"{self._first.environment.prefix}/lib")
                    self._decided, why = choose(answer, cache)
                    if self._decided == "node" and answer["seen"] and not answer["cache"]:
                        self._decided = "shared"
                        why += f", and node {host.hello['host']} has no other ({_passed(answer)})"
                    self._tell(self._decided, why)
            if self._decided == "shared":
                return Settled(cache, None, asyncio.Lock())
        answer = answer or await self._look(host)
        if not answer["cache"]:
            raise UnfitHostError(
                f"no folder of the node can hold the environment: {_passed(answer)}",
                where=host.name,
                hint="Name one that every node has: scratch=.",
            )
        for folder, why in answer["passed"]:
            self._note(f"nodes do not use {folder} for the environment: {why}")
        if host.alone and self.asked != "node":
            self._tell("node", f"nodes do not see {cache} of the login host")
        giver: Giver = self.passing
        if answer["seen"]:
            giver = FromFolder(self.passing, cache)
        return Settled(answer["cache"], giver, self._turns[host.hello["host"], answer["cache"]])

    async def _look(self, host: CarriedHost, *, read: str = "") -> dict[str, Any]:
        request = {
            "scratch": self._scratch,
            "variables": [name for name in self._variables if name],
            "seen": self._mark,
            "read": read,
        }
        command = agent_command(host.hello["python"], host.hello["agent"], "settle")
        done = await host.run(command, input=json.dumps(request).encode(), check=False, timeout=_PATIENCE)
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            said = done.stderr.decode(errors="replace").strip()
            raise CommandError(
                f"the node could not look at its folders (exit status {done.returncode})",
                where=host.name,
                hint=said[-500:] or "See the job's log.",
                returncode=done.returncode,
                stderr=said,
            ) from None
        return answer

    def _tell(self, where: str, why: str) -> None:
        what = "in the folder that nodes share" if where == "shared" else "on each node, in its own folder"
        self._note(f"the environment lies {what}: {why}")

    def _note(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._hooks.note("cluster", text)


def choose(answer: dict[str, Any], folder: str) -> tuple[Literal["shared", "node"], str]:
    """Decide by what the first node saw of the login host's folder, and say why.

    Parameters
    ----------
    answer : dict
        ``seen``, and how many small ``files`` were read there in how many ``seconds``.
    folder : str
        The folder.
    """
    if not answer["seen"]:
        return "node", f"nodes do not see {folder} of the login host"
    files, seconds = answer["files"], answer["seconds"]
    if files >= _FEW and seconds / files > _SLOW:
        each = 1000 * seconds / files
        return "node", f"{folder} is slow there: {each:.0f} ms for each of {files} small files"
    return "shared", f"nodes see {folder}"


def _passed(answer: dict[str, Any]) -> str:
    return "; ".join(f"{folder}: {why}" for folder, why in answer["passed"])
