"""What a user says about a cluster, and what its processes are told; nothing is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Nanny, Security, Worker

from envsync.errors import AgentError, ClusterError
from envsync.hooks import Hooks
from envsync.runner import SSH, Local
from envsync.runner.options import Options, plain_config
from envsync.runner.places import Place
from envsync.runner.seats import Seats
from envsync.runner.tls import Authority
from envsync.runner.trust import Trust


@pytest.mark.parametrize(
    ("local", "encrypted", "address", "expected"),
    [
        (True, False, ":8787", ":8787"),
        (True, True, "localhost:8787", "localhost:8787"),
        (False, True, ":8787", "127.0.0.1:8787"),
        (False, True, "0.0.0.0:8787", "0.0.0.0:8787"),
        (False, False, ":8787", ":8787"),
        (False, True, None, None),
    ],
)
def test_a_dashboard_without_password_is_not_on_the_wire_of_an_encrypted_cluster(
    local: Any, encrypted: Any, address: Any, expected: Any
) -> None:
    options = Options(local=local, dashboard_address=address).scheduler(encrypted=encrypted)
    assert options["dashboard_address"] == expected
    assert options["dashboard"] is (expected is not None)


def test_a_local_scheduler_listens_on_loopback_only() -> None:
    assert Options(local=True).scheduler(encrypted=False)["host"] == "127.0.0.1"
    assert Options(local=True, host="10.0.0.1").scheduler(encrypted=False)["host"] == "10.0.0.1"
    assert Options(local=True, interface="eth0").scheduler(encrypted=False)["host"] is None
    assert Options(local=False).scheduler(encrypted=True)["host"] is None


def test_protocols() -> None:
    assert Options(local=True).scheme(encrypted=False) == "tcp://"
    assert Options(local=True).scheme(encrypted=True) == "tls://"
    assert Options(local=True, protocol="ucx").scheme(encrypted=False) == "ucx://"
    assert Options(local=True, host="ws://127.0.0.1").scheme(encrypted=False) == "ws://"


@pytest.mark.parametrize(
    ("given", "nanny"),
    [
        (None, True),
        (Nanny, True),
        (Worker, False),
        ("distributed.Nanny", True),
        ("distributed.Worker", False),
    ],
)
def test_worker_classes(given: Any, nanny: Any) -> None:
    assert Options(local=True, worker_class=given).nanny is nanny


def test_configuration_that_cannot_be_written_down_is_told() -> None:
    class Noted(Hooks):
        notes: list[str] = []  # noqa: RUF012

        def note(self, where: str, text: str) -> None:
            self.notes.append(text)

    config = {"a": {"b": 1, "c": object()}, "scheduler-address": "tcp://elsewhere:1", "d": ["e"]}
    assert plain_config(config, Noted()) == {"a": {"b": 1}, "d": ["e"]}
    assert [note for note in Noted.notes if "a.c" in note]


def test_tls_is_on_wherever_bytes_leave_the_machine() -> None:
    assert not Trust.of(None, local=True, name="c").encrypted
    assert Trust.of(None, local=False, name="c").encrypted
    assert not Trust.of(False, local=False, name="c").encrypted
    assert Trust.of(True, local=True, name="c").client.require_encryption
    configured = {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": "no such file\n",
    }
    with dask.config.set(configured), pytest.raises(ClusterError, match="no scheduler's cert"):
        # what Dask's configuration says goes first, also where it is not enough
        Trust.of(None, local=True, name="c")


def test_given_certificates_may_be_files_or_text(tmp_path: Path) -> None:
    credentials = Authority("theirs").issue("worker")
    for name, data in credentials.files().items():
        (tmp_path / name).write_bytes(data)
    given = Security(
        require_encryption=True,
        tls_ca_file=str(tmp_path / "ca.pem"),
        tls_scheduler_cert=str(tmp_path / "cert.pem"),
        tls_scheduler_key=str(tmp_path / "key.pem"),
        tls_worker_cert=credentials.cert,
        tls_worker_key=credentials.key,
    )
    trust = Trust.of(given, local=False, name="c")
    assert trust.credentials("scheduler", ()) == trust.credentials("worker", ()) == credentials

    lacking = Security(require_encryption=True, tls_ca_file=credentials.ca)
    with pytest.raises(ClusterError, match="no scheduler's cert"):
        Trust.of(lacking, local=False, name="c")
    given.tls_worker_key = str(tmp_path / "none.pem")
    with pytest.raises(ClusterError, match="worker's key cannot be read"):
        Trust.of(given, local=False, name="c")


def test_backends() -> None:
    backend = SSH(["a", "b", "a"], scheduler="c")
    assert [host.name for host in backend.hosts()] == ["c", "a", "b"]
    assert not backend.workers_on_first
    assert SSH("a").workers_on_first
    assert Local().local
    with pytest.raises(ValueError, match="at least one host"):
        SSH([])


@dataclass
class Gone:
    """A session, as far as seats look at one."""

    facts: dict[str, Any] = field(default_factory=lambda: {"cores": 2, "memory": 8})
    ended: Exception | None = None


def seated(options: Options, number: int, **facts: Any) -> tuple[Seats, list[Gone]]:
    sessions = [Gone(facts={"cores": 2, "memory": 8, **facts}) for _ in range(number)]
    places = [
        Place(name=f"node{index}", session=session, python="python")  # type: ignore[arg-type]
        for index, session in enumerate(sessions)
    ]
    return Seats.of(options, places, workers_on_first=True), sessions


def fill(seats: Seats, number: int) -> dict[Any, dict[str, Any]]:
    taken: dict[Any, dict[str, Any]] = {}
    for _ in range(number):
        name, place, spec = seats.take(taken)
        taken[name] = {"options": {"place": place, "spec": spec}}
    return taken


def test_workers_are_spread_and_names_are_used_again() -> None:
    seats, _ = seated(Options(local=False, n_workers=4), 3)
    assert seats.initial == 4
    taken = fill(seats, 4)
    assert set(taken) == {"node0-0", "node0-1", "node1-0", "node2-0"}
    del taken["node0-0"]
    assert seats.take(taken)[0] == "node0-0"


def test_more_workers_than_seats_go_round() -> None:
    seats, _ = seated(Options(local=False), 2, gpus=[{"uuid": "GPU-a", "mig": None}])
    assert seats.initial == 2
    taken = fill(seats, 4)
    assert set(taken) == {"node0-0", "node1-0", "node0-1", "node1-1"}
    assert {entry["options"]["spec"].gpus for entry in taken.values()} == {("GPU-a",)}


def test_lost_hosts_get_no_more_workers() -> None:
    seats, sessions = seated(Options(local=False, n_workers=2), 2)
    sessions[0].ended = OSError("gone")
    assert set(fill(seats, 2)) == {"node1-0", "node1-1"}
    sessions[1].ended = OSError("gone")
    with pytest.raises(AgentError, match="every host"):
        fill(seats, 1)


def test_local_workers_have_numbers_for_names() -> None:
    seats, _ = seated(Options(local=True, n_workers=2), 1)
    assert list(fill(seats, 3)) == [0, 1, 2]
