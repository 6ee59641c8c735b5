"""What is in an image of ours, as the image's own Python sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..plugins.scan import scan

__all__ = ["LOCK", "PYTHON", "contents"]

PYTHON = "/opt/envsync/env/bin/python"
LOCK = "/opt/envsync/pylock.toml"
_TREES = "/opt/envsync/trees"


def contents() -> dict[str, Any]:
    """Return ``{"lock", "trees", "report"}``: a text (empty if there is none), manifests by digest, Facts."""
    lock, trees = Path(LOCK), Path(_TREES)
    return {
        "lock": lock.read_text(encoding="utf-8") if lock.is_file() else "",
        "trees": {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in trees.glob("*.json")},
        "report": scan(),
    }
