"""Proofs on the CPU's kernels in the place of a GPU's: right ones pass, and each kind of fault is found."""

import contextlib
import itertools
import types

import pytest
import torch

from ser_fast.backends import measured
from ser_fast.ops import attention_pool, gru, power_spectrogram
from ser_fast.tuning import cases, checks, proof, timing, worker

SHAPES = [(7, 3, 2, 16)]
MODULES = {"gru": gru, "attention_pool": attention_pool, "power_spectrogram": power_spectrogram}


@pytest.fixture
def played(monkeypatch, fresh_state):
    """The CPU's kernels as Triton's, in float32; streams and graphs call at once."""
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, value in (("synchronize", lambda: None), ("Stream", lambda: stream), ("current_stream", lambda: stream),
                        ("stream", lambda stream: contextlib.nullcontext())):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)

    def copied(*_, **__):
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")

    def captured(call):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "tensor", copied)
            outputs = call()

        def replay():
            for tensor, new in zip(outputs, call()):
                tensor.copy_(new)

        return outputs, replay

    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(cases, "fits", lambda *_: True)
    monkeypatch.setattr(proof, "SHORT", 4)
    monkeypatch.setattr(measured, "PRECISIONS", {op: found[:1] for op, found in measured.PRECISIONS.items()})
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.use_deterministic_algorithms(False)


def lines(op: str) -> list[dict]:
    """Return what the worker says of an op."""
    return list(worker.proofs(torch.device("cpu"), op, "triton", SHAPES))


@pytest.mark.parametrize(("op", "count"), [("gru", 10), ("attention_pool", 4), ("power_spectrogram", 8)])
def test_right_kernels_pass_all_proofs(played, op, count):
    found = lines(op)
    assert found[-1] == {"passed": count}, found
    names = [line["begun"] for line in found[:-1]]
    assert len(set(names)) == count and all(name.startswith("float32 ") for name in names)


def broken(op: str, fault: str):
    """Return the op with a fault in its outputs or gradients."""
    kernel, random = getattr(MODULES[op], op), itertools.count()

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.view_as(tensor)

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.001

    def call(first, *rest, **named):
        if fault == "gradient":
            return kernel(Wrong.apply(first), *rest, **named)
        if fault == "reads past the lengths":
            first = first + 0 * first.sum()
        outputs = kernel(first, *rest, **named)
        whole = outputs if isinstance(outputs, tuple) else (outputs,)
        if fault == "value":
            whole = (whole[0] * 1.001, *whole[1:])
        if fault == "unwritten":
            whole = (whole[0].index_fill(0, torch.tensor([0]), torch.nan), *whole[1:])
        if fault == "unstable":
            whole = (whole[0] + 1e-7 * next(random), *whole[1:])
        return whole if isinstance(outputs, tuple) else whole[0]

    return call


@pytest.mark.parametrize("op", ["gru", "attention_pool"])
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("value", "outputs: differs by 1.0e-03"),
        ("gradient", "gradients: differs by "),
        ("unwritten", "outputs: differs by nan"),
        ("reads past the lengths", "outputs: differs by nan"),
    ],
)
def test_faulty_kernels_fail(played, monkeypatch, op, fault, sentence):
    monkeypatch.setattr(MODULES[op], op, broken(op, fault))
    *begun, last = lines(op)
    assert last["failed"].startswith(f"AssertionError: {sentence}") and "ragged" in begun[0]["begun"]


def test_faulty_spectrogram_fails(played, monkeypatch):
    kernel = torch.ops.ser_fast.power_spectrogram
    monkeypatch.setattr(torch.ops.ser_fast, "power_spectrogram", lambda *args: kernel(*args) * 1.001)
    assert lines("power_spectrogram")[-1]["failed"].startswith("AssertionError: outputs: differs by 1.0e-03")


def test_wrong_later_frame_fails_in_the_long_proof(played, monkeypatch):
    """In a frame that short inputs do not have."""
    kernel = gru.gru

    def call(gx, *rest, **named):
        y, h_n = kernel(gx, *rest, **named)
        return (torch.cat([y[:5], y[5:] * 1.001]), h_n) if y.dim() == 4 else (y, h_n)

    monkeypatch.setattr(gru, "gru", call)
    *begun, last = lines("gru")
    assert begun[-1]["begun"].endswith("reset_after=True, long") and "outputs: differs by" in last["failed"]


def test_zeros_of_torchs_path_fail(played):
    """Nothing may pass on a GPU that runs no kernel at all."""
    with pytest.raises(AssertionError, match="the GPU does not work"):
        proof.compare(lambda x: x * 0, lambda x: x * 0, (torch.ones(3),), 1e-5)


def test_unstable_bits_fail(played):
    numbers = itertools.count()
    with pytest.raises(AssertionError, match="a repeat gives other bits"):
        proof.same_bits(lambda: [torch.ones(3) + 1e-6 * next(numbers)], torch.device("cpu"))


@pytest.mark.parametrize(("place", "what"), [(7, "a second stream"), (10, "the replay of a graph")])
def test_bits_that_change_on_a_stream_or_in_a_graph_fail(played, place, what):
    """After the first call, five repeats and four calls on streams come the capture and its replay."""
    numbers = itertools.count()
    calls = [torch.zeros(3)] * (place + (place == 10)) + [torch.ones(3)] * 9
    with pytest.raises(AssertionError, match=f"{what} gives other bits"):
        proof.same_bits(lambda: [calls[next(numbers)].clone()], torch.device("cpu"))


def test_exception_in_a_kernel_is_a_failed_proof(played, monkeypatch):
    def call(*_, **__):
        raise RuntimeError("CUDA error: misaligned address\nsecond line")

    monkeypatch.setattr(gru, "gru", call)
    assert lines("gru")[-1] == {"failed": "RuntimeError: CUDA error: misaligned address"}


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 2, 3)])
def test_smallest_shapes_pass(played, monkeypatch, shape):
    for op in MODULES:
        found = list(worker.proofs(torch.device("cpu"), op, "triton", [shape]))
        assert "passed" in found[-1], found[-2:]


def test_short_proofs_of_a_layer_run_once(played):
    names = [name for name, _ in proof.proofs("gru", "triton", [(7, 3, 2, 16), (9, 2, 2, 16)], torch.device("cpu"))]
    assert sum("odd H" in name for name in names) == 2 and sum("long" in name for name in names) == 4


def test_nothing_that_fits_is_no_proof(played, monkeypatch):
    monkeypatch.setattr(cases, "fits", lambda *_: False)
    assert lines("gru") == [{"passed": 0}]


def test_gru_proofs_cover_every_cluster_size(played):
    names = [found.name for found in proof.proofs("gru", "cuda", SHAPES, torch.device("cpu"))]
    for reset_after in (True, False):
        for what in (
            "ragged",
            "odd H",
            "packed",
            "long",
            "same bits",
            *(f"clusters of {1 << power}" for power in range(4)),
        ):
            assert f"float32 T=7 B=3 D=2 H=16 reset_after={reset_after}, {what}" in names


@pytest.mark.parametrize(
    ("found", "wanted", "tolerance", "sentence"),
    [
        ([1.0, 2.0], [1.0, 2.1], 0.04, "x: differs by 4.8e-02 of the largest value, more than 4e-02"),
        ([1.0, float("nan")], [1.0, 2.0], 1e9, "x: differs by nan"),
        ([1.0], [1.0, 2.0], 1.0, r"x: shape \[1\] is not \[2\]"),
        ([0.0, 0.1], [0.0, 0.0], 0.05, "x: differs by 1.0e-01"),
    ],
)
def test_check_names_the_difference(found, wanted, tolerance, sentence):
    with pytest.raises(AssertionError, match=sentence):
        checks.check("x", torch.tensor(found), torch.tensor(wanted), tolerance)


def test_check_returns_the_largest_difference():
    pair = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert checks.check("x", (pair[0], torch.empty(0)), (pair[1], torch.empty(0)), 0.2) == pytest.approx(0.2)
    assert checks.check("x", torch.zeros(2), torch.zeros(2), 0.0) == 0.0


class Event:
    """Replacement of ``torch.cuda.Event``, whose clock the calls advance."""

    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = Event.clock

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


def test_rounds_take_turns(played, monkeypatch):
    """Calls of 1 and 8 ms: short ones are repeated within a turn, and each has its seconds of every round."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    order = []

    def call(name: str, seconds: float):
        def run():
            order.append(name)
            Event.clock += seconds

        return run

    calls = {"cuda": call("cuda", 1e-3), "torch": call("torch", 8e-3)}
    found = timing.rounds(calls, {"cuda": 1e-3, "torch": 8e-3}, 0.1)
    assert "".join(name[0] for name in order) == "cct" * 10
    assert found == {"cuda": pytest.approx([1e-3] * 10), "torch": pytest.approx([8e-3] * 10)}
    assert [len(timing.rounds(calls, {"cuda": 1e-3, "torch": 8e-3}, time)["cuda"]) for time in (0, 9)] == [7, 25]


def test_worker_leaves_out_cases_without_time_and_reports_failures(played, monkeypatch):
    monkeypatch.setattr(timing, "once", lambda call: call() or 1e-3)
    monkeypatch.setattr(timing, "rounds", lambda calls, alone, seconds: {name: [1.0] * 7 for name in calls})

    def out_of_memory():
        raise torch.OutOfMemoryError("40 GB")

    made = {
        "inference": lambda: {"cuda": lambda: None, "torch": lambda: None},
        "training": lambda: {"cuda": out_of_memory, "torch": lambda: None},
        "wrong": lambda: 1 / 0,
    }
    monkeypatch.setattr(worker, "paths", lambda case, device, backends: made[case.mode]())
    fields = {"op": "gru", "precision": "tf32", "shape": [1, 1, 1, 1], "backends": ["cuda"]}

    def run(*modes: str, end: float = 4e9) -> list[dict]:
        given = [fields | {"number": number, "mode": mode} for number, mode in enumerate(modes)]
        return [line for line in worker.times(torch.device("cpu"), given, 1.0, end) if "begun" not in line]

    rounds = [1.0] * 7
    assert run("inference", "wrong", "training") == [
        {"number": 0, "seconds": {"cuda": rounds, "torch": rounds}},
        {"number": 1, "failed": "ZeroDivisionError: division by zero"},
        {"number": 2, "left out": "cuda", "error": "OutOfMemoryError: 40 GB"},
        {"number": 2, "seconds": {"torch": rounds}},
    ]
    late = run("inference", "inference", "inference", end=0.0)
    assert [line["number"] for line in late] == [2], "the first case again keeps its time"


def test_worker_whose_device_is_lost_ends(played, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(worker, "paths", lambda *_: 1 / 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    given = {"op": "gru", "precision": "tf32", "shape": [1, 1, 1, 1], "backends": [], "mode": "inference"}
    found = list(worker.times(torch.device("cpu"), [given | {"number": 0}, given | {"number": 1}], 1.0, 4e9))
    assert found == [{"number": 0, "failed": "ZeroDivisionError: division by zero"}]


def test_machine_is_described_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert list(worker.machine(torch.device("cuda:2"))) == [{"error": "--device is cuda:2; torch can see 2 GPUs"}]
    monkeypatch.setattr(worker.tuned, "key", lambda device: {"name": str(device)})
    monkeypatch.setattr(worker.build, "missing", lambda name: "not built" if name == "cuda" else None)
    monkeypatch.setattr(worker.build, "refused", lambda name, gpu: None)
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: None)
    loads = iter([0, 90, 70, 80, 0])
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: next(loads))
    (found,) = worker.machine(torch.device("cuda:1"))
    assert found == {"key": {"name": "cuda:1"}, "refused": {"cuda": "not built", "triton": None}, "busy": 70}
    assert worker.busy(torch.device("cuda:1")) is None, "the driver's library is missing"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(worker.machine(torch.device("cuda"))) == [{"error": "torch can see no GPU"}]
