"""Sixteen machines of one EC2 by envsync and by dask-cloudprovider's EC2Cluster: when all have booted.

The EC2 is moto's, on loopback; each machine takes half a second to be made, and three more to boot. What
comes after that is left out of both: envsync's environment (see the table of the machine that has just
booted), and dask-cloudprovider's container image, which its machines would pull from the internet.

``python -m pip install dask-cloudprovider``, then ``python -m benchmarks.cloud_providers``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.cloud import LATENCY, MACHINES, ROUNDS, SAID
from benchmarks.timing import Table, compare
from envsync.runner.cloud.ec2 import EC2Provider
from envsync.runner.cloud.provider import Tags
from envsync.runner.cloud.renting import Plan, Rented
from tests.lab.ec2_api import EC2Api

BOOT = 3.0  # seconds
REGION, TYPE, IMAGE = "eu-west-1", "m7i.large", "ami-0000000000000ub24"
OURS, THEIRS = "envsync's EC2", "dask-cloudprovider's EC2Cluster"


class Slow(EC2Api):
    """Machines take their time; where they are reached is here, and nobody else's address."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}

    def _run(self, original: Callable[..., Any], *rest: Any, **more: Any) -> Any:
        time.sleep(LATENCY)
        return super()._run(original, *rest, **more)

    def made(self, instance: Any) -> None:
        self.began[instance.id] = time.monotonic()
        for interface in instance.nics.values():
            interface.public_ip = "127.0.0.1"

    def console(self, instance: Any) -> str:
        return SAID if time.monotonic() - self.began[instance.id] > BOOT else ""


async def _ours() -> float:
    tags = Tags(cluster="bench", owner="bench@here")
    rented = Rented(EC2Provider((REGION,)), Plan(type=TYPE, count=MACHINES, tags=tags))
    began = time.perf_counter()
    await rented.start()
    await asyncio.gather(*(rented.another() for _ in range(MACHINES - 1)))
    took = time.perf_counter() - began
    await rented.close()
    return took


async def _theirs(api: Slow) -> float:
    from dask_cloudprovider.aws import EC2Cluster
    from dask_cloudprovider.generic import vmcluster
    from distributed import Scheduler

    def booted(*_: Any) -> bool:  # whether the scheduler's port is open
        return time.monotonic() - min(api.began.values()) > BOOT

    api.began.clear()
    # the one that it makes itself it asks for in a way that moto does not take
    (group, *_) = api.client().describe_security_groups()["SecurityGroups"]
    vmcluster.is_socket_open = booted
    async with Scheduler(host="127.0.0.1", port=8786, dashboard=False):
        began = time.perf_counter()
        cluster = await EC2Cluster(
            region=REGION,
            ami=IMAGE,
            instance_type=TYPE,
            security_groups=[group["GroupId"]],
            bootstrap=False,
            security=False,
            n_workers=MACHINES - 1,
            asynchronous=True,
        )
        assert len(api.began) == MACHINES
        took = time.perf_counter() - began
        took += max(0.0, BOOT - (time.monotonic() - max(api.began.values())))
        await cluster.close()
    return took


def main() -> None:
    with Slow() as api, api.used():
        calls: dict[str, Counter[str]] = {}

        def counted(name: str, action: Callable[[], Any]) -> Callable[[], float]:
            def act() -> float:
                api.asked.clear()
                took: float = asyncio.run(action())
                calls[name] = Counter(action for action, _ in api.asked)
                return took

            return act

        rows = compare(
            {OURS: counted(OURS, _ours), THEIRS: counted(THEIRS, lambda: _theirs(api))}, rounds=ROUNDS
        )
    notes = [
        f"{name}: {sum(made.values())} calls, its end too: "
        + ", ".join(f"{count} {action}" for action, count in made.most_common())
        for name, made in calls.items()
    ]
    target = "one boot for all, and not the scheduler's before that of the others"
    print(
        Table(
            f"{MACHINES} machines that take {LATENCY + BOOT:g} s each to be there", target, rows, notes
        ).markdown()
    )


if __name__ == "__main__":
    main()
