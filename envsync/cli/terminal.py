"""What others have written, as a terminal may be given it: it is shown, and not obeyed."""

from __future__ import annotations

import re

__all__ = ["harmless", "one_line"]

_CONTROL = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Return a text without what moves a terminal's cursor; lines and colours stay."""
    return _CONTROL.sub(lambda match: match[0] if len(match[0]) > 1 else ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return a text as one line without anything that cannot be seen, colours included."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
