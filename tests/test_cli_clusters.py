"""``envsync run`` and ``envsync check`` with real clusters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
import pytest
from distributed import LocalCluster
from distributed.security import Security

from envsync.cli import cli
from envsync.cli.arguments import memory_limit
from envsync.cli.credentials import client_environment, sweep

BIN = Path(sys.executable).parent

ASK = """
import os, stat, sys
from dask.distributed import Client

if __name__ == "__main__":
    with Client() as client:
        print(client.scheduler.address, client.submit(sum, [1, 2, 3]).result())
    sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "ask.py"
    file.write_text(ASK)
    return file


def envsync(
    *arguments: object, cwd: Path, timeout: float = 200, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "envsync", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.slow
def test_a_script_finds_the_cluster_and_its_exit_code_is_ours(script: Path, tmp_path: Path) -> None:
    options = ["-n", "1", "--threads-per-worker", "1", "--memory-limit", "1GB"]
    done = envsync("run", *options, "--", sys.executable, script, cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    address, total = done.stdout.split()
    assert total == "6"
    assert f"cluster ready: {address}, dashboard http://" in done.stderr
    port = int(address.rpartition(":")[2])
    ports = {one.laddr[1] for one in psutil.net_connections() if one.status == "LISTEN" and one.laddr}
    assert port not in ports


@pytest.mark.slow
def test_sigterm_is_passed_on_and_everything_ends(tmp_path: Path) -> None:
    code = "import signal, sys, time; print('up', flush=True); time.sleep(120)"
    process = subprocess.Popen(
        [BIN / "envsync", "--quiet", "run", "-n", "1", "--", sys.executable, "-c", code],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3  # the script, the agent and what it runs
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert psutil.wait_procs(family, timeout=60)[1] == []
    finally:
        process.kill()


def test_a_command_that_is_not_there_starts_no_cluster(tmp_path: Path) -> None:
    done = envsync("run", "--", "no-such-command", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (127, "error: no-such-command: there is no such command\n")


FORWARD = """
import os, signal, sys
from envsync.cli.run import run_forwarding

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests under nohup ignores it

child = '''
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: (print("told", flush=True), sys.exit(3)))
print("up", flush=True)
while True:
    signal.pause()
'''
sys.exit(run_forwarding([sys.executable, "-c", child], os.environ))
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, 3), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_signals_reach_the_command(number: int, code: int) -> None:
    command = [sys.executable, "-c", FORWARD]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "up\n"
        one.send_signal(number)
        try:
            assert one.wait(timeout=60) == code
        finally:
            one.kill()


def test_a_client_without_arguments_finds_cluster_and_certificates(script: Path) -> None:
    security = Security.temporary()
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, security=security, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        with client_environment(address, cluster.security) as environment:
            files = [Path(value) for key, value in environment.items() if "__TLS__" in key]
            assert len(files) == 3
            for file in files:
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
            assert "PRIVATE KEY" not in "".join(environment.values())
            done = subprocess.run(
                [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
            )
        assert (done.returncode, done.stdout.split()) == (7, [address, "6"]), done.stderr
        assert not any(file.exists() for file in files)


HOLD = """
import os, sys
from distributed.security import Security
from envsync.cli.credentials import client_environment

with client_environment("tls://127.0.0.1:1", Security.temporary()) as environment:
    print(os.path.dirname(environment["DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_what_a_killed_run_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # where TMPDIR says
    folders, holders = [], []
    try:
        for _ in range(2):
            holders.append(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            assert holders[-1].stdout is not None
            folders.append(Path(holders[-1].stdout.readline().strip()))
        killed, living = folders
        holders[0].kill()
        holders[0].wait()
        assert (killed / "key.pem").exists()
        nobodys = tmp_path / "envsync-run-nobodys"
        nobodys.mkdir()
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(killed, elsewhere)
        (tmp_path / "envsync-run-link").symlink_to(elsewhere)
        sweep()
        assert not killed.exists()
        assert (living / "key.pem").exists()
        assert (elsewhere / "key.pem").exists()
        assert nobodys.exists()
    finally:
        for holder in holders:
            holder.communicate("")
    assert not living.exists()


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_kill_9_leaves_nothing_for_longer_than_until_the_next_run(tmp_path: Path) -> None:
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    code = "import time; print('up', flush=True); time.sleep(120)"
    process = subprocess.Popen(
        [BIN / "envsync", "--quiet", "run", "-n", "1", "--", sys.executable, "-c", code],
        cwd=here,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    family: list[psutil.Process] = []
    commands: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        family = psutil.Process(process.pid).children(recursive=True)
        commands = [one for one in family if one.cmdline()[-1:] == [code]]
        process.kill()
        process.wait()
        (left,) = temporary.glob("envsync-run-*")
        (here / "pylock.toml").write_text("")
        again = envsync("run", "--lock", "pylock.toml", "--", "true", cwd=here, TMPDIR=str(temporary))
        assert again.returncode == 3, again.stderr  # it looked, before it read the lock
        assert not left.exists()
    finally:
        process.kill()
        for one in commands:  # these are nobody's any more; the cluster ends by itself
            one.kill()
    deadline = time.monotonic() + 90
    while any(map(runs, family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [one for one in family if runs(one)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting scheduler", "starting worker 0"])
def test_sigterm_while_it_starts_is_one_line(moment: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [BIN / "envsync", "run", "-n", "2", "--threads-per-worker", "1", "--", "true"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if moment in line:
                break
        else:
            raise AssertionError("it did not get there")
        process.terminate()
        family = psutil.Process(process.pid).children(recursive=True)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert "Traceback" not in rest
    assert "never retrieved" not in rest
    assert "without starting up" not in rest
    assert rest.splitlines()[-1] == "ended by SIGTERM: what was started is ended too"
    assert psutil.wait_procs(family, timeout=60)[1] == []


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("auto", "auto"),
        ("4GB", 4_000_000_000),
        ("512MiB", 512 * 2**20),
        ("2e9", 2_000_000_000),
        ("0.25", 0.25),
        ("1", 1.0),
        ("0", 0),
        (None, None),
    ],
)
def test_a_memory_limit_is_what_dask_takes(text: str | None, limit: str | float | None) -> None:
    assert memory_limit(None, None, text) == limit


@pytest.mark.parametrize("text", ["lots", "", "-4GB", "-1", "nan", "inf", "GB", "50%", "1e400GB", "8", "1.5"])
def test_other_memory_limits_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        memory_limit(None, None, text)


def test_what_follows_the_command_is_the_commands() -> None:
    command = cli.get_command(click.Context(cli), "run")
    assert command is not None
    for words in (["-n", "2", "python", "a.py", "-n", "3"], ["-n", "2", "--", "python", "a.py", "-n", "3"]):
        context = command.make_context("run", words)
        assert context.params["n_workers"] == 2
        assert context.params["arguments"] == ("python", "a.py", "-n", "3")


def test_security_in_files_is_named_as_it_is(tmp_path: Path) -> None:
    security = Security(
        tls_ca_file="/etc/ca.pem", tls_client_cert="/etc/cert.pem", tls_client_key="/etc/key.pem"
    )
    with client_environment("tls://127.0.0.1:1", security) as environment:
        assert environment["DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"] == "/etc/key.pem"
    with client_environment("tcp://127.0.0.1:1", None) as environment:
        assert not any("TLS" in key for key in environment.keys() - os.environ.keys())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster that envsync did not start, without workers so far."""
    with LocalCluster(n_workers=0, dashboard_address=None, local_directory=str(tmp_path)) as one:
        yield one


def another_toolz(folder: Path) -> Path:
    """A folder with a toolz that says it is another version."""
    (folder / "toolz-0.1.dist-info").mkdir(parents=True)
    (folder / "toolz-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toolz\nVersion: 0.1\n"
    )
    (folder / "toolz-0.1.dist-info" / "RECORD").write_text("")
    return folder


@pytest.fixture
def start_worker(cluster: LocalCluster, tmp_path: Path) -> Iterator[object]:
    started = []

    def start(**environment: str) -> None:
        options = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, *options]
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, **environment},
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        with cluster.get_client() as client:
            client.wait_for_workers(len(started), timeout=60)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_check_and_diff_answer_with_their_exit_codes(
    cluster: LocalCluster, start_worker: object, tmp_path: Path
) -> None:
    assert callable(start_worker)
    address = cluster.scheduler_address
    start_worker()
    equal = envsync("check", address, cwd=tmp_path)
    assert equal.returncode == 0, equal.stdout + equal.stderr
    assert "1 scheduler and 1 worker" in equal.stdout

    start_worker(PYTHONPATH=str(another_toolz(tmp_path / "elsewhere")))
    differs = envsync("check", address, cwd=tmp_path)
    assert differs.returncode == 1
    assert "toolz" in differs.stdout
    said = json.loads(envsync("check", "--json", address, cwd=tmp_path).stdout)
    assert said["ok"] is False
    wrong = [one for one in said["processes"] if any(d["subject"] == "toolz" for d in one["differences"])]
    assert [one["kind"] for one in wrong] == ["worker"]

    for sides in ([".", address], [address, "."]):
        done = envsync("diff", *sides, cwd=tmp_path)
        assert done.returncode == 1
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("error") and "toolz" in line]
        assert (line.split()[-1] == "0.1") is (sides[1] == address), done.stdout
        wanted = "this environment" if sides[0] == "." else address
        assert done.stdout.startswith(f"wanted: {wanted}\n")


def test_only_what_cannot_be_reached_is_called_so(cluster: LocalCluster) -> None:
    """What is wrong in a comparison is not the scheduler's fault."""
    from envsync.cli.check import look_at_cluster
    from envsync.errors import ClusterError
    from envsync.snapshot import capture

    broken = {**capture().report(), "trees": 5}
    with pytest.raises(TypeError):
        look_at_cluster(cluster.scheduler_address, {}, wanted={**broken, "distributions": 5})
    for address in ("tcp://127.0.0.1:1", "nothing://127.0.0.1:1"):
        with pytest.raises(ClusterError, match="was not reached"):
            look_at_cluster(address, {}, wanted=broken, timeout=1)


@pytest.mark.slow
def test_the_cache_folder_of_the_hosts_can_be_named(small_lock: Path, tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    pushed = envsync("push", "--json", "--lock", small_lock, "--cache", there, "local", cwd=here)
    assert pushed.returncode == 0, pushed.stderr
    (host,) = json.loads(pushed.stdout)["hosts"]
    assert host["created"]
    assert Path(host["prefix"]).is_relative_to(there)

    code = (
        "from dask.distributed import Client\n"
        "import sys; print(Client().submit(lambda: __import__('sys').prefix).result())"
    )
    command = ["--", sys.executable, "-c", code]
    options = ["--lock", small_lock, "--cache", there, "-n", "1", "--on-mismatch", "warn"]
    ran = envsync("run", *options, *command, cwd=here)
    assert ran.stdout.strip() == host["prefix"], ran.stderr
