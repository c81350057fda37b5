"""Selection by measurements on a GPU, with made-up measurements and GPU queries replaced by stubs."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

import ser_fast
from ser_fast import backends
from ser_fast.backends import build, dispatch, info, measured, registry, state

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
ABOUT = {"gpu": "NVIDIA H100 80GB HBM3", "date": "2026-12-01", "torch": "2.13.0", "commit": "0123abc"}
GRU = {
    "tf32": {
        "64": ["triton", "cuda", "torch"],
        "128": ["cuda", "torch", "triton"],
        "256": ["torch", "triton", "cuda"],
    },
    "float32": {"512": ["cuda", "triton", "torch"]},
    "bfloat16": {"128": ["triton", "torch"]},
}
OTHERS = {"attention_pool": {"float32": ["torch", "cuda"]}, "power_spectrogram": {"float32": ["cuda", "torch"]}}


@pytest.fixture
def gpu(needs_kernels, fresh_state, monkeypatch, tmp_path):
    """One GPU of compute capability 9.0 with an H100's limits and all kernels; a call writes what was measured."""
    monkeypatch.setattr(build, "capability", lambda gpu: "9.0")
    monkeypatch.setattr(build, "missing", lambda backend: None)
    monkeypatch.setattr(build, "refused", lambda backend, gpu: None)
    monkeypatch.setattr(dispatch, "gru_limits", lambda gpu: torch.tensor(info.KNOWN_GPUS["H100"]))
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    monkeypatch.setattr(measured, "FILE", tmp_path / "measured.json")
    monkeypatch.delenv("SER_FAST_BACKEND", raising=False)

    def write(table: dict | str) -> None:
        measured.FILE.write_text(table if isinstance(table, str) else json.dumps(table))
        forget()

    return write


def forget() -> None:
    state.current.entries.clear()
    state.current.paths.clear()


def chosen(hidden_size: int, dtype: torch.dtype = torch.float32, **given) -> str:
    return backends.select("gru", "cuda:0", dtype=dtype, hidden_size=hidden_size, **given)


def test_select_without_a_table_keeps_torch(gpu):
    assert [backends.select(op, "cuda") for op in backends.OPS] == ["torch"] + ["reference"] * (len(backends.OPS) - 1)
    assert chosen(64) == "torch" and not measured.FILE.exists()
    assert registry.on_cuda_tensors("gru", lambda gx: "reference")(torch.ones(2, 1, 1, 48)) == "reference"
    assert info.info()["measured"].keys() == {"nothing"}


@pytest.mark.parametrize("capability", ["8.9", None])
def test_select_keeps_torch_on_unmeasured_gpus(gpu, monkeypatch, capability):
    gpu({"9.0": ABOUT | {"gru": GRU} | OTHERS})
    monkeypatch.setattr(build, "capability", lambda gpu: capability)
    assert [backends.select(op, "cuda") for op in backends.OPS] == ["torch"] + ["reference"] * (len(backends.OPS) - 1)


def test_select_takes_the_fastest_by_precision_and_size(gpu, monkeypatch):
    gpu({"8.0": ABOUT, "9.0": ABOUT | {"gru": GRU} | OTHERS})
    sizes = {size: chosen(size) for size in (1, 64, 65, 128, 129, 256, 257)}
    assert sizes == {1: "triton", 64: "triton", 65: "cuda", 128: "cuda", 129: "torch", 256: "torch", 257: "torch"}
    assert chosen(128, torch.bfloat16) == "triton" and chosen(129, torch.bfloat16) == "torch"
    assert chosen(64, torch.float16) == chosen(64, torch.float64) == "torch"
    assert chosen(64, steps=1) == "torch" and chosen(64, steps=2) == "triton"
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    assert chosen(64) == "cuda"
    for dtype, path in ((torch.float32, "cuda"), (torch.int16, "cuda"), (torch.float64, "reference")):
        assert backends.select("power_spectrogram", "cuda:0", dtype=dtype) == path
    assert backends.select("attention_pool", "cuda:0") == "reference"
    assert backends.select("gru", "cpu", dtype=torch.float32, hidden_size=64) == "compiled"


def test_use_overrides_the_table_until_auto(gpu):
    gpu({"9.0": ABOUT | {"gru": GRU}})
    backends.use("cuda")
    assert chosen(64) == chosen(256) == chosen(64, steps=1) == "cuda"
    backends.use("triton")
    assert chosen(64) == "triton" and chosen(128) == "torch"
    backends.use("auto")
    assert chosen(64) == "triton" and chosen(128) == "cuda" and chosen(256) == "torch"


def test_select_skips_kernels_that_do_not_fit(gpu, monkeypatch):
    """float32's W_hh fits an H100 up to 256 units by the CUDA kernels, 64 by Triton's."""
    gpu({"9.0": ABOUT | {"gru": GRU}})
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    assert (chosen(256), chosen(257)) == ("cuda", "torch") and state.current.widest == {0: (512, 256, 256)}


def test_select_prefers_kernels_for_the_bare_op(gpu, monkeypatch):
    gpu({"9.0": ABOUT | {"gru": GRU} | OTHERS})
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")

    def ran(name: str, width: int) -> str:
        """Return the path of an op whose first tensor is ``width`` wide."""
        parts = {"gru": 3, "gru_backward": 1}.get(name)
        paths = [lambda *args, path=path: path for path in ("reference", "triton", "cuda")]
        hidden_size = (lambda first: first.shape[-1] // parts) if parts else (lambda first: None)
        op = name.removesuffix("_backward")
        return registry.on_cuda_tensors(op, *paths, hidden_size)(torch.ones(2, 3, 1, width))

    assert (ran("gru", 3 * 256), ran("gru_backward", 256)) == ("cuda", "cuda")
    assert (ran("gru", 3 * 512), ran("gru_backward", 512)) == ("triton", "triton"), "Triton streams what does not fit"
    assert (ran("gru", 3 * 513), ran("gru_backward", 513)) == ("reference", "reference")
    assert ran("attention_pool", 16) == ran("attention_pool_backward", 16) == "reference", "torch's path is faster"
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    assert chosen(256) == "torch" and (ran("gru", 3 * 256), ran("gru_backward", 256)) == ("triton", "triton")


def test_select_skips_missing_kernels(gpu, monkeypatch):
    gpu({"9.0": ABOUT | {"gru": {"tf32": {"64": ["cuda", "triton", "torch"]}}}})
    monkeypatch.setattr(build, "missing", lambda backend: "it was not built" if backend == "cuda" else None)
    assert chosen(64) == "triton"
    forget()
    monkeypatch.setattr(build, "refused", lambda backend, gpu: "its driver is too old")
    assert chosen(64) == "torch"


def test_environment_disables_the_table(gpu, monkeypatch):
    gpu({"9.0": ABOUT | {"gru": GRU}})
    monkeypatch.setenv("SER_FAST_BACKEND", "reference")
    assert chosen(64) == "torch"


def test_select_queries_the_gpu_once(gpu, monkeypatch):
    gpu({"9.0": ABOUT | {"gru": GRU}})
    asked = []

    def counted(name, ask):
        return lambda *args: asked.append(name) or ask(*args)

    for module, name in ((build, "capability"), (build, "missing"), (build, "refused"), (dispatch, "gru_limits")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    assert (chosen(64), chosen(128)) == ("triton", "cuda")
    first = list(asked)
    assert (chosen(64), chosen(100), chosen(128)) == ("triton", "cuda", "cuda") and asked == first
    assert first.count("gru_limits") == 1 and first.count("missing") == first.count("capability") == 2


class Asking(ser_fast.GRU):
    """GRU that selects the backend of a GPU although its tensors are on the CPU."""

    def _backend(self, x):
        found = backends.select("gru", "cuda:0", dtype=x.dtype, hidden_size=self.hidden_size)
        if found != "cuda":
            raise AssertionError(f"the tracer was told {found}")
        return super()._backend(x)


@pytest.mark.parametrize("way", ["compile", "export", "strict export"])
def test_select_does_not_break_a_graph(gpu, way):
    """The first selection happens during tracing, and the graph does not contain its queries."""
    gpu({"9.0": ABOUT | {"gru": GRU}})
    layer, x = Asking(4, 128), torch.randn(3, 2, 4)
    wanted = ser_fast.GRU.forward(layer, x)[0]
    forget()
    if way == "compile":
        found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0]
    else:
        program = torch.export.export(layer, (x,), strict=way == "strict export")
        assert not [node for node in program.graph.nodes if "gru_plan" in str(node.target)]
        found = program.module()(x)[0]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("{", "is not JSON (Expecting property name"),
        ([], "the table is []; it must be an object"),
        ({"sm_90": ABOUT}, "a compute capability is 'sm_90'; it must be one such as '9.0'"),
        ({"9.0": ABOUT | {"date": 3}}, "9.0 date is 3; it must be a text"),
        ({"9.0": {"gpu": "H100"}}, "9.0 date is None; it must be a text"),
        ({"9.0": ABOUT | {"lstm": {}}}, "an op of 9.0 is 'lstm'; it must be one of gru, attention_pool, power_spectrogram"),
        ({"9.0": ABOUT | {"gru": {"half": {}}}}, "a precision of gru is 'half'; it must be one of float32, tf32"),
        ({"9.0": ABOUT | {"gru": {"tf32": ["torch"]}}}, "gru tf32 is ['torch']; it must be an object"),
        ({"9.0": ABOUT | {"gru": {"tf32": {"-1": ["torch"]}}}}, "a hidden size is '-1'; it must be a positive integer"),
        ({"9.0": ABOUT | {"gru": {"tf32": {"64": ["cuda"]}}}}, "9.0 gru tf32 64 is ['cuda']; it must be 'torch' and"),
        ({"9.0": ABOUT | {"attention_pool": {"float32": ["torch", "cuda", "cuda"]}}}, "is ['torch', 'cuda', 'cuda']; it must be"),
        ({"9.0": ABOUT | {"attention_pool": {"float32": ["torch", [], "hip"]}}}, "9.0 attention_pool float32 is ['torch', []"),
    ],
)  # fmt: skip
def test_table_names_a_broken_file(gpu, table, sentence):
    gpu(table if isinstance(table, str) else json.dumps(table))
    for ask in (lambda: chosen(64), info.text):
        with pytest.raises(ValueError) as raised:
            ask()
        assert str(raised.value).startswith(str(measured.FILE)) and sentence in str(raised.value)
    assert backends.select("gru") == "compiled", "the CPU needs no table"


def test_info_shows_the_table(gpu, monkeypatch):
    gpu({"9.0": ABOUT | {"gru": GRU} | OTHERS})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    built = {"compiled": True, "reason": None, "compiler": "g++", "cuda": "built for 9.0a", "cuda_archs": ["9.0a"]}
    monkeypatch.setattr(build, "build_info", lambda: built)
    said = re.sub(" {2,}", "  ", info.text())  # one gap between name and value, whatever the column's width
    for line in (
        "on 9.0  NVIDIA H100 80GB HBM3, 2026-12-01, torch 2.13.0, commit 0123abc",
        "9.0 gru tf32  triton for H=64, cuda for H=128, torch for H=256",
        "9.0 attention_pool float32  torch",
    ):
        assert f"\n{line}\n" in f"{said}\n"
    assert "cuda kernels  tested on 9.0 for gru, attention_pool, power_spectrogram; " in said
    triton = "tested on 9.0 for gru, not yet run on a GPU for attention_pool, power_spectrogram"
    assert f"triton kernels  {triton}; " in said
    fastest = "by size what was fastest on NVIDIA H100 80GB HBM3, cuda, triton or torch's operators: "
    assert info._on_gpu(0).startswith(
        fastest
    ) and f"SER_FAST_BACKEND=triton chooses kernels, {triton}" in info._on_gpu(0)
    backends.use("triton")
    assert info._on_gpu(0) == f"the triton kernels, {triton}; torch's operators for unsupported calls"
    backends.use("auto")
    monkeypatch.setattr(build, "capability", lambda gpu: "8.9")
    forget()
    untested = "torch's operators: SER_FAST_BACKEND=cuda or triton chooses kernels, not yet run on a GPU"
    assert info._on_gpu(0) == untested, "tested on another GPU alone"


def test_shipped_table_is_valid():
    measured.read(Path(measured.__file__).with_name("measured.json"))
    assert tuple(measured.PRECISIONS) == tuple(dispatch.CUDA_DTYPES)


# benchmarks/choices.py


def case(
    cuda: float, triton: float | None, rival: float = 3.0, hidden_size: int = 128, mode="training", **given
) -> dict:
    seconds = {"ours, cuda": cuda, "ours, cuda, graph": 9.0, "nn.GRU": rival, "nn.GRU, graph": 1e-3, "nn.LSTM": 1e-3}
    seconds |= {"ours, triton": triton} if triton else {}
    return {"case": "a case", "op": "gru", "precision": "tf32", "hidden_size": hidden_size, "mode": mode,
            "seconds": seconds} | given  # fmt: skip


def both(*args, **given) -> list[dict]:
    return [case(*args, mode=mode, **given) for mode in ("training", "inference")]


def tests_of(backend: str, passed: int = 12, failed: int = 0, **given) -> dict:
    return {
        "case": f"test_{backend}.py",
        "backend": backend,
        "passed": passed,
        "failed": failed,
        "skipped": 1,
    } | given


def part(*found: dict, state: str = "passed") -> dict:
    return {"state": state, "cases": list(found)}


@pytest.fixture
def choose(monkeypatch, tmp_path, capsys):
    """Runs choices.py on an acceptance run of these parts: the entry that it wrote, and what it printed."""
    spec = importlib.util.spec_from_file_location("choices", ROOT / "benchmarks/choices.py")
    choices = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(choices)
    assert Path(measured.__file__).with_name("measured.json").resolve() == choices.FILE

    def run(machine: dict | None = None, **parts) -> tuple[dict, str]:
        tools = [{"backend": backend, "tool": tool, "state": "passed"}
                 for backend in measured.BACKENDS for tool in choices.TOOLS]  # fmt: skip
        usual = {"tests": part(tests_of("cuda"), tests_of("triton")), "sanitizer": part(*tools)}
        machine = ABOUT | {"capability": "9.0"} | (machine or {})
        (tmp_path / "run.json").write_text(json.dumps({"machine": machine, "parts": usual | parts}))
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", ["choices.py", str(tmp_path / "run.json"), "--out", str(out)])
        choices.main()
        return measured.read(out)[machine["capability"]], capsys.readouterr().out

    return run


def test_choose_puts_winners_before_torch(choose):
    entry, said = choose(
        gru=part(
            *both(2.0, 1.0),
            *both(1.5, 3.0, hidden_size=256),
            *both(3.5, 4.0, hidden_size=512),
            *both(2.0, 1.0, precision="float16"),
        )
    )
    assert entry == ABOUT | {"gru": {
        "tf32": {"128": ["triton", "cuda", "torch"], "256": ["cuda", "triton", "torch"], "512": ["torch", "cuda", "triton"]},
        "float16": {"128": ["triton", "cuda", "torch"]},
    }, "attention_pool": {}, "power_spectrogram": {}}  # fmt: skip
    assert "9.0 gru tf32                     triton for H=128, cuda for H=256, torch for H=512\n" in said
    assert said.endswith("left out:\nnothing\n")


def test_choose_puts_torch_first_after_one_loss(choose):
    """Far faster on the whole, a tenth slower in one: its users would be slower than with nn.GRU."""
    ragged = case(3.3, 2.9, ragged=True)
    ragged["seconds"]["nn.GRU, packed"] = ragged["seconds"].pop("nn.GRU")
    entry, _ = choose(gru=part(*both(0.1, 2.0), ragged))
    assert entry["gru"]["tf32"]["128"] == ["triton", "torch", "cuda"]
    alone = case(0.1, 0.1)
    del alone["seconds"]["nn.GRU"]
    entry, _ = choose(gru=part(*both(0.1, 2.0), alone))
    assert entry["gru"]["tf32"]["128"][0] == "torch", "beside no rival nobody is faster"


def test_choose_compares_other_ops_with_their_peers(choose):
    pool = {"case": "p", "op": "attention_pool", "precision": "float32",
            "seconds": {"ours, cuda": 2.0, "ours, triton": 1.0, "eager torch": 1.5, "torch.compile": 0.5}}  # fmt: skip
    for chain in ("torch.stft chain", "torch stft chain"):
        wave = {"case": "s", "op": "power_spectrogram", "precision": "float32",
                "seconds": {"ours, cuda": 1.0, "ours, triton": 2.0, chain: 1.5, "torchaudio": 0.5}}  # fmt: skip
        entry, _ = choose(pool=part(pool), spectrogram=part(wave))
        assert entry["attention_pool"] == {"float32": ["triton", "torch", "cuda"]}
        assert entry["power_spectrogram"] == {"float32": ["cuda", "torch", "triton"]}


@pytest.mark.parametrize(
    ("parts", "order", "sentence"),
    [
        ({"tests": part(tests_of("cuda", failed=1), tests_of("triton"), state="failed")}, ["triton", "torch"],
         "gru by cuda: test_cuda.py: failed"),
        ({"tests": part(tests_of("triton"))}, ["triton", "torch"], "gru by cuda: none of its tests has passed"),
        ({"tests": part(tests_of("cuda", passed=0), tests_of("triton"))}, ["triton", "torch"], "none of its tests"),
        ({"tests": part(tests_of("cuda", state="not run"), tests_of("triton"), state="cut short")}, ["triton", "torch"],
         "gru by cuda: test_cuda.py: not run"),
        ({"tests": part(tests_of("cuda"), tests_of("triton"), state="cut short")}, ["torch"], "the part tests: cut short"),
        ({"tests": part({"case": "pytest", "state": "failed"}, tests_of("cuda"), tests_of("triton"), state="failed")},
         ["torch"], "gru by triton: pytest: failed"),
        ({"sanitizer": part({"backend": "cuda", "tool": "racecheck", "state": "failed"}, state="failed")},
         ["triton", "torch"], "gru by cuda: racecheck: failed"),
        ({"sanitizer": part(state="failed")}, ["torch"], "gru by cuda: the part sanitizer: failed"),
        ({"sanitizer": part(state="not run")}, ["cuda", "triton", "torch"], "the part sanitizer: not run\nmemcheck by cuda: not run"),
        ({"recurrence": part({"case": "r", "state": "failed", "error": "ours, cuda, forward: it differs"}, state="failed")},
         ["triton", "torch"], "gru by cuda: r: failed"),
        ({"gru": part(*both(1.0, 2.0), {"case": "g", "state": "failed", "error": "an illegal access"}, state="failed")},
         ["torch"], "gru by triton: g: failed"),
        ({"gru": part(*both(1.0, 2.0), state="failed")}, ["torch"], "gru by cuda: the part gru: failed"),
        ({"gru": part(*both(1.0, 2.0), case(1.0, None))}, ["cuda", "torch"], "gru tf32 H=128 by triton: not timed in every case"),
        ({"gru": part(*both(1.0, 2.0), case(1.0, 2.0, hidden_size=256), state="cut short")}, ["cuda", "triton", "torch"],
         "gru tf32 H=256: training alone was timed"),
        ({"pool": part({"case": "p", "state": "failed", "error": ""}, state="failed")}, ["cuda", "triton", "torch"],
         "attention_pool by cuda: p: failed"),
    ],
)  # fmt: skip
def test_choose_leaves_out_unproven_backends(choose, parts, order, sentence):
    entry, said = choose(**{"gru": part(*both(1.0, 2.0))} | parts)
    assert entry["gru"]["tf32"] == {"128": order}
    assert sentence in said.split("left out:")[1]


def test_choose_replaces_one_compute_capability(choose, tmp_path):
    choose(machine={"capability": "8.0", "gpu": "A100"}, gru=part(*both(1.0, 2.0)))
    choose(gru=part(*both(1.0, 2.0)))
    entry, said = choose(gru=part(*both(2.0, 1.0)))
    table = measured.read(tmp_path / "out.json")
    assert table["8.0"]["gpu"] == "A100" and table["8.0"]["gru"]["tf32"]["128"][0] == "cuda"
    assert list(table) == ["8.0", "9.0"] and entry["gru"]["tf32"]["128"][0] == "triton" and "on 8.0" in said


@pytest.mark.parametrize(
    ("machine", "parts", "sentence"),
    [
        ({"capability": "none"}, {"gru": part(*both(1.0, 2.0))}, "a compute capability is 'none'; it must be one such as"),
        ({"commit": None}, {"gru": part(*both(1.0, 2.0))}, "9.0 commit is None; it must be a text"),
        ({}, {"gru": part(case(1.0, 2.0))}, "no op was timed in it, in both modes; nothing is written"),
    ],
)  # fmt: skip
def test_choose_refuses_incomplete_runs(choose, capsys, tmp_path, machine, parts, sentence):
    with pytest.raises(SystemExit):
        choose(machine=machine, **parts)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_choose_keeps_a_broken_table(choose, capsys, tmp_path):
    (tmp_path / "out.json").write_text("{")
    with pytest.raises(SystemExit):
        choose(gru=part(*both(1.0, 2.0)))
    assert "is not JSON" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == "{"


def test_choose_writes_what_select_reads(gpu, choose):
    entry, _ = choose(gru=part(*both(2.0, 1.0), *both(4.0, 5.0, hidden_size=256)))
    gpu({"9.0": entry})
    assert (chosen(64), chosen(100), chosen(200)) == ("triton", "cuda", "torch"), "Triton keeps 64 units in float32"
