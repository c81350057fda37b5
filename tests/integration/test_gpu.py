"""Kernel behaviour that needs a GPU: graphs, streams, processes, devices, modules that train and compile."""

import copy
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from samples import (
    DEVICE,
    HALVES,
    TRITON,
    assert_as_accurate,
    differentiable,
    gru_arguments,
    pool_arguments,
    spectrogram_arguments,
    to,
)  # fmt: skip

import ser_fast
from ser_fast import backends
from ser_fast.ops import attention_pool, gru, power_spectrogram

pytest.importorskip("triton")

pytestmark = TRITON


@pytest.fixture(params=["cuda", "triton"] if DEVICE == "cuda" else ["triton"])
def backend(request, fresh_state) -> str:
    """Whose kernels run. The CUDA ones go through test_native.py where there is no GPU."""
    if DEVICE == "cuda":
        backends.use(request.param)
    return request.param


def kernel(module, name: str):
    """The op, which runs the chosen backend's kernel; without a GPU Triton's launcher on its interpreter."""
    if DEVICE == "cuda":
        return getattr(torch.ops.ser_fast, name)
    return module.backward_on_triton if name.endswith("_backward") else module.on_triton


def inputs(small: bool = DEVICE == "cpu") -> dict[str, tuple]:
    """Arguments of every op, large enough on a GPU to keep it busy, or small for what runs a thousand times slower."""
    torch.manual_seed(1)
    rows, frames = (17, 3) if small else (40, 200)
    # On a GPU the states of one block, and of clusters.
    sizes = [
        (64, torch.float16),
        (200, torch.float16),
        (480, torch.bfloat16),
        (64, torch.float32),
        (200, torch.float32),
    ]
    if DEVICE == "cpu":
        sizes = [(16, torch.float16)]
    return {
        "gru": [
            to(gru_arguments(frames, rows, 2, size, ragged_rows=True, reset_after=reset_after), dtype)
            for size, dtype in sizes
            for reset_after in (True, False)
        ],
        "pool": to(pool_arguments(4, 40 if small else frames, 96, ragged_rows=True), torch.float32),
        "spectrogram": to(spectrogram_arguments(2, 80 * frames, 64, 128, 40, ragged_rows=True), torch.float32),
    }


def everything(arguments: dict[str, tuple]) -> list[torch.Tensor]:
    """Every kernel once, the GRU's at several sizes."""
    results = []
    for given in arguments["gru"]:
        _, w_hh, _, h0, lengths, reset_after, _ = given
        y, h_n, gates = kernel(gru, "gru")(*given)
        grads = kernel(gru, "gru_backward")(y, h_n, y, gates, w_hh, h0, lengths, reset_after)
        results += [y, h_n, gates, *grads]
    h, w, lengths = arguments["pool"]
    pooled, weights = kernel(attention_pool, "attention_pool")(h, w, lengths)
    grads = kernel(attention_pool, "attention_pool_backward")(pooled, weights, h, w, pooled, weights, lengths)
    spectrogram = kernel(power_spectrogram, "power_spectrogram")(*arguments["spectrogram"])
    return [*results, pooled, weights, *grads, spectrogram]


def assert_same(found, wanted) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_kernels_are_bitwise_repeatable(backend, poison):
    arguments = inputs()
    wanted = everything(arguments)
    for _ in range(100 if DEVICE == "cuda" else 2):
        assert_same(everything(arguments), wanted)


@pytest.fixture
def compiler():
    """Without what earlier tests compiled: a function is compiled eight times at most, and a failed graph stays."""
    torch._dynamo.reset()


on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")


@on_a_gpu
def test_cuda_graph_replays_the_kernels(backend):
    arguments = inputs()
    wanted = everything(arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = everything(arguments)
    for tensor in found:
        tensor.fill_(torch.nan)
    graph.replay()
    assert_same(found, wanted)


@on_a_gpu
def test_kernels_on_two_streams(backend):
    arguments = inputs()
    wanted = everything(arguments)
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for _ in range(20):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found.append(everything(arguments))
    torch.cuda.synchronize()
    for results in found:
        assert_same(results, wanted)


@on_a_gpu
def test_kernels_in_a_second_process(backend):
    """Beside this one, and to the same bits."""
    script = (
        "import torch; from integration import test_gpu as t; torch.backends.cudnn.rnn.fp32_precision = 'ieee'; "
        "torch.save([x.cpu() for x in t.everything(t.inputs())], {!r})"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/other.pt"
        environment = os.environ | {"SER_FAST_BACKEND": backend}
        other = subprocess.Popen(
            [sys.executable, "-c", script.format(path)], cwd=Path(__file__).parents[1], env=environment
        )
        arguments = inputs()
        wanted = everything(arguments)
        while other.poll() is None:
            assert_same(everything(arguments), wanted)
        assert other.returncode == 0
        assert_same([tensor.cpu() for tensor in wanted], torch.load(path))


@pytest.mark.filterwarnings("ignore")  # torch's compilers and exporters warn of themselves
@on_a_gpu
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", [None, *HALVES], ids=str)
def test_modules_train_on_the_kernels(backend, compiler, dtype, reset_after):
    """Forward and backward through the ops and autocast, eager and compiled, against the references in float64."""
    module = ser_fast.GRU(24, 64, bidirectional=True, batch_first=True, reset_after=reset_after).cuda()
    exact = copy.deepcopy(module).double()
    x, ragged_rows = torch.randn(9, 50, 24, device="cuda"), torch.randint(0, 51, (9,), device="cuda")
    eps = torch.finfo(dtype or torch.float32).eps
    calls = [module, torch.compile(module, fullgraph=True), torch.compile(module, mode="reduce-overhead")]
    for call, lengths in itertools.product(calls, (None, ragged_rows)):
        exact.zero_grad()
        wanted, _ = exact(x.double(), lengths=lengths)
        wanted.square().sum().backward()
        module.zero_grad()
        with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
            y, _ = call(x, lengths=lengths)
        y.float().square().sum().backward()
        assert (y - wanted).abs().max() < 16 * eps
        for one, other in zip(module.parameters(), exact.parameters()):
            assert (one.grad - other.grad).abs().max() < 32 * eps * other.grad.abs().max()


@on_a_gpu
@pytest.mark.parametrize("packed", [False, True])
def test_cuda_graph_captures_a_training_step(backend, packed):
    """The op's forward and backward, the weights' gradient among it, with lengths on the device."""
    options = {"ragged_rows": True, "reset_after": True, "packed": packed}
    arguments = differentiable(to(gru_arguments(20, 40, 2, 64, **options), torch.float32))
    wanted = [tensor for tensor in arguments if isinstance(tensor, torch.Tensor) and tensor.requires_grad]

    def train():
        y, h_n, _ = torch.ops.ser_fast.gru(*arguments)
        return torch.autograd.grad(y.square().sum() + h_n.sum(), wanted)

    eager = train()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        train()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = train()
    graph.replay()
    assert_same(captured, eager)


@pytest.mark.filterwarnings("ignore")  # torch's compilers and exporters warn of themselves
@on_a_gpu
def test_models_compile_with_cuda_graphs(backend, compiler):
    """The spectrogram's tables outlive the call that makes them, the first one inside a compiled graph's warm-up."""
    model = ser_fast.BiGRUMHA(3).cuda().eval()
    wave = torch.randn(2, 16000, device="cuda")
    compiled = torch.compile(model, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):
            found = compiled(wave).clone()
        assert (found - model(wave)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore")  # torch's compilers and exporters warn of themselves
def test_module_exports_to_onnx(backend):
    """The module exports to ONNX's own GRU with every backend."""
    pytest.importorskip("onnxscript")
    gru = ser_fast.GRU(8, 16, bidirectional=True).to(DEVICE).eval()
    program = torch.onnx.export(gru, (torch.randn(5, 3, 8, device=DEVICE),), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph].count("GRU") == 1


@on_a_gpu
def test_attention_pool_of_more_rows_than_a_grid_axis(backend):
    h, w = torch.randn(70000, 3, 16, device="cuda"), torch.randn(16, device="cuda")
    pooled, weights = torch.ops.ser_fast.attention_pool(h, w, None)
    assert_as_accurate(pooled, attention_pool.reference(h, w)[0], attention_pool.reference(h.double(), w.double())[0])
    grad_h, _ = torch.ops.ser_fast.attention_pool_backward(pooled, None, h, w, pooled, weights, None)
    assert torch.isfinite(grad_h).all()


@on_a_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_kernels_on_a_second_gpu(backend):
    arguments = inputs()
    wanted = everything(arguments)
    second = {name: to(values, device="cuda:1") for name, values in arguments.items() if name != "gru"}
    found = everything(second | {"gru": [to(given, device="cuda:1") for given in arguments["gru"]]})
    assert all(tensor.device.index == 1 for tensor in found)
    assert_same([tensor.cpu() for tensor in found], [tensor.cpu() for tensor in wanted])
