"""The agent's command line: ``python agent.pyz VERB ...``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run one verb and return its exit status.

    Parameters
    ----------
    argv : list of str
        ``serve CACHE GRACE [PYTHON...]``, ``receive CACHE``, ``process ROLE CONFIG``,
        ``carry SETTINGS NAME``, ``relay SETTINGS``, ``settle``, ``share SETTINGS``,
        ``scan [--no-records]``, ``contents``, ``supplement PYTHON``,
        ``lay BUILDING PREFIX FOLDER CODE [NAME WHEEL]...`` or ``code SITE CODE``.
    """
    verb, rest = (argv[0], argv[1:]) if argv else ("", [])
    if verb == "serve":
        from .serve import serve

        serve(rest[0], float(rest[1]), rest[2:])
        return 0
    if verb == "receive":
        from pathlib import Path

        from .blobs import receive
        from .layout import Cache

        cache = Cache(Path(rest[0]))
        cache.blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(0, "rb", 1 << 20) as source, os.fdopen(1, "wb") as answers:
            return receive(cache, source, answers)
    if verb == "process":
        from ..plugins.process import main as process

        return int(process(rest) or 0)
    if verb == "carry":
        from .carrier import carry

        return carry(rest[0], rest[1])
    if verb == "relay":
        from .relay import relay

        return relay(rest[0])
    if verb == "settle":
        from .settling import settle

        return settle()
    if verb == "share":
        from .sharing import share

        return share(rest[0])
    if verb == "scan":
        import json

        from ..plugins.scan import scan

        sys.stdout.write(json.dumps(scan(records="--no-records" not in rest)) + "\n")
        return 0
    if verb == "contents":
        import json

        from .inside import contents

        sys.stdout.write(json.dumps(contents()) + "\n")
        return 0
    if verb == "supplement":
        from .pythons import supplement

        supplement(rest[0])
        return 0
    if verb == "lay":
        from .laying import lay_out

        return lay_out(*rest)
    if verb == "code":
        from .compiling import lay_code

        return lay_code(*rest)
    verbs = "serve|receive|process|carry|relay|settle|share|scan|contents|supplement|lay|code"
    sys.stderr.write(f"usage: agent.pyz {verbs} ...\n")
    return 2
