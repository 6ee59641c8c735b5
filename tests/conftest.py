"""Fixtures that tests everywhere ask for by name."""

from __future__ import annotations

from tests.lab.fixtures import lab, machine
from tests.makes import makes, uv_asked_for
from tests.running import elsewhere, others
from tests.small import small_lock

__all__ = ["elsewhere", "lab", "machine", "makes", "others", "small_lock", "uv_asked_for"]
