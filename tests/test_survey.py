"""What a process lacks, and what of it can be laid over it."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from envsync import plugins
from envsync.plugins.compare import CORE, compare
from envsync.plugins.look import look
from envsync.plugins.sources import covered_here
from envsync.plugins.survey import repairable, survey, target_of_process
from envsync.target import Target
from tests.overlays import run_python


def difference(kind: str, subject: str, severity: str = "error", left: str = "1") -> dict[str, str]:
    return {"kind": kind, "subject": subject, "severity": severity, "left": left, "right": ""}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return look()


def distribution(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in report["distributions"] if one["name"] == name)
    return found


def test_a_process_equals_itself(report: dict[str, Any]) -> None:
    found = survey(report, "this")
    assert [one for one in found["differences"] if one["severity"] in ("fatal", "error")] == []
    assert (found["target"], found["prefix"], found["pid"]) == (target_of_process(), sys.prefix, os.getpid())
    assert found["imported"]["pytest"] == pytest.__version__
    assert json.loads(json.dumps(found)) == found


def test_what_differs_is_told_and_can_be_mended(report: dict[str, Any]) -> None:
    wanted = copy.deepcopy(report)
    distribution(wanted, "pytest")["version"] = "99.0"
    distribution(wanted, "click")["record"] = "0" * 64
    distribution(wanted, "tornado")["version"] = "99.0"
    wanted["distributions"].append({**distribution(report, "click"), "name": "absent", "location": "/x"})
    found = survey(wanted, "worker 1")["differences"]
    assert {one["process"] for one in found} == {"worker 1"}
    names, rest = repairable(found)
    assert names == {"pytest", "click", "absent"}
    assert [(one["kind"], one["subject"]) for one in rest] == [("version", "tornado")]


def test_the_same_version_with_other_contents_is_kind_content(report: dict[str, Any]) -> None:
    """Also where a wheel was built again under another build tag; other tags are another build, by right."""
    for tags, severity, names in (([], "error", {"click"}), (["cp39-abi3-elsewhere"], "warning", set())):
        wanted = copy.deepcopy(report)
        click = distribution(wanted, "click")
        click.update(record="0" * 64, tags=tags or click["tags"])
        (found,) = (one for one in compare(wanted, report) if one.subject == "click")
        assert (found.kind, found.severity) == ("content", severity)
        assert repairable([found.to_dict()]) == (names, [])


@pytest.mark.parametrize("name", sorted(CORE))
@pytest.mark.parametrize("kind", ["version", "content", "missing", "shadowed", "imported"])
def test_core_packages_are_not_laid_over(kind: str, name: str) -> None:
    one = difference(kind, name, "fatal")
    assert repairable([one]) == (set(), [one])


@pytest.mark.parametrize(
    ("one", "names", "rest"),
    [
        (difference("version", "numpy"), {"numpy"}, 0),
        (difference("content", "numpy"), {"numpy"}, 0),
        (difference("content", "numpy", "warning"), set(), 0),
        (difference("missing", "numpy"), {"numpy"}, 0),
        (difference("missing", "numpy", "warning"), {"numpy"}, 0),  # on another kind of machine
        (difference("missing", "mine", "warning", "1.0 (local code)"), set(), 0),
        (difference("shadowed", "numpy"), {"numpy"}, 0),
        (difference("source", "mine"), set(), 0),
        (difference("imported", "numpy"), set(), 0),
        (difference("extra", "numpy", "note"), set(), 0),
        (difference("python", "python", "fatal"), set(), 1),
        (difference("python", "python", "warning"), set(), 0),
        (difference("platform", "libc", "error"), set(), 1),
        (difference("driver", "nvidia", "warning"), set(), 0),
    ],
)
def test_what_can_be_mended(one: dict[str, str], names: set[str], rest: int) -> None:
    assert repairable([one]) == (names, [one] * rest)


def test_the_target_is_that_of_the_wheels(report: dict[str, Any]) -> None:
    target = Target.current()
    minor = ".".join(target.python.split(".")[:2])
    assert target_of_process() == "-".join(
        [target.implementation, minor, target.system, target.machine, *(target.libc or ())]
    )


def test_it_travels_by_value(report: dict[str, Any], tmp_path: Path) -> None:
    """To a process that does not know envsync; it finds what an isolated one has."""
    cloudpickle.register_pickle_by_value(plugins)
    try:
        carried = tmp_path / "survey"
        carried.write_bytes(cloudpickle.dumps(survey, protocol=4))
    finally:
        cloudpickle.unregister_pickle_by_value(plugins)
    wanted = tmp_path / "wanted.json"
    wanted.write_text(json.dumps(report))
    code = """
import json, pickle, sys
class Without:
    def find_spec(name, *_):
        assert name != "envsync"
sys.meta_path.insert(0, Without)
survey = pickle.load(open(sys.argv[1], "rb"))
found = survey(json.load(open(sys.argv[2])), "there")
assert "envsync" not in sys.modules
print(json.dumps([found["target"], found["pid"], len(found["differences"])]))
"""
    target, pid, _ = run_python(code, carried, wanted, cwd="/")
    assert target == target_of_process()
    assert pid != os.getpid()


def test_local_code_that_something_installed_would_hide_is_told(report: dict[str, Any]) -> None:
    """Whatever kind of file that is, and unless it is the same code."""

    def code(*files: str) -> dict[str, Any]:
        return {"digest": "d" * 64, "files": dict.fromkeys(files, "0" * 64)}

    trees = {
        "project": code("click/__init__.py", "click.egg-info/PKG-INFO"),
        "module": code("pytest.py"),
        "mine": code("of_nobody.py", "data/table.csv"),
    }
    wanted = {**report, "trees": {name: tree["digest"] for name, tree in trees.items()}, "code": trees}
    assert sorted(survey(wanted)["covered"]) == ["module", "project"]
    assert covered_here(trees, [path for path in sys.path if "site-packages" in path]) == []
    assert survey(report)["covered"] == []
