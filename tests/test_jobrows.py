"""How jobs are shown: every one while they are few, counted where they are many, never raw."""

from __future__ import annotations

from envsync.runner.jobrows import JobTable, Row, duration


def row(number: int, state: str = "running", **rest: object) -> Row:
    known = {"reason": "", "node": f"node{number % 7}", "left": 3600.0 + number, "workers": 2}
    if state != "running":
        known |= {"node": "", "left": None, "workers": 0}
    return Row(name=f"job-{number}", id=f"17_{number}", state=state, **{**known, **rest})  # type: ignore[arg-type]


def test_few_jobs_are_a_line_each_and_fit_the_terminal() -> None:
    why = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"
    table = JobTable([row(1), row(2, "pending", reason=why), row(3, "failed", reason="exit status 3")])
    text = table.text(width=80)
    lines = text.splitlines()
    assert lines[0].split() == ["job", "id", "state", "reason", "node", "left", "workers"]
    assert lines[1].split() == ["job-1", "17_1", "running", "node1", "1:00:01", "2"]
    assert max(map(len, lines)) <= 110
    assert all(len(line) <= 80 for line in lines[:-1])
    assert why.split()[-1] in text
    assert lines[-1].startswith("3 jobs: 1 running, 1 pending (Nodes required for job are DOWN")
    assert lines[-1].endswith("1 failed; 2 workers")
    assert table[0].workers == 2
    assert "restarts" not in text
    assert "restarts" in str(JobTable([row(1, restarts=2)]))


def test_a_thousand_are_counted_by_group_state_and_reason() -> None:
    waiting = [row(number, "pending", reason="Priority", group="cpu") for number in range(900)]
    waiting[0] = row(0, "pending", reason="Resources", group="cpu")
    running = [row(number, group="gpu") for number in range(100)]
    table = JobTable([*waiting, *running])
    lines = table.text(width=100).splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["group", "state", "jobs", "reason", "nodes", "left", "workers"]
    assert lines[1].split() == ["cpu", "pending", "899", "Priority", "0"]
    assert lines[3].split()[:3] == ["gpu", "running", "100"]
    assert "node0, node1, node2 and 4 more" in lines[3]
    assert "1:00:00" in lines[3]
    assert lines[5] == "1000 jobs: 100 running, 900 pending (Priority, Resources); 200 workers"
    differing = JobTable(row(number, "failed", reason=f"exit status {number}") for number in range(999))
    assert len(differing.text().splitlines()) < 25
    assert "984 " in differing.text()
    assert "984 other reasons" in differing.text()


def test_as_data_and_in_a_notebook() -> None:
    table = JobTable([row(1, group="cpu"), row(2, "pending", reason="<b>[red]\x1b[31m")])
    first, second = table.to_dicts()
    assert first["left"] == 3601.0
    assert (first["group"], second["state"]) == ("cpu", "pending")
    assert "&lt;b&gt;" in table._repr_html_()
    assert "<b>" not in table._repr_html_()
    assert "\x1b" not in str(table), "a terminal is not told what to do"
    assert "[red]" in str(table)
    assert str(JobTable()) == "no jobs"
    assert JobTable()._repr_html_() == "<p>no jobs</p>"


def test_durations_are_as_batch_systems_write_them() -> None:
    assert [duration(value) for value in (None, 59.9, 14360, 93600)] == [
        "",
        "0:00:59",
        "3:59:20",
        "1-02:00:00",
    ]
