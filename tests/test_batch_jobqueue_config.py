"""dask-jobqueue's configuration, as its users have it, is read; what has no meaning here is said."""

from __future__ import annotations

import pytest
import yaml

from envsync.runner.batch import SYSTEMS, JobRequest
from envsync.runner.batch.jobqueue_config import from_jobqueue

# Every key that dask-jobqueue's own file has, unset, as it stands in its users' folders.
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


def test_a_site_as_users_write_it() -> None:
    section = yaml.safe_load(
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
job-extra-directives: ['--exclusive', '-C haswell']
python: /opt/conda/bin/python
"""
    )
    mapped = from_jobqueue(section, "slurm")
    assert mapped.system == "slurm"
    assert mapped.request == {
        "name": "dask-worker",
        "cores": 24,
        "memory": 120 * 10**9,
        "queue": "regular",
        "account": "lab-7",
        "walltime": 26 * 3600.0,
        "shell": "/usr/bin/env bash",
        "prologue": ("module load cuda", "export OMP_NUM_THREADS=1"),
        "extra": ("--exclusive", "-C haswell"),
    }
    assert mapped.options == {"workers_per_job": 6, "interface": "ib0", "local_directory": "$TMPDIR"}
    assert [note.split(" ")[0] for note in mapped.notes] == [
        "jobqueue.slurm.death-timeout",
        "jobqueue.slurm.python",
        "jobqueue.slurm.worker-command",
    ]
    call = SYSTEMS["slurm"]().submit(JobRequest(log="l", folder="/f", **mapped.request), "")
    assert {"--cpus-per-task=24", "--time=1560", "--exclusive", "-C", "haswell"} < set(call.argv)


@pytest.mark.parametrize(
    ("system", "text", "request_of_it"),
    [
        ("slurm", "walltime: 90", {"walltime": 5400.0}),
        (
            "lsf",
            "{walltime: '01:30', ncpus: 8, mem: 2000000}",
            {"walltime": 5400.0, "cores": 8, "memory": 2000000},
        ),
        (
            "pbs",
            "resource-spec: 'select=1:ncpus=36:mem=109GB:ngpus=2'",
            {"cores": 36, "memory": 109 * 10**9, "gpus": 2},
        ),
        ("moab", "resource-spec: 'nodes=1:ppn=4'", {"cores": 4}),
        ("oar", "resource-spec: '/nodes=1/core=4'", {"cores": 4}),
        ("sge", "resource-spec: 'h_vmem=12G'", {"extra": ("-l h_vmem=12G",)}),
        ("htcondor", "job-extra-directives: {requirements: 'HasX'}", {"extra": ("requirements = HasX",)}),
        ("htcondor", "shebang: '#!/usr/bin/env condor_submit'", {}),
        ("slurm", "{job-cpu: 8, job-mem: 4GiB}", {"cores": 8, "memory": 4 * 2**30}),
        ("slurm", "env-extra: ['export A=1']", {"prologue": ("export A=1",)}),
    ],
)
def test_what_each_system_has_of_its_own(system: str, text: str, request_of_it: dict[str, object]) -> None:
    mapped = from_jobqueue(yaml.safe_load(text), system)
    assert mapped.request == request_of_it
    assert mapped.notes == ()
    assert mapped.system in SYSTEMS


def test_what_has_no_meaning_here_is_said_with_the_reason() -> None:
    mapped = from_jobqueue(
        {"job_script_epilogue": ["rm -r x"], "new-key": 1, "resource_spec": "arch=a64"}, "pbs"
    )
    assert mapped.request == {}
    epilogue, *_ = sorted(note for note in mapped.notes if "epilogue" in note)
    assert "would not reach it" in epilogue
    assert any("new-key" in note and "not known" in note for note in mapped.notes)
    assert any("'arch=a64'" in note for note in mapped.notes)


@pytest.mark.parametrize(("key", "value"), [("memory", "much"), ("walltime", "a day"), ("memory", "3XB")])
def test_what_cannot_be_read_is_told_by_its_key(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        from_jobqueue({key: value}, "slurm")
