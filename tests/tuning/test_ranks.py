"""Processes of one run: the same choices in all of them, and one GPU queried by each."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from ser_fast.backends import dispatch, state, tuned
from ser_fast.training import distributed
from ser_fast.tuning import store

CHOICES = {"gru": {"tf32": {"64": ["cuda", "torch"]}}}


@pytest.fixture
def ranks(fresh_state, monkeypatch, tmp_path):
    """Two processes, of which the other gives this digest of its choices; tuned for this CPU."""
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))
    store.write(tuned.key("cpu"), choices=CHOICES)

    def other(digest: str, rank: int = 0) -> None:
        monkeypatch.setattr(distributed, "world", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "gather", lambda mine: [mine, digest] if rank == 0 else [digest, mine])

    return other


def test_equal_choices_are_kept(ranks):
    ranks(tuned.digest([CHOICES, {}]))
    distributed.agree_on_choices(torch.device("cpu"))
    assert not state.current.packaged and tuned.read("cpu")[0]["choices"] == CHOICES


def test_single_process_reads_nothing(fresh_state, monkeypatch):
    monkeypatch.setattr(tuned, "read", None)
    distributed.agree_on_choices(torch.device("cpu"))


@pytest.mark.parametrize("digest", [tuned.digest([{}, {}]), tuned.digest(None)])
def test_different_choices_leave_the_packaged_ones(ranks, digest):
    state.current.entries[0] = state.current.paths["a call"] = "cached"
    ranks(digest)
    with pytest.warns(UserWarning, match="for rank 0 differ from those for rank 1; all processes use the packaged"):
        distributed.agree_on_choices(torch.device("cpu"))
    assert tuned.read("cpu") == (None, tuned.DIFFER) and not state.current.entries and not state.current.paths


def test_different_choices_are_named_by_rank_0_alone(ranks):
    ranks(tuned.digest(None), rank=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distributed.agree_on_choices(torch.device("cpu"))
    assert state.current.packaged


SCRIPT = """
import os, sys, torch
from ser_fast.backends import build, dispatch, info, state, tuned
from ser_fast.training import distributed

rank, asked = int(os.environ["LOCAL_RANK"]), []
def counted(answer):
    return lambda *args: asked.append(args[-1]) or answer
build.missing, build.capability, build.refused = lambda name: None, counted("9.0"), counted(None)
dispatch.gru_limits = counted(torch.tensor(info.KNOWN_GPUS["H100"]))
key = {"device": "cuda", "name": sys.argv[1 + rank]}
tuned.key = lambda device: asked.append(device.index) or key
with distributed.joined():
    device = torch.device("cuda", rank)
    distributed.agree_on_choices(device)
    chosen = dispatch.select("gru", device, hidden_size=64)
    sets = distributed.gather((sorted(set(asked)), chosen, torch.cuda.is_initialized()))
    if rank == 0:
        print(sets)
"""


@pytest.mark.thorough
@pytest.mark.parametrize(("names", "chosen"), [("one one", "cuda"), ("one other", "torch")])
def test_ranks_query_one_gpu_each_and_agree(tmp_path, needs_kernels, fresh_state, monkeypatch, names, chosen):
    """Under torchrun, with counting fakes: the same choices, or the packaged ones with one warning."""
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))
    store.write({"device": "cuda", "name": "one"}, choices=CHOICES)
    store.write({"device": "cuda", "name": "other"}, choices={"gru": {"tf32": {"64": ["torch", "cuda"]}}})
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SER_FAST_BACKEND": "auto"}
    result = subprocess.run(
        [*command, str(tmp_path / "script.py"), *names.split()], capture_output=True, text=True, env=environment
    )
    assert result.stdout.strip() == f"[([0], '{chosen}', False), ([1], '{chosen}', False)]", result.stderr
    assert result.stderr.count("all processes use the packaged choices") == (chosen == "torch")


def test_reread_keeps_the_chosen_backend(fresh_state):
    state.current.on_cuda = "triton"
    state.current.widest[0] = (1, 1, 1)
    dispatch.reread()
    assert state.current.on_cuda == "triton" and state.current.widest == {0: (1, 1, 1)}
