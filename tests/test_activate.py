"""A process imports from an overlay, then from another one, then as if there had been none."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from envsync import plugins
from envsync.plugins.activate import activate, active, deactivate
from envsync.plugins.overlay import Overlays
from envsync.uv import find_uv
from tests.overlays import make_wheel, put, put_tree, real, run_python

# Before the code of each child.
PRELUDE = """
import json, os, sys, importlib.metadata, importlib.util
from envsync.plugins.activate import activate, active, deactivate, elsewhere
builts = json.loads(sys.argv[1])

def state():
    environ = [os.environ.get(name) for name in ("PATH", "PYTHONPATH", "ENVSYNC_TREES")]
    return [list(sys.path), environ, list(sys.meta_path), list(sys.path_hooks)]

def put(number, **options):
    return activate(builts[number], **{"python_path": False, **options})

def say(*values):
    print(json.dumps(values))
"""


@pytest.fixture
def overlays(tmp_path: Path) -> Overlays:
    return Overlays(tmp_path / "host")


def child(code: str, *builts: Any, python: str = sys.executable, **options: Any) -> Any:
    text = PRELUDE + code
    if python == sys.executable:
        return run_python(text, json.dumps([built.to_dict() for built in builts]), **options)
    done = subprocess.run(
        [python, "-c", text, json.dumps([built.to_dict() for built in builts])],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_order_of_the_path_and_all_as_before(overlays: Overlays, tmp_path: Path) -> None:
    points = "[console_scripts]\none = one:main\n"
    packages = put(
        overlays, make_wheel(tmp_path, "one", "1", {"one.py": "", "one-1.dist-info/entry_points.txt": points})
    )
    trees = [
        put_tree(overlays, "front", {"mine.py": ""}),
        put_tree(overlays, "back", {"theirs.py": ""}, position="back"),
    ]
    built = overlays.build(packages, trees)
    code = """
before = state()
answers = [put(0, python_path=flag) for flag in (False, True, True)]
during, digest = state(), active()
answers.append(deactivate())
say(before[:2], during[:2], digest, before == state(), active(), answers, deactivate())
"""
    for environ in ({}, {"PYTHONPATH": f"/nowhere{os.pathsep}", "ENVSYNC_TREES": "/else"}):
        before, during, digest, same, after, answers, again = child(
            code, built, env={**os.environ, **environ}
        )
        assert before[0][0] == ""
        assert during[0] == ["", *built.front, built.site, *before[0][1:], *built.back]
        path, python_path, trees_there = before[1]
        assert during[1] == [
            f"{built.bin}:{path}",
            ":".join([*built.front, built.site, *([python_path] if python_path else [])]),
            ":".join([*built.back, *([trees_there] if trees_there else [])]),
        ]
        assert (digest, same, after) == (built.digest, True, "")
        assert [*answers, again] == [{"forgotten": [], "restart": []}] * 5


@pytest.mark.slow
def test_a_real_package_and_its_metadata_come_and_go(overlays: Overlays, real_wheels: Path) -> None:
    """The compiled one, which an interpreter that has it already gets too if it did not import it."""
    wheels = [real(real_wheels, "six", "1.16.0"), real(real_wheels, "msgpack", "1.0.8")]
    built = overlays.build(put(overlays, *wheels), [])
    code = """
own = importlib.metadata.version("msgpack")
answer = put(0)
import six, msgpack, msgpack._cmsgpack as compiled
said = [msgpack.__version__ if hasattr(msgpack, "__version__") else msgpack.version, six.__version__]
said += [importlib.metadata.version(name) for name in ("msgpack", "six")]
packed = msgpack.unpackb(msgpack.packb([1, "two"]))
places = [six.__file__, compiled.__file__]
gone = deactivate()
say(own, answer, said, packed, places, gone, "six" in sys.modules, importlib.metadata.version("msgpack"))
"""
    own, answer, said, packed, places, gone, six, after = child(code, built)
    assert answer == {"forgotten": [], "restart": []}
    assert [said[1], *said[2:]] == ["1.16.0", "1.0.8", "1.16.0"]
    assert packed == [1, "two"]
    assert all(place.startswith(built.site) for place in places)
    # a compiled module cannot be loaded twice by a process: that is said, and nothing pretended
    assert gone == {"forgotten": ["six"], "restart": ["msgpack"]}
    assert (six, after) == (False, own)


@pytest.mark.slow
def test_what_was_imported_from_elsewhere_is_told_and_not_touched(
    overlays: Overlays, real_wheels: Path, tmp_path: Path
) -> None:
    built = overlays.build(put(overlays, real(real_wheels, "msgpack", "1.0.8")), [])
    code = """
import msgpack
told = elsewhere(builts[0])
answer = put(0)
say(told, answer, put(0), sys.modules["msgpack"] is msgpack, msgpack.__file__)
"""
    told, answer, again, same, place = child(code, built)
    assert told == ["msgpack"]
    assert answer == again == {"forgotten": [], "restart": ["msgpack"]}
    assert same
    assert not place.startswith(built.site)


def test_stale_modules_are_forgotten_and_equal_ones_stay(overlays: Overlays, tmp_path: Path) -> None:
    same = make_wheel(tmp_path, "same", "1", {"same/__init__.py": "", "same/late.py": "x = 'late'\n"})

    def built(number: int) -> Any:
        changing = make_wheel(
            tmp_path / str(number),
            "changing",
            f"{number}",
            {
                "changing/__init__.py": "from . import part\n",
                "changing/part.py": f"x = {number}\n",
                "space/changing/__init__.py": f"x = {number}\n",
            },
        )
        kept = make_wheel(tmp_path, "kept", "1", {"space/kept.py": "x = 'kept'\n"})
        tree = put_tree(overlays, "code", {"mine/__init__.py": "", "mine/part.py": f"x = {number}\n"})
        return overlays.build(put(overlays, same, kept, changing), [tree])

    first, second = built(1), built(2)
    code = """
put(0)
import same, changing, space.changing, space.kept, mine.part
old = same, space.kept
seen = [changing.part.x, space.changing.x, mine.part.x]
told = elsewhere(builts[1])
answer = put(1)
sizes = [sum(one in path for path in sys.path) for one in (builts[0]["site"], *builts[0]["front"])]
import changing, same.late
from space import changing as other, kept
from mine import part
say(
    seen, told, answer, sizes, [changing.part.x, other.x, part.x], [same is old[0], kept is old[1]],
    [same.__file__, same.__spec__.origin, same.late.__file__, *same.__path__],
)
"""
    seen, told, answer, sizes, now, kept, places = child(code, first, second)
    assert seen == [1, 1, 1]
    assert (told, answer["restart"]) == ([], [])
    assert answer["forgotten"] == [
        *("changing", "changing.part", "mine", "mine.part", "space.changing"),
    ]
    assert sizes == [0, 0]
    assert now == [2, 2, 2]
    assert kept == [True, True]
    assert all(place.startswith(second.site) for place in places)


@pytest.mark.slow
def test_a_compiled_one_that_changes_needs_a_restart(overlays: Overlays, real_wheels: Path) -> None:
    builts = [
        overlays.build(put(overlays, real(real_wheels, "msgpack", version)), [])
        for version in ("1.0.8", "1.1.0")
    ]
    code = """
put(0)
import msgpack
told = elsewhere(builts[1])
answer = put(1)
lingering = sys.__dict__["_envsync_overlay"]["active"]["lingering"]
say(told, answer, sys.modules["msgpack"] is msgpack, lingering)
"""
    told, answer, same, lingering = child(code, *builts)
    assert told == ["msgpack"]
    assert answer == {"forgotten": [], "restart": ["msgpack"]}
    assert same
    assert lingering == [str(Path(builts[0].site).parents[2])]


@pytest.mark.slow
def test_what_lingers_is_held(overlays: Overlays, real_wheels: Path) -> None:
    """The modules of a package that stays may read its files: they stay too."""
    builts = [
        overlays.build(put(overlays, real(real_wheels, "msgpack", version)), [])
        for version in ("1.0.8", "1.1.0")
    ]
    code = """
from pathlib import Path
from envsync.plugins.overlay import Overlays
overlays = Overlays(Path(builts[0]["root"]))
overlays.hold(builts[0])
put(0)
import msgpack
put(1)
overlays.hold(builts[1])
left = overlays.sweep((), 0)
deactivate()
overlays.hold(None)
say([one.partition("/")[0] for one in left], [one.partition("/")[0] for one in overlays.sweep((), 0)])
"""
    assert child(code, *builts) == [[], ["overlays", "wheels"]]
    assert os.path.exists(builts[0].site)


@pytest.mark.slow
def test_namespaces_merge_with_what_is_installed(
    overlays: Overlays, real_wheels: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "google/mine").mkdir(parents=True)
    (own / "google/mine/__init__.py").write_text("x = 'mine'\n")
    built = overlays.build(put(overlays, real(real_wheels, "protobuf", "5.29.3")), [])
    code = """
import google.mine
first = google.mine
before = list(google.__path__)
put(0)
import google.protobuf, google.protobuf.message
answer = [google.protobuf.__version__, google.mine is first, first.x]
deactivate()
del google
import google.mine
spec = importlib.util.find_spec("google.protobuf")
found = spec is not None and spec.origin.startswith(builts[0]["root"])
say(answer, google.mine is first, before == list(google.__path__), found)
"""
    path = {**os.environ, "PYTHONPATH": str(own)}
    answer, mine, same, found = child(code, built, env=path)
    assert answer == ["5.29.3", True, "mine"]
    assert mine
    assert same
    assert not found


def test_a_namespace_that_is_the_overlays_alone_goes_with_it(overlays: Overlays, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "one", "1", {"alone/one/__init__.py": "", "alone/one/data/x.txt": ""})
    built = overlays.build(put(overlays, wheel), [])
    code = """
put(0)
import alone.one
gone = deactivate()
try:
    import alone
    say(gone, alone.__path__._path)
except ImportError:
    say(gone, None)
"""
    assert child(code, built) == [{"forgotten": ["alone", "alone.one"], "restart": []}, None]


def test_pth_files_are_read_as_site_does(overlays: Overlays, tmp_path: Path) -> None:
    wheel = make_wheel(
        tmp_path,
        "one",
        "1",
        {
            "more/inside.py": "x = 'inside'\n",
            "finder.py": "import sys\nclass Finder:\n    @staticmethod\n    def find_spec(*_): return None\n"
            "sys.meta_path.insert(0, Finder)\n",
            "a.pth": "# a comment\nmore\n/nowhere\nimport finder\n",
            ".hidden.pth": "import sys; sys.exit('read')\n",
        },
    )
    built = overlays.build(put(overlays, wheel), [])
    code = """
before = state()
put(0)
during = state()
import inside
answer = deactivate()
say(inside.x, during[0], before[0], before == state(), sys.path[0], len(during[2]) - len(before[2]), answer)
"""
    said, during, before, same, first, finders, answer = child(code, built)
    assert said == "inside"
    assert during == ["", built.site, f"{built.site}/more", *before[1:]]
    assert (same, first, finders) == (True, "", 1)
    assert answer == {"forgotten": ["finder", "inside"], "restart": []}


def test_finders_of_pth_files_come_once_and_are_those_of_their_version(
    overlays: Overlays, tmp_path: Path
) -> None:
    def built(version: int, tree: int) -> Any:
        files = {
            "finder.py": f"import sys\nclass Finder:\n    version = {version}\n    @staticmethod\n"
            "    def find_spec(*_): return None\nsys.meta_path.append(Finder)\n",
            "a.pth": "import finder\n",
        }
        wheel = make_wheel(tmp_path / str(version), "one", str(version), files)
        other = make_wheel(tmp_path / str(tree), "other", "1", {"other.py": f"x = {tree}\n"})
        return overlays.build(
            put(overlays, wheel, other), [put_tree(overlays, "code", {"mine.py": f"x = {tree}\n"})]
        )

    first = built(1, 1)
    tree = overlays.build(first.packages, [put_tree(overlays, "code", {"mine.py": "x = 'tree'\n"})])
    code = """
before = state()
seen = []
for number in range(4):
    put(number)
    seen.append([one.version for one in sys.meta_path if one.__module__ == "finder"])
deactivate()
say(seen, before == state())
"""
    # the first; another tree; the same wheel in another overlay; another wheel
    assert child(code, first, tree, built(1, 2), built(2, 2)) == [[[1], [1], [1], [2]], True]


@pytest.mark.slow
def test_what_a_package_put_into_the_import_system_goes_with_it(
    overlays: Overlays, real_wheels: Path
) -> None:
    """As six does, by which `six.moves` of the former version would be imported again."""
    builts = [
        overlays.build(put(overlays, real(real_wheels, "six", version)), [])
        for version in ("1.16.0", "1.17.0")
    ]
    code = """
before = state()
put(0)
import six, six.moves.urllib.parse
old = six.moves
put(1)
import six, six.moves.urllib.parse
finders = [sys.modules["six"]._importer is one for one in sys.meta_path if type(one).__module__ == "six"]
said = [six.__version__, six.moves is old, six.moves.urllib.parse.quote("a b"), finders]
deactivate()
say(said, before == state(), [name for name in sys.modules if name.startswith("six")])
"""
    assert child(code, *builts) == [["1.17.0", False, "a%20b", [True]], True, []]


@pytest.mark.slow
def test_a_real_pth(overlays: Overlays, real_wheels: Path, tmp_path: Path) -> None:
    """That of setuptools, which gives distutils back to Python 3.12 and newer."""
    built = overlays.build(put(overlays, real(real_wheels, "setuptools", "75.8.0")), [])
    code = """
before = state()
put(0, python_path=True)
loaded = "_distutils_hack" in sys.modules
import distutils.core
place = distutils.core.__file__
deactivate()
say(loaded, place, before == state())
"""
    bare = tmp_path / "bare"
    subprocess.run([str(find_uv()), "venv", "-q", "-p", sys.executable, str(bare)], check=True)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    loaded, place, same = child(code, built, python=str(bare / "bin/python"), env=environ)
    assert loaded
    assert place.startswith(built.site)
    assert same


def test_children_have_it_too_and_may_have_another(overlays: Overlays, tmp_path: Path) -> None:
    points = "[console_scripts]\none = one:main\n"

    def built(number: int) -> Any:
        files = {
            "one.py": f"x = {number}\ndef main(): print('script', x)\n",
            f"one-{number}.dist-info/entry_points.txt": points,
        }
        wheel = make_wheel(tmp_path / str(number), "one", str(number), files)
        return overlays.build(
            put(overlays, wheel), [put_tree(overlays, "code", {"mine.py": f"x = {number}\n"})]
        )

    code = """
import multiprocessing, subprocess, tempfile
put(0, python_path=True)
bare = subprocess.check_output([sys.executable, "-c", "import one, mine; print(one.x, mine.x)"], text=True)
script = subprocess.check_output(["one"], text=True)
inner = '''
import json, sys, os
from envsync.plugins.activate import *
import one
built = json.loads(sys.argv[1])
answer = activate(built, python_path=False)
import one, mine
at = [os.environ.get(name, "").count(built["root"]) for name in ("PATH", "PYTHONPATH")]
said = [one.x, mine.x, answer, sum(built["root"] in path for path in sys.path), *at]
deactivate()
print(json.dumps([*said, any(built["root"] in path for path in sys.path)]))
'''
other = subprocess.check_output([sys.executable, "-c", inner, json.dumps(builts[1])], text=True)
say(bare, script, json.loads(other))
"""
    bare, script, other = child(code, built(1), built(2))
    assert (bare, script) == ("1 1\n", "script 1\n")
    assert other == [2, 2, {"forgotten": ["one"], "restart": []}, 2, 1, 0, False]


def test_what_others_put_on_the_path_meanwhile_stays(overlays: Overlays, tmp_path: Path) -> None:
    built = overlays.build(put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": ""})), [])
    code = """
put(0, python_path=True)
sys.path.insert(0, "/inserted")
sys.path.append("/appended")
os.environ["PYTHONPATH"] += ":/more"
deactivate()
say(sys.path[0], sys.path[-1], os.environ["PYTHONPATH"], any(builts[0]["root"] in path for path in sys.path))
"""
    environ = {**os.environ, "PYTHONPATH": "/first"}
    assert child(code, built, env=environ) == ["/inserted", "/appended", "/first:/more", False]


def test_local_code_that_came_from_elsewhere(overlays: Overlays, tmp_path: Path) -> None:
    """What was uploaded by other means is told of where it is another than the tree has."""
    folder = tmp_path / "uploaded"
    folder.mkdir()
    (folder / "mine.py").write_text("x = 'old'\n")
    (folder / "equal.py").write_text("x = 'equal'\n")
    built = overlays.build(
        {}, [put_tree(overlays, "code", {"mine.py": "x = 'new'\n", "equal.py": "x = 'equal'\n"})]
    )
    code = "import mine, equal\nsay(elsewhere(builts[0]), put(0))\n"
    told, answer = child(code, built, env={**os.environ, "PYTHONPATH": str(folder)})
    assert told == answer["restart"] == ["mine"]


def test_it_travels_by_value(overlays: Overlays, tmp_path: Path) -> None:
    """To a process that has cloudpickle and nothing of envsync, and is found again by another copy."""
    built = overlays.build(put(overlays, make_wheel(tmp_path, "one", "1", {"one.py": "x = 1\n"})), [])
    cloudpickle.register_pickle_by_value(plugins)
    try:
        carried = [cloudpickle.dumps(one, protocol=4) for one in (activate, active, deactivate, Overlays)]
    finally:
        cloudpickle.unregister_pickle_by_value(plugins)
    bare = tmp_path / "bare"
    subprocess.run([str(find_uv()), "venv", "-q", "-p", sys.executable, str(bare)], check=True)
    install = [str(find_uv()), "pip", "install", "-q", "-p", str(bare), "cloudpickle"]
    subprocess.run(install, check=True)
    code = """
import base64, json, pickle, sys
from pathlib import Path
built, carried = json.load(sys.stdin)
def load(number):
    return pickle.loads(base64.b64decode(carried[number]))
overlays = load(3)(Path(built["root"]))
with overlays.lock():
    again = overlays.build(built["packages"], [])
    overlays.hold(again)
load(0)(again.to_dict(), python_path=True)
import one
assert load(1)() == again.digest
assert "envsync" not in sys.modules
print(json.dumps([one.x, load(2)(), load(1)(), overlays.sweep((), 0)]))
"""
    text = json.dumps([built.to_dict(), [base64.b64encode(one).decode() for one in carried]])
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [bare / "bin/python", "-c", code],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    number, gone, after, left = json.loads(done.stdout)
    assert (number, gone, after) == (1, {"forgotten": ["one"], "restart": []}, "")
    # scripts are for an interpreter: this one has an overlay of its own, which it holds
    assert left == [f"overlays/{Path(built.site).parents[2].name}"]
