"""What a notebook shows while a cluster starts, without a kernel: tests/test_notebook.py has one."""

from __future__ import annotations

import logging
import re
import sys
from types import SimpleNamespace

import pytest

from envsync.runner import notebooks
from envsync.runner.logged import LoggedHooks
from envsync.runner.notebooks import NotebookHooks, hooks_here


def shown(monkeypatch: pytest.MonkeyPatch) -> tuple[NotebookHooks, list[str]]:
    monkeypatch.setattr(notebooks, "_PATIENCE", 0)
    monkeypatch.setattr(notebooks, "_EVERY", 0.005)
    tables: list[str] = []
    return NotebookHooks(tables.append), tables


def drawn(hooks: NotebookHooks) -> None:
    assert hooks._drawing is not None
    hooks._drawing.join(60)
    assert not hooks._drawing.is_alive()


def test_a_start_is_a_table_that_folds_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "envsync")
    hooks, tables = shown(monkeypatch)
    hooks.note("cluster", "8 x m7i.large & more")
    hooks.step("<node1>", "sending")
    hooks.progress("<node1>", 42_000_000, 84_000_000, "B")
    hooks.warning("<node1>", "its clock is an hour late")
    hooks.done("here", "locked", 3.0)
    hooks.over(well=True)
    drawn(hooks)
    last = tables[-1]
    assert re.match(r"<details><summary>started in \d+ s</summary><table>", last)
    assert "&lt;node1&gt;</td>" in last
    assert "sending  42.0 of 84.0 MB</td>" in last
    assert "✓</td>" in last
    assert "locked</td>" in last
    assert "3 s</td>" in last
    assert "<div>cluster: 8 x m7i.large &amp; more</div>" in last
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "<node1>: its clock is an hour late"
    ]
    hooks.step("node2", "booting")  # a machine that is rented later is not this cell's
    drawn(hooks)
    assert tables[-1] == last


def test_one_that_was_given_up_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks, tables = shown(monkeypatch)
    for number in range(30):
        hooks.step(f"node{number}", "booting")
    for number in range(29):
        hooks.done(f"node{number}", "up", 1.0)
    hooks.failed("node29", "it never came up\nits console: ...")
    hooks.over(well=False)
    drawn(hooks)
    last = tables[-1]
    assert last.startswith("<table>")
    assert "✗</td>" in last
    assert "it never came up</td>" in last
    assert last.count("<tr>") == 13
    assert "and 18 others, of which 18 are ready" in last


def test_what_is_quick_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks, tables = shown(monkeypatch)
    monkeypatch.setattr(notebooks, "_PATIENCE", 60)
    hooks.step("here", "locking")
    hooks.over(well=True)
    drawn(hooks)
    assert tables == []


def test_only_a_kernel_has_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert type(hooks_here()) is LoggedHooks
    terminal = SimpleNamespace(get_ipython=lambda: object())
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    assert type(hooks_here()) is LoggedHooks
