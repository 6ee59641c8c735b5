"""Google's metadata server, as far as its SDKs ask it who they are and for a token.

Such a request shows nothing that only a process of this user could know, so the kernel is asked whose
connection it is.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Tuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from email.message import Message

__all__ = ["FLAVOR", "Metadata", "owner_of"]

FLAVOR = "Metadata-Flavor"

_ROOT = "/computeMetadata/v1/"
_ACCOUNTS = "instance/service-accounts"
_TEXT, _JSON = "application/text", "application/json"
_ESTABLISHED = b"01"
_LOOKS = 3  # a table that changes while it is read may lack a line
_NOBODY_HERE = 65534  # users are shown so who have no number in this process's namespace

Address = Tuple[str, int]
Answer = Tuple[int, str, bytes]


class Metadata:
    """Gives a service account's token to processes of the user whose this process is, and to nobody else."""

    headers: Mapping[str, str] = {FLAVOR: "Google"}

    def __init__(self) -> None:
        self._token = ("", 0.0)
        self._holders: tuple[str, ...] = ()
        self._answers: dict[str, Any] = {}

    def put(self, values: Mapping[str, Any]) -> None:
        """Give this token out from now on. It lives for seconds from now, whatever clock this host has."""
        self._token = (values["token"], time.monotonic() + float(values["seconds"]))
        account = values["account"]
        known = {"aliases": ["default"], "email": account, "scopes": list(values["scopes"])}
        answers: dict[str, Any] = {
            "": "computeMetadata/\n",
            "project/project-id": values["project"],
            "universe/universe-domain": values["universe"],
            _ACCOUNTS: {"default": known, account: known},
        }
        holders = (f"{_ACCOUNTS}/default", f"{_ACCOUNTS}/{account}")
        for holder in holders:
            answers[holder] = known
            answers[f"{holder}/email"] = account
            answers[f"{holder}/scopes"] = "".join(f"{scope}\n" for scope in known["scopes"])
        self._holders, self._answers = holders, answers

    def answer(self, path: str, headers: Message, peer: Address, here: Address) -> Answer:
        """Return HTTP's status, the kind of content and the content for a request."""
        # a page of a browser is kept out by these, however the name that it asks for resolves
        if headers.get(FLAVOR) != "Google" or headers.get("X-Forwarded-For") is not None:
            return 403, _TEXT, b"not without the header Metadata-Flavor: Google, and not for others"
        if headers.get("Host") != f"{here[0]}:{here[1]}":
            return 403, _TEXT, b"not under that name"
        owner = owner_of(peer[:2], here[:2])
        if owner is None:
            return 403, _TEXT, b"the kernel does not say who asks"
        if owner != os.geteuid() or owner == _NOBODY_HERE:
            return 403, _TEXT, b"not for other users"
        asked = urlsplit(path).path
        asked = (asked[len(_ROOT) :] if asked.startswith(_ROOT) else asked).strip("/")
        holder, _, last = asked.rpartition("/")
        if last == "token" and holder in self._holders:
            token, until = self._token
            left = int(until - time.monotonic())
            if left <= 0:  # SDKs ask again after that one
                return 503, _TEXT, b"the last token has ended, and the client has sent no other"
            said = {"access_token": token, "expires_in": left, "token_type": "Bearer"}
            return 200, _JSON, json.dumps(said).encode()
        found = self._answers.get(asked)
        if not found:
            return 404, _TEXT, b"there is a service account's token here, and no more"
        if isinstance(found, str):
            return 200, _TEXT, found.encode()
        return 200, _JSON, json.dumps(found).encode()


def owner_of(peer: Address, here: Address) -> int | None:
    """Return the user whose connection it is, at its other end on this host.

    Parameters
    ----------
    peer, here : (str, int)
        The connection's ends: IPv4 addresses, and ports.

    Returns
    -------
    int or None
        The user's number; None if it is not open any more, or the kernel does not say.
    """
    for _ in range(_LOOKS):
        # some connect from sockets that speak IPv6 too, which are in a table of their own
        for table, six in (("/proc/self/net/tcp", False), ("/proc/self/net/tcp6", True)):
            wanted = [_as_shown(peer, six), _as_shown(here, six)]
            try:
                with Path(table).open("rb") as lines:
                    for line in lines:
                        fields = line.split()
                        # of one that has been closed the kernel says that it is root's
                        if fields[1:3] == wanted and fields[3] == _ESTABLISHED:
                            return int(fields[7])
            except OSError:
                continue
    return None


def _as_shown(address: Address, six: bool) -> bytes:
    """Return an address as the kernel's tables have it: words of the processor's own order."""
    packed = socket.inet_aton(address[0])
    if six:
        packed = b"\0" * 10 + b"\xff\xff" + packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return ("".join(f"{word:08X}" for word in words) + f":{address[1]:04X}").encode()
