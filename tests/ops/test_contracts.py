"""Contract of every op: equality with its reference, gradients, opcheck, clear errors, autocast."""

import math

import pytest
import torch
from samples import (
    CASES,
    REFERENCES,
    all_cases,
    assert_as_accurate,
    assert_exact,
    attention_arguments,
    case_id,
    conv_pool_arguments,
    differentiable,
    gradients,
    gray_arguments,
    gru_arguments,
    op,
    outputs,
    pool_arguments,
    spectrogram_arguments,
    spread,
)
from selection import important

pytestmark = pytest.mark.usefixtures("two_threads")

SMALL = {
    "gru-after": ("gru", gru_arguments(3, 3, 2, 2, ragged_rows=True, reset_after=True)),
    "gru-before": (
        "gru",
        gru_arguments(2, 2, 1, 3, ragged_rows=False, reset_after=False, biased=False, batch_first=True),
    ),
    "gru-packed": ("gru", gru_arguments(3, 4, 2, 2, ragged_rows=True, reset_after=True, packed=True)),
    "gru-packed-before": (
        "gru",
        gru_arguments(3, 4, 2, 2, ragged_rows=True, reset_after=False, biased=False, packed=True),
    ),
    "pool-ragged": ("attention_pool", pool_arguments(3, 4, 3, ragged_rows=True)),
    "pool": ("attention_pool", pool_arguments(2, 3, 2, ragged_rows=False)),
    "spectrogram-log": (
        "power_spectrogram",
        spectrogram_arguments(3, 24, 8, 10, 5, ragged_rows=True, normalized=True, log=True),
    ),
    "spectrogram-center": (
        "power_spectrogram",
        spectrogram_arguments(2, 20, 6, 9, 4, center=True, pad_mode="circular"),
    ),
    "conv-pool": ("conv_pool", conv_pool_arguments(2, 5, 3, 3, 2, 2, 3, 1, ragged_rows=True, channels_last=False)),
    "conv-pool-packed": ("conv_pool", conv_pool_arguments(3, 4, 2, 2, 3, 2, 1, 3, ragged_rows=True, packed=True)),
    "gray-deltas": ("gray_deltas", gray_arguments(3, 4, 2, ragged_rows=True)),
    "attention": ("self_attention", attention_arguments(2, 5, 2, 3, ragged_rows=False, values=True)),
    "attention-means": ("self_attention", attention_arguments(3, 4, 2, 2, ragged_rows=True, dropout=0.3)),
    "attention-packed": (
        "self_attention",
        attention_arguments(3, 4, 1, 2, ragged_rows=True, values=True, packed=True, dropout=0.3),
    ),
}


@pytest.mark.parametrize("case", all_cases(), ids=case_id)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_kernel_equals_reference_in_float64(case, layout, poison):
    name, make, sizes, options = case
    arguments = make(*sizes, **options)
    if layout == "strided":
        arguments = tuple(spread(a) if isinstance(a, torch.Tensor) else a for a in arguments)
    found, truth = outputs(op(name)(*arguments)), outputs(REFERENCES[name](*arguments))
    for position, (one, other) in enumerate(zip(found, truth, strict=True)):
        assert_exact(one, other, f"output {position}")


@pytest.mark.parametrize("case", all_cases(), ids=case_id)
def test_gradients_equal_reference_in_float64(case, poison):
    name, make, sizes, options = case
    arguments = differentiable(make(*sizes, **options))
    cotangents = [torch.randn_like(result) for result in outputs(REFERENCES[name](*arguments))]
    if name == "gru":
        cotangents[2].zero_()  # the saved gates are no output for users and have no gradient
    found = gradients(op(name), arguments, cotangents)
    truth = gradients(REFERENCES[name], arguments, cotangents)
    for position, (one, other) in enumerate(zip(found, truth, strict=True)):
        assert_exact(one, other, f"gradient {position}")


@pytest.mark.parametrize("case", all_cases(), ids=case_id)
def test_float32_is_as_accurate_as_reference(case, poison):
    name, make, sizes, options = case
    exact = make(*sizes, **options)
    single = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in exact)
    rounded = tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in single)
    found, peer, truth = (outputs(f(*a)) for f, a in
                          ((op(name), single), (REFERENCES[name], single), (REFERENCES[name], rounded)))  # fmt: skip
    if name == "power_spectrogram" and options.get("log"):
        # Near the floor a logarithm has no bounded relative error: the powers are compared instead.
        mean, std = single[7], single[8]
        found, peer = ([(x[0] * std + mean).exp()] for x in (found, peer))
        truth = [(truth[0] * std.double() + mean.double()).exp()]
    for position, results in enumerate(zip(found, peer, truth, strict=True)):
        assert_as_accurate(*results, what=f"output {position}")


@pytest.mark.parametrize(
    "kind",
    important(
        SMALL,
        lambda kind: kind in ("gru-after", "pool-ragged", "spectrogram-log", "conv-pool", "attention-means"),
    ),
)
def test_op_passes_opcheck(kind):
    name, arguments = SMALL[kind]
    torch.library.opcheck(op(name), differentiable(arguments))


@pytest.mark.parametrize(("name", "arguments"), SMALL.values(), ids=SMALL)
def test_op_passes_gradcheck(name, arguments):
    arguments = differentiable(arguments)

    def call(*tensors):
        given = iter(tensors)
        filled = tuple(next(given) if isinstance(a, torch.Tensor) and a.requires_grad else a for a in arguments)
        return tuple(outputs(op(name)(*filled)))[: 2 if name == "gru" else None]

    torch.autograd.gradcheck(call, [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad])


def test_backward_ops_pass_opcheck():
    gx, w_hh, b_hh, h0, lengths, after, _ = gru_arguments(3, 3, 2, 2, ragged_rows=True, reset_after=True)
    y, h_n, gates = op("gru")(gx, w_hh, b_hh, h0, lengths, after, True)
    torch.library.opcheck(
        op("gru_backward"), (torch.randn_like(y), torch.randn_like(h_n), y, gates, w_hh, h0, lengths, after)
    )
    h, w, lengths = pool_arguments(3, 4, 3, ragged_rows=True)
    pooled, weights = op("attention_pool")(h, w, lengths)
    arguments = (torch.randn_like(pooled), torch.randn_like(weights), h, w, pooled, weights, lengths)
    torch.library.opcheck(op("attention_pool_backward"), arguments)
    wave, window, *numbers, lengths, _, std, log, floor, center, pad_mode = SMALL["spectrogram-log"][1]
    grad = torch.randn_like(op("power_spectrogram")(*SMALL["spectrogram-log"][1]))
    arguments = (grad, wave, window, *numbers, lengths, std, log, floor, center, pad_mode)
    torch.library.opcheck(op("power_spectrogram_backward"), arguments)
    x, weight, _, *rest = SMALL["conv-pool"][1]
    y, winners = op("conv_pool")(*SMALL["conv-pool"][1])
    torch.library.opcheck(op("conv_pool_backward"), (torch.randn_like(y), x, weight, winners, *rest, True))
    arguments = SMALL["attention-packed"][1]
    torch.library.opcheck(
        op("self_attention_backward"), (torch.randn_like(op("self_attention")(*arguments)), *arguments)
    )


@pytest.mark.parametrize(("name", "arguments"), SMALL.values(), ids=SMALL)
def test_second_derivative_equals_reference(name, arguments):
    arguments = differentiable(arguments)
    wanted = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]

    def penalty(function):
        first = torch.autograd.grad(outputs(function(*arguments))[0].square().sum(), wanted[0], create_graph=True)
        return first[0].square().sum()

    found, truth = (torch.autograd.grad(penalty(function), wanted) for function in (op(name), REFERENCES[name]))
    for one, other in zip(found, truth):
        assert_exact(one, other)


@pytest.mark.usefixtures("needs_kernels")  # torch's products round by the number of threads
@pytest.mark.parametrize("case", all_cases(), ids=case_id)
def test_op_is_bitwise_reproducible(case):
    """Outputs whatever the number of threads; gradients, part of which are torch's products, from run to run."""
    name, make, sizes, options = case
    arguments = differentiable(make(*sizes, **options))
    cotangents = [torch.ones_like(result) for result in outputs(op(name)(*arguments))]
    if name == "gru":
        cotangents[2].zero_()
    first, second = (gradients(op(name), arguments, cotangents) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))
    parallel = outputs(op(name)(*arguments))
    torch.set_num_threads(1)  # two_threads sets it back
    alone = outputs(op(name)(*arguments))
    assert all(torch.equal(one, other) for one, other in zip(parallel, alone))


@pytest.mark.parametrize(("name", "arguments"), SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_all_operands_alike(name, arguments, dtype):
    """To float32, but the GRU to bfloat16, which it has kernels for."""
    single = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments)
    mixed = (single[0].to(dtype), *single[1:])
    wanted = torch.bfloat16 if name == "gru" and dtype == torch.bfloat16 else torch.float32
    with torch.autocast("cpu", dtype=dtype):
        found = outputs(op(name)(*mixed))
    cast = (a.to(wanted) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in mixed)
    truth = outputs(op(name)(*cast))
    assert all(one.dtype == wanted and torch.equal(one, other) for one, other in zip(found, truth))


GRU = SMALL["gru-after"][1]
PACKED = SMALL["gru-packed"][1]
POOL = SMALL["pool-ragged"][1]
SPECTROGRAM = SMALL["spectrogram-log"][1]
CONV, CONV_PACKED, GRAY = (SMALL[name][1] for name in ("conv-pool", "conv-pool-packed", "gray-deltas"))
ATTENTION = SMALL["attention-means"][1]


def change(arguments: tuple, position: int, value) -> tuple:
    return (*arguments[:position], value, *arguments[position + 1 :])


NAN_WAVE = SPECTROGRAM[0].clone()
NAN_WAVE[0, 3] = float("nan")
# op, arguments, the sentence; whether it needs the values, which a traced tensor does not have
BAD = [
    ("gru", change(GRU, 0, torch.zeros(3, 2)), r"gru: gx has shape \[3, 2\]; it must be \[T, B, D, 3H\]", False),
    ("gru", change(GRU, 0, torch.zeros(3, 3, 2, 6, dtype=torch.int64)), "gx has dtype int64; it must be float32", False),
    ("gru", change(GRU, 0, torch.zeros(3, 3, 2, 0).double()), r"gx has shape \[3, 3, 2, 0\]", False),
    ("gru", change(GRU, 0, torch.zeros(0, 3, 2, 6).double()), r"gx has shape \[0, 3, 2, 6\].*no size 0", False),
    ("gru", change(GRU, 0, torch.zeros(3, 3, 3, 6).double()), r"D 1 or 2", False),
    ("gru", change(GRU, 1, GRU[1].float()), "w_hh has dtype float32; it must be float64", False),
    ("gru", change(GRU, 1, GRU[1][:, :5]), r"w_hh has shape \[2, 5, 2\]; it must be \[D, 3H, H\] = \[2, 6, 2\]", False),
    ("gru", change(GRU, 2, GRU[2][:1]), r"b_hh has shape \[1, 6\]; it must be \[D, 3H\] = \[2, 6\]", False),
    ("gru", change(GRU, 3, GRU[3][:, :2]), r"h0 has shape \[2, 2, 2\]; it must be \[D, B, H\] = \[2, 3, 2\]", False),
    ("gru", change(GRU, 4, GRU[4].double()), "lengths has dtype float64; it must be int64 or int32", False),
    ("gru", change(GRU, 4, GRU[4][:2]), r"lengths has shape \[2\]; it must be \[B\] = \[3\]", False),
    ("gru", change(PACKED, 4, None), r"gx has shape \[\d+, 2, 6\].*or packed with lengths", False),
    ("gru", change(PACKED, 4, torch.tensor([[1]])), r"lengths has shape \[1, 1\]; it must be \[B\]", False),
    ("gru", change(PACKED, 4, PACKED[4].clamp(max=1)), r"lengths add up to \d; it must be the packed frames, \d", True),
    ("gru", change(GRU, 4, torch.tensor([1, 4, 0])), r"lengths\[1\] is 4; it must be in 0..3", True),
    ("gru", change(GRU, 4, torch.tensor([1, 2, -1])), r"lengths\[2\] is -1; it must be in 0..3", True),
    ("attention_pool", change(POOL, 0, POOL[0][0]), r"attention_pool: h has shape \[4, 3\]; it must be \[B, T, D\]", False),
    ("attention_pool", change(POOL, 1, POOL[1][:2]), r"w has shape \[2\]; it must be \[D\] = \[3\]", False),
    ("attention_pool", change(POOL, 2, torch.tensor([5, 0, 0])), r"lengths\[0\] is 5; it must be in 0..4", True),
    ("self_attention", (ATTENTION[0][0], None, 0.0, None), r"self_attention: qkv has shape \[4, 2, 2, 2\].*or packed with lengths", False),
    ("self_attention", change(ATTENTION, 0, ATTENTION[0][:, :, :1]), r"qkv has shape \[3, 4, 1, 2, 2\]; it must be \[B, T, 2 or 3, heads, d\]", False),
    ("self_attention", change(ATTENTION, 0, ATTENTION[0][..., :0]), r"qkv has shape \[3, 4, 2, 2, 0\].*no size 0", False),
    ("self_attention", change(ATTENTION, 0, ATTENTION[0].long()), "qkv has dtype int64; it must be float32", False),
    ("self_attention", change(ATTENTION, 1, torch.tensor([5, 0, 0])), r"lengths\[0\] is 5; it must be in 0..4", True),
    ("self_attention", change(ATTENTION, 1, torch.tensor([1, 1])), r"lengths has shape \[2\]; it must be \[B\] = \[3\]", False),
    ("self_attention", (ATTENTION[0][0], torch.tensor([[1]]), 0.0, None), r"lengths has shape \[1, 1\]; it must be \[B\]", False),
    ("self_attention", (ATTENTION[0][0], torch.tensor([1, 2]), 0.0, None), "lengths add up to 3; it must be the packed frames, 4", True),
    ("self_attention", change(ATTENTION, 2, -0.5), r"dropout is -0.500000; it must be in 0..1", False),
    ("self_attention", change(ATTENTION, 2, 1.25), r"dropout is 1.250000; it must be in 0..1", False),
    ("self_attention", change(ATTENTION, 2, math.nan), r"dropout is nan; it must be in 0..1", False),
    ("self_attention", change(ATTENTION, 3, None), "seed is None; it must be a torch.Tensor, for a dropout above 0", False),
    ("self_attention", change(ATTENTION, 3, torch.tensor(1.0)), "seed has dtype float32; it must be int64", False),
    ("self_attention", change(ATTENTION, 3, torch.tensor([1])), r"seed has shape \[1\]; it must be \[\] = \[\]", False),
    ("power_spectrogram", change(SPECTROGRAM, 0, torch.zeros(3)), r"wave has shape \[3\]|wave has dtype", False),
    ("power_spectrogram", change(SPECTROGRAM, 0, SPECTROGRAM[0].half()), "wave has dtype float16", False),
    ("power_spectrogram", change(SPECTROGRAM, 0, NAN_WAVE), r"wave\[0, 3\] is nan; it must be finite", True),
    ("power_spectrogram", change(SPECTROGRAM, 1, SPECTROGRAM[1].float()), "window has dtype float32", False),
    ("power_spectrogram", change(SPECTROGRAM, 1, torch.ones(11).double()), r"window has shape \[11\].*W in 1..10", False),
    ("power_spectrogram", change(SPECTROGRAM, 2, 0), "n_fft is 0", False),
    ("power_spectrogram", change(SPECTROGRAM, 3, 0), "hop_length is 0", False),
    ("power_spectrogram", change(SPECTROGRAM, 4, 6), "bin_begin is 6; it must be in 0..5", False),
    ("power_spectrogram", change(SPECTROGRAM, 5, 7), "bin_end is 7; it must be in 1..6", False),
    ("power_spectrogram", change(SPECTROGRAM, 7, torch.zeros(5).double()), r"mean has shape \[5\]; it must be \[F\]", False),
    ("power_spectrogram", change(SPECTROGRAM, 10, 0.0), "floor is 0.*a normal positive number", False),
    ("power_spectrogram", change(SPECTROGRAM, 10, math.inf), "floor is inf.*a normal positive number", False),
    ("power_spectrogram", change(SPECTROGRAM, 10, math.nan), "floor is nan.*a normal positive number", False),
    ("power_spectrogram", change(SPECTROGRAM, 12, "odd"), "pad_mode is 'odd'; it must be 'reflect'", False),
    ("conv_pool", change(CONV, 0, CONV[0][0, 0]), r"conv_pool: x has shape \[3, 3\]; it must be \[B, T, F, C\]", False),
    ("conv_pool", change(CONV, 0, CONV[0].int()), "x has dtype int32; it must be float32", False),
    ("conv_pool", change(CONV, 0, CONV[0][:0]), r"x has shape \[0, 5, 3, 3\].*no size 0", False),
    ("conv_pool", change(CONV, 1, CONV[1].float()), "weight has dtype float32; it must be float64", False),
    ("conv_pool", change(CONV, 1, torch.zeros(2, 4, 3, 1).double()), r"weight has shape \[2, 4, 3, 1\]; it must be \[O, K, kt, kf\] with K in 1..3", False),
    ("conv_pool", change(CONV, 1, torch.zeros(2, 2, 3, 2).double()), r"kt and kf odd", False),
    ("conv_pool", change(CONV, 2, CONV[2][:1]), r"bias has shape \[1\]; it must be \[O\] = \[2\]", False),
    ("conv_pool", change(CONV, 3, torch.tensor([6, 0])), r"lengths\[0\] is 6; it must be in 0..5", True),
    ("conv_pool", change(CONV, 5, 3), "pooled_frames is 3; it must be None, since x is padded", False),
    ("conv_pool", change(CONV_PACKED, 3, None), r"x has shape .*or packed \[N, F, C\] with lengths", False),
    ("conv_pool", change(CONV_PACKED, 3, torch.zeros(3, dtype=torch.int64)), r"lengths add up to 0; it must be the packed frames", True),
    ("conv_pool", change(CONV_PACKED, 5, 1), "pooled_frames is 1; it must be the sum of ceil", True),
    ("gray_deltas", change(GRAY, 0, GRAY[0][0]), r"gray_deltas: x has shape \[4, 2\]; it must be \[B, T, F\]", False),
    ("gray_deltas", change(GRAY, 1, 0.0), "range is 0.000000; it must be above 0", False),
    ("gray_deltas", change(GRAY, 2, torch.tensor([5, 0, 0])), r"lengths\[0\] is 5; it must be in 0..4", True),
    ("gray_deltas", change(GRAY, 3, 1), "packed_frames is 1; it must be the sum of the lengths", True),
    ("power_spectrogram", change(SMALL["spectrogram-center"][1], 6, torch.tensor([20, 3])), "row 1 of wave has 3 samples", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "sentence", "by_value"), BAD)
@pytest.mark.parametrize("backend", ["compiled", "reference", "fake"])
def test_op_refuses_bad_input(name, arguments, sentence, by_value, backend):
    if backend == "fake":
        if by_value:
            return
        arguments = tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments)
    with pytest.raises(RuntimeError, match=sentence):
        (REFERENCES if backend == "reference" else {name: op(name)})[name](*arguments)


def test_gru_backward_requires_saved_gates():
    arguments = differentiable(change(GRU, 6, False))
    with pytest.raises(RuntimeError, match="save_gates is False; it must be True"):
        op("gru")(*arguments)[0].sum().backward()


@pytest.mark.parametrize("name", CASES)
def test_op_compiles_without_a_graph_break(name):
    arguments = next(a for n, a in SMALL.values() if n == name)
    compiled = torch.compile(lambda *a: op(name)(*a), fullgraph=True, backend="aot_eager")
    for one, other in zip(outputs(compiled(*arguments)), outputs(op(name)(*arguments))):
        assert torch.equal(one, other)
