"""What an environment was made from is found from what is installed in it."""

from __future__ import annotations

from envsync.roots import only_for, parse_requirements, roots
from envsync.target import Target

LINUX = Target(python="3.11.7", libc=("glibc", "2.36")).marker_environment()


def found(**requires: list[str]) -> dict[str, tuple[str, ...]]:
    installed = {name.replace("_", "-"): parse_requirements(lines) for name, lines in requires.items()}
    return roots(installed, dict.fromkeys(installed, "1.0"), LINUX)


def test_those_that_no_other_requires() -> None:
    assert found(app=["lib>=1", "missing"], lib=["base"], base=[], tool=[]) == {"app": (), "tool": ()}


def test_markers_are_those_of_where_it_is_installed() -> None:
    assert found(app=['a; sys_platform == "linux"', 'b; sys_platform == "win32"'], a=[], b=[]) == {
        "app": (),
        "b": (),
    }


def test_one_of_a_cycle() -> None:
    assert found(a=["b"], b=["c"], c=["a", "leaf"], leaf=[]) == {"a": ()}
    # A cycle that something else requires needs no root of its own, and what hangs on a cycle is no root.
    assert found(z=["b"], b=["c"], c=["b"], aa=[]) == {"aa": (), "z": ()}
    assert found(x=["y"], y=["x", "a"], a=[]) == {"x": ()}


def test_an_extra_that_is_asked_for() -> None:
    assert found(app=["lib[fast]"], lib=['speed; extra == "fast"'], speed=[]) == {"app": ()}


def test_an_extra_that_must_have_been_asked_for() -> None:
    lib = [
        'speed; extra == "fast" and sys_platform != "win32"',
        'wide; extra == "fast"',
        'doc; extra == "docs"',
    ]
    assert found(lib=lib, speed=[], wide=[]) == {"lib": ("fast",)}
    # Half of an extra was not asked for: its parts were.
    assert found(lib=lib, speed=[]) == {"lib": (), "speed": ()}
    assert found(app=["lib"], lib=lib, speed=[], wide=[]) == {"app": (), "lib": ("fast",)}


def test_an_extra_that_the_installed_versions_do_not_meet() -> None:
    assert found(lib=['speed>=2; extra == "fast"'], speed=[]) == {"lib": (), "speed": ()}


def test_an_extra_of_itself() -> None:
    lib = ['lib[fast,docs]; extra == "all"', 'speed; extra == "fast"', 'doc; extra == "docs"']
    assert set(found(lib=lib, speed=[], doc=[])) == {"lib"}


def test_lines_that_no_tool_understands() -> None:
    assert found(app=["lib (==1.*", "lib"], lib=["???"]) == {"app": ()}


def test_what_nothing_but_a_tool_requires() -> None:
    installed = {
        "tool": ["net", "dask", "shared"],
        "net": ["crypto"],
        "crypto": [],
        "dask": ["yaml"],
        "yaml": [],
        "shared": [],
        "app": ["shared", "tool"],
    }
    requires = {name: parse_requirements(lines) for name, lines in installed.items()}
    assert only_for(["tool", "absent"], requires, LINUX) == {"tool", "net", "crypto", "dask", "yaml"}
    assert only_for(["tool"], requires, LINUX, keep=["dask"]) == {"tool", "net", "crypto"}
    # What was installed by itself is needed, also where the tool requires it too.
    del requires["tool"]
    assert only_for(["tool"], requires, LINUX) == set()
