"""Batch systems' answers, in the forms that their documentation gives: good, torn, empty, and errors."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envsync.errors import BatchError, SubmitError
from envsync.runner.batch import (
    LSF,
    OAR,
    PBS,
    SGE,
    SYSTEMS,
    BatchSystem,
    HTCondor,
    Job,
    JobRequest,
    Slurm,
    Torque,
)
from envsync.runner.batch.request import clock, safe_name, seconds_of
from envsync.runner.hosts import Completed


def said(text: str = "", code: int = 0, error: str = "") -> Completed:
    return Completed(code, text.encode(), error.encode())


def request(**more: Any) -> JobRequest:
    return JobRequest(**{"name": "job", "log": "/shared/log", "folder": "/shared", **more})


ALL: list[BatchSystem] = [system() for system in SYSTEMS.values()]
NAMES = list(SYSTEMS)


# -- what is asked for

ASKED: list[tuple[BatchSystem, list[str]]] = [
    (
        Slurm(),
        [
            "--time=61",
            "--cpus-per-task=4",
            "--mem=1025M",
            "--gpus-per-node=2",
            "--partition=q",
            "--account=a",
        ],
    ),
    (SGE(), ["-l", "h_rt=3601,mem_free=257M,gpu=1", "-pe", "smp", "-q", "q", "-A", "a"]),
    (PBS(), ["select=1:ncpus=4:mem=1025mb:ngpus=2", "walltime=01:00:01", "-q", "q", "-A", "a"]),
    (Torque(), ["nodes=1:ppn=4:gpus=2,mem=1025mb,walltime=01:00:01", "-q", "q", "-A", "a"]),
    (
        LSF(),
        [
            "-n",
            "4",
            "span[hosts=1] rusage[mem=1025MB]",
            "-M",
            "1025MB",
            "-W",
            "61",
            "-gpu",
            "num=2",
            "-q",
            "q",
        ],
    ),
    (OAR(), ["/nodes=1/gpu=2/core=2,walltime=01:00:01", "-q", "q", "--project", "a"]),
]


@pytest.mark.parametrize(("system", "asked"), ASKED, ids=[system.name for system, _ in ASKED])
def test_all_that_is_asked_for_is_in_the_submission(system: BatchSystem, asked: list[str]) -> None:
    gpus = 4 if system.name == "sge" else 2
    one = request(
        walltime=3600.5, cores=4, memory=2**30 + 1, gpus=gpus, queue="q", account="a", extra=("-x 'y z'",)
    )
    call = system.submit(one, system.script(one, "true"))
    assert set(asked) <= set(call.argv), call.argv
    assert [word for word in call.argv if word in ("-x", "y z")] == ["-x", "y z"]


def test_condor_asks_in_its_description() -> None:
    one = request(
        walltime=60, cores=4, memory=2**30, gpus=2, account="group_a", count=3, extra=("rank = Mips",)
    )
    call = HTCondor().submit(one, "#!/bin/sh\nsecret\n")
    lines = call.input.decode().splitlines()
    wanted = ("request_cpus = 4", "request_memory = 1024MB", "request_gpus = 2", "accounting_group = group_a")
    assert {*wanted, "allowed_job_duration = 60", "rank = Mips"} <= set(lines)
    assert lines[-1] == "queue 3"
    assert call.files == (("/shared/job.sh", b"#!/bin/sh\nsecret\n"),)


def test_grid_engine_counts_gpus_per_core() -> None:
    assert "gpu=4" in " ".join(SGE(gpu_per_core=False).submit(request(cores=2, gpus=4), "").argv)
    with pytest.raises(BatchError, match="1 GPUs do not go with 2 cores"):
        SGE().submit(request(cores=2, gpus=1), "")


@pytest.mark.parametrize("system", ALL, ids=NAMES)
def test_what_a_job_runs_is_in_nobodys_arguments(system: BatchSystem) -> None:
    one = request(prologue=("export TOKEN=s3cret",))
    call = system.submit(one, system.script(one, "echo s3cret"))
    assert "s3cret" not in " ".join(call.argv)
    sent = call.input + b"".join(content for _, content in call.files)
    assert b"echo s3cret" in sent


@pytest.mark.parametrize("bad", ["a\nb", "a\x00b"])
def test_a_line_break_cannot_smuggle_an_option(bad: str) -> None:
    for key in ("folder", "log", "queue", "constraint"):
        with pytest.raises(ValueError, match="line break"):
            request(**{key: bad})
    with pytest.raises(ValueError, match="line break"):
        request(extra=(bad,))


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)


@pytest.mark.slow
@given(name=st.text(min_size=1), other=st.text(min_size=1))
def test_names_are_made_safe_and_stay_different(name: str, other: str) -> None:
    for limit in (15, 64):
        safe = safe_name(name, limit)
        assert len(safe) <= limit
        assert safe[0].isalpha()
        assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
        assert (safe == safe_name(other, limit)) == (name == other)
        assert safe_name(safe, limit) == safe


@settings(max_examples=25, deadline=None)
@given(word=texts, folder=texts)
def test_prologue_and_folder_reach_the_shell_as_they_are(word: str, folder: str) -> None:
    one = request(prologue=(f"WORD={shlex.quote(word)}",), folder=f"/{folder}")
    for system in (Slurm(), PBS()):
        call = system.submit(one, system.script(one, 'printf %s "$WORD"'))
        script = call.input.decode().replace("|| exit 73", "2> /dev/null || :")
        done = subprocess.run(["sh"], input=script.encode(), capture_output=True, check=True)
        assert done.stdout.decode() == word
    line = shlex.join(Slurm().submit(one, "").argv)
    back = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert f"--chdir=/{folder}" in back.stdout.decode().split("\0")


@given(st.integers(0, 10**7))
def test_durations_are_read_as_they_are_written(seconds: int) -> None:
    assert seconds_of(clock(seconds)) == seconds


# -- what is submitted

SUBMITTED = {
    "slurm": ("17\n", ("17_0", "17_1"), "sbatch: error: Batch job submission failed: Invalid account"),
    "sge": (
        "17.1-2:1\n",
        ("17.1", "17.2"),
        "Unable to run job: Job was rejected because job requests unknown queue",
    ),
    "pbs": ("17[].server\n", ("17[0].server", "17[1].server"), "qsub: Unknown queue"),
    "torque": ("17[].server\n", ("17[0].server", "17[1].server"), "qsub: submit error (Unknown queue)"),
    "lsf": ("Job <17> is submitted to queue <normal>.\n", ("17[1]", "17[2]"), "nope: No such queue."),
    "htcondor": ("17.0 - 17.1\n", ("17.0", "17.1"), "ERROR: Failed to parse command file"),
    "oar": ("[ADMISSION RULE] x\nOAR_JOB_ID=17\nOAR_JOB_ID=18\n", ("17", "18"), "queue nope does not exist"),
}


@pytest.mark.parametrize("system", ALL, ids=NAMES)
def test_ids_are_read_and_refusals_keep_the_systems_words(system: BatchSystem) -> None:
    good, ids, bad = SUBMITTED[system.name]
    two = request(count=2)
    assert system.submitted(said(good), two) == ids
    assert system.submitted(said(f"a message of the day\n{good}"), two) == ids
    for answer in (said("", 1, bad), said("", 0, bad), said(good[:2], 0, bad)):
        if answer.stdout and system.name in ("slurm", "sge"):
            continue  # a number that is cut off is a number
        with pytest.raises(SubmitError) as caught:
            system.submitted(answer, two)
        assert bad in str(caught.value)


# -- what is listed

SLURM = """17_0|RUNNING|1|0|1-00:00:09|node1|job|None|
17_1|PENDING|0|0|UNLIMITED||job|Resources|
17_2|FAILED|0|768|0:00|node1|job|NonZeroExitCode|
17_3|CANCELLED|0|15|0:00|node1|job|None|
17_4|TIMEOUT|0|15|0:00|node2|job|TimeLimit|
17_5|OUT_OF_MEMORY|0|125:0|0:00|node2|job|OutOfMemory|
17_6|PREEMPTED|0|0|0:00|node2|job|None|
17_7|NODE_FAIL|0|0|0:00|node2|job|NodeDown|
17_8|PENDING|2|0|10:00||job|(ReqNodeNotAvail, UnavailableNodes:a|b)|
17_9|COMPLETING|0|0|10:00|node1|job|None|
17_10|REQUEUE_HOLD|1|0|10:00||job|JobHeldAdmin|
17_11|RUN"""


def test_squeue() -> None:
    jobs = Slurm().listed(said(SLURM))
    assert "17_11" not in jobs
    assert jobs["17_0"] == Job(id="17_0", state="running", nodes=("node1",), walltime_left=86409, restarts=1)
    assert jobs["17_1"] == Job(id="17_1", state="pending", reason="Resources")
    assert jobs["17_2"] == Job(id="17_2", state="failed", reason="FAILED", nodes=("node1",), exit_code=3)
    assert [jobs[f"17_{n}"].state for n in range(3, 8)] == [
        *("cancelled", "timeout", "out-of-memory", "preempted", "node-failed")
    ]
    assert (jobs["17_4"].signal, jobs["17_4"].reason, jobs["17_5"].exit_code) == (15, "TimeLimit", 125)
    assert (jobs["17_8"].restarts, jobs["17_8"].reason) == (2, "(ReqNodeNotAvail, UnavailableNodes:a|b)")
    assert [jobs[f"17_{n}"].state for n in (9, 10)] == ["running", "pending"]
    assert Slurm().never(jobs["17_10"])
    warned = f"WARNING: maintenance | on | monday\n | | | | | | | \n{SLURM}"
    assert Slurm().listed(said(warned)) == jobs
    assert not Slurm().never(jobs["17_1"])


def test_sacct() -> None:
    text = "17_0|COMPLETED|0:0|node1\n17_1|CANCELLED by 1000|0:15|node1\n"
    text += "17_2|RUNNING|0:0|node1\n17_3|REQUEUED|0:0|node1\n17_4|OUT"
    jobs = Slurm().ended(said(text))
    assert jobs == {
        "17_0": Job(id="17_0", state="completed", nodes=("node1",), exit_code=0),
        "17_1": Job(id="17_1", state="cancelled", reason="CANCELLED by 1000", nodes=("node1",), signal=15),
    }
    assert Slurm().ended(said("", 1, "Slurm accounting storage is disabled")) == {}


@pytest.mark.parametrize(
    ("shown", "members"),
    [
        ("[0,2-4]", [0, 2, 3, 4]),
        ("[7]", [7]),
        ("[0-6:3,8%2]", [0, 3, 6, 8]),
        ("[0,2,4...]", [0, 2]),
        ("[]", []),
        ("[", []),
    ],
)
def test_sacct_tells_of_jobs_of_an_array_that_never_ran_in_one_line(shown: str, members: list[int]) -> None:
    jobs = Slurm().ended(said(f"17_{shown}|CANCELLED by 0|0:0|None assigned\n"))
    assert list(jobs) == [f"17_{index}" for index in members]
    assert all((job.state, job.nodes) == ("cancelled", ()) for job in jobs.values())


QSTAT = """<?xml version='1.0'?>
<job_info><queue_info><job_list state="running"><JB_job_number>17</JB_job_number><JB_name>job</JB_name>
<full_job_name>job</full_job_name><JB_owner>ada</JB_owner><state>{running}</state>
<queue_name>all.q@node1</queue_name><slots>1</slots><tasks>1</tasks></job_list></queue_info>
<job_info><job_list state="pending"><JB_job_number>18</JB_job_number><JB_name>job</JB_name><state>Eqw</state>
<queue_name></queue_name><slots>1</slots><tasks>2</tasks></job_list></job_info></job_info>
<?xml version='1.0'?>
<detailed_job_info><djob_info><element><JB_job_number>18</JB_job_number><JB_ja_tasks><ulong_sublist>
<JAT_message_list><ulong_sublist><QIM_message>error: can't chdir to /x</QIM_message></ulong_sublist>
</JAT_message_list></ulong_sublist></JB_ja_tasks></element></djob_info><messages/></detailed_job_info>
<?xml version='1.0'?>
<unknown_jobs><>19</></unknown_jobs>
"""


def test_qstat_of_grid_engine() -> None:
    jobs = SGE().listed(said(QSTAT.format(running="Rr")))
    assert jobs["17.1"] == Job(id="17.1", state="running", reason="Rr", nodes=("node1",), restarts=1)
    assert jobs["18.2"] == Job(id="18.2", state="pending", reason="Eqw: error: can't chdir to /x")
    assert SGE().never(jobs["18.2"])
    assert SGE().found(said(QSTAT.format(running="r")), "job") == ("17.1", "18.2")


QACCT = """==============================================================
qname        all.q
hostname     node1
jobnumber    17
taskid       {task}
failed       {failed}
exit_status  {status}                  (Killed)
ru_wallclock {wallclock}
category     -u ada -l h_rt=5
"""


def test_qacct() -> None:
    def block(task: int, failed: str, status: int, wallclock: str) -> str:
        return QACCT.format(task=task, failed=failed, status=status, wallclock=wallclock)

    text = (
        block(1, "0", 0, "1s") + block(2, "0", 3, "1s") + block(3, "100 : assumedly after job", 137, "5.02s")
    )
    text += block(4, "100 : assumedly after job", 137, "2s") + block(
        5, "26  : opening input/output file", 0, "0s"
    )
    text += block(6, "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", 137, "9") + "=====\njobnum"
    jobs = SGE().ended(said(text))
    assert [jobs[f"17.{task}"].state for task in range(1, 7)] == [
        *("completed", "failed", "timeout", "failed", "failed", "timeout")
    ]
    assert (jobs["17.2"].exit_code, jobs["17.4"].signal, jobs["17.5"].reason) == (
        3,
        9,
        "opening input/output file",
    )
    assert "h_rt=5" in jobs["17.3"].reason


def pbs(jobs: dict[str, Any]) -> Completed:
    return said(json.dumps({"timestamp": 1, "pbs_version": "22.05", "pbs_server": "s", "Jobs": jobs}))


def test_qstat_of_pbs() -> None:
    limit = {"Resource_List": {"walltime": "00:10:00", "ncpus": 1}}
    jobs = PBS().listed(
        pbs(
            {
                "17[].s": {"job_state": "B", "array": "True"},
                "17[0].s": {
                    "job_state": "R",
                    "exec_host": "n1/0*2",
                    "run_count": 2,
                    "comment": "Job run at ...",
                    **limit,
                    "resources_used": {"walltime": "00:01:00"},
                },
                "17[1].s": {
                    "job_state": "Q",
                    "comment": "Not Running: Insufficient amount of resource: ncpus",
                },
                "17[2].s": {"job_state": "X", "Exit_status": 3},
                "17[3].s": {"job_state": "F", "Exit_status": -29, "comment": "Job run at ... and exceeded"},
                "17[4].s": {"job_state": "F", "Exit_status": 271, "exec_host": "(n1/0)+(n1/1)"},
                "17[5].s": {
                    "job_state": "F",
                    "Exit_status": 271,
                    **limit,
                    "resources_used": {"walltime": "00:10:01"},
                },
                "17[6].s": {
                    "job_state": "H",
                    "comment": "Can Never Run: Insufficient amount of resource: mem",
                },
                "17[7].s": {"job_state": "F", "comment": "Not Running"},
                "17[8].s": {"job_state": "F", "Exit_status": -27},
            }
        )
    )
    assert jobs["17[0].s"] == Job(id="17[0].s", state="running", nodes=("n1",), walltime_left=540, restarts=1)
    assert [jobs[f"17[{n}].s"].state for n in range(1, 9)] == [
        *("pending", "failed", "timeout", "cancelled", "timeout", "pending", "cancelled", "out-of-memory")
    ]
    assert (jobs["17[2].s"].exit_code, jobs["17[4].s"].signal, jobs["17[4].s"].nodes) == (3, 15, ("n1",))
    assert PBS().never(jobs["17[6].s"])
    assert not PBS().never(jobs["17[1].s"])
    gone = "qstat: 17[].s Job has finished, use -x or -H to obtain historical job information\n"
    assert PBS().listed(said("", 35, gone + "qstat: Unknown Job Id 99.s\n")) == {}
    assert PBS().ended(said("", 1, "qstat: PBS is not configured to maintain job history")) == {}


def test_nodes_of_pbs_tell_what_never_fits() -> None:
    nodes = {"n1": {"resources_available": {"ncpus": 4, "mem": "8gb", "ngpus": 0}}, "n2": {}}
    answer = said(json.dumps({"nodes": nodes}))
    assert PBS().refusal(answer, request(cores=4, memory=8 * 2**30)) == ""
    assert "ncpus=5" in PBS().refusal(answer, request(cores=5))
    assert "ngpus=1" in PBS().refusal(answer, request(gpus=1))
    assert "mem=" in PBS().refusal(answer, request(memory=9 * 2**30))
    assert PBS().refusal(said("", 1, "pbsnodes: Unauthorized Request"), request(cores=5)) == ""


TORQUE = """<Data><Job><Job_Id>17[0].s</Job_Id><Job_Name>job</Job_Name><job_state>R</job_state>
<exec_host>n1/0+n1/1</exec_host><Resource_List><walltime>00:10:00</walltime></Resource_List></Job>
<Job><Job_Id>17[1].s</Job_Id><Job_Name>job</Job_Name><job_state>C</job_state><exit_status>-11</exit_status></Job>
<Job><Job_Id>17[2].s</Job_Id><Job_Name>job</Job_Name><job_state>C</job_state><exit_status>2</exit_status></Job>
<Job><Job_Id>17[3].s</Job_Id><Job_Name>job</Job_Name><job_state>H</job_state></Job></Data>"""


def test_qstat_of_torque() -> None:
    jobs = Torque().listed(said(TORQUE))
    assert jobs["17[0].s"] == Job(id="17[0].s", state="running", nodes=("n1",), walltime_left=600)
    assert [jobs[f"17[{n}].s"].state for n in range(1, 4)] == ["timeout", "failed", "pending"]
    assert Torque().found(said(TORQUE), "job") == tuple(jobs)
    assert Torque().listed(said("", 153, "qstat: Unknown Job Id Error 17[].s\n")) == {}
    assert Torque().past(("17[0].s",)) is None


FULL = """Job Id: 17.s
    Job_Name = job
    job_state = C
    exec_host = n1/1
    Resource_List.walltime = 00:10:00
    Variable_List = PBS_O_HOME=/home/ada,PBS_O_PATH=/usr/bin:
\t/bin,job_state = R

Job Id:\t18
\tJob_Name = other
\tjob_state = Q
"""


def test_torques_commands_without_arrays_and_xml() -> None:
    torque = Torque(arrays=False)
    jobs = torque.listed(said(FULL))
    assert jobs["17.s"] == Job(
        id="17.s", state="lost", reason="it has ended, and nothing tells how", nodes=("n1",)
    )
    assert jobs["18"] == Job(id="18", state="pending")
    assert torque.found(said(FULL), "job") == ("17.s",)
    assert torque.listed(said("", 153)) == {}
    with pytest.raises(BatchError):
        torque.listed(said("Problem loading jobs.", 0))
    one = request(log="/shared/log")
    call = torque.submit(one, "#!/bin/sh\nsecret\n")
    assert "-t" not in call.argv
    assert torque.log(one, "18") == call.argv[call.argv.index("-o") + 1]


def test_torque_has_no_projects() -> None:
    with pytest.raises(SubmitError, match="would take 'climate' for a user"):
        Torque().submit(request(project="climate"), "")


def lsf(*records: dict[str, str]) -> Completed:
    empty = dict.fromkeys(
        ["JOBINDEX", "JOB_NAME", "EXEC_HOST", "PEND_REASON", "EXIT_CODE", "EXIT_REASON", "KILL_REASON"], ""
    )
    rows = [{**empty, "TIME_LEFT": "-", **record} for record in records]
    return said(json.dumps({"COMMAND": "bjobs", "JOBS": len(rows), "RECORDS": rows}))


def test_bjobs() -> None:
    late = "TERM_RUNLIMIT: job killed after reaching LSF run time limit"
    jobs = LSF().listed(
        lsf(
            {"JOBID": "17", "JOBINDEX": "1", "STAT": "RUN", "EXEC_HOST": "4*n1", "TIME_LEFT": "1:05 L"},
            {"JOBID": "17[2]", "STAT": "PEND", "PEND_REASON": "There are no suitable hosts for the job;"},
            {"JOBID": "17", "JOBINDEX": "3", "STAT": "EXIT", "EXIT_CODE": "3"},
            {"JOBID": "17", "JOBINDEX": "4", "STAT": "EXIT", "EXIT_CODE": "140", "EXIT_REASON": late},
            {
                "JOBID": "17",
                "JOBINDEX": "5",
                "STAT": "EXIT",
                "EXIT_REASON": "TERM_OWNER: job killed by owner",
            },
            {"JOBID": "17", "JOBINDEX": "6", "STAT": "UNKWN", "EXEC_HOST": "n2:n2"},
            {"JOBID": "17", "JOBINDEX": "7", "STAT": "DONE"},
            {"JOBID": "99", "ERROR": "Job <99> is not found"},
        )
    )
    assert jobs["17[1]"] == Job(id="17[1]", state="running", nodes=("n1",), walltime_left=3900)
    assert LSF().never(jobs["17[2]"])
    assert [jobs[f"17[{n}]"].state for n in range(3, 8)] == [
        "failed",
        "timeout",
        "cancelled",
        "running",
        "completed",
    ]
    assert (jobs["17[3]"].exit_code, jobs["17[4]"].signal, jobs["17[4]"].reason) == (3, 12, late)
    assert (jobs["17[6]"].reason, jobs["17[6]"].nodes, jobs["17[7]"].exit_code) == ("UNKWN", ("n2",), 0)
    assert LSF().listed(said("", 255, "Job <17> is not found")) == {}


BHIST = """
Job <17[1]>, Job Name <job[1-3]>, User <ada>, Project <default>, Command <#!/bi
                     n/sh; exit 3>
Sat Nov 21 10:00:00: Submitted from host <login>, to Queue <normal>;
Sat Nov 21 10:00:01: Dispatched 1 Task(s) on Host(s) <n1>, Allocated 1 Slot(s) o
                     n Host(s) <n1>;
Sat Nov 21 10:00:02: Exited with exit code 3. The CPU time used is 0.1 seconds;
Sat Nov 21 10:00:02: Completed <exit>;
------------------------------------------------------------------------------
Job <17[2]>, Job Name <job[1-3]>, User <ada>, Project <default>
Sat Nov 21 10:00:02: Exited; The CPU time used is 0.1 seconds;
Sat Nov 21 10:00:02: Completed <exit>; TERM_RUNLIMIT: job killed after reaching
                      LSF run time limit;
------------------------------------------------------------------------------
Job <17[3]>, Job Name <job[1-3]>, User <ada>, Project <default>
Sat Nov 21 10:00:01: Dispatched 1 Task(s) on Host(s) <n1>;
"""


def test_bhist() -> None:
    jobs = LSF().ended(said(BHIST))
    assert jobs["17[1]"] == Job(id="17[1]", state="failed", nodes=("n1",), exit_code=3)
    assert jobs["17[2]"].state == "timeout"
    assert jobs["17[2]"].reason == "TERM_RUNLIMIT: job killed after reaching LSF run time limit"
    assert "17[3]" not in jobs


def test_condor_q_and_condor_history() -> None:
    def ad(process: int, status: int, **more: object) -> dict[str, object]:
        return {"ClusterId": 17, "ProcId": process, "JobStatus": status, "JobBatchName": "job", **more}

    ads = [
        ad(
            0,
            2,
            RemoteHost="slot1_1@n1",
            NumJobStarts=2,
            AllowedJobDuration=60,
            JobCurrentStartDate=10,
            ServerTime=30,
        ),
        ad(1, 1, NumJobStarts=1, LastRejMatchReason="no match found"),
        ad(2, 5, HoldReason="Failed to open /x", HoldReasonCode=6),
        ad(3, 5, HoldReason="Job exceeded allowed execute duration", HoldReasonCode=47),
        ad(4, 3, RemoveReason="via condor_rm (by user ada)"),
        ad(5, 4, ExitCode=3, ExitBySignal=False, LastRemoteHost="slot1@n2"),
        ad(6, 4, ExitBySignal=True, ExitSignal=9),
        ad(
            7,
            3,
            RemoveReason="PeriodicRemove",
            LastHoldReason="exceeded allowed memory",
            LastHoldReasonCode=34,
        ),
    ]
    jobs = HTCondor().listed(said(json.dumps(ads)))
    assert jobs["17.0"] == Job(id="17.0", state="running", nodes=("n1",), walltime_left=40, restarts=1)
    assert jobs["17.1"] == Job(id="17.1", state="pending", reason="no match found", restarts=1)
    assert HTCondor().never(jobs["17.2"])
    assert [jobs[f"17.{n}"].state for n in range(3, 8)] == [
        *("timeout", "cancelled", "failed", "failed", "out-of-memory")
    ]
    assert (jobs["17.5"].exit_code, jobs["17.5"].nodes, jobs["17.6"].signal) == (3, ("n2",), 9)
    assert jobs["17.7"].reason == "exceeded allowed memory"
    assert set(HTCondor().ended(said(json.dumps(ads)))) == {f"17.{n}" for n in range(3, 8)}
    assert HTCondor().found(said(json.dumps(ads)), "job") == tuple(jobs)
    assert HTCondor().listed(said("")) == {}


def test_oarstat() -> None:
    def record(state: str, *events: str, **more: object) -> dict[str, object]:
        happened = [{"type": event, "description": f"about {event}"} for event in events]
        return {"state": state, "name": "job", "events": happened, "message": "R=1,W=1:0:0", **more}

    records = {
        "1": record("Running", assigned_network_address=["n1", "n1"], walltime=60, startTime=100),
        "2": record("Waiting", message="Cannot find enough resources which fit for the job 2"),
        "3": record("Terminated", exit_code=768),
        "4": record("Error", "SEND_KILL_JOB", "WALLTIME", "SWITCH_INTO_ERROR_STATE"),
        "5": record("Error", "FRAG_JOB_REQUEST", "SWITCH_INTO_ERROR_STATE"),
        "6": record("Error", "BESTEFFORT_KILL", "FRAG_JOB_REQUEST", exit_code=9),
        "7": record("Error", "SOMETHING_NEW"),
        "8": record("Hold"),
    }
    jobs = OAR().listed(said("130\n" + json.dumps(records)))
    assert jobs["1"] == Job(id="1", state="running", nodes=("n1",), walltime_left=30)
    assert OAR().never(jobs["2"])
    states = [jobs[str(number)].state for number in range(3, 9)]
    assert states == ["failed", "timeout", "cancelled", "preempted", "failed", "pending"]
    assert (jobs["3"].exit_code, jobs["4"].reason, jobs["6"].signal) == (3, "WALLTIME: about WALLTIME", 9)
    assert jobs["7"].reason == "SOMETHING_NEW: about SOMETHING_NEW"
    assert OAR().listed(said("130\n")) == {}


# -- torn, empty, errors

DOWN = {
    "slurm": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "sge": "error: commlib error: got select error (Connection refused)",
    "pbs": "Connection refused\nqstat: cannot connect to server s (errno=15010)",
    "torque": "qstat: cannot connect to server s (errno=111) Connection refused",
    "lsf": "Failed in an LSF library call: LIM is down; try later",
    "htcondor": "-- Failed to fetch ads from: <10.0.0.1:9618> : login",
    "oar": "DB connection error, exiting.",
}
TORN = {
    "slurm": "17_0|RUNN",
    "sge": QSTAT[:200],
    "pbs": '{"timestamp": 1, "Jobs": {"17.s": {"job_state"',
    "torque": TORQUE[:200],
    "lsf": '{"COMMAND":"bjobs","JOBS":1,"RECORDS":[{"JOBID"',
    "htcondor": '[{"ClusterId": 17,',
    "oar": '130\n{"17": {"state"',
}
STRANGE = [
    "[]",
    '{"RECORDS": 3}',
    '[{"a": 1}]',
    '{"Jobs": {"1": 2}}',
    '{"RECORDS": [{"JOBID": "1"}]}',
    '[{"ClusterId": 1, "ProcId": 0}]',
    "<Data><Job/></Data>",
    "\x00\xff|||||||||",
    "130\n[3]",
    '130\n{"1": 2}',
]


@pytest.mark.parametrize("system", ALL, ids=NAMES)
def test_a_system_that_is_down_is_no_empty_listing(system: BatchSystem) -> None:
    with pytest.raises(BatchError) as caught:
        system.listed(said("", 1, DOWN[system.name]))
    assert DOWN[system.name].splitlines()[-1] in str(caught.value)


@pytest.mark.parametrize("system", [system for system in ALL if system.name in TORN], ids=list(TORN))
def test_a_torn_answer_is_no_empty_listing(system: BatchSystem) -> None:
    with pytest.raises(BatchError, match="does not say how jobs stand"):
        system.listed(said(TORN[system.name]))


@pytest.mark.parametrize("system", ALL, ids=NAMES)
def test_strange_answers_are_errors_or_nothing(system: BatchSystem) -> None:
    answers: Iterable[Completed] = [said(text) for text in STRANGE]
    for answer in answers:
        for read in (system.listed, system.ended):
            with contextlib.suppress(BatchError):
                assert all(isinstance(job, Job) for job in read(answer).values())


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60), code=st.integers(0, 1))
def test_no_answer_breaks_a_reader(text: str, code: int) -> None:
    for system in ALL:
        for read in (system.listed, system.ended):
            with contextlib.suppress(BatchError):
                read(said(text, code))


def test_what_a_system_says_does_nothing_to_a_terminal() -> None:
    job = Slurm().listed(said("17_0|PENDING|0|0|1:00||job|\x1b[2JRes\x9bources\a|\r\n"))["17_0"]
    assert job.reason.isprintable()
    with pytest.raises(SubmitError) as caught:
        Slurm().submitted(said("", 1, "sbatch: error: \x1b]0;title\a"), request())
    assert caught.value.message.isprintable()


def test_each_system_says_what_it_needs(tmp_path: Path) -> None:
    for system in ALL:
        assert system.programs
        job = SUBMITTED[system.name][1][0]
        assert system.log(request(log=str(tmp_path / "log")), job).startswith(str(tmp_path / "log"))
        assert system.cancel((job,)).argv[-1] == job
