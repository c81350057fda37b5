"""Which GPUs are queried, and when: none at import, each at its own first call; and the hint on an untuned GPU."""

import subprocess
import sys
import warnings

import pytest
import torch

import ser_fast
from ser_fast import _torch_compat
from ser_fast.backends import build, dispatch, info, measured, registry, state, tuned

pytest.importorskip("triton")

# Every function of torch.cuda that can start CUDA; each is counted instead.
COUNTED = """
import sys, torch
asked = []
for name in ("is_available", "device_count", "current_device", "get_device_capability", "get_device_properties",
             "get_device_name", "init", "_lazy_init", "set_device", "mem_get_info"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
"""


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_import_and_use_query_no_gpu(backend):
    script = f"""{COUNTED}
import ser_fast
from ser_fast import _torch_compat
from ser_fast.backends import build
assert ser_fast.backends.on_cuda == "{backend}", ser_fast.backends.on_cuda
for name in ("triton", "cuda", "auto", "{backend}"):
    build.missing = lambda backend: None
    ser_fast.backends.use(name)
ser_fast.CGRU(3), ser_fast.GRU(4, 4)
assert asked == [] and not torch.cuda.is_initialized(), asked
"""
    environment = {"SER_FAST_BACKEND": backend, "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def asked(needs_kernels, fresh_state, monkeypatch, tmp_path):
    """Eight GPUs that run all kernels; the list of their indices that were queried."""
    queried: list[int | None] = []

    def counted(answer):
        return lambda *args: queried.append(args[-1]) or answer

    monkeypatch.setattr(build, "missing", lambda backend: None)
    monkeypatch.setattr(build, "capability", counted("9.0"))
    monkeypatch.setattr(build, "refused", counted(None))
    monkeypatch.setattr(dispatch, "gru_limits", counted(torch.tensor(info.KNOWN_GPUS["H100"])))
    monkeypatch.setattr(tuned, "key", counted({"device": "cuda", "name": "a GPU of this test"}))
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))
    monkeypatch.delenv("SER_FAST_BACKEND", raising=False)
    return queried


@pytest.mark.parametrize("backend", ["auto", "cuda", "triton"])
def test_first_call_queries_its_own_gpu_alone(asked, backend):
    ser_fast.backends.use(backend)
    state.current.hinted = True
    assert asked == []
    for _ in range(2):
        for op in dispatch.CUDA_DTYPES:
            ser_fast.backends.select(op, "cuda:5", hidden_size=64)
    assert set(asked) == {5}
    count = len(asked)
    ser_fast.backends.select("gru", "cuda:5", hidden_size=64)
    assert len(asked) == count
    ser_fast.backends.select("gru", "cuda:2", hidden_size=64)
    assert set(asked[count:]) == {2}


def test_limits_are_those_of_the_calls_gpu(asked, monkeypatch):
    """An H100 beside an A100, each with its own largest hidden size."""
    limits = {0: info.KNOWN_GPUS["H100"], 1: info.KNOWN_GPUS["A100"]}
    monkeypatch.setattr(dispatch, "gru_limits", lambda gpu: torch.tensor(limits[gpu]))
    ser_fast.backends.use("cuda")
    chosen = [
        ser_fast.backends.select("gru", f"cuda:{gpu}", dtype=torch.bfloat16, hidden_size=512) for gpu in (0, 1, 0)
    ]
    assert chosen == ["cuda", "torch", "cuda"] and state.current.widest[1][0] == 192


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_chosen_backend_is_constant_in_a_graph(asked, backend):
    """The GPU's limits are queried during tracing and are no part of the graph."""

    class Asking(ser_fast.GRU):
        def _backend(self, x):
            found = ser_fast.backends.select("gru", "cuda:0", dtype=x.dtype, hidden_size=self.hidden_size)
            if found != backend:
                raise AssertionError(f"the tracer was told {found}")
            return super()._backend(x)

    ser_fast.backends.use(backend)
    layer, x = Asking(4, 16), torch.randn(3, 2, 4)
    torch._dynamo.reset()
    found = torch.compile(layer, fullgraph=True, backend="eager")(x)[0]
    torch.testing.assert_close(found, ser_fast.GRU.forward(layer, x)[0])
    program = torch.export.export(layer, (x,))
    assert not [node for node in program.graph.nodes if "gru_plan" in str(node.target)]


HINT = r"`ser-fast tune` proves the kernels of ser_fast on this GPU .* SER_FAST_TUNED=0 silences this"


def called(width: int = 48):
    """Run an op as on a CUDA tensor, by its reference."""
    return registry.on_cuda_tensors("gru", lambda gx: "reference")(torch.ones(2, 1, 1, width))


def test_first_call_on_an_untuned_gpu_hints_once(asked):
    with pytest.warns(UserWarning, match=HINT) as warned:
        called(), called(51), ser_fast.backends.select("attention_pool", "cuda:1")
    assert len(warned) == 1 and warned[0].filename == __file__


@pytest.mark.parametrize(
    "reason",
    [
        "silenced",
        "tuned",
        "packaged table",
        "chosen",
        "no kernels",
        "refused",
        "no gpu",
        "reference",
        "tracing",
        "rank 1",
    ],
)
def test_hint_is_silent_without_a_cause(asked, monkeypatch, tmp_path, reason):
    if reason == "silenced":
        monkeypatch.setenv(tuned.VARIABLE, "0")
    elif reason == "tuned":
        from ser_fast.tuning import store

        store.write({"device": "cuda", "name": "a GPU of this test"})
    elif reason == "packaged table":
        about = {"gpu": "NVIDIA H100", "date": "2026-12-01", "torch": "2.13.0", "commit": "0123abc"}
        monkeypatch.setattr(measured, "read", lambda path: {"9.0": about})
    elif reason == "chosen":
        ser_fast.backends.use("triton")
    elif reason == "no kernels":
        monkeypatch.setattr(build, "missing", lambda backend: "not installed")
    elif reason == "refused":
        monkeypatch.setattr(build, "refused", lambda backend, gpu: "too old")
    elif reason == "no gpu":
        monkeypatch.setattr(build, "capability", lambda gpu: None)
    elif reason == "reference":
        monkeypatch.setenv("SER_FAST_BACKEND", "reference")
    elif reason == "rank 1":
        monkeypatch.setenv("RANK", "1")
    elif reason == "tracing":
        monkeypatch.setattr(_torch_compat, "tracing", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ser_fast.backends.select("gru", "cuda:0")
    assert not state.current.hinted


def test_hint_comes_after_a_traced_call(asked):
    """A graph that is compiled first does not warn while it is traced; the next plain call does."""

    class Asking(torch.nn.Module):
        def forward(self, x):
            return x + (ser_fast.backends.select("attention_pool", "cuda:0") == "reference")

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.compile(Asking(), fullgraph=True, backend="eager")(torch.ones(2))
    with pytest.warns(UserWarning, match=HINT):
        called()


def test_info_says_of_each_device_whether_it_is_tuned(asked, monkeypatch):
    from ser_fast.tuning import store

    monkeypatch.setattr(info, "_gpus", lambda: range(2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU of this test")
    file, values = tuned.path(), info.info()
    assert not state.current.hinted, "info warns of nothing"
    assert values["SER_FAST_TUNED"] == str(file)
    assert values["tuned, cpu"] == values["tuned, cuda:0"] == values["tuned, cuda:1"] == f"no: there is no {file}"
    store.write({"device": "cuda", "name": "another"})
    assert info.info()["tuned, cuda:1"] == "no: name was another, is a GPU of this test"
    key = {"device": "cuda", "name": "a GPU of this test"}
    store.write(
        key, choices={"gru": {"tf32": {"64": ["cuda", "torch"], "128": ["torch"]}}}, banned={"gru by triton": "hangs"}
    )
    said = info.info()["tuned, cuda:1"]
    assert said.startswith("on 2") and said.endswith(
        "; gru tf32: cuda for H=64, torch for H=128; gru by triton: banned, hangs"
    )
    state.current.entries.clear()
    runs = info.what_runs()["cuda:1"]
    assert runs.startswith("by size what was fastest on a GPU of this test, cuda or torch's operators: ")
    assert (
        "SER_FAST_BACKEND=cuda chooses kernels, tested on this GPU for gru, not yet run on a GPU for attention_pool"
        in runs
    )
    assert "SER_FAST_BACKEND=triton chooses kernels, not yet run on a GPU" in runs
    monkeypatch.setenv(tuned.VARIABLE, "0")
    assert info.info()["tuned, cuda:0"] == "no: SER_FAST_TUNED is 0"
