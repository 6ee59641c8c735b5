"""One comparison: what differs, how bad it is, and what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from envsync.plugins.compare import Difference, compare, worst
from envsync.plugins.scan import imported_distributions, scan
from envsync.plugins.survey import repairable


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
    assert live["imported"]
    assert compare(live, copy.deepcopy(live)) == []
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


def test_what_only_envsync_needs_may_be_missing_but_not_be_another() -> None:
    left = report(tools=["pandas", "dask"])
    others = [row for row in report()["distributions"] if row["name"] != "pandas"]
    assert compare(left, report(distributions=others)) == []
    newer = only(left, report(distributions=[*others, one("pandas", "9.9")]))
    assert (newer.severity, newer.kind) == ("error", "version")
    core = [row for row in report()["distributions"] if row["name"] != "dask"]
    assert only(left, report(distributions=core)).severity == "fatal"


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
    assert only(report(who="lock envsync"), older).severity == "error"
    assert only(report(who="client"), older).severity == "note"
    newer = report(platform={"system": "linux", "machine": "x86_64", "libc": ["glibc", "2.40"]})
    assert compare(report(who="lock envsync"), newer) == []


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


SITE = "/env/lib/python3.11/site-packages"


def test_another_build_of_the_same_version_is_a_warning() -> None:
    def built(record: str, tag: str) -> dict[str, Any]:
        return report(distributions=[{**one("pandas", "2.2.3", record), "tags": [tag]}])

    new, old = "cp311-cp311-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_17_x86_64"
    assert only(built("0" * 64, new), built("1" * 64, old)).severity == "warning"
    assert only(built("0" * 64, new), built("1" * 64, new)).severity == "error"


def test_what_another_machine_lacks_may_be_for_this_one_alone_but_for_the_core() -> None:
    arm = {"system": "linux", "machine": "aarch64", "libc": ["glibc", "2.36"]}
    found = {row.subject: row.severity for row in compare(report(), report(platform=arm, distributions=[]))}
    assert found == {"dask": "fatal", "pandas": "warning", "machine": "note"}


def test_a_module_of_a_source_tree_that_was_shipped_is_no_stranger() -> None:
    """A working copy of an installed package, first on the path here: it ships, and comes first there too."""
    digest = "a" * 64
    imported = {"pandas": {"path": f"/cache/trees/{digest}/pandas", "version": "3.0.dev0"}}
    there = report(imported=imported, distributions=report()["distributions"])
    assert [row.kind for row in compare(report(), there)] == ["imported"]
    elsewhere = {"pandas": {"path": f"/cache/trees/{'b' * 64}/pandas"}}
    assert only(report(), report(imported=elsewhere)).kind == "shadowed"


def test_what_is_in_front_on_both_sides_is_no_difference() -> None:
    imported = {"pandas": {"path": "/home/me/pandas/__init__.py", "version": "2.2.3"}}
    assert compare(report(imported=imported), report(imported=imported)) == []


def test_one_package_one_difference() -> None:
    """A package of another version is imported in that version too: that is said once."""
    others = [row for row in report()["distributions"] if row["name"] != "pandas"]
    held = {"pandas": {"path": f"{SITE}/pandas", "version": "2.1.0"}}
    wanted = {"pandas": {"path": f"{SITE}/pandas", "version": "2.2.3"}}
    there = report(distributions=[*others, one("pandas", "2.1.0")], imported=held)
    assert only(report(imported=wanted), there).kind == "version"


@pytest.mark.parametrize(
    ("imported", "severity"),
    [("2.2.3", ""), ("2.2.3+cu121", ""), ("2.02.03", ""), ("2.1.0", "warning")],
)
def test_a_process_that_still_holds_what_was_installed_before(imported: str, severity: str) -> None:
    there = report(imported={"pandas": {"path": f"{SITE}/pandas", "version": imported}})
    assert worst(compare(report(), there)) == severity
    known = report(imported={"pandas": {"path": f"{SITE}/pandas", "version": "2.2.3"}})
    assert worst(compare(known, there)) == ("error" if severity else "")


def test_what_only_the_other_side_has_may_come_from_anywhere() -> None:
    more = [*report()["distributions"], one("extra", "1.0")]
    there = report(distributions=more, imported={"extra": {"path": "/somewhere/extra"}})
    assert only(report(), there).kind == "extra"


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        (["nvidia 550.54.14"], ["nvidia 550.54.14"], None),
        (["nvidia 550.54.14"], ["nvidia 570.86.15"], None),
        (["nvidia 550.54.14"], ["nvidia 535.104.05"], "nvidia 535.104.05"),
        (["nvidia 550.54.14"], [], ""),
        ([], ["nvidia 550.54.14"], None),
    ],
)
def test_drivers(here: list[str], there: list[str], said: str | None) -> None:
    found = compare(report(accelerators=here), report(accelerators=there))
    assert [(row.severity, row.kind, row.right) for row in found] == (
        [] if said is None else [("warning", "driver", said)]
    )


@pytest.mark.parametrize(
    "pair", [("2.5.1+cpu", "2.5.1+cu124"), ("2.5.1+cu121", "2.5.1+cu124"), ("2.5.1", "2.5.1+cpu")]
)
def test_another_build_of_the_same_version_is_no_error_and_is_not_replaced(pair: tuple[str, str]) -> None:
    """Workers with GPUs, and a laptop without: what is laid over them must not be its CPU build."""
    libraries = [one("nvidia-cuda-runtime-cu12", "12.1.105"), one("triton", "3.1.0")]
    left, right = (
        report(distributions=[one("dask", "2026.8.0"), one("torch", version)], who="this environment")
        for version in pair
    )
    left["distributions"] += libraries
    right["distributions"] += [one("nvidia-cuda-runtime-cu12", "12.4.127")]
    found = compare(left, right)
    assert [(row.severity, row.subject) for row in found] == [
        ("warning", "torch"),
        ("note", "nvidia-cuda-runtime-cu12"),
        ("note", "triton"),
    ]
    assert repairable([row.to_dict() for row in found]) == (set(), [])
    # what was made from a lock has what is locked, and another version is another version
    assert {row.severity for row in compare({**left, "who": "lock mine"}, right)} == {"error"}
    right["distributions"][1] = one("torch", "2.6.0+cu124")
    assert [row.severity for row in compare(left, right)] == ["error"] * 3
    right["distributions"][1] = one("torch", "2.5.1+ours")
    assert [row.severity for row in compare(left, right)] == ["error"] * 3


def test_reports_that_say_little() -> None:
    little: dict[str, Any] = {"interpreter": {"version": "3.11.7"}, "platform": {}, "distributions": []}
    assert compare({"interpreter": {}, "platform": None}, report()) == []
    assert compare(report(), {"interpreter": {}, "imported": {"pandas": {"path": "/x"}}}) == []
    assert {row.kind for row in compare(little, report())} == {"extra"}


def test_every_difference_that_matters_says_what_to_do() -> None:
    right = report(
        interpreter={"implementation": "cpython", "version": "3.12.1"},
        platform={"system": "linux", "machine": "x86_64", "libc": ["musl", "1.2"]},
        distributions=[one("dask", "1.0"), one("pandas", "2.2.3", "1" * 64)],
        imported={"pandas": {"path": "/home/me/pandas.py"}},
        trees={"mine": "b" * 64},
        accelerators=[],
    )
    found = compare(report(accelerators=["nvidia 550.54.14"]), right)
    assert {row.kind for row in found} == {
        "python", "platform", "version", "content", "shadowed", "source", "driver",
    }  # fmt: skip
    assert all(row.advice and row.left for row in found if row.severity != "note")
    assert found == compare(report(accelerators=["nvidia 550.54.14"]), copy.deepcopy(right))


def test_what_a_scheduler_has_merely_imported_is_a_warning() -> None:
    wanted = {"distributions": [one("numpy", "2.4.6")]}
    there = {
        "distributions": [{**one("numpy", "2.4.6"), "location": "/over/site-packages/numpy.dist-info"}],
        "imported": {
            "numpy": {"version": "2.3.0", "path": "/env/lib/python3.11/site-packages/numpy/__init__.py"}
        },
    }
    (worker,) = compare(wanted, there, process="worker 0")
    (scheduler,) = compare(wanted, there, process="scheduler")
    assert (worker.severity, worker.kind, worker.left, worker.right) == (
        "error",
        "imported",
        "2.4.6",
        "2.3.0",
    )
    assert "restart" in worker.advice
    assert scheduler.severity == "warning"
    core = {"distributions": [one("dask", "2")], "imported": {}}
    other = {**core, "imported": {"dask": {"version": "1", "path": "/x/site-packages/dask/__init__.py"}}}
    assert compare(core, other, process="scheduler")[0].severity == "fatal"
