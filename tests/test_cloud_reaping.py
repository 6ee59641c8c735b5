"""What belongs to no living cluster is ended, and nothing else; other people's is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envsync.errors import CloudError
from envsync.hooks import Hooks
from envsync.runner.cloud.provider import Found, Machine, MachineRequest, Tags
from envsync.runner.cloud.reaping import Verdict, end, judge
from envsync.runner.records import Records, Seen, owner
from envsync.stores import open_store
from tests.cloud_fake import FakeProvider
from tests.test_records import record

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def thing(kind: str = "machine", **more: Any) -> Found:
    usual: dict[str, Any] = {
        "id": f"{kind}-1",
        "cluster": "ada-1",
        "owner": "ada@laptop",
        "created": NOW - 9999,
    }
    return Found(kind=kind, **{**usual, "state": "running" if kind == "machine" else "", **more})


def judged(*things: Found, **more: Any) -> Verdict:
    usual: dict[str, Any] = {"alive": {}, "ended": set(), "mine": lambda whose: True, "now": NOW}
    (verdict,) = judge({"north": things}, **{**usual, **more})
    return verdict


@pytest.mark.parametrize(
    ("age", "ends", "why"), [(5.0, False, "its client lives"), (301.0, True, "heard of 5 min ago")]
)
def test_a_cluster_lives_while_its_record_is_moved_on(age: float, ends: bool, why: str) -> None:
    seen = Seen(record=record(patience=300.0), age=age)
    verdict = judged(thing(), thing("group"), alive={"ada-1": seen})
    assert (verdict.ends, verdict.counted) == (ends, "1 machine, 1 group")
    assert why in verdict.why


def test_without_a_record_what_runs_is_left_and_what_is_left_behind_is_ended() -> None:
    assert not judged(thing()).ends
    assert judged(thing(), ended={"ada-1"}).ends
    assert judged(thing("group", created=0.0), thing("key")).ends
    assert not judged(thing("group", created=0.0), thing("key", created=NOW - 60)).ends  # it may be starting
    assert judged(thing(state="ending"), thing("key")).ends
    assert judged(thing(state="stopped"), thing("group", created=0.0)).ends  # and may cost
    assert not judged(thing(state="stopped"), thing(id="machine-2")).ends  # another of it goes on
    assert not judged(thing("key"), sure=False).ends  # its record may be where nobody could look


def test_a_deadline_counts_when_no_clock_explains_it() -> None:
    assert judged(thing(deadline="2027-01-15T07:40:00Z")).ends
    assert not judged(thing(deadline="2027-01-15T07:55:00Z")).ends
    assert not judged(thing(deadline="soon")).ends


def test_what_others_have_is_left_whatever_became_of_it() -> None:
    verdict = judged(thing(), ended={"ada-1"}, mine=lambda whose: False)
    assert (verdict.ends, verdict.why) == (False, "it is ada@laptop's")


class Stubborn(FakeProvider):
    """One group cannot be ended."""

    def remove(self, region: str, found: Found) -> bool:
        if found.kind == "group" and found.cluster == "bad-1":
            raise CloudError("not this one", hint="Never.")
        return super().remove(region, found)


def rent(provider: FakeProvider, region: str, cluster: str) -> Machine:
    tags = Tags(cluster=cluster, owner="ada@laptop")
    shared = provider.open(region, "small", tags, "key")
    return provider.create(
        MachineRequest(
            shared=shared, type="small", zone=f"{region}-a", token=cluster + region, tags=tags, user_data=""
        )
    )


def test_all_regions_are_ended_and_what_cannot_be_keeps_no_other() -> None:
    provider = Stubborn()
    for region in ("north", "south"):
        for cluster in ("ada-1", "bad-1", "bob-1"):
            rent(provider, region, cluster)
    end(provider, {"north": {"ada-1"}, "south": {"ada-1"}}, Hooks(), poll=0)
    left = {one.cluster for region in provider.regions for one in provider.found(region)}
    assert left == {"bad-1", "bob-1"}
    with pytest.raises(CloudError, match="not this one"):
        end(provider, {"north": {"bad-1", "bob-1"}}, Hooks(), poll=0)
    assert [(one.kind, one.cluster) for one in provider.found("north")] == [("group", "bad-1")]
    assert {one.cluster for one in provider.found("south")} == {"bad-1", "bob-1"}


# -- the commands, as another machine runs them


@pytest.fixture
def envsync(tmp_path: Path) -> Run:
    """Run the command with an empty home."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        return subprocess.run(
            [Path(sys.executable).parent / "envsync", *map(str, arguments)],
            cwd=home,
            env={**os.environ, "HOME": str(home), "ENVSYNC_CACHE": str(home / "cache"), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.slow
def test_ls_stop_and_cost_read_the_records(envsync: Run, tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    nothing = envsync("ls", "--store", url)
    assert (nothing.returncode, nothing.stdout) == (0, f"no clusters in {url}\n")
    records = Records(open_store(url))
    begun = NOW - 3600
    clusters: dict[str, dict[str, Any]] = {
        "ada-0001": {"owner": owner(), "idle": 180.0, "trouble": "log in again"},
        "ada-0002": {
            "owner": owner(),
            "backend": "ssh",
            "account": {},
            "regions": (),
            "bill": type(record().bill)(),
        },
        "bob-0001": {"owner": "bob@desk"},
        "old-0001": {"owner": owner(), "ended": NOW, "how": "closed"},
    }
    for cluster, more in clusters.items():
        records.keep(
            record(cluster, **{"begun": begun, "seen": NOW, "patience": 3600.0, "account": {}, **more})
        )
    shown = envsync("ls", "--store", url)
    assert (shown.returncode, shown.stderr) == (0, "warning: ada-0001: log in again\n")
    head, first, second, others = shown.stdout.splitlines()
    assert head.split() == [
        *("CLUSTER", "BACKEND", "HOSTS", "WORKERS", "AGE", "IDLE", "COST", "WHO", "FROM", "STATE")
    ]
    assert first.startswith("ada-0001  fake north")
    assert "3 min" in first
    assert "USD" in first
    assert "USD" not in second  # nothing of it is rented
    assert others == "1 more cluster of others: --everyone"
    everything = json.loads(envsync("ls", "--all", "--everyone", "--json", "--store", url).stdout)
    assert [(one["cluster"], one["state"]) for one in everything["clusters"]] == [
        *(("ada-0001", "alive"), ("ada-0002", "alive"), ("bob-0001", "alive"), ("old-0001", "ended"))
    ]

    two = envsync("stop", "ada", "--store", url)
    assert two.returncode == 2
    assert "ada is the name of 2 clusters" in two.stderr
    assert "ada-0001" in two.stderr
    assert "ada-0002" in two.stderr
    theirs = envsync("stop", "bob-0001", "--store", url)
    assert (theirs.returncode, "bob@desk's" in theirs.stderr) == (2, True)
    nobody = envsync("stop", "eve", "--store", url)
    assert (nobody.returncode, "--on ec2" in nobody.stderr) == (2, True)
    assert envsync("stop", "--store", url).returncode == 2
    assert records.wished_by("ada-0001") == ""

    cost = envsync("cost", "--store", url)
    assert cost.returncode == 0, cost.stderr
    lines = cost.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["CLUSTER", "ada-0001", "old-0001"]
    assert lines[-2:] == ["prices: made up, 2026-11-01", "1 more cluster of others: --everyone"]
    assert "without the disks of 2 machines" in cost.stdout
    users = json.loads(envsync("cost", "--by", "user", "--json", "--store", url).stdout)["sums"]
    assert {one["of"] for one in users} == {owner().partition("@")[0], "bob"}
    days = json.loads(
        envsync("cost", "--by", "day", "--since", "2027-01-15", "--json", "--store", url).stdout
    )
    assert days["sums"][0]["of"] == "2027-01-15"
    wrong = envsync("cost", "--since", "yesterday", "--store", url)
    assert (wrong.returncode, "7d" in wrong.stderr) == (2, True)
