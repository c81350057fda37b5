"""The layer with int8 weights against the layer with the same weights in float64."""

import pytest
import torch
from layer_samples import CASES, arguments_of, case_id, cast, on_meta
from samples import spread

from ser_fast.ops import gru_layer, gru_layer_int8

OP, REFERENCE = torch.ops.ser_fast.gru_layer_int8, gru_layer_int8.reference


def rounded(x, weights, h0, lengths, biased, reset_after, batch_first) -> tuple:
    """Arguments in float32 with int8 weights; |h0| is at most 1, as any state is."""
    x, h0, *weights = (cast(value, torch.float32) for value in (x, h0, *weights))
    each = 4 if biased else 2
    matrices = [weight for place, weight in enumerate(weights) if place % each < 2]
    biases = [weight for place, weight in enumerate(weights) if place % each >= 2]
    parts = [gru_layer_int8.rows_to_int8(matrix) for matrix in matrices]
    return (x, [part[0] for part in parts], [part[1] for part in parts], biases, None if h0 is None else h0.tanh(),
            lengths, reset_after, batch_first)  # fmt: skip


def truth_of(x, weights, scales, biases, h0, lengths, reset_after, batch_first) -> tuple:
    wide = []
    for d in range(0, len(weights), 2):
        wide += [
            weight.double() * scale.double()[:, None] for weight, scale in zip(weights[d : d + 2], scales[d : d + 2])
        ]
        wide += [bias.double() for bias in biases[d : d + 2]]
    h0 = cast(h0, torch.float64)
    return gru_layer.reference(x.double(), wide, h0, lengths, bool(biases), reset_after, batch_first)


def assert_near(found, truth) -> None:
    """The state errs by 2^-15 in every product; the sums by some 2^-15 too, and 8 times as much over the steps."""
    assert found.dtype == torch.float32 and found.shape == truth.shape
    assert float((found.double() - truth).abs().max()) < 2**-12


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_int8_kernel_equals_reference(case, layout, poison):
    arguments = rounded(*arguments_of(*case[0], **case[1]))
    if layout == "strided":
        arguments = [[spread(one) for one in value] if isinstance(value, list)
                     else spread(value) if isinstance(value, torch.Tensor) else value for value in arguments]  # fmt: skip
    for results in zip(OP(*arguments), REFERENCE(*arguments), truth_of(*arguments), strict=True):
        assert_near(results[0], results[2])
        assert_near(results[1], results[2])


@pytest.mark.parametrize("reset_after", [False, True])
def test_int8_sums_do_not_overflow(reset_after):
    """States and weights of the largest magnitude and one sign: 1100 products of 2^14 units with 127 exceed 2^31."""
    hidden, frames = 1100, 12
    weights = [torch.zeros(3 * hidden, 2, dtype=torch.int8), torch.full((3 * hidden, hidden), 127, dtype=torch.int8)]
    scales = [torch.ones(3 * hidden), torch.full((3 * hidden,), 1 / (127 * hidden))]
    arguments = torch.zeros(frames, 1, 2), weights, scales, [], torch.ones(1, 1, hidden), None, reset_after, False
    for found, truth in zip(OP(*arguments), truth_of(*arguments)):
        assert_near(found, truth)


def test_int8_takes_large_states():
    """Beyond 1 a state has no room in fixed point, so such a call runs in float32."""
    arguments = list(rounded(*arguments_of(30, 3, 5, 18, 2, ragged_rows=True, biased=True, reset_after=True)))
    arguments[4] = 100 * torch.randn(2, 3, 18)
    for found, truth in zip(OP(*arguments), truth_of(*arguments)):
        assert (found.double() - truth).abs().max() < 1e-5 * truth.abs().max()


def test_int8_propagates_nan_of_one_row_alone():
    x, *rest = rounded(*arguments_of(40, 3, 18, 20, 1, ragged_rows=False, biased=True, reset_after=True))
    x[1, 2, 17] = torch.nan
    y, h_n = OP(x, *rest)
    assert y[1:, 2].isnan().all() and h_n[:, 2].isnan().all()
    assert y[0].isfinite().all() and y[:, :2].isfinite().all()


@pytest.mark.usefixtures("two_threads", "needs_kernels")  # torch's products round by the number of threads
@pytest.mark.parametrize("reset_after", [False, True])
def test_int8_is_bitwise_equal_on_any_number_of_threads(reset_after):
    arguments = rounded(*arguments_of(300, 19, 33, 130, 2, ragged_rows=True, biased=True, reset_after=reset_after))
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(OP(*arguments))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0]))


def test_int8_sees_every_change_of_a_weight():
    arguments = rounded(*arguments_of(20, 2, 24, 40, 1, ragged_rows=False, biased=True, reset_after=True))
    for tensor in (*arguments[1], *arguments[2], *arguments[3]):
        flat = tensor.view(-1)
        for place in (0, 1, len(flat) // 2, len(flat) - 1):
            flat[place] = 1.5 * flat[place] if flat.is_floating_point() else -127 if flat[place] > 0 else 127
            assert_near(OP(*arguments)[0], truth_of(*arguments)[0])


def test_rows_to_int8_rounds_to_half_a_scale():
    weight = torch.randn(30, 70)
    weight[3] = 0
    q, scale = gru_layer_int8.rows_to_int8(weight)
    assert ((q * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    assert q.abs().max() == 127 and (q[3] == 0).all() and scale.isfinite().all()


X, WEIGHTS, SCALES, BIASES, H0, LENGTHS, *_ = rounded(
    *arguments_of(3, 4, 2, 5, 2, ragged_rows=True, biased=True, reset_after=True)
)
BAD = [
    ((X.double(), WEIGHTS, SCALES, BIASES, None, None), "gru_layer_int8: x has dtype float64; it must be float32"),
    ((X[0], WEIGHTS, SCALES, BIASES, None, None), r"x has shape \[4, 2\].*or packed with lengths"),
    ((X, WEIGHTS[:3], SCALES, BIASES, None, None), "weights has 3 tensors; it must be w_ih and w_hh of 1 or 2"),
    ((X, [WEIGHTS[0], SCALES[0]], SCALES, BIASES, None, None), r"weights\[1\] has shape \[15\]; it must be \[3H, H\]"),
    ((X, [WEIGHTS[0], WEIGHTS[1].float(), *WEIGHTS[2:]], SCALES, BIASES, None, None),
     r"weights\[1\] has dtype float32; it must be int8"),
    ((X[..., :1], WEIGHTS, SCALES, BIASES, None, None), r"weights\[0\] has shape \[15, 2\]; it must be \[3H, I\] = \[15, 1\]"),
    ((X, WEIGHTS, SCALES[:2], BIASES, None, None), "scales has 2 tensors; it must be 4"),
    ((X, WEIGHTS, [*SCALES[:3], SCALES[3].double()], BIASES, None, None), r"scales\[3\] has dtype float64; it must be float32"),
    ((X, WEIGHTS, SCALES, BIASES[:3], None, None), "biases has 3 tensors; it must be 4"),
    ((X, WEIGHTS, SCALES, [BIASES[0][:1], *BIASES[1:]], None, None), r"biases\[0\] has shape \[1\]; it must be \[3H\] = \[15\]"),
    ((X, WEIGHTS, SCALES, BIASES, H0[:1], None), r"h0 has shape \[1, 4, 5\]; it must be \[D, B, H\] = \[2, 4, 5\]"),
    ((X, WEIGHTS, SCALES, BIASES, H0, LENGTHS[:3]), r"lengths has shape \[3\]; it must be \[B\] = \[4\]"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
@pytest.mark.parametrize("backend", ["compiled", "reference", "fake"])
def test_int8_refuses_bad_input(arguments, sentence, backend):
    if backend == "fake":
        arguments = [on_meta(value) for value in arguments]
    with pytest.raises(RuntimeError, match=sentence):
        (REFERENCE if backend == "reference" else OP)(*arguments, True, False)


def test_int8_passes_opcheck():
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(OP, (X, WEIGHTS, SCALES, BIASES, H0, LENGTHS, True, False), test_utils=tests)
    packed = torch.cat([X[:n, row] for row, n in enumerate(LENGTHS.tolist())])
    torch.library.opcheck(OP, (packed, WEIGHTS, SCALES, [], None, LENGTHS, False, False), test_utils=tests)
