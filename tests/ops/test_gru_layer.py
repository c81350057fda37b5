"""The layer, its gradients and the cell against the reference, which is the projection and the recurrence."""

import itertools
import subprocess
import sys

import pytest
import torch
from layer_samples import CASES, arguments_of, case_id, cast, on_meta, weights_of
from samples import assert_as_accurate, assert_exact, spread

from ser_fast import backends
from ser_fast.ops import gru_layer

OP, CELL = torch.ops.ser_fast.gru_layer, torch.ops.ser_fast.gru_cell
FORWARD, BACKWARD = torch.ops.ser_fast.gru_layer_forward, torch.ops.ser_fast.gru_layer_backward
REFERENCE, CELL_REFERENCE = gru_layer.reference, gru_layer.cell_reference


def change(arguments: tuple, place: int, value) -> tuple:
    return (*arguments[:place], value, *arguments[place + 1 :])


def strided(arguments) -> list:
    return [[spread(one) for one in value] if isinstance(value, list) and isinstance(value[0], torch.Tensor)
            else spread(value) if isinstance(value, torch.Tensor) else value for value in arguments]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_layer_kernel_equals_reference(case, layout, poison):
    arguments = arguments_of(*case[0], **case[1])
    arguments = arguments if layout == "contiguous" else strided(arguments)
    for found, truth in zip(OP(*arguments), REFERENCE(*arguments), strict=True):
        assert_exact(found, truth)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_layer_float32_is_as_accurate_as_reference(case, poison):
    single = [cast(value, torch.float32) for value in arguments_of(*case[0], **case[1])]
    exact = [cast(value, torch.float64) for value in single]
    for results in zip(OP(*single), REFERENCE(*single), REFERENCE(*exact), strict=True):
        assert_as_accurate(*results)


def assert_near_in_bfloat16(found, peer, truth) -> None:
    """The reference rounds the results alone; AVX512-BF16 the states before each product too, to 8 bits.

    Its error of 2^-9 in every factor makes sums that err by some 2^-9, and 4 times as much over the steps.
    """
    assert found.dtype == peer.dtype == torch.bfloat16
    if backends.instruction_set == "avx512_bf16":
        assert found.shape == truth.shape
        assert float((found.double() - truth).abs().max()) < 4 * 2**-8 * max(1.0, float(truth.abs().max()))
    else:
        assert_as_accurate(found, peer, truth)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_layer_bfloat16_is_near_reference(case, poison):
    half = [cast(value, torch.bfloat16) for value in arguments_of(*case[0], **case[1])]
    exact = [cast(value, torch.float64) for value in half]
    for results in zip(OP(*half), REFERENCE(*half), REFERENCE(*exact), strict=True):
        assert_near_in_bfloat16(*results)


def training_arguments(arguments) -> tuple:
    """Return the arguments of the forward that saves what the backward reads, from those of the layer."""
    x, weights, h0, lengths, *flags = arguments
    total = x.shape[:-1].numel() if lengths is None else int(lengths.sum())
    return x, weights, h0, lengths, total, *flags


def backward_arguments(arguments, wanted=lambda place: True) -> tuple:
    """Return arguments of the backward, whose saved tensors are those of the reference."""
    x, weights, h0, lengths, total, *flags = training_arguments(arguments)
    y, h_n, gates, states = gru_layer.forward_reference(x, weights, h0, lengths, total, *flags)
    grads = torch.randn_like(y), torch.randn_like(h_n)
    needs = [wanted(place) for place in range(len(weights))]
    return *grads, x, weights, h0, lengths, gates, states, *flags, wanted(-1), needs


def train(x, weights, *rest) -> tuple:
    return gru_layer.Layer.apply(x, *rest, *weights)


def flat(results) -> list[torch.Tensor]:
    return [one for result in results for one in (result if isinstance(result, list | tuple) else [result])]


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_training_kernels_equal_reference(case, layout, poison):
    change = strided if layout == "strided" else tuple
    arguments = training_arguments(arguments_of(*case[0], **case[1]))
    truths = gru_layer.forward_reference(*arguments)
    for found, truth in zip(FORWARD(*change(arguments)), truths, strict=True):
        assert_exact(found, truth)
    arguments = backward_arguments(arguments_of(*case[0], **case[1]))
    truths = flat(gru_layer.reference_backward(*arguments))
    for found, truth in zip(flat(BACKWARD(*change(arguments))), truths, strict=True):
        assert_exact(found, truth)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_backward_float32_is_as_accurate_as_reference(case, poison):
    single = [cast(value, torch.float32) for value in backward_arguments(arguments_of(*case[0], **case[1]))]
    exact = [cast(value, torch.float64) for value in single]
    results = BACKWARD(*single), gru_layer.reference_backward(*single), gru_layer.reference_backward(*exact)
    for found, peer, truth in zip(*map(flat, results), strict=True):
        assert_as_accurate(found, peer, truth)


@pytest.mark.parametrize("reset_after", [False, True])
def test_backward_sums_many_frames_accurately(reset_after):
    """2400 frames: several blocks of the products over frames, with rows of their own at both ends."""
    options = {"ragged_rows": False, "biased": True, "reset_after": reset_after}
    single = backward_arguments(arguments_of(160, 15, 50, 37, 2, dtype=torch.float32, **options))
    exact = [cast(value, torch.float64) for value in single]
    results = BACKWARD(*single), gru_layer.reference_backward(*single), gru_layer.reference_backward(*exact)
    for found, peer, truth in zip(*map(flat, results), strict=True):
        assert_as_accurate(found, peer, truth)


@pytest.mark.parametrize("directions", [1, 2])
def test_backward_computes_what_is_needed_alone(directions, poison):
    layer = arguments_of(9, 5, 7, 18, directions, ragged_rows=True, biased=True, reset_after=directions == 1)
    complete = backward_arguments(layer)
    every = flat(BACKWARD(*complete))
    for places in [(), (-1,), (0,), (1,), (2,), (3,), (0, 3), (-1, 1, 4 * directions - 1), range(4 * directions)]:
        needs = [place in places for place in range(4 * directions)]
        found = flat(BACKWARD(*complete[:-2], -1 in places, needs))
        for one, whole, needed in zip(found, every, [-1 in places, *needs, True], strict=True):
            assert torch.equal(one, whole) if needed else one.shape == (0,)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_ignore_padding(packed, batch_first):
    x, weights, h0, lengths, *flags = arguments_of(
        12, 4, 5, 9, 2, ragged_rows=True, biased=True, reset_after=True, batch_first=batch_first, packed=packed
    )
    if not packed:
        for row, length in zip(x if batch_first else x.transpose(0, 1), lengths.tolist()):
            row[length:] = torch.nan
    inputs = [tensor.requires_grad_() for tensor in (x, h0, *weights)]
    y, h_n = train(*training_arguments((x, weights, h0, lengths, *flags)))
    assert y.isfinite().all() and h_n.isfinite().all()
    grads = torch.autograd.grad(y.sum() + h_n.sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    if not packed:
        rows = grads[0] if batch_first else grads[0].transpose(0, 1)
        assert all((row[length:] == 0).all() for row, length in zip(rows, lengths.tolist()))


@pytest.mark.parametrize("reset_after", [False, True])
def test_layer_passes_gradcheck(reset_after):
    x, weights, h0, lengths, total, *flags = training_arguments(
        arguments_of(3, 3, 2, 3, 2, ragged_rows=True, biased=True, reset_after=reset_after)
    )

    def call(x, h0, *weights):
        return train(x, weights, h0, lengths, total, *flags)

    inputs = [tensor.requires_grad_() for tensor in (x, h0, *weights)]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_second_derivative_of_shared_weights():
    """Both directions with the same weights: each must get its own gradient, also with create_graph."""
    x, weights, *_ = arguments_of(4, 2, 3, 5, 1, ragged_rows=False, biased=True, reset_after=True)
    inputs = [tensor.requires_grad_() for tensor in (x, *weights)]
    y, _ = train(x, weights * 2, None, None, 8, True, True, False)
    first = torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    for one, other in zip(first, second):
        assert_exact(other, one)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 17, 33), (3, 16, 16), (4, 33, 129), (20, 30, 31)])
@pytest.mark.parametrize(("biased", "reset_after"), [*itertools.product((False, True), repeat=2)])
def test_cell_kernel_equals_reference(sizes, biased, reset_after, poison):
    batch, features, hidden = sizes
    x, h = torch.randn(batch, features).double(), torch.randn(batch, hidden).double() if biased else None
    arguments = x, weights_of(features, hidden, 1, biased), h, biased, reset_after
    assert_exact(CELL(*arguments), CELL_REFERENCE(*arguments))
    single = [cast(value, torch.float32) for value in arguments]
    assert_as_accurate(
        CELL(*single), CELL_REFERENCE(*single), CELL_REFERENCE(*(cast(v, torch.float64) for v in single))
    )
    half = [cast(value, torch.bfloat16) for value in arguments]
    exact = [cast(value, torch.float64) for value in half]
    assert_near_in_bfloat16(CELL(*half), CELL_REFERENCE(*half), CELL_REFERENCE(*exact))


@pytest.mark.usefixtures("two_threads", "needs_kernels")  # torch's products round by the number of threads
@pytest.mark.parametrize(
    "sizes",
    [(300, 1, 128, 128, 1), (300, 1, 7, 205, 1), (60, 1, 64, 128, 2), (50, 19, 33, 65, 2), (200, 8, 301, 16, 1),
     (40, 1, 9, 299, 2), (40, 2, 9, 301, 1), (40, 4, 9, 300, 2), (40, 8, 9, 300, 1), (40, 3, 9, 300, 1)],
)  # fmt: skip
@pytest.mark.parametrize("ragged_rows", [False, True])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_is_bitwise_equal_on_any_number_of_threads(sizes, ragged_rows, reset_after, dtype):
    """Threads take rows, directions, or, of a few rows of equal length and many units, the units of every step."""
    arguments = arguments_of(*sizes, ragged_rows=ragged_rows, biased=True, reset_after=reset_after,
                             batch_first=ragged_rows, packed=ragged_rows and sizes[1] == 1, dtype=dtype)  # fmt: skip
    results, trains = [], dtype == torch.float32
    backward = backward_arguments(arguments) if trains else None
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append([*OP(*arguments), *(flat(BACKWARD(*backward)) if trains else ())])
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0]))


@pytest.mark.parametrize("frames", [5, 50])
def test_layer_keeps_infinite_weights_apart(frames):
    """A product that reads a vector twice at a row's end must not make 0 * inf of it."""
    arguments = arguments_of(frames, 1, 19, 21, 1, ragged_rows=False, biased=True, reset_after=True)
    arguments[1][0][5, 18], arguments[1][0][6, 0] = torch.inf, -torch.inf
    for found, truth in zip(OP(*arguments), REFERENCE(*arguments)):
        assert torch.isfinite(truth).all()
        assert_exact(found, truth)


@pytest.mark.parametrize("frames", [4, 40])
def test_layer_propagates_nan_of_one_row_alone(frames):
    x, *rest = arguments_of(frames, 3, 18, 20, 1, ragged_rows=False, biased=True, reset_after=True)
    x[1, 2, 17] = torch.nan
    y, h_n = OP(x, *rest)
    assert y[1:, 2].isnan().all() and h_n[:, 2].isnan().all()
    assert y[0].isfinite().all() and y[:, :2].isfinite().all()


def test_layer_sees_every_change_of_a_weight():
    """The laid-out weights are found by their content, so each element counts, and equal weights of another tensor."""
    x, weights, h0, *rest = arguments_of(20, 2, 24, 40, 1, ragged_rows=False, biased=True, reset_after=True)
    before = OP(x, weights, h0, *rest)
    for tensor in weights:
        flat = tensor.view(-1)
        for place in (0, 1, len(flat) // 2, len(flat) - 1):
            kept = flat[place].clone()
            flat[place] += 0.25
            assert_exact(OP(x, weights, h0, *rest)[0], REFERENCE(x, weights, h0, *rest)[0])
            flat[place] = kept
    for change in (torch.neg, lambda w: w.flip(0), lambda w: w.roll(1, 0), lambda w: w * 2, torch.zeros_like):
        changed = [change(weight) for weight in weights]
        assert_exact(OP(x, changed, h0, *rest)[0], REFERENCE(x, changed, h0, *rest)[0])
    again = OP(x, [weight.clone() for weight in weights], h0, *rest)
    assert all(torch.equal(one, other) for one, other in zip(again, before))


SMALL = {"biased": True, "reset_after": True}
X, WEIGHTS, H0, LENGTHS, *_ = arguments_of(3, 4, 2, 5, 2, ragged_rows=True, **SMALL)
PACKED = arguments_of(3, 4, 2, 5, 2, ragged_rows=True, packed=True, **SMALL)[0]
BAD = [
    ((X[0, 0], WEIGHTS, None, None), r"gru_layer: x has shape \[2\]; it must be \[T, B, I\] with no size 0", False),
    ((X[0], WEIGHTS, None, None), r"x has shape \[4, 2\].*or packed with lengths", False),
    ((X[:0], WEIGHTS, None, None), r"x has shape \[0, 4, 2\].*no size 0", False),
    ((X.half(), WEIGHTS, None, None), "x has dtype float16; it must be float32, float64 or bfloat16", False),
    ((X, WEIGHTS[:3], None, None), "weights has 3 tensors; it must be w_ih, w_hh, b_ih and b_hh of 1 or 2 directions", False),
    ((X, [WEIGHTS[0], WEIGHTS[2], *WEIGHTS[2:]], None, None), r"weights\[1\] has shape \[15\]; it must be \[3H, H\]", False),
    ((X[..., :1], WEIGHTS, None, None), r"weights\[0\] has shape \[15, 2\]; it must be \[3H, I\] = \[15, 1\]", False),
    ((X, [w.float() for w in WEIGHTS], None, None), r"weights\[0\] has dtype float32; it must be float64", False),
    ((X, [*WEIGHTS[:7], WEIGHTS[7][:1]], None, None), r"weights\[7\] has shape \[1\]; it must be \[3H\] = \[15\]", False),
    ((X, WEIGHTS, H0[:1], None), r"h0 has shape \[1, 4, 5\]; it must be \[D, B, H\] = \[2, 4, 5\]", False),
    ((X, WEIGHTS, H0, LENGTHS.double()), "lengths has dtype float64; it must be int64 or int32", False),
    ((X, WEIGHTS, H0, LENGTHS[:3]), r"lengths has shape \[3\]; it must be \[B\] = \[4\]", False),
    ((X, WEIGHTS, H0, torch.tensor([0, 4, 0, 0])), r"lengths\[1\] is 4; it must be in 0..3", True),
    ((PACKED, WEIGHTS, H0, LENGTHS[None]), r"lengths has shape \[1, 4\]; it must be \[B\]", False),
    ((PACKED, WEIGHTS, H0, LENGTHS * 0), r"lengths add up to 0; it must be the packed frames, \d", True),
]  # fmt: skip
BAD_CELL = [
    ((X, WEIGHTS[:4], None), r"gru_cell: x has shape \[3, 4, 2\]; it must be \[B, I\] with no size 0", False),
    ((X[0], WEIGHTS, None), "weights has 8 tensors; it must be w_ih, w_hh, b_ih and b_hh", False),
    ((X[0], WEIGHTS[:4], H0[0, :3]), r"h has shape \[3, 5\]; it must be \[B, H\] = \[4, 5\]", False),
    ((X[0], WEIGHTS[:4], H0[0].float()), "h has dtype float32; it must be float64", False),
]


TRAINING = backward_arguments((X, WEIGHTS, H0, LENGTHS, True, True, False))
BAD_TRAINING = [
    (FORWARD, (X, WEIGHTS, H0, None, 11, True, True, False), r"gru_layer_forward: total is 11; it must be the number of valid frames, 12"),
    (FORWARD, (X, WEIGHTS, H0[:1], None, 12, True, True, False), r"gru_layer_forward: h0 has shape \[1, 4, 5\]"),
    (BACKWARD, change(TRAINING, 0, TRAINING[0][:1]), r"gru_layer_backward: grad_y has shape \[1, 4, 10\]; it must be y's shape = \[3, 4, 10\]"),
    (BACKWARD, change(TRAINING, 1, TRAINING[1].float()), "grad_h_n has dtype float32; it must be float64"),
    (BACKWARD, change(TRAINING, 6, TRAINING[6][..., 1:]), r"gates has shape .*it must be \[N, D, 4H\]"),
    (BACKWARD, change(TRAINING, 7, TRAINING[7][:, :1]), r"states has shape .*it must be \[N, D, H\]"),
    (BACKWARD, change(TRAINING, 12, [True]), "needs_weights has 1 values; it must be one for each weight, 8"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "arguments", "sentence"), BAD_TRAINING)
@pytest.mark.parametrize("backend", ["compiled", "reference", "fake"])
def test_training_refuses_bad_input(op, arguments, sentence, backend):
    if backend == "fake":
        arguments = [on_meta(value) for value in arguments]
    if backend == "reference":
        op = gru_layer.forward_reference if op is FORWARD else gru_layer.reference_backward
    with pytest.raises(RuntimeError, match=sentence):
        op(*arguments)


@pytest.mark.parametrize(("arguments", "sentence", "by_value"), BAD + BAD_CELL)
@pytest.mark.parametrize("backend", ["compiled", "reference", "fake"])
def test_layer_refuses_bad_input(arguments, sentence, by_value, backend):
    cell = len(arguments) == 3
    flags = (True, True) if cell else (True, True, False)
    if backend == "fake":
        if by_value:
            return
        arguments = [on_meta(value) for value in arguments]
    call = (CELL_REFERENCE if cell else REFERENCE) if backend == "reference" else CELL if cell else OP
    with pytest.raises(RuntimeError, match=sentence):
        call(*arguments, *flags)


@pytest.mark.parametrize("batch_first", [False, True])
def test_layer_passes_opcheck(batch_first):
    tests = ("test_schema", "test_faketensor")
    for packed in (False, True):
        options = {"ragged_rows": True, "packed": packed, "batch_first": batch_first}
        torch.library.opcheck(OP, arguments_of(3, 4, 2, 5, 2, **options, **SMALL), test_utils=tests)
        layer = arguments_of(3, 4, 2, 5, 2, **options, **SMALL)
        torch.library.opcheck(BACKWARD, backward_arguments(layer), test_utils=tests)
        torch.library.opcheck(FORWARD, training_arguments(layer), test_utils=tests)
    torch.library.opcheck(CELL, (X[0], WEIGHTS[:4], H0[0], True, False), test_utils=tests)
    half = [cast(value, torch.bfloat16) for value in (X, WEIGHTS, H0)]
    torch.library.opcheck(OP, (*half, LENGTHS, True, True, False), test_utils=tests)


@pytest.mark.usefixtures("needs_kernels")
def test_small_calls_start_no_threads():
    """Entering torch's pool costs more than a small call; the pool's threads start when it is first entered."""
    script = """
import os, torch, ser_fast
torch.set_num_threads(2)
count = lambda: len(os.listdir("/proc/self/task"))
gru, x = ser_fast.GRU(16, 16), torch.randn(12, 4, 16)
with torch.inference_mode():
    before = count()
    gru(x)
    assert count() == before
gru(x)[0].sum().backward()
ser_fast.functional.attention_pool(torch.randn(3, 5, 8), torch.randn(8))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("needs_kernels")
def test_layer_needs_no_memory_for_the_projection():
    """Peak memory of a call: the output and less than 10 MB, where gx alone would take 150 MB."""
    script = """
import resource, torch, ser_fast
torch.set_num_threads(1)
gru, x = ser_fast.GRU(128, 128, bidirectional=True), torch.randn(1500, 32, 128)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with torch.inference_mode():
    gru(x[:20])
    before = peak()
    y, _ = gru(x)
assert peak() - before < y.nbytes + 10e6, (peak() - before - y.nbytes) / 1e6
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
