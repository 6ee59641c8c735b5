"""The lease of a rented machine, as its agent moves it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from envsync.agent.layout import Problem
from envsync.agent.lease import Lease


def up() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def test_it_is_moved_on_when_that_is_due_and_read_whole_at_any_time(tmp_path: Path) -> None:
    file = tmp_path / "lease"
    file.write_text(f"{7:<20}\n")
    lease = Lease(str(file), 100)
    assert up() + 98 < int(file.read_text()) <= up() + 100
    for moment, written in ((1000.0, True), (1005.0, False), (1010.0, True)):
        file.write_text(f"{7:<20}\n")
        lease.renew(moment)
        assert (int(file.read_text()) > 7) is written
    assert len(file.read_text()) == 21  # never longer, never shorter: no reader sees half of it
    file.unlink()
    lease.renew(2000.0)  # silent: the machine ends if that goes on


def test_a_machine_without_a_switch_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="cannot be renewed"):
        Lease(str(tmp_path / "lease"), 100)
