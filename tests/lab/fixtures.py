"""The lab as pytest fixtures; the one place that skips its tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.lab.install import missing, obstacle
from tests.lab.machines import Lab, Machine


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab's network, for the whole session; machines started on it by hand run until the end."""
    why = obstacle()
    if not why and missing():
        why = f"the lab lacks {' '.join(missing())}: run `python -m tests.lab.install`"
    if why:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"in CI the lab must stand, but {why}", pytrace=False)
        pytest.skip(why)
    network = Lab()
    try:
        yield network
    finally:
        survivors = network.close()
    assert not survivors, f"the lab's machines are gone, but these go on: {survivors}"


@pytest.fixture
def machine(lab: Lab) -> Iterator[Callable[..., Machine]]:
    """Start machines (the arguments are those of `Lab.host`) that end with the test."""
    started: list[Machine] = []

    def start(*args: object, **keywords: object) -> Machine:
        started.append(lab.host(*args, **keywords))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in reversed(started):
        each.kill()
