"""What a user says about a cluster, and what its processes are told; nothing is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed import Nanny, Security, Worker

from envsync.agent.layout import checked_name
from envsync.errors import AgentError, ClusterError, HostError
from envsync.hooks import Hooks
from envsync.runner import SSH, Local
from envsync.runner.layout import WorkerSpec
from envsync.runner.options import Options, plain_config, run_name, without_deprecated
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


class Noted(Hooks):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, where: str, text: str) -> None:
        self.notes.append(text)


def test_configuration_that_cannot_be_written_down_is_told() -> None:
    hooks = Noted()
    config = {"array": {"svg": {"size": 1}, "c": object()}, "dataframe": {"d": ["e"]}}
    assert plain_config(config, hooks) == {"array": {"svg": {"size": 1}}, "dataframe": {"d": ["e"]}}
    [note] = hooks.notes
    assert note.endswith(": array.c")


def test_all_of_dasks_own_defaults_are_sent_and_nothing_is_said() -> None:
    hooks = Noted()
    files = [
        str(Path(str(package.__file__)).with_name(f"{package.__name__}.yaml"))
        for package in (dask, distributed)
    ]
    defaults = dask.config.merge(*dask.config.collect_yaml(files))
    sent = plain_config(defaults, hooks)
    assert hooks.notes == []
    assert sent["distributed"]["comm"].pop("timeouts") == defaults["distributed"]["comm"]["timeouts"]
    assert set(sent) == set(defaults)
    assert sent["optimization"] == defaults["optimization"]
    assert sent["distributed"]["worker"] == defaults["distributed"]["worker"]


def test_secrets_are_not_sent_and_only_their_names_are_told() -> None:
    hooks = Noted()
    variables = {
        "DASK_COILED__TOKEN": "canary-1",
        "DASK_GATEWAY__AUTH__KWARGS": "{'password': 'canary-2'}",
        "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": "{'STORE_SECRET_KEY': 'canary-3', 'THREADS': 1}",
        "DASK_DISTRIBUTED__WORKER__API_TOKEN": "canary-4",
        "DASK_DISTRIBUTED__DASHBOARD__LINK": "https://me:canary-5@dask.example.org/{port}/status",
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": "canary-6",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": "canary-7",
        "DASK_SCHEDULER_ADDRESS": "tcp://canary-8:1",
        "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "0.5",
        "DASK_TOKENIZE__ENSURE_DETERMINISTIC": "True",
    }
    sent = plain_config(dask.config.collect_env(variables), hooks)
    assert sent == {
        "distributed": {
            "nanny": {"pre_spawn_environ": {"THREADS": 1}},
            "worker": {"memory": {"spill": 0.5}},
            "dashboard": {},
            "comm": {},
        },
        "tokenize": {"ensure_deterministic": True},
    }
    [note] = hooks.notes
    assert "canary" not in note
    for name in ("coiled", "gateway", "STORE_SECRET_KEY", "api_token", "dashboard.link", "comm.tls"):
        assert name in note


@pytest.mark.parametrize("spelling", ["scheduler-address", "scheduler_address", "scheduler"])
def test_where_this_process_finds_its_scheduler_is_not_sent(spelling: str) -> None:
    assert plain_config({spelling: "tcp://elsewhere:1", "array": {"backend": "numpy"}}, Noted()) == {
        "array": {"backend": "numpy"}
    }


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


def test_silence_is_borne_for_a_minute() -> None:
    assert Local().grace == SSH("a").grace == 60


@pytest.mark.parametrize(("worker_class", "where"), [(None, "options"), (Worker, "env")])
def test_environment_variables_go_to_the_workers(worker_class: Any, where: str) -> None:
    options = Options(local=True, env={"OMP_NUM_THREADS": 1}, worker_class=worker_class)
    spec = WorkerSpec(nthreads=1, memory_limit=0, gpus=("GPU-a",))
    config = options.worker(spec, encrypted=False)
    given = config["options"]["env"] if where == "options" else config["env"]
    assert given["OMP_NUM_THREADS"] == "1"
    assert config["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert ("env" in config["options"]) is (where == "options")


def test_env_is_not_the_lock() -> None:
    with pytest.raises(TypeError, match="lock="):
        Options(local=True, env="pylock.envsync.toml")  # type: ignore[arg-type]


def test_what_localcluster_has_deprecated_is_taken_with_a_warning() -> None:
    keywords: dict[str, Any] = {"ip": "10.0.0.1", "start": True, "resources": {"a": 1}}
    with pytest.warns(DeprecationWarning, match=r"ip=|start=") as told:
        assert without_deprecated(keywords, None) == "10.0.0.1"
    assert len(told) == 2
    assert keywords == {"resources": {"a": 1}}
    assert without_deprecated(keywords, "h") == "h"


def test_security_of_another_type() -> None:
    with pytest.raises(TypeError, match="Security object"):
        Trust.of("x", local=True, name="c")


@pytest.mark.parametrize("name", ["x" * 300, "-rf", "..", ".hidden", "a b/c", "", None, "ü"])
def test_any_name_of_a_cluster_can_be_part_of_a_path(name: Any) -> None:
    made = run_name(name)
    assert checked_name(made) == made
    assert made != run_name(name)
    assert Authority(made)


def test_workers_on_hosts_with_long_names_have_names_of_their_own() -> None:
    long = "node" * 30
    places = [
        Place(name=f"{long}{index}", session=Gone(), python="python")  # type: ignore[arg-type]
        for index in range(2)
    ]
    seats = Seats.of(Options(local=False, n_workers=2), places, workers_on_first=True)
    names = fill(seats, 4)
    assert len(names) == 4
    assert all(checked_name(f"worker_{name}") for name in names)


def test_a_host_that_is_named_in_two_ways_counts_once() -> None:
    backend = SSH(["node1", "ssh://node1", "ssh://me@node2:22/"], scheduler="ssh://node1")
    assert [host.name for host in backend.hosts()] == ["node1", "me@node2:22"]
    assert backend.workers_on_first
    with pytest.raises(HostError):
        SSH(["http://node1"])


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
