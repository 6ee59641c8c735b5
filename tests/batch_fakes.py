"""Stand-ins for PBS and LSF, whose servers cannot be had: programs that answer in the documented forms.

They run job scripts for real, as processes of this machine, on nodes that are only numbers. The contract
suite, which real systems pass as well, keeps them honest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

PROGRAMS = ("qsub", "qstat", "qdel", "pbsnodes", "bsub", "bjobs", "bkill", "bhist")
CORES = 4
"""What each of the two nodes has."""


class Fake:
    """A folder with the programs and their state; `close` ends what runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "jobs").mkdir()
        text = f"#!{sys.executable} -IS\n{_PROGRAM.replace('@FOLDER@', str(folder))}"
        for program in PROGRAMS:
            (folder / "bin" / program).write_text(text)
            (folder / "bin" / program).chmod(0o755)
        self.environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}"}

    def forget(self) -> None:
        """Show no longer in listings what has ended, as systems do after a while."""
        (self.folder / "clean").touch()

    def close(self) -> None:
        """End all jobs."""
        for path in self.folder.glob("jobs/*.json"):
            path.with_suffix(".kill").touch()
        deadline = time.monotonic() + 60
        while (running := list(self.folder.glob("jobs/*.runner"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        for path in running:
            with contextlib.suppress(ProcessLookupError, ValueError, FileNotFoundError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        assert not running, f"these jobs did not end: {running}"


_PROGRAM = r'''
import fcntl, json, os, re, signal, sys, time
from pathlib import Path

FOLDER, CORES, NODES = Path("@FOLDER@"), 4, ("node1", "node2")
JOBS, PROGRAM = FOLDER / "jobs", Path(sys.argv[0]).name
QUEUES = ("", "normal", "workq")


def fail(text, code):
    sys.stderr.write(text + "\n")
    raise SystemExit(code)


def locked():
    file = open(FOLDER / "lock", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def save(job):
    path = JOBS / f"{job['number']}.{job['index']}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(job))
    part.rename(path)


def jobs():
    found = [json.loads(path.read_text()) for path in JOBS.glob("*.json")]
    return sorted(found, key=lambda job: (job["number"], job["index"]))


def options(spec, argv):
    """Read options with values (spec) and without; the rest are operands."""
    found, rest, left = {}, [], list(argv)
    while left:
        word = left.pop(0)
        if word.startswith("-") and word[1:] in spec:
            found.setdefault(word[1:], []).append(left.pop(0))
        elif word.startswith("-") and len(word) > 1:
            found.setdefault(word[1:], []).append("")
        else:
            rest.append(word)
    return found, rest


def accept(request, indexes):
    log = request["log"]
    with locked():
        number = 1 + max([job["number"] for job in jobs()], default=16)
        script = FOLDER / f"{number}.script"
        script.write_bytes(sys.stdin.buffer.read())
        for index in indexes:
            named = re.sub(r"\^array_index\^|%I", str(index), log)
            save({**request, "log": named, "number": number, "index": index, "count": len(indexes),
                  "state": "waiting", "script": str(script), "node": "", "start": 0, "stop": 0, "status": None,
                  "term": "", "why": ""})
    for index in indexes:
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            run(number, index)
            os._exit(0)
    return number


def run(number, index):
    path = JOBS / f"{number}.{index}.json"
    job, kill = json.loads(path.read_text()), path.with_suffix(".kill")
    pid = path.with_suffix(".runner")
    pid.write_text(str(os.getpid()))
    try:
        while job["state"] == "waiting":
            with locked():
                if kill.exists():
                    job.update(state="ended", term="owner", stop=time.time())
                else:
                    place(job)
                save(job)
            time.sleep(0.1)
        if job["state"] == "running":
            work(job, kill)
    finally:
        pid.unlink()


def place(job):
    used = {node: 0 for node in NODES}
    for other in jobs():
        if other["state"] == "running":
            used[other["node"]] += other["cores"]
    free = [node for node in NODES if used[node] + job["cores"] <= CORES and job["gpus"] <= 2]
    if free:
        job.update(state="running", node=free[0], start=time.time())
    else:
        job["why"] = "never" if job["cores"] > CORES or job["gpus"] > 2 else "busy"


def work(job, kill):
    import subprocess  # which takes a sixth of what an answer takes
    scratch = FOLDER / f"scratch-{job['number']}-{job['index']}"
    scratch.mkdir()
    environment = {**os.environ, **variables(job), "TMPDIR": str(scratch)}
    shell = Path(job["script"]).read_text().split("\n")[0][2:].split()
    with open(job["log"], "ab") as log:
        child = subprocess.Popen([*shell, job["script"]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 cwd=job["folder"], env=environment, start_new_session=True)
    while child.poll() is None:
        late = job["walltime"] and time.time() - job["start"] > job["walltime"]
        if late or kill.exists():
            job["term"] = "walltime" if late else "owner"
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(child.pid, number)
                    child.wait(1)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass
        time.sleep(0.05)
    with locked():
        job.update(state="ended", status=child.returncode, stop=time.time())
        save(job)


# -- PBS


def variables(job):
    if job["system"] == "lsf":
        return {"LSB_JOBID": str(job["number"]), "LSB_JOBINDEX": str(job["index"]), "LSB_HOSTS": job["node"]}
    extra = {"PBS_ARRAY_INDEX": str(job["index"])} if job["count"] > 1 else {}
    return {"PBS_JOBID": pbs_id(job), **extra}


def pbs_id(job):
    return f"{job['number']}[{job['index']}].fake" if job["count"] > 1 else f"{job['number']}.fake"


def qsub(argv):
    found, _ = options("N j r J o S l q A P W v".split(), argv)
    queue = found.get("q", [""])[0]
    if queue not in QUEUES:
        fail("qsub: Unknown queue", 170)
    asked = dict(re.findall(r"(\w+)=([^:,]+)", ":".join(part for part in found["l"] if "walltime" not in part)))
    times = [part.split("=")[1].split(":") for part in found["l"] if part.startswith("walltime=")]
    indexes, array = [0], "J" in found
    if array:
        low, high = map(int, found["J"][0].split("-"))
        if high <= low:
            fail("qsub: illegal -J value", 1)
        indexes = range(low, high + 1)
    request = {"system": "pbs", "name": found["N"][0], "cores": int(asked.get("ncpus", 1)),
               "gpus": int(asked.get("ngpus", 0)), "folder": os.environ["HOME"], "log": found["o"][0],
               "walltime": sum(int(part) * unit for part, unit in zip(times[0], (3600, 60, 1))) if times else 0}
    number = accept(request, list(indexes))
    print(f"{number}[].fake" if array else f"{number}.fake")


def pbs_job(job, whole):
    comments = {"busy": "Not Running: Insufficient amount of resource: ncpus",
                "never": f"Can Never Run: Insufficient amount of resource: ncpus (R: {job['cores']} A: 4 T: 4)"}
    took = int((job["stop"] or time.time()) - job["start"]) if job["start"] else 0
    seen = {"Job_Name": job["name"], "Job_Owner": "ada@fake", "queue": "workq", "server": "fake", "run_count": 1,
            "job_state": {"waiting": "Q", "running": "R", "ended": "F" if whole else "X"}[job["state"]],
            "comment": comments.get(job["why"], ""), "Resource_List": {"ncpus": job["cores"]},
            "Variable_List": {"PBS_O_HOME": "/home/ada", "PBS_O_WORKDIR": "/home/ada"}}
    if job["walltime"]:
        hours, rest = divmod(int(job["walltime"]), 3600)
        seen["Resource_List"]["walltime"] = f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
    if job["node"]:
        seen["exec_host"] = f"{job['node']}/0*{job['cores']}"
        seen["resources_used"] = {"cpupercent": 0, "walltime": f"00:{took // 60:02d}:{took % 60:02d}"}
        seen["comment"] = "Job run at Sat Nov 21 at 10:00 on (" + job["node"] + ":ncpus=1)"
    if job["state"] == "ended" and job["status"] is not None:
        status = job["status"] if job["status"] >= 0 else 256 - job["status"]
        seen["Exit_status"] = -29 if job["term"] == "walltime" else status
    return seen


def qstat(argv):
    found, operands = options(["F"], argv)
    known, shown, code = jobs(), {}, 0
    numbers = dict.fromkeys(job["number"] for job in known)
    for operand in operands or [f"{number}.fake" for number in numbers]:
        mine = [job for job in known if str(job["number"]) == re.split(r"[\[.]", operand)[0]]
        over = all(job["state"] == "ended" for job in mine)
        if not mine:
            sys.stderr.write(f"qstat: Unknown Job Id {operand}\n")
            code = 153
        elif over and "x" not in found:
            if operands:
                code = 35
                sys.stderr.write(f"qstat: {operand} Job has finished, use -x or -H to obtain historical "
                                 "job information\n")
        else:
            if mine[0]["count"] > 1:
                shown[f"{mine[0]['number']}[].fake"] = {"Job_Name": mine[0]["name"], "array": "True",
                                                        "job_state": "F" if over else "B"}
            shown.update((pbs_id(job), pbs_job(job, over)) for job in mine)
    if shown or not code:
        head = {"timestamp": int(time.time()), "pbs_version": "22.05.11", "pbs_server": "fake"}
        print(json.dumps({**head, **({"Jobs": shown} if shown else {})}, indent=4))
    raise SystemExit(code)


def qdel(argv):
    code = 0
    for operand in argv:
        number, index = re.match(r"(\d+)(?:\[(\d*)\])?", operand).groups()
        mine = [job for job in jobs() if job["number"] == int(number) and index in (None, "", str(job["index"]))]
        if not mine:
            sys.stderr.write(f"qdel: Unknown Job Id {operand}\n")
            code = 153
        for job in mine:
            if job["state"] == "ended":
                sys.stderr.write(f"qdel: Job has finished {operand}\n")
                code = 35
            else:
                (JOBS / f"{job['number']}.{job['index']}.kill").touch()
    raise SystemExit(code)


def pbsnodes(argv):
    has = {"resources_available": {"arch": "linux", "ncpus": CORES, "mem": "8000000kb", "ngpus": 2}}
    print(json.dumps({"timestamp": int(time.time()), "nodes": {node: {"state": "free", **has} for node in NODES}}))


# -- LSF


def bsub(argv):
    found, _ = options("J oo cwd n R M W gpu q P G".split(), argv)
    queue = found.get("q", [""])[0]
    if queue not in QUEUES:
        fail(f"{queue}: No such queue. Job not submitted.", 255)
    name, low, high = re.fullmatch(r"(.*)\[(\d+)-(\d+)\]", found["J"][0]).groups()
    gpus = re.search(r"num=(\d+)", found.get("gpu", ["num=0"])[0])
    request = {"system": "lsf", "name": name, "cores": int(found["n"][0]), "gpus": int(gpus[1]),
               "folder": found["cwd"][0], "log": found["oo"][0], "walltime": 60 * int(found.get("W", ["0"])[0])}
    number = accept(request, list(range(int(low), int(high) + 1)))
    print(f"Job <{number}> is submitted to {'queue' if queue else 'default queue'} <normal>.")


REASONS = {"busy": "Job slot limit reached: 2 hosts;", "never": "There are no suitable hosts for the job;"}
TERMS = {"owner": "TERM_OWNER: job killed by owner",
         "walltime": "TERM_RUNLIMIT: job killed after reaching LSF run time limit"}


def lsf_code(job):
    status = job["status"]
    return "" if not status else str(status if status > 0 else 128 - status)


def bjobs(argv):
    found, operands = options(["o", "J"], argv)
    known, records = jobs(), []
    if (FOLDER / "clean").exists():
        known = [job for job in known if job["state"] != "ended"]
    if "J" in found:
        known = [job for job in known if job["name"] == found["J"][0]]
    mine = [job for job in known if not operands or str(job["number"]) in operands]
    for job in mine:
        good = job["status"] == 0 and not job["term"]
        stat = {"waiting": "PEND", "running": "RUN", "ended": "DONE" if good else "EXIT"}[job["state"]]
        left = int(job["walltime"] - (time.time() - job["start"])) if job["walltime"] else 0
        seen = {"JOBID": str(job["number"]), "JOBINDEX": str(job["index"]), "STAT": stat,
                "JOB_NAME": f"{job['name']}[{job['index']}]",
                "EXEC_HOST": f"{job['cores']}*{job['node']}" if job["node"] and job["cores"] > 1 else job["node"],
                "PEND_REASON": REASONS.get(job["why"], "New job is waiting for scheduling;") if stat == "PEND" else "",
                "EXIT_CODE": lsf_code(job), "EXIT_REASON": TERMS.get(job["term"], ""), "KILL_REASON": "",
                "TIME_LEFT": f"{left // 3600}:{left // 60 % 60} L" if stat == "RUN" and job["walltime"] else "-"}
        records.append(seen)
    for operand in operands:
        if operand not in [str(job["number"]) for job in mine]:
            records.append({"JOBID": operand, "ERROR": f"Job <{operand}> is not found"})
    if "J" in found and not records:
        fail(f"Job <{found['J'][0]}> is not found", 255)
    print(json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}, indent=2))


def bkill(argv):
    for operand in argv:
        number, index = re.match(r"(\d+)(?:\[(\d+)\])?", operand).groups()
        mine = [job for job in jobs() if job["number"] == int(number) and index in (None, str(job["index"]))]
        if not mine:
            fail(f"Job <{operand}>: No matching job found", 255)
        for job in mine:
            if job["state"] == "ended":
                fail(f"Job <{operand}>: Job has already finished", 255)
            (JOBS / f"{job['number']}.{job['index']}.kill").touch()
            print(f"Job <{operand}> is being terminated")


def folded(text):
    lines = [text[:80]]
    text = text[80:]
    while text:
        lines.append(" " * 21 + text[:59])
        text = text[59:]
    return "\n".join(lines)


def bhist(argv):
    operands = [word for word in argv if not word.startswith("-")]
    for job in jobs():
        if f"{job['number']}[{job['index']}]" in operands:
            when = "Sat Nov 21 10:00:00"
            print(folded(f"Job <{job['number']}[{job['index']}]>, Job Name <{job['name']}[1-{job['count']}]>, "
                         f"User <ada>, Project <default>, Command <#!/bin/sh; exit>"))
            print(folded(f"{when}: Submitted from host <login>, to Queue <normal>, CWD <$HOME>;"))
            if job["node"]:
                print(folded(f"{when}: Dispatched 1 Task(s) on Host(s) <{job['node']}>, Allocated 1 Slot(s);"))
            if job["state"] == "ended" and job["status"] == 0:
                print(folded(f"{when}: Done successfully. The CPU time used is 0.1 seconds;"))
            elif job["state"] == "ended":
                how = f"Exited with exit code {lsf_code(job)}" if job["status"] else "Exited"
                term = f"; {TERMS[job['term']]}" if job["term"] else ""
                print(folded(f"{when}: {how}. The CPU time used is 0.1 seconds;"))
                print(folded(f"{when}: Completed <exit>{term};"))
            print("-" * 78)


{"qsub": qsub, "qstat": qstat, "qdel": qdel, "pbsnodes": pbsnodes,
 "bsub": bsub, "bjobs": bjobs, "bkill": bkill, "bhist": bhist}[PROGRAM](sys.argv[1:])
'''  # noqa: E501
