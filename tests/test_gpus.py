"""GPUs that were asked for: what a job may use of its node, and workers of dask-cuda."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import Any, ClassVar

import pytest
from distributed.security import Security

from envsync import SyncedCluster
from envsync.errors import AgentError, ClusterError
from envsync.hooks import Hooks
from envsync.plugins.process import _cuda_nanny
from envsync.runner.gpus import demand_one_each, tell_missing, with_gpus
from envsync.runner.layout import WorkerSpec, devices, layout
from envsync.runner.options import Options

FOUR = [{"index": number, "uuid": f"GPU-{number}", "numa": None, "mig": None} for number in range(4)]


class Agent:
    """As much of a Session as is asked of it."""

    def __init__(self, visible: str | None, gpus: Any = FOUR, missing: str = "") -> None:
        self.facts = {"gpus": gpus, "gpus_missing": missing, "cuda_visible_devices": visible}
        self.host = types.SimpleNamespace(name="node1")
        self.hooks = Hooks()
        self.asked: list[int] = []
        self.refusal = ""

    async def request(self, verb: str, *, count: int, name: str) -> Any:
        assert (verb, name) == ("allot_gpus", "job 17")
        self.asked.append(count)
        if self.refusal:
            raise AgentError(self.refusal, where="node1")
        return {"gpus": ["GPU-3", "GPU-1"][:count], "notes": []}


def usable(agent: Agent, asked: int, *, told: bool = True) -> list[str]:
    facts = asyncio.run(with_gpus(agent, asked, told=told, name="job 17"))  # type: ignore[arg-type]
    return [device.uuid for device in devices(facts)]


def test_what_the_system_says_is_what_there_is() -> None:
    agent = Agent("2,3")
    assert usable(agent, 2) == ["GPU-2", "GPU-3"]
    assert usable(agent, 0) == ["GPU-2", "GPU-3"], "asked for by extra="
    assert agent.asked == []


def test_where_it_says_nothing_they_are_taken() -> None:
    agent = Agent(None)
    assert usable(agent, 2, told=False) == ["GPU-3", "GPU-1"]
    assert usable(agent, 1) == ["GPU-3"], "it could have said, and did not"
    assert agent.asked == [2, 1]
    # a site's own way, or but a variable that came along: others may have been told the same
    other = Agent("0,1")
    usable(other, 1, told=False)
    assert other.asked == [1]


def test_nobody_asked_so_nobody_gets_any() -> None:
    agent = Agent(None)
    assert usable(agent, 0) == []
    assert usable(agent, 0, told=False) == []
    assert agent.asked == []
    facts = {**agent.facts, "gpus": [], "cores": 4, "memory": 2**30}
    assert layout(facts, n_workers=1)[0].environment() == {}


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (Agent("", []), "asked for 2, 0 to be seen here; CUDA_VISIBLE_DEVICES is '', NVML sees 0"),
        (Agent("0,9"), "asked for 2, 1 to be seen here; CUDA_VISIBLE_DEVICES is '0,9', NVML sees 4"),
        (Agent("0,1", [], "nvmlInit_v2: NVML_ERROR_NO_PERMISSION"), "NVML_ERROR_NO_PERMISSION"),
    ],
)
def test_fewer_than_asked_for_is_an_error(agent: Agent, said: str) -> None:
    with pytest.raises(ClusterError) as refused:
        usable(agent, 2)
    assert said in refused.value.message
    assert refused.value.where == "node1"


def test_what_the_agent_says_of_others_is_told() -> None:
    agent = Agent(None)
    agent.refusal = "there are not enough GPUs: GPU-0 is held by process 7 (job 3)"
    with pytest.raises(ClusterError, match=r"held by process 7 \(job 3\)"):
        usable(agent, 1)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("", False),
        ("there is no NVIDIA driver's library: libnvidia-ml.so.1", False),
        ("nvmlInit_v2: NVML_ERROR_DRIVER_NOT_LOADED (the driver is not loaded)", False),
        ("nvmlInit_v2: NVML_ERROR_LIB_RM_VERSION_MISMATCH", True),
        ("device 2 of 3: NVML_ERROR_GPU_IS_LOST", True),
    ],
)
def test_a_driver_that_fails_on_a_host_is_told(missing: str, told: bool) -> None:
    class Told(Hooks):
        warnings: tuple[str, ...] = ()

        def warning(self, where: str, text: str) -> None:
            assert where == "node1"
            self.warnings += (text,)

    hooks = Told()
    tell_missing("node1", {"gpus_missing": missing}, hooks)
    assert [missing in text for text in hooks.warnings] == [True] * told


def spec(*gpus: str) -> WorkerSpec:
    return WorkerSpec(nthreads=1, memory_limit=0, gpus=gpus or None)


def test_workers_of_dask_cuda_have_one_each() -> None:
    demand_one_each([spec("GPU-0"), spec("GPU-1")], {}, "node1")
    with pytest.raises(ClusterError, match="no driver") as refused:
        demand_one_each([spec()], {"gpus_missing": "no driver"}, "node1")
    assert "gpu_worker='dask-cuda'" in refused.value.message
    with pytest.raises(ClusterError, match="one worker for each GPU"):
        demand_one_each([spec("GPU-0", "GPU-1")], {}, "node1")


def test_without_dask_cuda_nothing_is_started() -> None:
    with pytest.raises(ClusterError, match="there is no dask-cuda in this environment"):
        SyncedCluster(gpu_worker="dask-cuda", dashboard_address=None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpu_worker": "cupy"}, "gpu_worker must be"),
        ({"gpu_worker": "dask-cuda", "worker_class": "distributed.Worker"}, "worker_class= is not taken"),
        ({"worker_kwargs": {"rmm_pool_size": "1 GB"}}, "rmm_pool_size= is an option of dask-cuda's worker"),
    ],
)
def test_what_does_not_go_together_is_refused(asked: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        Options(local=True, **asked)


def test_options_of_dask_cuda_go_to_it_and_the_rest_where_it_went() -> None:
    given = {"rmm_pool_size": "1 GB", "lifetime": "1 h", "resources": {"disk": 1}}
    options = Options(local=False, gpu_worker="dask-cuda", env={"MINE": 1}, worker_kwargs=given)
    config = options.worker(
        WorkerSpec(nthreads=1, memory_limit=7, gpus=("GPU-1",), resources={"GPU": 1}), encrypted=True
    )
    assert config["cuda"] == {"rmm_pool_size": "1 GB"}
    assert config["env"] == {"CUDA_VISIBLE_DEVICES": "GPU-1", "MINE": "1"}
    assert config["options"]["lifetime"] == "1 h"
    assert config["options"]["resources"] == {"GPU": 1, "disk": 1}
    assert not {"rmm_pool_size", "env"} & set(config["options"])


class CPUAffinity:
    """As dask-cuda has it by name."""


class CUDAWorker:
    """A stand-in for the real one, which was tried by hand: docs/internals-batch.md."""

    made: ClassVar[dict[str, Any]]

    def __init__(
        self, scheduler: str, memory_limit: Any = "auto", rmm_pool_size: Any = None, **kwargs: Any
    ) -> None:
        type(self).made = {"memory_limit": memory_limit, "rmm_pool_size": rmm_pool_size, **kwargs}
        plugins = {CPUAffinity(), scheduler}
        self.nannies = [types.SimpleNamespace(resources=None, worker_kwargs={"plugins": plugins})]


def test_its_nanny_is_taken_and_stays_on_our_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("dask_cuda")
    module.CUDAWorker = CUDAWorker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    given = {"name": "w", "memory_limit": 0, "resources": {"GPU": 1}}
    nanny = _cuda_nanny("tcp://1.2.3.4:5", Security(), given, {"rmm_pool_size": "1 GB"})
    assert nanny.worker_kwargs["plugins"] == ["tcp://1.2.3.4:5"]
    assert nanny.resources == {"GPU": 1}
    made = CUDAWorker.made
    assert (made["memory_limit"], made["rmm_pool_size"], made["name"]) == (None, "1 GB", "w")
    with pytest.raises(TypeError, match="does not know jit_unspill"):
        _cuda_nanny("tcp://1.2.3.4:5", Security(), {}, {"jit_unspill": True})
