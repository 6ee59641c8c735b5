"""dask-jobqueue's configuration, as its users have it, is read; what is not done here is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from envsync.runner.batch.jobqueue_config import from_jobqueue, says_something
from envsync.runner.queues import BACKENDS

# Every key that dask-jobqueue's own file has for a system, unset, as it stands in its users' folders.
UNSET = """
name: dask-worker
cores: null
memory: null
processes: null
python: null
interface: null
death-timeout: 60
local-directory: null
shared-temp-directory: null
extra: null
worker-command: "distributed.cli.dask_worker"
worker-extra-args: []
shebang: "#!/usr/bin/env bash"
queue: null
account: null
walltime: '00:30:00'
env-extra: null
job-script-prologue: []
job-script-epilogue: []
job-cpu: null
job-mem: null
job-extra: null
job-extra-directives: []
job-directives-skip: []
log-directory: null
scheduler-options: {}
"""


def submission(text: str, system: str) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Return what a section's jobs are submitted with, the cluster's keywords, and what is lost."""
    mapped = from_jobqueue(yaml.safe_load(text), system)
    backend = BACKENDS[mapped.system](**mapped.backend)
    call = backend.system.submit(replace(backend.group.request, log="/f/log", folder="/f"), "")
    found = {**mapped.cluster, "workers": backend.group.workers_per_job}
    return f"{' '.join(call.argv)} {call.input.decode()}", found, mapped.lost


def test_a_site_as_users_write_it() -> None:
    text = (
        UNSET
        + """
cores: 24
memory: 120 GB
processes: 6
interface: ib0
queue: regular
account: lab-7
walltime: '1-02:00:00'
local_directory: $TMPDIR
job-script-prologue: ['module load cuda', 'export OMP_NUM_THREADS=1']
job-extra-directives: ['--exclusive', '-C haswell', '--gres=gpu:a100:2']
worker-extra-args: ['--lifetime', '55m', '--lifetime-stagger=4m', '--resources GPU=1']
scheduler-options: {dashboard_address: ':0', allowed_failures: 5}
python: /opt/conda/bin/python
"""
    )
    mapped = from_jobqueue(yaml.safe_load(text), "slurm")
    assert mapped.system == "slurm"
    assert mapped.backend == {
        "cores": 24,
        "memory": 120 * 10**9,
        "workers_per_job": 6,
        "queue": "regular",
        "account": "lab-7",
        "time": 26 * 3600.0,
        "shell": "/bin/bash",
        "gres": "gpu:a100:2",
        "prologue": ("module load cuda", "export OMP_NUM_THREADS=1"),
        "extra": ("--exclusive", "-C haswell"),
    }
    assert mapped.cluster == {
        "interface": "ib0",
        "dashboard_address": ":0",
        "scheduler_kwargs": {"allowed_failures": 5},
        "lifetime": "55m",
        "lifetime_stagger": "4m",
        "resources": {"GPU": 1.0},
    }
    assert [note.split(" ")[0] for note in mapped.notes] == [
        "jobqueue.slurm.local-directory",
        "jobqueue.slurm.python",
    ]
    assert mapped.lost == ()
    said, found, _ = submission(text, "slurm")
    asked = ("--cpus-per-task=24", "--time=1560", "--exclusive -C haswell", "--gres=gpu:a100:2")
    assert all(f" {each} " in said for each in asked)
    assert found["workers"] == 6


def test_a_file_that_nobody_has_touched_says_nothing() -> None:
    mapped = from_jobqueue(yaml.safe_load(UNSET), "slurm")
    assert mapped.backend == {"time": 1800.0}
    assert (mapped.cluster, mapped.notes, mapped.lost) == ({}, (), ())
    assert not says_something(yaml.safe_load(UNSET))
    assert says_something({**yaml.safe_load(UNSET), "queue": "short"})
    (note,) = from_jobqueue({"cores": 1, "memory": "1GB"}, "slurm").notes
    assert "walltime is not set: half an hour, as dask-jobqueue has it" in note


@pytest.mark.parametrize(
    ("system", "text", "asked", "cluster"),
    [
        ("slurm", "{walltime: 90}", "--time=90 ", {}),
        ("slurm", "{cores: 24}", "--cpus-per-task=24 ", {"workers": 6}),  # as dask-jobqueue cuts it
        ("slurm", "{cores: 8, job-extra: ['--gres gpu:2']}", "--gres=gpu:2", {"workers": 2}),
        ("slurm", "{project: lab}", "--account=lab", {}),
        ("slurm", "{job-cpu: 8, job-mem: 4GB}", "--cpus-per-task=8 --mem=4096M", {}),
        (
            "slurm",
            "{cores: 4, processes: 2, job-cpu: 8, memory: 4 GB, job-directives-skip: ['--mem']}",
            "--cpus-per-task=8",
            {"threads_per_worker": 2, "memory_limit": 2 * 10**9, "workers": 2},
        ),
        ("lsf", "{walltime: '01:30', ncpus: 8, mem: 2097152}", "-M 2MB -n 8 -R span[hosts=1]", {}),
        ("lsf", "{walltime: '01:30'}", "-W 90", {}),
        (
            "pbs",
            "{resource-spec: 'select=1:ncpus=36:mem=109GB:ngpus=2:model=a,place=pack', walltime: '2:00:00'}",
            "select=1:ncpus=36:mem=111616mb:ngpus=2:model=a -l walltime=02:00:00 -l place=pack",
            {"workers": 2},
        ),
        ("moab", "{resource-spec: 'nodes=1:ppn=4:fat,mem=2gb'}", "-l nodes=1:ppn=4:fat,mem=2048mb", {}),
        ("oar", "{resource-spec: '/nodes=1/core=4', walltime: null}", "-l /nodes=1/core=4 ", {}),
        (
            "oar",
            "{cores: 4, memory: 8GiB, memory-per-core-property-name: memcore, job-extra: ['-p gpu=1']}",
            "-p (gpu=1 AND memcore >= 2048)",
            {"memory_limit": 2**31, "workers": 4},
        ),
        (
            "sge",
            "{cores: 8, memory: 8 GB, resource-spec: 'h_vmem=12G', job-extra: ['-pe mpi 8', '-V']}",
            "-pe mpi 8 -l h_rt=1800 -l h_vmem=12G -V",
            {"memory_limit": 2 * 10**9, "workers": 4},
        ),
        (
            "sge",
            "{cores: 8, processes: 2, memory: 8 GB}",
            "-l h_rt=1800 ",
            {"threads_per_worker": 4, "memory_limit": 4 * 10**9, "workers": 2},
        ),
        (
            "htcondor",
            "{disk: 2 GiB, job-extra: {requirements: HasX}, shebang: '#!/usr/bin/env condor_submit'}",
            "request_disk = 2097152\nrequirements = HasX\nqueue 1",
            {},
        ),
    ],
)
def test_what_each_system_has_of_its_own(system: str, text: str, asked: str, cluster: dict[str, Any]) -> None:
    said, found, lost = submission(text, system)
    assert asked in said
    assert {"workers": 1, **cluster} == found
    assert lost == ()


def test_what_is_not_done_here_is_said_with_the_reason() -> None:
    section = {
        "job_script_epilogue": ["rm -r x"],
        "new-key": 1,
        "resource_spec": "select=2:ncpus=4",
        "worker-extra-args": ["--preload", "mine.py", "--no-dashboard"],
        "local-directory": "/scratch/$USER",
        "shebang": "#!/bin/bash -l",
        "job-directives-skip": ["-N"],
    }
    said = "\n".join(from_jobqueue(section, "pbs", name="big").lost)
    for part in (
        "jobqueue.big.job-script-epilogue is not done here: a job that is cancelled or killed",
        "jobqueue.big.new-key is not done here: it is no key that is known here",
        "a job is one node, and 'select=2' is not",
        "'--preload mine.py': use the cluster's keywords",
        "'--no-dashboard'",
        "write out what '/scratch/$USER' is",
        "/bin/bash gets no options",
        "big.job-directives-skip is not done here",
    ):
        assert part in said, part


@pytest.mark.parametrize(
    ("key", "value"), [("memory", "much"), ("walltime", "a day"), ("memory", "3XB"), ("cores", "all")]
)
def test_what_cannot_be_read_is_told_by_its_key(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        from_jobqueue({key: value}, "slurm")
