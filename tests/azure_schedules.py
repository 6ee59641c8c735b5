"""Azure's schedules of machines, imitated: each deallocates its machine once a day, running or not."""

from __future__ import annotations

import re
from typing import Any

from tests.azure_refusal import refusal

SCHEDULES = "Microsoft.DevTestLab/schedules"
_DAY = 86400.0
_TOO_LATE = 1800.0  # seconds before it acts: what it is changed to from then on holds on the next day
_FIELDS = {
    *("status", "taskType", "dailyRecurrence", "hourlyRecurrence", "weeklyRecurrence", "timeZoneId"),
    *("targetResourceId", "notificationSettings"),
}


class Schedules:
    """Those of a subscription.

    Parameters
    ----------
    resources : dict
        All that is there, by its id.
    """

    def __init__(self, resources: dict[str, dict[str, Any]]) -> None:
        self._resources = resources

    def put(self, identity: str, name: str, body: dict[str, Any], now: float) -> tuple[int, Any]:
        """Make one, or change it."""
        said = body["properties"]
        machine = self._resources.get(said["targetResourceId"])
        if machine is None:
            raise refusal("ResourceNotFound", f"{said['targetResourceId']} was not found.", 404)
        if name != f"shutdown-computevm-{machine['name']}":
            raise refusal("InvalidScheduleId", "The schedule's name does not fit the machine's.", 400)
        if body.keys() - {"location", "tags", "properties"} or said.keys() - _FIELDS:
            raise refusal("InvalidRequestContent", "Could not find a member", 400)
        time = said["dailyRecurrence"]["time"]
        plain = (said["taskType"], said["timeZoneId"], said["status"])
        if plain != ("ComputeVmShutdownTask", "UTC", "Enabled") or body["location"] != machine["location"]:
            raise refusal("InvalidRequestContent", "It is not for a machine", 400)
        if not re.fullmatch(r"([01]\d|2[0-3])[0-5]\d", time):
            raise refusal("InvalidRequestContent", f"{time} is no time", 400)
        before = self._resources.get(identity)
        due = _next(time, now)
        if before is not None and before["due"] - now < _TOO_LATE:
            due = before["due"]
        self._resources[identity] = {**body, "id": identity, "name": name, "type": SCHEDULES, "due": due}
        return (201 if before is None else 200), {**body, "id": identity, "name": name, "type": SCHEDULES}

    def run(self, now: float) -> None:
        """Do what was to be done by now."""
        for one in [one for one in self._resources.values() if one["type"] == SCHEDULES]:
            while one["due"] <= now:
                machine = self._resources.get(one["properties"]["targetResourceId"])
                if machine is not None:
                    machine["power"] = "deallocated"
                one["due"] = _next(one["properties"]["dailyRecurrence"]["time"], one["due"])


def _next(time: str, now: float) -> float:
    """Return when it is that time for the next time."""
    at = now - now % _DAY + int(time[:2]) * 3600 + int(time[2:]) * 60
    return at if at > now else at + _DAY
