"""Fixtures that tests everywhere ask for by name."""

from __future__ import annotations

from tests.lab.fixtures import lab, machine

__all__ = ["lab", "machine"]
