"""What the docs tell a reader to type is what envsync takes."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from envsync.cli import cli

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
    command.make_context(name, arguments)  # raises UsageError for what the command does not take


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
