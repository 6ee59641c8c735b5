"""What a cloud tells a machine about its end: looked for on the machine, where alone it is told.

A spot machine that is taken back has two minutes at Amazon's, half a minute at Google's and at Azure's. Each
has a metadata service of its own on the machine; what differs is in `SERVICES`.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import threading
import time
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any, Callable

__all__ = ["SERVICES", "Notices"]

_EVERY = 5.0  # seconds between two questions
_ANSWER = 2.0  # seconds that the service has to answer
_TOKEN = 300  # seconds that a token of Amazon's is good for


class Notices:
    """Asks the machine's metadata service whether the machine is taken back, until it is told so.

    Parameters
    ----------
    cloud : str
        Whose service it is: one of `SERVICES`.
    tell : callable
        Called once, with ``{"event": "notice", "text": why, "seconds": until then}``.
    address : str
        The service's base URL.
    every : float
        Seconds between two questions.
    """

    def __init__(
        self,
        cloud: str,
        tell: Callable[[dict[str, Any]], None],
        address: str = "http://169.254.169.254",
        every: float = _EVERY,
    ) -> None:
        self._look = SERVICES[cloud]
        self._tell = tell
        self._address = address
        self._every = every
        # no proxy knows this address
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._ending.set()

    def _run(self) -> None:
        while True:
            # no answer, or none that makes sense: the next one may
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found = self._look(self._get)
                if found is not None:
                    text, at = found
                    left = at - time.time() if at is not None else 30.0
                    self._tell({"event": "notice", "text": text, "seconds": max(0.0, left)})
                    return
            if self._ending.wait(self._every):
                return

    def _get(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(self._address + path, headers=headers, method=method)  # noqa: S310
        with self._opener.open(request, timeout=_ANSWER) as answer:
            return str(answer.read().decode())


def _ec2(get: Any) -> tuple[str, float | None] | None:
    """Ask Amazon's, version 2: there is no such page until it is taken back, which is an OSError."""
    token = get("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN)}, "PUT")
    said = json.loads(get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}))
    at = time.strptime(said["time"], "%Y-%m-%dT%H:%M:%SZ")
    return f"EC2 takes this spot machine back at {said['time']}", _since_1970(at)


def _gce(get: Any) -> tuple[str, float | None] | None:
    """Ask Google's: half a minute, and no time is said."""
    said = get("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return ("Google takes this spot machine back", None) if said.strip() == "TRUE" else None


def _azure(get: Any) -> tuple[str, float | None] | None:
    """Ask Azure's, which tells of other machines too."""
    headers = {"Metadata": "true"}
    events = json.loads(get("/metadata/scheduledevents?api-version=2020-07-01", headers))["Events"]
    taken = [one for one in events if one["EventType"] == "Preempt"]
    if not taken:
        return None
    name = get("/metadata/instance/compute/name?api-version=2021-02-01&format=text", headers).strip()
    for one in taken:
        if name in one["Resources"]:
            at = parsedate_to_datetime(one["NotBefore"]).timestamp() if one.get("NotBefore") else None
            return "Azure takes this spot machine back", at
    return None


def _since_1970(at: time.struct_time) -> float:
    return float(calendar.timegm(at))


SERVICES: dict[str, Callable[[Any], tuple[str, float | None] | None]] = {
    "ec2": _ec2,
    "gce": _gce,
    "azure": _azure,
}
"""How each cloud is asked: None, or why and when (seconds since 1970; None: at once)."""
