"""What the docs tell a reader to type is what envsync takes."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import dask.config
import pytest
import yaml

from envsync import errors, runner
from envsync.cli import cli
from envsync.cli.queue import QUEUE_OPTIONS, where
from envsync.cli.renting import RENTING
from envsync.runner import CLOUDS, SSH, Batch
from envsync.runner.profiles import read_profile
from envsync.runner.queues import BACKENDS

BACKENDS_BY_NAME = {kind.__name__: kind for kind in BACKENDS.values()}
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = cli.list_commands(click.Context(cli))

_BLOCK = re.compile(r"^```(\w+)(?: +(\w+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[tuple[str, str, str]]:
    """The fenced blocks of a language: page and line, mark, text."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{page.relative_to(ROOT)}:{line}", match[2] or "", match[3]))
    return found


def command_lines() -> list[tuple[str, str]]:
    """Every line that starts envsync, in any block; comments and what comes after && are cut."""
    found = []
    for place, _, text in blocks("sh", "console", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").strip()
            if command.startswith(("envsync ", "dask envsync ")):
                found.append((place, re.split("  #| && | > ", command)[0].removeprefix("dask ")))
    return found


@pytest.mark.parametrize(("place", "line"), command_lines())
def test_every_command_line_is_one_that_envsync_takes(
    place: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    for name in words:
        if name.endswith((".pem", ".toml", "/Dockerfile")):  # click looks whether these are there
            (tmp_path / name).touch()
    if words == ["--version"]:
        return
    options = [word for word in words if word in ("-q", "--quiet", "-v", "--verbose", "--json")]
    rest = words[next(index for index, word in enumerate(words) if word not in options) :]
    name, *arguments = rest
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"{place}: there is no command {name}"
    made = command.make_context(name, arguments)  # raises UsageError for what the command does not take
    if name == "run":
        asked = {key: made.params[key] for key in (*QUEUE_OPTIONS, *RENTING.keywords)}
        with dask.config.set(configuration()):
            hosts = (made.params["hosts"] or "").split(",") if made.params["hosts"] else ()
            where(made.params["backend"], hosts, made.params["profile"], made.params["cache"], asked)


def configuration() -> dict[str, object]:
    """What the docs tell a reader to write into files, all of it; and a file of dask-jobqueue's."""
    found: dict[str, object] = {"jobqueue": {"slurm": {"cores": 4, "memory": "8GB"}}}
    for _, _, text in blocks("yaml"):
        found = dask.config.update(found, yaml.safe_load(text))
    return found


def test_every_profile_in_the_docs_is_a_backend() -> None:
    with dask.config.set(configuration()):
        names = list(dask.config.get("envsync.profiles"))
        assert len(names) >= 4
        for name in names:
            read_profile(name)


def backend_calls() -> list[tuple[str, str]]:
    """Every backend that the docs make: place and expression."""
    found = []
    for place, _, text in blocks("python"):
        calls = (node for node in ast.walk(ast.parse(text, place)) if isinstance(node, ast.Call))
        named = [call for call in calls if isinstance(call.func, ast.Name)]
        found += [(place, ast.unparse(call)) for call in named if call.func.id in BACKENDS_BY_NAME]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("place", "text"), backend_calls())
def test_every_backend_that_the_docs_make_can_be_made(place: str, text: str) -> None:
    assert isinstance(eval(text, {"SSH": SSH, **BACKENDS_BY_NAME}), Batch), place


def test_every_batch_system_has_its_page_with_a_start_from_python_and_from_a_shell() -> None:
    for system, backend in BACKENDS.items():
        page = {"torque": "pbs"}.get(system, system)
        name = f"docs/howto-{page}.md"
        made = [text for place, text in backend_calls() if place.startswith(f"{name}:")]
        assert any(text.startswith(f"{backend.__name__}(") for text in made), name
        assert any("via=" in text for text in made), name
        assert any(place.startswith(name) and f"--on {system}" in line for place, line in command_lines())


def test_each_test_that_the_table_of_what_goes_wrong_names_is_there() -> None:
    text = (ROOT / "docs" / "internals-batch.md").read_text()
    table = text[text.index("## Where what goes wrong is tested") :].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 15
    for row in rows:
        file = ""
        for named, test in re.findall(r"`(?:([\w/]+\.py): )?\.\.(\w+)`", row):
            file = named or file
            tests = re.findall(r"def (test_\w+)", (ROOT / "tests" / file).read_text())
            assert any(test in one for one in tests), (file, test)


def test_there_are_such_lines_for_every_command() -> None:
    used = {shlex.split(line)[1] for _, line in command_lines()}
    assert set(COMMANDS) <= used


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_names_every_option(name: str) -> None:
    text = (ROOT / "docs" / "reference-cli.md").read_text()
    section = text[text.index(f"## envsync {name}\n") :]
    section = section[: section.find("\n## ", 1)] if "\n## " in section[1:] else section
    everywhere = text[: text.index("## envsync snapshot")]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for option in parameter.opts:
                assert f"`{option}" in section + everywhere or f" {option} " in section, option


def test_the_reference_names_every_error_and_the_pages_of_clouds_their_keywords() -> None:
    text = (ROOT / "docs" / "reference-python.md").read_text()
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert len(kinds) > 30
    assert [one.__name__ for one in kinds if f"`{one.__name__}`" not in text] == []
    for kind, name in CLOUDS.items():
        page = (ROOT / "docs" / f"howto-{kind}.md").read_text()
        keywords = inspect.signature(getattr(runner, name)).parameters
        assert [key for key in keywords if key not in ("type", "rest") and f"{key}=" not in page] == [], kind


@pytest.mark.parametrize(("place", "mark", "text"), blocks("python"))
def test_python_blocks_compile_and_import_what_is_there(place: str, mark: str, text: str) -> None:
    tree = ast.parse(text, place)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    code = compile(ast.Module(body=list(imports), type_ignores=[]), place, "exec")
    exec(code, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "text"), [(place, text) for place, mark, text in blocks("python") if mark == "run"]
)
def test_marked_python_blocks_run(place: str, text: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    indented = "".join(f"    {line}" if line.strip() else line for line in text.splitlines(keepends=True))
    script.write_text(f'if __name__ == "__main__":\n{indented}')
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{place}\n{done.stderr}"


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = page.read_text()
        linked = [name for name in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in name]
        named = re.findall(r"`((?:docs|examples|benchmarks|tests)/[\w./-]+)`", text)
        broken += [f"{page.name}: {name}" for name in linked if not (page.parent / name).exists()]
        broken += [f"{page.name}: {name}" for name in named if not (ROOT / name).exists()]
    assert broken == []


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("[!_]*.py")))
def test_examples_run_as_they_stand(example: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ENVSYNC_EXAMPLE_HOSTS"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
