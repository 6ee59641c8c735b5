"""The command, run as a user runs it: what it says, what it writes, and how it ends."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.command import Run

BIN = Path(sys.executable).parent


def make_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel with one module that says its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},sha256={_hash(text)},{len(text)}\n" for path, text in files.items()]
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def make_environment(prefix: Path, *wheels: Path) -> Path:
    uv = BIN / "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, prefix], check=True)
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-index", "--python", prefix]
    subprocess.run([*map(str, install), *map(str, wheels)], check=True)
    return prefix


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two environments: alpha and beta; another beta."""
    folder = tmp_path_factory.mktemp("prefixes")
    alpha, beta, newer = (
        make_wheel(folder, *each) for each in (("alpha", "1.0"), ("beta", "1.0"), ("beta", "2.0"))
    )
    return {
        "old": make_environment(folder / "old", alpha, beta),
        "new": make_environment(folder / "new", alpha, newer),
    }


@pytest.fixture
def envsync(tmp_path: Path) -> Run:
    """Run the installed command in an empty folder, with a cache of its own."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "envsync", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "ENVSYNC_CACHE": str(tmp_path / "cache"), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.slow
def test_versions_agree(envsync: Run) -> None:
    import envsync as package

    assert envsync("--version").stdout == f"envsync, version {package.__version__}\n"
    dask = subprocess.run([BIN / "dask", "envsync", "--version"], capture_output=True, text=True)
    assert dask.stdout == f"envsync, version {package.__version__}\n"


@pytest.mark.slow
def test_dask_envsync_fails_as_envsync_does(envsync: Run) -> None:
    ours = envsync("diff", "/nonexistent", ".")
    theirs = subprocess.run(
        [BIN / "dask", "envsync", "diff", "/nonexistent", "."], capture_output=True, text=True
    )
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
    assert ours.returncode == 2
    assert ours.stderr.startswith("error: /nonexistent: there is no such file or folder\n  Name a lock")


def test_looking_writes_nothing(envsync: Run, prefixes: dict[str, Path], tmp_path: Path) -> None:
    done = envsync("snapshot", "--no-lock", "--python", prefixes["old"])
    assert done.returncode == 0, done.stderr
    assert str(prefixes["old"]) in done.stdout
    assert "packages     2" in done.stdout
    assert done.stderr == ""
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_looking_as_json(forked: Run, prefixes: dict[str, Path]) -> None:
    from envsync.snapshot import Snapshot

    done = forked("--json", "snapshot", "--no-lock", "--python", prefixes["old"])
    snapshot = Snapshot.from_dict(json.loads(done.stdout))
    assert [(one.name, one.version) for one in snapshot.distributions] == [("alpha", "1.0"), ("beta", "1.0")]


HEAVY = ("dask", "distributed", "rich", "asyncssh", "httpx", "asyncio", "ssl", "http", "cryptography", "uv")


def test_looking_imports_little() -> None:
    code = (
        "import sys; from envsync.cli import cli\n"
        "cli(['snapshot', '--no-lock'], standalone_mode=False)\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})), len(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found, count = out.splitlines()[-1].rsplit(" ", 1)
    assert found == "[]"
    assert int(count) < 220


@pytest.mark.slow
def test_a_lock_and_its_summary(envsync: Run, prefixes: dict[str, Path], tmp_path: Path) -> None:
    from envsync.lock import Lock

    done = envsync("snapshot", "--python", prefixes["old"])
    assert done.returncode == 0, done.stderr
    for words in ("0 from indexes, 2 as local wheels", "alpha-1.0-py3-none-any.whl", "pylock.envsync.toml"):
        assert words in done.stdout
    assert "here: locking 2 packages" in done.stderr
    file = tmp_path / "here" / "pylock.envsync.toml"
    assert [artifact.name for artifact in Lock.read(file).artifacts()] == ["alpha", "beta"]
    before = file.read_bytes()
    again = envsync("snapshot", "--quiet", "--python", prefixes["old"])
    assert file.read_bytes() == before
    assert again.stderr == ""


@pytest.mark.slow
def test_the_cache_folder_of_the_probed_host_can_be_named(
    envsync: Run, prefixes: dict[str, Path], tmp_path: Path
) -> None:
    there = tmp_path / "there"
    done = envsync("snapshot", "--python", prefixes["old"], "--for", "local", "--cache", there)
    assert done.returncode == 0, done.stderr
    assert list(there.iterdir())


@pytest.mark.slow
def test_verifying_says_what_was_looked_at(envsync: Run, prefixes: dict[str, Path]) -> None:
    look = ["snapshot", "--no-lock", "--verify", "--python", prefixes["old"]]
    clean = envsync(*look).stdout.splitlines()[-1]
    said = re.fullmatch(r"verified     (\d+) files of 2 packages: none edited", clean)
    assert said, clean
    files = int(said[1])
    assert files >= 6  # three in each wheel; what installers add is listed too
    (module,) = (prefixes["old"] / "lib").glob("python3*/site-packages/alpha.py")
    before = module.read_text()
    module.write_text("edited = True\n")
    try:
        edited = envsync(*look)
        locked = envsync("snapshot", "--verify", "--json", "--python", prefixes["old"])
    finally:
        module.write_text(before)
    assert "warning: alpha: 1.0: alpha.py was edited after it was installed" in edited.stdout
    assert edited.stdout.endswith(f" {files} files of 2 packages: 1 edited or missing, see the findings\n")
    assert json.loads(locked.stdout)["verified"] == {"packages": 2, "files": files, "edited": 1}
    assert "verified" not in json.loads(envsync("--json", *look[:2], *look[3:]).stdout)


@pytest.mark.slow
def test_a_lock_as_json(envsync: Run, prefixes: dict[str, Path]) -> None:
    done = envsync("snapshot", "--json", "--python", prefixes["new"], "-o", "pylock.new.toml")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["lock"] == "pylock.new.toml"
    assert result["packages"] == 2
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} >= {"step", "done"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["snapshot", "-o", "bad.name.toml"], 2, "PEP 751 allows pylock.toml and pylock.<name>.toml"),
        (["snapshot", "-o", "no/pylock.toml"], 2, "there is no folder no"),
        (["snapshot", "--python", "/nonexistent/python"], 2, "/nonexistent/python"),
        (["snapshot", "--python", "no-such-python"], 2, "no-such-python"),
        (["snapshot", "--for", "my-laptop"], 2, "'my-laptop' is no target"),
        (["snapshot", "--for", "ssh://"], 2, "is not the address of a host"),
        (["snapshot", "--no-lock", "--for", "ssh://node1"], 2, "--no-lock says not to"),
        (["snapshot", "--cache", "/tmp/x"], 2, "name one with --for"),
        (["diff", "."], 2, "Missing argument 'B'"),
        (["diff", "pylock.none.toml", "."], 2, "there is no such lock"),
        (["diff", "gopher://node1", "."], 2, "is nothing that can be looked at"),
        (["diff", "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"], 2, "two clusters cannot be compared"),
        (["diff", "ssh://127.0.0.1:1", "pylock.none.toml"], 2, "there is no such lock"),
        (["check", "127.0.0.1:8786"], 2, "is not a scheduler's address"),
        (["check", "tcp://scheduler"], 2, "is not a scheduler's address"),
        (["check", "tcp://scheduler:x"], 2, "is not a scheduler's address"),
        (["check", "--timeout", "0", "tcp://127.0.0.1:1"], 2, "not in the range"),
        (["check", "--timeout", "1", "tcp://127.0.0.1:1"], 2, "the scheduler was not reached: "),
        (["check", "tls://127.0.0.1:1"], 2, "Give --tls-ca-file, --tls-cert and --tls-key"),
        (["push"], 2, "Missing argument 'DESTINATION...'"),
        (["push", "gopher://node1"], 2, "no store has the scheme gopher://"),
        (["push", "ssh://127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["push", "--lock", "pylock.none.toml", "ssh://127.0.0.1:1"], 2, "there is no lock pylock.none.toml"),
        (["run", "--on", "ssh", "--", "true"], 2, "--on ssh needs --hosts"),
        (
            ["run", "--on", "ssh", "--hosts", "a,gopher://b", "--", "true"],
            2,
            "--hosts: 'gopher://b' is not the address of a host",
        ),
        (["run", "--hosts", "a", "--", "true"], 2, "--hosts needs --on ssh"),
        (["run", "--memory-limit", "lots", "--", "true"], 2, "a size such as 4GB or 512MiB, a fraction"),
        (["run", "--threads-per-worker", "half", "--", "true"], 2, "'half' is not a valid integer"),
        (["run", "-n", "0", "--", "true"], 2, "0 is not in the range x>=1"),
        (["run", "--lock", "nofile", "--", "true"], 2, "there is no lock nofile"),
        (["run", "--bogus", "--", "true"], 2, "No such option"),
        (["run"], 2, "Missing argument"),
        (["fly"], 2, "No such command 'fly'"),
        (["lss"], 2, "Did you mean 'ls'?"),
    ],
)
def test_what_cannot_be_done_is_said(
    forked: Run, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = forked(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_waited_for_in_the_open(envsync: Run) -> None:
    address = "tcp://127.0.0.1:1"
    began = time.monotonic()
    done = envsync("check", "--timeout", "1", address, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="100s")
    assert time.monotonic() - began < 90  # and not as long as distributed does
    first, error, hint = done.stderr.splitlines()
    assert first == f"{address}: connecting, for up to 1 s"
    assert error.startswith(f"error: {address}: the scheduler was not reached: ")
    assert "See that it runs" in hint
    assert envsync("check", "--quiet", "--timeout", "1", address).stderr.startswith("error: ")


def test_verbose_errors_have_their_traceback(envsync: Run) -> None:
    done = envsync("-v", "diff", "pylock.none.toml", ".")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "envsync.errors.LockError: pylock.none.toml: there is no such lock" in done.stderr


@pytest.mark.slow
def test_diff_of_an_environment_and_its_lock(envsync: Run, prefixes: dict[str, Path]) -> None:
    assert envsync("snapshot", "--python", prefixes["old"]).returncode == 0
    same = envsync("diff", "pylock.envsync.toml", prefixes["old"])
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout == f"no difference between pylock.envsync.toml and {prefixes['old']}\n"
    other = envsync("diff", "pylock.envsync.toml", prefixes["new"])
    assert other.returncode == 1
    assert other.stdout.startswith(f"wanted: pylock.envsync.toml\nthere:  {prefixes['new']}\n")
    assert ["error", "beta", "1.0", "2.0"] in [line.split() for line in other.stdout.splitlines()]


def test_diff_counts_what_only_one_side_has(forked: Run, prefixes: dict[str, Path], tmp_path: Path) -> None:
    gamma = make_wheel(tmp_path, "gamma", "1.0")
    other = make_environment(tmp_path / "other", make_wheel(tmp_path, "beta", "2.0"), gamma)
    done = forked("diff", prefixes["old"], other)
    rows = [line.split() for line in done.stdout.splitlines()]
    for row in (
        ["error", "alpha", "1.0", "-"],
        ["error", "beta", "1.0", "2.0"],
        ["note", "gamma", "-", "1.0"],
    ):
        assert row in rows
    assert done.stdout.endswith("\nonly in what is wanted: 1, only in what is there: 1, in both: 1\n")


def test_diff_of_two_environments_as_json(forked: Run, prefixes: dict[str, Path]) -> None:
    done = forked("diff", "--json", prefixes["new"], prefixes["old"] / "bin" / "python")
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)["differences"]
    assert (found["severity"], found["subject"]) == ("error", "beta")
    assert (found["left"], found["right"]) == ("2.0", "1.0")


def test_a_reader_that_goes_away_is_no_error(prefixes: dict[str, Path], tmp_path: Path) -> None:
    command = [str(BIN / "envsync"), "snapshot", "--no-lock", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 141


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "ignored"),
    [(signal.SIGINT, 130, ""), (signal.SIGTERM, 143, ""), (signal.SIGTERM, 143, "INT HUP")],
)
def test_signals_end_it_soon(tmp_path: Path, number: int, code: int, ignored: str) -> None:
    ignoring = ["sh", "-c", f"trap '' {ignored}; exec \"$@\"", "sh"] if ignored else []  # as nohup, and &
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and says nothing
        process = subprocess.Popen(
            [*ignoring, BIN / "envsync", "push", f"ssh://127.0.0.1:{server.getsockname()[1]}"],
            env={**os.environ, "ENVSYNC_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        try:
            server.settimeout(60)
            with server.accept()[0]:
                for name in ignored.split():
                    process.send_signal(signal.Signals[f"SIG{name}"])
                    time.sleep(0.3)
                    assert process.poll() is None, name
                process.send_signal(number)
                said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    how = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    assert said.splitlines()[-1] == f"{how}: what was started is ended too"
