"""Several kinds of jobs in one cluster: what each asks for, and how many of each are wanted."""

from __future__ import annotations

from typing import Any

import pytest

from envsync import SyncedCluster
from envsync.runner import SGE, Slurm
from envsync.runner.amounts import seconds
from envsync.runner.groups import counts, gpus_of
from envsync.runner.schedulerjob import asked_for_scheduler

GROUPS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {"partition": "gpu", "gres": "gpu:2", "time": "1 h", "resources": {"licence": 1}},
    "big": {"memory": "64 GB", "workers_per_job": 4},
}


def test_a_group_asks_for_what_it_names_and_else_for_what_all_do() -> None:
    backend = Slurm(partition="cpu", cores=4, memory="16 GB", account="lab", groups=GROUPS)
    cpu, gpu, big = backend.groups.values()
    assert backend.group is cpu
    assert (cpu.request.queue, cpu.request.cores, cpu.request.walltime) == ("cpu", 4, None)
    assert (gpu.request.queue, gpu.request.gres, gpu.request.walltime) == ("gpu", "gpu:2", 3600)
    assert (gpu.request.account, gpu.request.cores, gpu.workers_per_job) == ("lab", 4, 2)
    assert (big.request.memory, big.suffixes) == (64 * 10**9, ["-0", "-1", "-2", "-3"])
    assert [group.resource for group in backend.groups.values()] == ["group-cpu", "group-gpu", "group-big"]
    assert big.jobs_for(9) == 3


def test_gpus_and_gres_stand_for_each_other() -> None:
    backend = Slurm(gres="gpu:1", groups={"one": {}, "two": {"gpus": 2}, "none": {"gres": ""}})
    asked = [(group.request.gres, group.request.gpus) for group in backend.groups.values()]
    assert asked == [("gpu:1", None), ("", 2), ("", None)]
    assert [group.workers_per_job for group in backend.groups.values()] == [1, 2, 1]


@pytest.mark.parametrize(
    ("groups", "error", "said"),
    [
        ({}, ValueError, "at least one group"),
        ({"a b": {}}, ValueError, "a group cannot be called 'a b'"),
        ({"scheduler": {}}, ValueError, "a group cannot be called 'scheduler'"),
        ({"gpu": 2}, TypeError, "group gpu: a dictionary of what it asks for, not 2"),
        ({"gpu": {"gpu": 2, "via": "x"}}, TypeError, "group gpu: gpu, via cannot be asked for"),
        ({"gpu": {"time": "soon"}}, ValueError, "group gpu: time='soon'"),
        ({"gpu": {"cores": 0}}, ValueError, "group gpu: cores has to be more than nothing"),
        ({"gpu": {"workers_per_job": 0}}, ValueError, "group gpu: workers_per_job must be at least 1"),
        ({"gpu": {"extra": "--exclusive"}}, ValueError, "group gpu: extra='--exclusive': a list"),
        ({"gpu": {"cores": "4"}}, TypeError, "group gpu: cores is a whole number, not '4'"),
        ({"gpu": {"account": 12345}}, TypeError, "group gpu: account is text, not 12345"),
        ({"gpu": {"extra": ["'open"]}}, ValueError, "group gpu: extra=.*No closing quotation"),
        ({"gpu": {"extra": [None]}}, TypeError, "group gpu: extra is text, not None"),
        ({"gpu": {"prologue": ["a\0b"]}}, ValueError, "group gpu: prologue: .* control character"),
        ({"gpu": {"memory": [1]}}, TypeError, "group gpu: memory is text such as '16 GB'"),
        ({"gpu": {"time": [1]}}, ValueError, r"group gpu: time=\[1\] is no time"),
        ({"gpu": {"resources": {"a b": 1}}}, ValueError, "group gpu: resources: 'a b' is no name"),
        (["gpu"], TypeError, "groups= is a dictionary by name"),
    ],
)
def test_what_makes_no_sense_is_an_error_that_names_the_group(
    groups: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        Slurm(groups=groups)


def test_only_slurm_says_partition() -> None:
    with pytest.raises(TypeError, match="group fast: partition cannot be asked for"):
        SGE(groups={"fast": {"partition": "fast"}})


def test_a_number_is_of_the_first_group() -> None:
    groups = Slurm(groups=GROUPS).groups
    assert counts(groups, 12) == {"cpu": 12}
    assert counts(groups, {"gpu": 2, "cpu": 0}) == {"gpu": 2, "cpu": 0}
    assert counts(groups, None) == {}
    assert counts(Slurm().groups, 3) == {"": 3}
    for wrong, error in (
        ({"disk": 1}, ValueError),
        (-1, ValueError),
        ({"gpu": 1.5}, TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error):
            counts(groups, wrong)  # type: ignore[arg-type]


def test_wrong_numbers_are_told_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="there is no group 'disk'; there are cpu, gpu"):
        SyncedCluster(Slurm(groups={"cpu": {}, "gpu": {}}), n_workers={"disk": 1})
    with pytest.raises(ValueError, match="there is no group 'gpu'; there are none"):
        SyncedCluster(Slurm(), n_workers={"gpu": 1})
    with pytest.raises(TypeError, match="a batch system's"):
        SyncedCluster(n_workers={"gpu": 1})


def test_times_and_generic_resources_are_read_as_users_write_them() -> None:
    assert [seconds(text) for text in ("1-12:00:00", "04:00:00", "30:00", "2 h", 90)] == [
        *(129600, 14400, 1800, 7200, 90)
    ]
    assert [gpus_of(text) for text in ("", "gpu", "gpu:2", "gres/gpu:a100:3(S:0)", "disk:4,gpu:1")] == [
        *(0, 1, 2, 3, 1)
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"poll": 0}, "poll has to be more than nothing"),
        ({"poll": None}, "poll is a number, not None"),
        ({"grace": float("inf")}, "grace has to be more than nothing, and a number"),
        ({"submissions_per_minute": 0}, "submissions_per_minute has to be more than nothing"),
        ({"scheduler_cores": -1}, "scheduler_cores has to be more than nothing"),
        ({"scheduler_memory": 0}, "scheduler_memory has to be more than nothing"),
        ({"cache": "a\nb"}, "cache: .* control character"),
        ({"queue": "\ud800"}, "queue: .* control character"),
        ({"environment": {"A;x": "y"}}, "environment: 'A;x' is no name of a variable"),
        ({"via": 5}, "via is the login host"),
    ],
)
def test_a_backend_that_makes_no_sense_is_an_error_before_anything_runs(
    asked: dict[str, Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        Slurm(**asked)


def test_the_schedulers_job_has_what_all_are_asked_with_and_no_groups_own_options() -> None:
    groups = {"gpu": {"extra": ["--exclusive"], "gres": "gpu:2", "cores": 8, "queue": "gpu"}}
    asked: dict[str, Any] = {
        "extra": ["--qos=long"],
        "memory": "8 GB",
        "scheduler_time": "2 days",
        "groups": groups,
    }
    for own, extra in ((None, ("--qos=long",)), (["--qos=short"], ("--qos=short",))):
        backend = Slurm(scheduler_extra=own, **asked)
        request = asked_for_scheduler(backend, backend.group.request)
        assert (request.extra, request.cores, request.gres) == (extra, 1, "")
        assert (request.queue, request.memory, request.walltime) == ("gpu", 8 * 10**9, 2 * 86400)
    with pytest.raises(ValueError, match="scheduler_extra='--qos=long': a list"):
        Slurm(scheduler_extra="--qos=long")


def test_a_keyword_that_is_spelled_wrong_is_told_with_the_one_that_was_meant() -> None:
    backend: Any
    for backend, name, meant in (
        (Slurm, "partitoin", "did you mean partition="),
        (SGE, "memory_resorce", "did you mean memory_resource="),
        (Slurm, "qqq", "extra= takes further options"),
    ):
        with pytest.raises(TypeError, match=f"{backend.__name__} has no {name}=: {meant}"):
            backend(**{name: "x"})
