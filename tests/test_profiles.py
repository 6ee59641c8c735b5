"""Backends as users write them: a site's own words, and named profiles of Dask's configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import dask.config
import pytest
import yaml

from envsync.errors import ConfigurationError
from envsync.hooks import Hooks
from envsync.runner import OAR, SGE, SSH, Batch, Slurm, backend_from_config
from envsync.runner.options import plain_config
from envsync.runner.profiles import read_profile, takes_profile


def submission(backend: Batch) -> list[str]:
    """Return what one job would be submitted with."""
    request = replace(backend.group.request, log="log", folder="/folder")
    return list(backend.system.submit(request, "").argv)


def test_what_a_site_calls_things() -> None:
    asked = {"cores": 4, "memory": "8 GiB", "gpus": 2}
    sge = SGE(
        parallel_environment="shm",
        memory_resource="h_vmem",
        gpu_resource="ngpus",
        gpu_per_core=False,
        **asked,
    )
    argv = submission(sge)
    assert argv[argv.index("-pe") + 1] == "shm"
    assert "h_vmem=2048M,ngpus=2" in argv
    assert "mem_free" not in " ".join(submission(SGE(memory_resource="", cores=4, memory="8 GiB")))
    oar = OAR(core_resource="cpu", gpu_resource="gpu_device", memory_resource="memnode", **asked)
    argv = submission(oar)
    assert "/nodes=1/gpu_device=2/cpu=2" in argv
    assert "memnode >= 8192" in argv


def test_words_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="partition='a' and queue='b' are the same thing"):
        Slurm(partition="a", queue="b")
    with pytest.raises(ValueError, match="without options"):
        Slurm(shell="/bin/bash -l")
    assert Slurm(shell="/bin/bash", queue="b").group.request.queue == "b"


PROFILES = """
envsync:
  profiles:
    gpu:
      backend: slurm
      partition: gpu
      gres: "gpu:2"
      time: 12:00:00
      account: 1234
      via: me@login.hpc.example.org
      extra: --exclusive
      prologue: [module load cuda, "export A=1"]
      n-workers: 8
      memory_limit: 4GB
    grid: {backend: sge, parallel-environment: mpi, memory_resource: h_vmem, cores: 2, memory: 4GiB}
    both: {backend: slurm, groups: {cpu: {cores: 2}, gpu: {gpus: 1, workers-per-job: 3}}}
    desks: {backend: ssh, hosts: [node1, node2], threads-per-worker: 2}
    night: {jobqueue: slurm, time: 8h, n-workers: 2, partition: long}
    site: {backend: slurm, jobqueue: big}
jobqueue:
  slurm: {cores: 8, memory: 16GB, queue: short, walltime: '02:00:00', job-script-epilogue: [rm x]}
  big: {cores: 2, memory: 1GB, walltime: '01:00:00', python: /usr/bin/python3}
"""


@pytest.fixture(autouse=True)
def configuration() -> Iterator[None]:
    with dask.config.set(yaml.safe_load(PROFILES)):
        yield


def test_a_profile_is_a_backend_and_what_there_is_to_say_of_the_cluster() -> None:
    profile = read_profile("gpu")
    assert isinstance(profile.backend, Slurm)
    assert str(profile.backend.via) == "SSH(['me@login.hpc.example.org'])"
    request = profile.backend.group.request
    assert (request.queue, request.gres, request.account) == ("gpu", "gpu:2", "1234")
    assert request.walltime == 12 * 3600, "which YAML takes for a number of seconds"
    assert (request.extra, request.prologue) == (("--exclusive",), ("module load cuda", "export A=1"))
    assert profile.cluster == {"n_workers": 8, "memory_limit": "4GB"}
    changed = read_profile("gpu", time="1h", queue="cpu", account=None).backend
    assert isinstance(changed, Slurm)
    assert changed.group.request == replace(request, walltime=3600.0, queue="cpu")
    grid = backend_from_config("grid")
    assert isinstance(grid, SGE)
    assert "h_vmem=2048M" in submission(grid)
    both = backend_from_config("both")
    assert isinstance(both, Slurm)
    assert [group.workers_per_job for group in both.groups.values()] == [1, 3]
    desks = read_profile("desks", hosts=["node3"])
    assert isinstance(desks.backend, SSH)
    assert desks.backend.names == ("node3",)
    assert desks.cluster == {"threads_per_worker": 2}


def test_variables_and_the_two_ways_to_write_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"DASK_ENVSYNC__PROFILES__MY_OWN__BACKEND": "slurm"}
    variables["DASK_ENVSYNC__PROFILES__MY_OWN__WORKERS_PER_JOB"] = "3"
    with dask.config.set(dask.config.collect(paths=[], env=variables)):
        backend = backend_from_config("my-own")
    assert isinstance(backend, Slurm)
    assert backend.group.workers_per_job == 3


def test_a_section_of_dask_jobqueue_is_a_profile_and_the_ground_of_one() -> None:
    whole = read_profile("jobqueue.slurm")
    assert isinstance(whole.backend, Slurm)
    request = whole.backend.group.request
    assert (request.cores, request.queue, request.walltime) == (8, "short", 7200.0)
    assert whole.backend.group.workers_per_job == 4
    (lost,) = whole.lost
    assert "job-script-epilogue" in lost
    night = read_profile("night")
    assert isinstance(night.backend, Slurm)
    assert night.backend.group.request == replace(request, queue="long", walltime=8 * 3600.0)
    assert night.cluster == {"n_workers": 2}
    (note,) = read_profile("site").notes
    assert note.startswith("jobqueue.big.python needs no saying here")
    assert read_profile("jobqueue.big", backend="lsf").backend.system.name == "lsf"  # type: ignore[attr-defined]


class Told(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, where: str, text: str) -> None:
        self.texts.append(text)

    warning = note


def test_a_cluster_takes_a_profile_by_its_name_and_says_once_what_is_not_done() -> None:
    seen = []

    class Cluster:
        @takes_profile
        def __init__(self, backend: object = None, **keywords: object) -> None:
            seen.append((backend, keywords))

    told = Told()
    Cluster("night", n_workers=5, hooks=told)
    backend, keywords = seen.pop()
    assert isinstance(backend, Slurm)
    assert keywords == {"n_workers": 5, "hooks": told}
    assert sum("job-script-epilogue" in text for text in told.texts) == 1
    Cluster(Slurm(), hooks=told)
    assert "jobqueue.slurm as the profile" in told.texts[-1]
    for quiet in (Slurm(cores=1), SGE(), None):
        other = Told()
        Cluster(quiet, hooks=other)
        assert other.texts == []


@pytest.mark.parametrize(
    ("name", "profile", "said"),
    [
        (
            "nope",
            None,
            r"there is no profile 'nope'.*there are gpu, grid, both, desks, night, site.*in .*dask",
        ),
        ("x", {"backend": "slurm", "partitoin": "a"}, "on slurm there is no partitoin.*mean partition\\?"),
        ("x", {"backend": "ssh", "hosts": ["a"], "cores": 2}, "on ssh there is no cores"),
        ("x", {"backend": "slrum"}, "there is no backend 'slrum'.*local, ssh, slurm"),
        ("x", {"partition": "a"}, "it does not say which backend"),
        ("x", {"backend": "ssh"}, "it names no hosts"),
        ("x", {"backend": "slurm", "account": True}, "account has to be text"),
        ("x", {"backend": "slurm", "cores": "many"}, "cores has to be a whole number"),
        ("x", {"backend": "slurm", "n-workers": "many"}, "n-workers has to be a whole number"),
        ("x", {"backend": "slurm", "poll": "often"}, "poll has to be a number"),
        ("x", {"backend": "slurm", "extra": {"a": 1}}, "extra has to be a list"),
        ("x", {"backend": "sge", "gpu-per-core": 1}, "gpu-per-core has to be true or false"),
        ("x", {"backend": "slurm", "time": "soon"}, "envsync.profiles.x: .*soon"),
        ("x", {"backend": "slurm", "n-workers": 1, "n_workers": 2}, "twice"),
        ("x", {"backend": "slurm", "jobqueue": "none"}, "no section jobqueue.none.*slurm, big"),
        ("x", {"backend": "lsf", "jobqueue": "big", "gres": 5, "interface": []}, "interface has to be text"),
        ("x", "slurm", "keys with values"),
        ("jobqueue.big", None, "of which batch system is jobqueue.big"),
        ("jobqueue.pbs", None, "no section jobqueue.pbs"),
    ],
)
def test_what_makes_no_sense_is_said_with_what_there_is(name: str, profile: object, said: str) -> None:
    settings = {f"envsync.profiles.{name}": profile} if profile is not None else {}
    with dask.config.set(settings), pytest.raises(ConfigurationError, match=f"(?s){said}"):
        read_profile(name)


def test_nothing_of_it_goes_to_the_clusters_processes() -> None:
    told = Told()
    with dask.config.set({"envsync.profiles.gpu.environment": {"TOKEN": "sesame"}, "dataframe.backend": "x"}):
        sent = plain_config(dask.config.config, told)
    assert "sesame" not in json.dumps(sent)
    assert not {"envsync", "jobqueue"} & set(sent)
    assert not any("sesame" in text for text in told.texts)
    assert "sesame" not in repr(read_profile("gpu", environment={"TOKEN": "sesame"}))
