"""uv runs with our settings only, and what it says reaches people without credentials."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envsync.errors import ToolError
from envsync.indexes import Index, IndexSettings
from envsync.target import Target
from envsync.uv import default_index, explain, find_uv, run_uv, scrub, secrets_in
from envsync.uv_compile import Question
from tests.index_server import IndexServer, write_wheel

CANARY = "canary-91bd"
COMPILE = ["pip", "compile", "--quiet", "--no-header", "--no-deps", "-"]


def test_the_installed_uv_is_found() -> None:
    assert os.access(find_uv(), os.X_OK)
    assert run_uv(["--version"], env={}).startswith("uv 0.")


def test_unsatisfiable_names_the_package() -> None:
    with pytest.raises(ToolError, match=r"click==8\.1\.799") as caught:
        run_uv(COMPILE, env={}, input="click==8.1.799\n")
    assert caught.value.returncode == 1
    assert "\x1b" not in caught.value.output


def test_wrong_usage() -> None:
    with pytest.raises(ToolError, match="--no-such-option") as caught:
        run_uv(["pip", "compile", "--no-such-option"], env={})
    assert caught.value.returncode == 2


def test_an_index_that_is_not_there_is_named_without_its_password() -> None:
    env = {"UV_DEFAULT_INDEX": f"http://me:{CANARY}@127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    with pytest.raises(ToolError, match=r"127\.0\.0\.1:9") as caught:
        run_uv(COMPILE, env=env, input="click\n")
    assert caught.value.returncode == 2
    assert CANARY not in str(caught.value) + caught.value.output


def test_what_configures_uv_here_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "uv.toml").write_text('index-url = "http://127.0.0.1:9/simple"\n[pip]\nno-deps = false\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2001-01-01")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "none.txt"))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("RUST_LOG", "trace")
    assert "click==8.1.7" in run_uv(COMPILE, env={}, input="click==8.1.7\n")
    with pytest.raises(ToolError) as caught:
        run_uv(COMPILE, env={}, input="click==8.1.799\n")
    assert "\x1b" not in caught.value.output


def test_the_default_index_is_uvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path))
    first = default_index()
    monkeypatch.setattr("envsync.uv.run_uv", None)  # it is not asked again
    assert first == default_index()
    assert first.startswith("https://")
    assert "@" not in first


def test_scrub() -> None:
    text = (
        f"failed: https://me:{CANARY}@example.org/simple?x=1&X-Amz-Signature={CANARY}&token={CANARY} {CANARY}"
    )
    assert CANARY not in scrub(text, [CANARY])
    assert "example.org/simple?x=1" in scrub(text)
    assert scrub("nothing to hide: a@b, x==1") == "nothing to hide: a@b, x==1"


def test_secrets_in_an_environment() -> None:
    found = secrets_in(
        {
            "UV_INDEX": f"a=https://me:{CANARY}-1@example.org/simple https://{CANARY}-2@example.org",
            "UV_FIND_LINKS": f"https://me:{CANARY}%2F3@example.org/x,/here",
            "UV_INDEX_A_PASSWORD": f"{CANARY}-4",
            "PATH": "/usr/bin",
        }.items()
    )
    assert {f"{CANARY}-1", f"{CANARY}-2", f"{CANARY}/3", f"{CANARY}%2F3", f"{CANARY}-4"} == found


def test_explain() -> None:
    said = "error: No\n  cause: Because a\n    And because b\n\nhint: do this\nhint: or that"
    message, hint = explain(said)
    assert message == "No: Because a\n    And because b"
    assert hint == "do this\n  or that"
    assert explain("killed") == ("killed", "")


def test_without_an_index_none_is_asked(tmp_path: Path) -> None:
    with IndexServer(tmp_path) as server:
        write_wheel(tmp_path, "there", "1.0")
        settings = IndexSettings(indexes=(Index(url=server.url, default=True),))
        question: dict[str, Any] = {"python": sys.executable, "version": "3.11", "target": Target.current()}
        assert "there" in Question(settings=settings, **question).pins(["there==1.0"])
        asked = len(server.requests)
        assert asked
        with pytest.raises(ToolError, match="there"):
            Question(settings=replace(settings, no_index=True), **question).pins(["there==1.0"])
        assert len(server.requests) == asked
