"""Machines that are rented for a cluster: made, booted, known, ended.

``provider.py`` is the seam and ``ec2.py`` stands behind it; ``userdata.py`` is what a machine runs first;
``renting.py`` drives both; ``costs.py`` counts. After boot a machine is an SSH host as any other.
"""

from __future__ import annotations

import logging

from envsync.runner.cloud.provider import Found, Machine, MachineRequest, Price, Provider, Shared, Tags

__all__ = ["Found", "Machine", "MachineRequest", "Price", "Provider", "Shared", "Tags"]

logging.getLogger("stamina").addHandler(logging.NullHandler())  # else each retry prints a warning
