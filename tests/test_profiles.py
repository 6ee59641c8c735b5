"""Backends as users write them: a site's own words, and named profiles of Dask's configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envsync.runner import OAR, SGE, Batch, Slurm


def submission(backend: Batch) -> list[str]:
    """Return what one job would be submitted with."""
    request = replace(backend.group.request, log="log", folder="/folder")
    return list(backend.system.submit(request, "").argv)


def test_what_a_site_calls_things() -> None:
    asked = {"cores": 4, "memory": "8 GiB", "gpus": 2}
    sge = SGE(
        parallel_environment="shm",
        memory_resource="h_vmem",
        gpu_resource="ngpus",
        gpu_per_core=False,
        **asked,
    )
    argv = submission(sge)
    assert argv[argv.index("-pe") + 1] == "shm"
    assert "h_vmem=2048M,ngpus=2" in argv
    assert "mem_free" not in " ".join(submission(SGE(memory_resource="", cores=4, memory="8 GiB")))
    oar = OAR(core_resource="cpu", gpu_resource="gpu_device", memory_resource="memnode", **asked)
    argv = submission(oar)
    assert "/nodes=1/gpu_device=2/cpu=2" in argv
    assert "memnode >= 8192" in argv


def test_words_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="partition='a' and queue='b' are the same thing"):
        Slurm(partition="a", queue="b")
    with pytest.raises(ValueError, match="without options"):
        Slurm(shell="/bin/bash -l")
    assert Slurm(shell="/bin/bash", queue="b").group.request.queue == "b"
