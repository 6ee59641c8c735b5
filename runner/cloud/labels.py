"""Tags where a cloud has labels instead: short, of few characters. Pure, and read back as they were.

Small letters, digits and ``-`` stay; any other byte, and the letter z, is written ``z`` and two hexadecimal
digits: ``ada@laptop`` is ``adaz40laptop``. What is too long for one label goes on in ``key_1``, ``key_2``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envsync.runner.cloud.provider import CLUSTER, DEADLINE, OWNER

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["as_labels", "as_name", "as_tags"]

_OURS = {CLUSTER: "envsync-cluster", OWNER: "envsync-owner", DEADLINE: "envsync-deadline"}
_LONGEST = 59  # of the 63 that labels may have: a dash at either end takes three instead of one
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxy0123456789-")


def as_labels(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags as labels.

    Parameters
    ----------
    tags : mapping of str to str
        As `Tags.to_dict`. ``Name`` is left out: resources have names.

    Returns
    -------
    dict
        Keys begin with a letter, values with a letter or a digit, and end with one; both have at most 63
        characters, if the tags' own keys are not very long.
    """
    labels: dict[str, str] = {}
    for key, value in tags.items():
        if key == "Name":
            continue
        name = _OURS.get(key) or _edges(_written(key))
        if name[:1].isdigit():
            name = f"z{ord(name[0]):02x}{name[1:]}"
        for number, part in enumerate(_parts(value)):
            labels[f"{name}_{number}" if number else name] = part
    return labels


def as_tags(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that labels were made of; others' labels as they are."""
    ours = {label: key for key, label in _OURS.items()}
    tags: dict[str, str] = {}
    for label, value in labels.items():
        key = ours.get(label) or _read(label)
        if re.search(r"_\d+$", label):
            continue
        more = 1
        while (part := labels.get(f"{label}_{more}")) is not None:
            value += part
            more += 1
        tags[key] = _read(value)
    return tags


def as_name(text: str, *, longest: int = 63) -> str:
    """Return a resource's name: small letters, digits and dashes, that begins with a letter.

    Parameters
    ----------
    text : str
        What is to be recognised in it. If that does not fit, its end stays: there are the random letters.
    longest : int
        How long it may be.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(plain) > longest:
        plain = "envsync-" + plain[len(plain) - longest + 8 :].lstrip("-")
    return plain


def _written(text: str) -> str:
    return "".join(chr(one) if chr(one) in _PLAIN else f"z{one:02x}" for one in text.encode())


def _read(text: str) -> str:
    plain = re.sub(rb"z([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return plain.decode(errors="replace")


def _edges(text: str) -> str:
    """Return it without a dash at its ends, where labels may have none."""
    return re.sub(r"^-|-$", "z2d", text)


def _parts(value: str) -> list[str]:
    parts = [""]
    for one in re.findall(r"z..|.", _written(value)):
        if len(parts[-1]) + len(one) > _LONGEST:
            parts.append("")
        parts[-1] += one
    return [_edges(part) for part in parts]
