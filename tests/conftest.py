"""Fixtures that tests everywhere ask for by name."""

from __future__ import annotations

from tests.lab.fixtures import lab, machine
from tests.small import small_lock

__all__ = ["lab", "machine", "small_lock"]
