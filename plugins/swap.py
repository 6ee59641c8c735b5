"""Exchange the source trees of a running process."""

from __future__ import annotations

from .activate import swap

__all__ = ["swap"]
