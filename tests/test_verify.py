"""Comparing the processes of running clusters, whoever started them, with what is wanted."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
from distributed import Client, LocalCluster, Security

from envsync.errors import MismatchError
from envsync.plugins.compare import CORE, Difference
from envsync.plugins.look import look
from envsync.runner.verification import Checked, Verification
from envsync.runner.verifying import verify, verify_async
from envsync.uv import find_uv


def difference(process: str, subject: str = "pandas", severity: str = "error", **more: Any) -> Difference:
    values = {"kind": "version", "left": "2.2.3", "right": "2.1.0", "advice": "envsync push it again"}
    return Difference(severity=severity, subject=subject, process=process, **{**values, **more})


def workers(number: int, *found: str) -> list[Checked]:
    return [
        Checked(
            kind="worker",
            process=f"worker {index}",
            differences=tuple(difference(f"worker {index}", one, where=f"node{index}") for one in found),
        )
        for index in range(number)
    ]


SCHEDULER = Checked(kind="scheduler", process="scheduler")


def test_equal_is_one_sentence() -> None:
    assert str(Verification(processes=(SCHEDULER, *workers(2)))) == "1 scheduler and 2 workers: all as wanted"


def test_identical_differences_of_many_workers_are_one_row() -> None:
    verification = Verification(processes=(SCHEDULER, *workers(8, "pandas")))
    assert not verification.ok
    [row] = verification.rows()
    assert (row.severity, row.place, row.subject) == ("error", "8 of 8 workers", "pandas")
    assert (row.left, row.right, row.advice) == ("2.2.3", "2.1.0", "envsync push it again")
    lines = str(verification).splitlines()
    head = next(line for line in lines if line.split() == ["wanted", "there"])
    [found] = [line for line in lines if "pandas" in line]
    assert found.startswith("error")
    assert "2.1.0" in found
    assert head.index("there") == found.index("2.1.0")
    assert "in 8 of 8 workers" in str(verification)
    assert lines[-2:] == ["1 difference: 1 error", "1 scheduler and 8 workers: not as wanted"]
    assert repr(verification) == str(verification)


def test_few_workers_are_named_with_their_hosts() -> None:
    mixed = (SCHEDULER, *workers(2, "pandas"), *workers(6))
    [row] = Verification(processes=mixed).rows()
    assert row.place == "worker 0 on node0, worker 1 on node1"


def test_worst_first_and_notes_are_no_fault() -> None:
    one = Checked(
        kind="worker",
        process="worker 0",
        differences=(difference("worker 0", "zlib", "note"), difference("worker 0", "dask", "fatal")),
    )
    assert [row.severity for row in Verification(processes=(one,)).rows()] == ["fatal", "note"]
    noted = Checked(kind="worker", process="worker 0", differences=one.differences[:1])
    assert Verification(processes=(noted,)).ok
    assert Verification(processes=(noted,)).summary() == "1 worker: usable"


def test_a_process_that_could_not_be_looked_at_is_a_fault() -> None:
    silent = Checked(kind="worker", process="worker 0", trouble="OSError: no route")
    verification = Verification(processes=(silent,))
    assert not verification.ok
    assert "OSError: no route" in str(verification)


def test_forms() -> None:
    verification = Verification(processes=(SCHEDULER, *workers(1, "<b>")), wanted="lock")
    assert "&lt;b&gt;" in verification._repr_html_()
    assert "<b>" not in verification._repr_html_()
    two = Checked(
        kind="worker",
        process="worker 0",
        differences=(difference("worker 0", "numpy", "error"), difference("worker 0", "pandas", "error")),
    )
    shown = Verification(processes=(two,))._repr_html_()
    assert shown.count("rowspan='2'") == 2  # where, and what to do about both, stands there once
    assert "pandas" in shown
    data = verification.to_dict()
    assert data["ok"] is False
    assert data["processes"][1]["differences"][0]["subject"] == "<b>"
    assert verification.differences[0].where == "node0"


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """What this environment is, without what this process has imported."""
    report = look("wanted")
    report.pop("imported")
    return report


@pytest.mark.slow
async def test_a_cluster_that_we_did_not_start(own: dict[str, Any]) -> None:
    async with (
        LocalCluster(n_workers=2, threads_per_worker=1, asynchronous=True, dashboard_address=":0") as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        for target in (cluster, client):
            verification = await verify_async(target, wanted=own)
            assert verification.ok, str(verification)
            assert [one.kind for one in verification.processes] == ["scheduler", "worker", "worker", "client"]

        # without anything to compare with, it is this process's environment
        assert (await cast(Any, verify(client))).ok
        more = {**own, "distributions": [*own["distributions"], {"name": "numpy", "version": "2.0"}]}
        with pytest.raises(MismatchError, match="numpy") as caught:
            await verify_async(client, wanted=more)
        assert {one.process for one in caught.value.differences if one.subject == "numpy"} == {
            "scheduler",
            "worker 0",
            "worker 1",
            "client",
        }
        with pytest.warns(UserWarning, match="numpy"):
            await verify_async(client, wanted=more, on_mismatch="warn")
        with pytest.raises(ValueError, match="on_mismatch"):
            await verify_async(client, on_mismatch="perhaps")

        # another Python could not even load what looks
        other = {**own, "interpreter": {**own["interpreter"], "version": "3.9.1"}}
        verification = await verify_async(client, wanted=other, on_mismatch="ignore")
        fatal = [
            one for one in verification.differences if one.severity == "fatal" and one.process != "client"
        ]
        assert {(one.kind, one.left) for one in fatal} == {("python", "3.9.1")}


@pytest.mark.slow
def test_by_address_with_certificates(own: dict[str, Any]) -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, security=True, dashboard_address=":0", processes=True
    ) as cluster:
        assert isinstance(cluster.security, Security)
        verification = verify(cluster.scheduler_address, security=cluster.security, wanted=own)
        assert verification.ok, str(verification)
        with Client(cluster) as client:
            assert verify(client, wanted=own).ok


@contextmanager
def scheduler(prefix: Path, *arguments: str) -> Iterator[str]:
    """Run a scheduler of another environment, as somebody would by hand."""
    file = prefix / "scheduler.json"
    command = [str(prefix / "bin/dask"), "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    process = subprocess.Popen(
        [*command, "--scheduler-file", str(file), *arguments], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        address = ""
        while not address:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
            with contextlib.suppress(OSError, ValueError):  # it is not there, or not yet written to its end
                address = json.loads(file.read_text())["address"]
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_scheduler_that_lacks_what_the_client_has(tmp_path: Path, own: dict[str, Any]) -> None:
    prefix, uv = tmp_path / "other", str(find_uv())
    pins = [f"{name}=={version(name)}" for name in sorted(CORE)]
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(prefix)], check=True)
    subprocess.run([uv, "pip", "install", "-q", "-p", str(prefix), *pins, "partd==1.4.1"], check=True)
    with scheduler(prefix) as address:
        found = verify(address, wanted=own, on_mismatch="ignore")
        assert not found.ok
        rows = {row.subject: row for row in found.rows()}
        assert rows["pytest"].severity == rows["partd"].severity == "error"
        assert rows["pytest"].place == f"scheduler on {found.processes[0].differences[0].where}"
        assert (rows["pytest"].left, rows["pytest"].right) == (version("pytest"), "-")
        assert (rows["partd"].left, rows["partd"].right) == (version("partd"), "1.4.1")
        assert "dask" not in rows
        # This process has all that envsync needs, which no task does.
        found = verify(address, on_mismatch="ignore")
        rows = {row.subject: row for row in found.rows()}
        assert not {"asyncssh", "uv"} & rows.keys()
        assert rows["pytest"].severity == "error"
