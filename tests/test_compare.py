"""One comparison: what differs, how bad it is, and what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from envsync.plugins.compare import Difference, compare, worst
from envsync.plugins.scan import imported_distributions, scan


def report(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "interpreter": {"implementation": "cpython", "version": "3.11.7"},
        "platform": {"system": "linux", "machine": "x86_64", "libc": ["glibc", "2.36"]},
        "distributions": [
            one("dask", "2026.8.0"),
            one("pandas", "2.2.3"),
            one("mine", "1.0", editable="pth"),
        ],
        "trees": {"mine": "a" * 64},
    }
    made.update(changes)
    return made


def one(name: str, version: str, record: str | None = "0" * 64, editable: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "location": f"/env/lib/python3.11/site-packages/{name}-{version}.dist-info",
        "record": record,
        "editable": editable,
        "shadowed_by": "",
    }


def only(left: dict[str, Any], right: dict[str, Any]) -> Difference:
    (difference,) = compare(left, right, where="node1", process="worker-0")
    assert (difference.where, difference.process) == ("node1", "worker-0")
    assert Difference.from_dict(difference.to_dict()) == difference
    return difference


def test_an_environment_equals_itself() -> None:
    live: dict[str, Any] = dict(scan())
    live["imported"] = imported_distributions(live)
    assert [row for row in compare(live, copy.deepcopy(live)) if row.severity != "note"] == []
    assert compare(report(), report()) == []


@pytest.mark.parametrize(
    ("there", "severity"), [("3.12.0", "fatal"), ("3.11.2", "note"), ("2.7.18", "fatal")]
)
def test_python(there: str, severity: str) -> None:
    found = only(report(), report(interpreter={"implementation": "cpython", "version": there}))
    assert (found.severity, found.kind, found.left, found.right) == (severity, "python", "3.11.7", there)


def test_another_implementation_is_fatal() -> None:
    found = only(report(), report(interpreter={"implementation": "pypy", "version": "3.11.7"}))
    assert found.severity == "fatal"


@pytest.mark.parametrize(("name", "severity"), [("dask", "fatal"), ("pandas", "error")])
def test_another_version_and_a_missing_one(name: str, severity: str) -> None:
    others = [row for row in report()["distributions"] if row["name"] != name]
    newer = only(report(), report(distributions=[*others, one(name, "9.9")]))
    assert (newer.severity, newer.kind, newer.subject, newer.right) == (severity, "version", name, "9.9")
    gone = only(report(), report(distributions=others))
    assert (gone.severity, gone.kind, gone.right) == (severity, "missing", "")
    assert gone.advice


def test_same_version_other_files() -> None:
    others = [row for row in report()["distributions"] if row["name"] != "pandas"]
    found = only(report(), report(distributions=[*others, one("pandas", "2.2.3", record="1" * 64)]))
    assert (found.severity, found.kind) == ("error", "content")


def test_spellings_of_one_version_are_one_version() -> None:
    left = report(distributions=[one("pandas", "2.2.0"), one("torch", "2.1.0+cpu")])
    right = report(distributions=[one("pandas", "2.2"), one("torch", "2.1+cpu")])
    assert compare(left, right) == []


def test_what_is_only_there_is_a_note() -> None:
    found = only(report(), report(distributions=[*report()["distributions"], one("pip", "25.0")]))
    assert (found.severity, found.kind, found.left) == ("note", "extra", "")


def test_stale_and_missing_source() -> None:
    stale = only(report(), report(trees={"mine": "b" * 64}))
    assert (stale.severity, stale.kind, stale.subject) == ("error", "source", "mine")
    assert only(report(), report(trees={})).severity == "error"


def test_a_side_that_does_not_know_is_not_compared() -> None:
    left = {"interpreter": report()["interpreter"]}
    assert compare(left, report()) == []
    assert compare(report(), left) == []


def test_a_shadowed_import_is_an_error_with_its_path() -> None:
    imported = {"pandas": {"path": "/home/me/pandas.py"}}
    found = only(report(), report(imported=imported))
    assert (found.severity, found.kind, found.right) == ("error", "shadowed", "/home/me/pandas.py")
    at_home = {"pandas": {"path": "/env/lib/python3.11/site-packages/pandas"}}
    assert compare(report(), report(imported=at_home)) == []


def test_what_is_imported_counts_not_what_is_installed() -> None:
    old = {"dask": {"path": "/env/lib/python3.11/site-packages/dask", "version": "2025.1.0"}}
    found = only(report(), report(imported=old))
    assert (found.severity, found.kind, found.left, found.right) == (
        "fatal",
        "imported",
        "2026.8.0",
        "2025.1.0",
    )


def test_an_older_libc_than_a_lock_is_an_error_than_a_client_a_note() -> None:
    older = report(platform={"system": "linux", "machine": "x86_64", "libc": ["glibc", "2.17"]})
    assert only(report(who="lock"), older).severity == "error"
    assert only(report(who="client"), older).severity == "note"
    newer = report(platform={"system": "linux", "machine": "x86_64", "libc": ["glibc", "2.40"]})
    assert compare(report(who="lock"), newer) == []


def test_on_another_machine_wheels_may_differ_and_versions_may_not() -> None:
    arm = {"system": "linux", "machine": "aarch64", "libc": ["glibc", "2.36"]}
    others = [row for row in report()["distributions"] if row["name"] != "pandas"]
    same = compare(report(), report(platform=arm, distributions=[*others, one("pandas", "2.2.3", "1" * 64)]))
    assert worst(same) == "note"
    other = compare(report(), report(platform=arm, distributions=[*others, one("pandas", "2.2.2")]))
    assert worst(other) == "error"


def test_the_worst_comes_first_and_shadowed_ones_do_not_count() -> None:
    hidden = {**one("pandas", "1.0"), "shadowed_by": "/elsewhere"}
    right = report(
        distributions=[one("dask", "1.0"), one("pandas", "2.2.2"), hidden, one("extra", "1")],
    )
    severities = [row.severity for row in compare(report(), right)]
    assert severities == ["fatal", "error", "note"]
    assert worst([]) == ""
