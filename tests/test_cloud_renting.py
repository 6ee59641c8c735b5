"""Machines of a cluster: all of them up and known, or none of them left."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncssh
import pytest

from envsync.errors import (
    AuthenticationError,
    BootError,
    CapacityError,
    CloudError,
    ConnectError,
    HostError,
    HostKeyError,
)
from envsync.hooks import Hooks
from envsync.runner.cloud import booting
from envsync.runner.cloud.provider import Machine, MachineRequest, Tags
from envsync.runner.cloud.renting import Plan, Rented
from envsync.runner.ec2 import EC2
from tests.cloud_fake import FakeProvider

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzJZlZKk1hkKJ8cXvNf6uX2m0Sx1L9Oe6K5m3cQnH2a"
SAID = f"booting\n-----BEGIN SSH HOST KEY KEYS-----\n{KEY} root@a\n-----END SSH HOST KEY KEYS-----\n"


class Heard(Hooks):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, where: str, text: str) -> None:
        self.texts.append(text)


class Booting(FakeProvider):
    """Machines that say their host keys at once, but for some."""

    def __init__(self, *rest: Any, mute: int = 0, **more: Any) -> None:
        super().__init__(*rest, **more)
        self.mute = mute

    def create(self, request: MachineRequest) -> Machine:
        made = super().create(request)
        self.consoles.setdefault(made.id, SAID if self.mute <= 0 else "kernel panic: no root\n")
        self.mute -= 1
        return made


def plan(count: int = 2, **more: Any) -> Plan:
    tags = Tags(cluster="ada-1", owner="ada@laptop")
    return Plan(**{"type": "small", "count": count, "tags": tags, "poll": 0.01, **more})


def alive(provider: FakeProvider) -> list[Machine]:
    return [one for one in provider.machines.values() if one.state != "ended"]


async def start(rented: Rented) -> tuple[Machine, ...]:
    """Have all machines up that are planned."""
    first = await rented.start()
    try:
        others = [rented.another() for _ in range(rented.plan.count - 1)]
        return first, *await asyncio.gather(*others)
    except BaseException:
        await rented.close()
        raise


async def test_machines_are_up_and_known_and_then_gone() -> None:
    provider = Booting()
    rented = Rented(provider, plan(3))
    machines = await start(rented)
    assert len(machines) == len(alive(provider)) == 3
    config, known = rented.config.read_text(), Path(rented.config).with_name("known_hosts").read_text()
    for machine in machines:
        assert f"Host {machine.id}\n  HostName {machine.public_address}\n" in config
        assert f"{machine.id} {KEY}\n" in known
    assert rented.key.stat().st_mode & 0o777 == 0o600
    while rented.bill().unpriced:  # prices are asked for beside
        await asyncio.sleep(0.01)
    assert rented.bill().rate(time.time()) == pytest.approx(3 * (0.1 + 0.0008))
    await rented.close()
    assert {one.id for one in rented.bill().hired} == {one.id for one in machines}
    assert all(one.ended is not None for one in rented.bill().hired)
    assert rented.bill().rate(time.time()) == 0
    assert (alive(provider), provider.shared) == ([], {})
    assert not rented.key.exists()
    await rented.close()


async def test_what_errors_tell_to_do_needs_no_file_that_goes_with_the_machines(tmp_path: Path) -> None:
    """`ssh -F` with our configuration, and our known_hosts: both are gone when somebody reads that."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")
    config, known = tmp_path / "config", tmp_path / "known_hosts"
    backend, rented = EC2("small"), SimpleNamespace(config=config)
    backend._rented = cast("Any", rented)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        async with asyncssh.listen("127.0.0.1", 0, server_host_keys=[key]) as sshd:
            told: dict[type[HostError], str] = {}
            for port, knows in (
                (deaf.getsockname()[1], False),
                (sshd.get_port(), False),
                (sshd.get_port(), True),
            ):
                line = f"[m-1]:{port} {key.export_public_key().decode()}\n"
                known.write_text(line if knows else "")
                config.write_text(
                    f"Host m-1\nHostName 127.0.0.1\nPort {port}\nHostKeyAlias m-1\nIdentityAgent none\n"
                    f"IdentityFile {tmp_path}/key\nUserKnownHostsFile {known}\n"
                    "GlobalKnownHostsFile /dev/null\n"
                )
                with pytest.raises(HostError) as refused:
                    await backend.host(cast("Machine", SimpleNamespace(id="m-1"))).run("true")
                told[type(refused.value)] = str(refused.value.hint)
    assert set(told) == {ConnectError, HostKeyError, AuthenticationError}
    assert not any(str(tmp_path) in hint for hint in told.values())
    assert "reached_from=" in told[ConnectError]


async def test_a_machine_whose_sshd_answers_is_looked_at_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = Booting(mute=1)
    knocked: list[str] = []

    async def banner(address: str) -> None:
        knocked.append(address)
        if len(knocked) < 2:
            raise ConnectionRefusedError
        [machine] = alive(provider)
        asyncio.get_running_loop().call_later(0.05, provider.consoles.update, {machine.id: SAID})

    monkeypatch.setattr(booting, "_banner", banner)
    rented = Rented(provider, plan(1, poll=60))
    began = time.monotonic()
    machine = await rented.start()
    assert time.monotonic() - began < 30
    assert knocked == [machine.public_address] * 2  # once it has answered, it is known
    rented.plan = plan(1)
    await rented.close()


@pytest.mark.parametrize(
    ("spot", "room", "had"),
    [
        ("never", {("north-a", "on-demand"): 1}, [("north-a", "on-demand"), ("north-b", "on-demand")]),
        ("prefer", {("north-a", "spot"): 0}, [("north-a", "on-demand"), ("north-b", "spot")]),
        (
            "prefer",
            {("north-a", "spot"): 0, ("north-b", "spot"): 0},
            [("north-a", "on-demand"), ("north-a", "on-demand")],
        ),
        (
            "only",  # one is not enough: none stays in the north
            {("north-a", "spot"): 1, ("north-b", "spot"): 0},
            [("south-a", "spot"), ("south-a", "spot")],
        ),
    ],
)
async def test_where_there_is_no_room_others_are_asked(spot: Any, room: Any, had: Any) -> None:
    provider = Booting(room=dict(room))
    rented = Rented(provider, plan(spot=spot))
    await start(rented)
    assert sorted((one.zone, one.market) for one in alive(provider)) == had
    assert {one.region for one in alive(provider)} == {key.split("/")[0] for key in provider.shared}
    await rented.close()
    assert (alive(provider), provider.shared) == ([], {})


async def test_no_room_anywhere_is_an_error_that_leaves_nothing() -> None:
    room: Any = {(f"{region}-{zone}", "on-demand"): 0 for region in ("north", "south") for zone in "ab"}
    room["south-b", "on-demand"] = 1
    provider = Booting(room=room)
    with pytest.raises(CapacityError, match=r"2 x small could not be had anywhere: no small there"):
        await Rented(provider, plan()).start()
    assert (alive(provider), provider.shared) == ([], {})
    with pytest.raises(CapacityError, match="has no giant"):
        await Rented(provider, plan(type="giant")).start()


async def test_sixteen_machines_are_asked_for_at_the_same_time() -> None:
    together = threading.Barrier(16)

    class Slow(Booting):
        def create(self, request: MachineRequest) -> Machine:
            together.wait(60)
            return super().create(request)

    provider = Slow()
    rented = Rented(provider, plan(16))
    assert len(await start(rented)) == 16
    await rented.close()
    assert alive(provider) == []


async def test_what_is_refused_once_is_not_asked_for_a_hundred_times() -> None:
    """As with a quota: the calls that wait for their turn are not made any more."""
    told = threading.Event()
    asked = itertools.count(1)

    class Full(Booting):
        def create(self, request: MachineRequest) -> Machine:
            if next(asked) > 1:
                assert told.wait(60)
            raise CapacityError("the quota is used up", where="north", hint="Rent fewer.", scope="region")

    class Telling(Hooks):
        def note(self, where: str, text: str) -> None:
            told.set()  # the start is given up

    provider = Full(regions=("north",))
    with pytest.raises(CapacityError, match="the quota is used up"):
        await Rented(provider, plan(100), Telling()).start()
    assert next(asked) <= 40
    assert (provider.machines, provider.shared) == ({}, {})


async def test_machines_that_are_not_wanted_end_and_those_that_end_are_told() -> None:
    provider = Booting()
    rented = Rented(provider, plan(3, watch=0.01))
    gone: list[Machine] = []
    rented.gone = gone.append
    first, second, third = await start(rented)
    rented.end(second)
    provider.machines[third.id] = replace(third, state="ended", reason="Client.UserInitiatedShutdown")
    while len(alive(provider)) > 1 or not gone:
        await asyncio.sleep(0.01)
    assert [(one.id, one.reason) for one in gone] == [(third.id, "Client.UserInitiatedShutdown")]
    assert (await rented.why(third), rented.machines) == ("Client.UserInitiatedShutdown", (first,))
    assert f"Host {first.id}\n" in rented.config.read_text()
    assert f"Host {second.id}\n" not in rented.config.read_text()
    waiting = asyncio.ensure_future(rented.another())
    provider.mute = 1  # it goes on booting
    while len(alive(provider)) < 2:
        await asyncio.sleep(0)
    waiting.cancel()
    # it is ended by a call in a thread, which counts when it has returned
    while len(alive(provider)) > 1 or [one.ended for one in rented.bill().hired].count(None) > 1:
        await asyncio.sleep(0.01)
    assert len(rented.bill().hired) == 4
    await rented.close()
    assert (alive(provider), provider.shared) == ([], {})


async def test_a_machine_that_does_not_come_up_is_replaced() -> None:
    provider, heard = Booting(mute=1), Heard()
    rented = Rented(provider, plan(2, boot=0.1), heard)
    await start(rented)
    assert len(provider.machines) == 3
    while len(alive(provider)) > 2:  # it is ended beside
        await asyncio.sleep(0.01)
    assert any("another is made in its place" in text for text in heard.texts)
    await rented.close()


async def test_and_given_up_with_its_consoles_end_when_the_other_does_not_either() -> None:
    provider = Booting(mute=9)
    with pytest.raises(BootError, match=r"within 0\.1 s") as told:
        await start(Rented(provider, plan(2, boot=0.1)))
    assert told.value.tail == ("kernel panic: no root",)
    assert "| kernel panic" in str(told.value)
    assert (alive(provider), provider.shared) == ([], {})


async def test_a_machine_that_ends_while_it_boots_is_told_with_the_clouds_reason() -> None:
    class Ending(Booting):
        def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
            found = super().describe(region, cluster)
            return tuple(
                replace(one, state="ended", reason="Server.SpotInstanceTermination") for one in found
            )

    with pytest.raises(BootError, match=r"Server\.SpotInstanceTermination"):
        await Rented(Ending(), plan(1)).start()


class Forgetting(Booting):
    """It lists nothing that is deleted, as some clouds."""

    listed = 0

    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        self.listed += 1
        return tuple(one for one in super().describe(region, cluster) if one.state != "ended")


async def test_one_that_is_deleted_while_it_boots_is_not_replaced_where_such_are_not_listed() -> None:
    provider = Forgetting(mute=1)
    rented = Rented(provider, plan(1, boot=20))
    starting = asyncio.ensure_future(rented.start())
    while provider.listed < 2:
        await asyncio.sleep(0.01)
    provider.terminate("north", list(provider.machines))
    with pytest.raises(CloudError, match="while it was booting: the cloud does not know it any more"):
        await starting
    assert (len(provider.machines), alive(provider)) == (1, [])


async def test_one_that_vanishes_while_the_others_stay_is_replaced() -> None:
    """On demand, too: its cloud lost it, or somebody wanted no more than that one to end."""
    provider, heard = Forgetting(mute=1), Heard()
    rented = Rented(provider, plan(2, boot=20), heard)
    starting = asyncio.ensure_future(start(rented))
    while provider.listed < 2:
        await asyncio.sleep(0.01)
    provider.terminate("north", ["m-1"])
    assert {one.id for one in await starting} == {"m-2", "m-3"}
    assert "m-1 ended while it was booting: the cloud does not know it any more: another is made" in str(
        heard.texts
    )
    await rented.close()
    assert (alive(provider), provider.shared) == ([], {})


async def test_nothing_is_rented_where_one_machine_after_the_other_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(booting, "_AFTERWARDS", 9999)
    provider = Forgetting(mute=9)
    rented = Rented(provider, plan(3, boot=60))
    starting = asyncio.ensure_future(start(rented))
    for identity in ("m-2", "m-1", "m-3"):
        seen = provider.listed
        while provider.listed < seen + 6:  # that it is not there is noticed before the next one goes
            await asyncio.sleep(0.01)
        provider.terminate("north", [identity])
    with pytest.raises(CloudError, match="somebody has ended m-1 while it was booting"):
        await starting
    assert (len(provider.machines), alive(provider), provider.shared) == (3, [], {})


async def test_a_spot_machine_that_is_not_listed_any_more_was_taken_back_and_is_replaced() -> None:
    provider = Forgetting(mute=1)
    rented = Rented(provider, plan(1, boot=20, spot="only"))
    starting = asyncio.ensure_future(rented.start())
    while provider.listed < 2:
        await asyncio.sleep(0.01)
    provider.terminate("north", list(provider.machines))
    assert (await starting).id == "m-2"
    await rented.close()
    assert alive(provider) == []


async def test_nobody_looks_often_any_more_when_what_was_ended_is_not_listed() -> None:
    provider = Forgetting()
    rented = Rented(provider, plan(2, watch=0.5))
    _, other = await start(rented)
    rented.end(other)
    while rented._unwanted or other.id in {one.id for one in alive(provider)}:
        await asyncio.sleep(0.01)
    await rented.close()
    assert alive(provider) == []


async def test_a_start_that_is_cancelled_while_machines_are_made_leaves_none() -> None:
    began, go = threading.Event(), threading.Event()

    class Slow(Booting):
        def create(self, request: MachineRequest) -> Machine:
            began.set()
            go.wait(60)
            return super().create(request)

    provider = Slow()
    rented = Rented(provider, plan(2))
    starting = asyncio.ensure_future(rented.start())
    await asyncio.to_thread(began.wait, 60)
    starting.cancel()
    await asyncio.sleep(0.05)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert len(provider.machines) >= 1  # made while it was cancelled
    assert (alive(provider), provider.shared) == ([], {})
    assert not rented.key.exists()


async def test_what_cannot_be_ended_is_said() -> None:
    class Stuck(Booting):
        def terminate(self, region: str, ids: Any) -> None:
            raise CloudError("the credentials have expired", where=region, hint="Log in again.")

    provider = Stuck()
    rented = Rented(provider, plan(1))
    await rented.start()
    with pytest.raises(CloudError, match="expired"):
        await rented.close()
    assert not rented.key.exists()


async def test_a_cloud_without_consoles_is_used_only_if_the_first_key_is_to_be_trusted() -> None:
    """A real sshd's key is taken, and what a machine that shuts itself down costs is said."""

    class Mute(Booting):
        has_console = False
        gone_on_shutdown = False
        left_on_shutdown = "it is billed on"

        def console(self, region: str, identity: str) -> str:
            raise AssertionError("there is none")

        def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
            return tuple(
                replace(one, public_address="127.0.0.1") for one in super().describe(region, cluster)
            )

    provider, heard = Mute(), Heard()
    with pytest.raises(CloudError, match="console") as told:
        await Rented(provider, plan(1), heard).start()
    assert "host_keys='first'" in told.value.hint
    assert provider.machines == {}
    key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen("127.0.0.1", 0, server_host_keys=[key])
    ask = asyncssh.get_server_host_key

    async def at_its_port(address: str, port: int, **more: Any) -> Any:
        assert port == 22
        return await ask(address, listener.get_port(), **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncssh, "get_server_host_key", at_its_port)
        rented = Rented(provider, plan(1, host_keys="first"), heard)
        await rented.start()
        listener.close()
        await listener.wait_closed()
        (machine,) = rented.machines
        known = rented.config.with_name("known_hosts").read_text()
        assert known.split()[:3] == [machine.id, *key.export_public_key().decode().split()[:2]]
        await rented.close()
        with pytest.raises(BootError):  # nobody answers
            await Rented(provider, plan(1, host_keys="first", boot=0.05), heard).start()
    assert "it is billed on" in heard.texts
    assert alive(provider) == []
