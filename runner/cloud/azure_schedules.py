"""Azure's own dead-man's switch: each machine's schedule, which whoever lives moves on.

A machine that has shut itself down is billed until somebody deallocates it. Azure does so by itself at a time
of day ("auto-shutdown" in its portal). That time is kept some hours ahead.
"""

from __future__ import annotations

import contextlib
import datetime
from typing import TYPE_CHECKING, Any

from envsync.errors import CloudError
from envsync.runner.cloud.azure_errors import gone, translated
from envsync.runner.cloud.azure_messages import as_azure_tags

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from envsync.runner.cloud.azure_account import Account
    from envsync.runner.cloud.provider import Tags

__all__ = ["Schedules", "ahead", "schedule"]

_AHEAD = 6 * 3600.0  # seconds: a night's logins expire, and Azure has bad hours, while machines are at work
_MORE = 2 * 3600.0  # seconds beyond a client's timeout: it may have been an hour ago that it was moved on
_DAY = 22 * 3600.0  # seconds: what is further ahead might be taken for today's
_MOVED = 3600.0  # seconds between two moves; Azure passes over those of the last half hour before it acts
_TRIES = 3  # machines, one after the other, that are refused before the others are left for the next time
_ANSWER = 20.0  # seconds: a machine that is being made waits for it
_VERSION = "2018-09-15"


def ahead(lease: float) -> float:
    """Return how many seconds ahead a schedule is kept.

    Parameters
    ----------
    lease : float
        Seconds without a sign of life from here for which machines go on.

    Raises
    ------
    CloudError
        A schedule of every day would come before that.
    """
    wanted = max(_AHEAD, lease + _MORE)
    if wanted > _DAY:
        raise CloudError(
            f"a client_timeout of {lease / 3600:g} h is longer than Azure's daily schedules can wait: there "
            "is none",
            where="azure",
            hint=f"With up to {(_DAY - _MORE) / 3600:g} h Azure deallocates the machines of a client that is "
            "gone. With more `envsync reap` has to be called.",
        )
    return wanted


def schedule(region: str, tags: Tags, machine: str, moment: float) -> dict[str, Any]:
    """Return the schedule that deallocates a machine.

    Parameters
    ----------
    region : str
        Where the machine is.
    tags : Tags
        Whose it is.
    machine : str
        Its id.
    moment : float
        When, in seconds since 1970, less than a day ahead.
    """
    at = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    return {
        "location": region,
        "tags": as_azure_tags(tags),
        "properties": {
            "status": "Enabled",
            "taskType": "ComputeVmShutdownTask",
            "dailyRecurrence": {"time": at.strftime("%H%M")},
            "timeZoneId": "UTC",
            "targetResourceId": machine,
            "notificationSettings": {"status": "Disabled"},
        },
    }


class Schedules:
    """The schedules of an account's machines.

    Parameters
    ----------
    account : Account
        Whose they are.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._moments: dict[str, float] = {}  # of machines, by Azure's clock
        self._over: list[tuple[str, str]] = []  # groups and machines that have been deleted

    def begin(self, region: str, group: str, machine: str, tags: Tags, lease: float) -> None:
        """Make the schedule of a machine that is being made. What is wrong is said by `move_on`."""
        with contextlib.suppress(CloudError), translated(region):
            moment = self._account.now() + ahead(lease)
            self._make(*self._called(group, machine), region, tags, moment)
            self._moments[machine] = moment

    def move_on(self, region: str, groups: Mapping[str, str], tags: Tags, lease: float) -> None:
        """Move on the schedules of machines, but for those that were a moment ago; make what is lacking.

        Parameters
        ----------
        region : str
            Where the machines are.
        groups : mapping of str to str
            The resource group of each.
        tags, lease
            As in `Provider.renew`.

        Raises
        ------
        CloudError
            Not all could be. Those that could, are.
        """
        self._tidy(region, set(groups.values()))
        further, failed = ahead(lease), 0
        first: CloudError | None = None
        for machine, group in groups.items():
            moment = self._account.now() + further
            if moment - self._moments.get(machine, 0.0) < _MOVED:
                continue
            try:
                with translated(region), gone():  # with the machine
                    self._account.call(self._make, *self._called(group, machine), region, tags, moment)
                self._moments[machine], failed = moment, 0
            except CloudError as error:
                first, failed = first or self._told(error, machine), failed + 1
                if failed == _TRIES:
                    break
        if first is not None:
            raise first

    def forget(self, group: str, machine: str) -> None:
        """Have a schedule removed when the others are moved on: its machine is deleted."""
        if self._moments.pop(machine, None) is not None:
            self._over.append((group, machine))

    def _tidy(self, region: str, groups: Collection[str]) -> None:
        """Remove what is left of machines. A cluster that comes and goes for days would have too many."""
        while self._over:
            group, machine = self._over.pop()
            if group in groups:  # else it has gone with it
                delete = self._account.resources.resources.begin_delete_by_id
                with contextlib.suppress(CloudError), translated(region), gone():
                    name, _ = self._called(group, machine)
                    self._account.call(delete, name, api_version=_VERSION, polling=False)

    def _called(self, group: str, machine: str) -> tuple[str, str]:
        """Return the ids of a schedule, which may have no other name, and of its machine."""
        path = f"/subscriptions/{self._account.subscription}/resourceGroups/{group}/providers"
        name = f"{path}/Microsoft.DevTestLab/schedules/shutdown-computevm-{machine}"
        return name, f"{path}/Microsoft.Compute/virtualMachines/{machine}"

    def _make(self, name: str, machine: str, region: str, tags: Tags, moment: float) -> None:
        make = self._account.resources.resources.begin_create_or_update_by_id
        body = schedule(region, tags, machine, moment)
        make(name, body, api_version=_VERSION, polling=False, read_timeout=_ANSWER)

    def _told(self, error: CloudError, machine: str) -> CloudError:
        if machine not in self._moments:
            text = "could not be made"
            then = "without it nothing deallocates the machine if this process is killed, but `envsync reap`"
        else:
            at = datetime.datetime.fromtimestamp(self._moments[machine], datetime.timezone.utc)
            text = "could not be moved on"
            then = f"else Azure deallocates the machine at {at:%H:%M} UTC, at work or not"
        return CloudError(
            f"Azure's schedule for {machine} {text}: {error.message}",
            where=error.where,
            hint=f"{error.hint} It is tried again; {then}.",
        )
