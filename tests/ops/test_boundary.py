"""Errors that every op raises on every backend: freed storages, overlapping outputs, invalid gradients, lack of memory."""

import pytest
import torch
from samples import attention_arguments, gru_arguments, op, pool_arguments, spectrogram_arguments

import ser_fast
from ser_fast.backends import dispatch, registry
from ser_fast.functional import power_spectrogram
from ser_fast.ops import attention_pool as pool_op
from ser_fast.ops import gru as gru_op
from ser_fast.ops import power_spectrogram as spectrogram_op
from ser_fast.ops import self_attention as attention_op

REFERENCES = {
    "gru": gru_op.reference,
    "gru_backward": gru_op.reference_backward,
    "gru_backward_with_gates": gru_op.reference_backward,
    "attention_pool": pool_op.reference,
    "attention_pool_backward": pool_op.reference_backward,
    "power_spectrogram": spectrogram_op.reference,
    "power_spectrogram_backward": spectrogram_op.reference_backward,
    "self_attention": attention_op.reference,
    "self_attention_backward": attention_op.reference_backward,
}


def _arguments() -> dict[str, tuple]:
    """Return valid arguments of every op that computes."""
    gx, w_hh, b_hh, h0, lengths, after, _ = gru_arguments(3, 3, 2, 2, ragged_rows=True, reset_after=True)
    y, h_n, gates = gru_op.reference(gx, w_hh, b_hh, h0, lengths, after, True)
    backward = (torch.randn_like(y), torch.randn_like(h_n), y, gates, w_hh, h0, lengths, after)
    h, w, valid = pool_arguments(3, 4, 3, ragged_rows=True)
    pooled, weights = pool_op.reference(h, w, valid)
    wave = spectrogram_arguments(3, 24, 8, 10, 5, ragged_rows=True, normalized=True, log=True)
    grad = torch.randn_like(spectrogram_op.reference(*wave))
    attention = attention_arguments(3, 4, 2, 3, ragged_rows=True, dropout=0.2)
    return {
        "gru": (gx, w_hh, b_hh, h0, lengths, after, True),
        "gru_backward": backward,
        "gru_backward_with_gates": (*backward, torch.randn_like(gates)),
        "attention_pool": (h, w, valid),
        "attention_pool_backward": (
            torch.randn_like(pooled),
            torch.randn_like(weights),
            h,
            w,
            pooled,
            weights,
            valid,
        ),
        "power_spectrogram": wave,
        "power_spectrogram_backward": (grad, *wave[:7], *wave[8:]),
        "self_attention": attention,
        "self_attention_backward": (torch.randn_like(attention_op.reference(*attention)), *attention),
    }


ARGUMENTS = _arguments()
TENSORS = [
    (name, position)
    for name, arguments in ARGUMENTS.items()
    for position, value in enumerate(arguments)
    if isinstance(value, torch.Tensor)
]


def changed(name: str, position: int, value) -> tuple:
    arguments = ARGUMENTS[name]
    return (*arguments[:position], value, *arguments[position + 1 :])


def call(name: str, arguments: tuple, backend: str):
    return (REFERENCES[name] if backend == "reference" else op(name))(*arguments)


@pytest.mark.parametrize("backend", ["op", "reference"])
@pytest.mark.parametrize(("name", "position"), TENSORS)
def test_op_refuses_freed_storage(name, position, backend):
    """A storage without memory, and one that ends before the tensor does, which has an address."""
    valid = ARGUMENTS[name][position]
    freed = valid.clone()
    freed.untyped_storage().resize_(0)
    short = torch.cat([valid.flatten(), valid.flatten()])[valid.numel() :].view(valid.shape)
    short.untyped_storage().resize_(valid.element_size() * (2 * valid.numel() - 1))
    for tensor in (freed, short):
        with pytest.raises(RuntimeError, match=r"has a storage of \d+ bytes; it must be of at least \d+ bytes"):
            call(name, changed(name, position, tensor), backend)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_refuses_freed_weights(name, reset_after):
    module = ser_fast.GRU(4, 8, reset_after=reset_after)
    getattr(module, name).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage"):
        module(torch.randn(3, 2, 4))


# op, position of the argument, its new value, the sentence, whether it needs the values
BAD_BACKWARD = [
    *((name, place, lambda x: x[..., :1], rf"{name}: {argument} has shape \[.*\]; it must be", False)
      for name, places in {
          "gru_backward": ("grad_y", "grad_h_n", None, "gates", "w_hh", "h0"),
          "gru_backward_with_gates": ("grad_y", "grad_h_n", None, "gates", "w_hh", "h0"),
          "attention_pool_backward": ("grad_pooled", "grad_weights", None, None, "pooled", "weights"),
          "power_spectrogram_backward": ("grad",),
          "self_attention_backward": ("grad",),
      }.items() for place, argument in enumerate(places) if argument),
    ("gru_backward_with_gates", 8, lambda x: x[..., :1], r"grad_gates has shape .*y's shape with 4H", False),
    ("gru_backward", 2, lambda x: x[0, 0], r"y has shape \[2, 2\]; it must be \[T, B, D, H\]", False),
    ("attention_pool_backward", 3, lambda x: x[:2], r"w has shape \[2\]; it must be \[D\]", False),
    ("power_spectrogram_backward", 2, lambda x: x[:0], r"window has shape \[0\]", False),
    ("power_spectrogram_backward", 8, lambda x: x[:1], r"std has shape \[1\]; it must be \[F\]", False),
    ("power_spectrogram_backward", 4, lambda x: 0, "hop_length is 0", False),
    ("power_spectrogram_backward", 1, lambda x: x.half(), "wave has dtype float16", False),
    *((name, place, lambda x: x.float(), f"{name}: {argument} has dtype float32; it must be float64", False)
      for name, place, argument in [("gru_backward", 0, "grad_y"), ("gru_backward_with_gates", 8, "grad_gates"),
                                    ("attention_pool_backward", 0, "grad_pooled"),
                                    ("power_spectrogram_backward", 0, "grad"), ("self_attention_backward", 0, "grad")]),
    *((name, place, lambda x: torch.full_like(x, -1), rf"{name}: lengths\[0\] is -1; it must be in 0\.\.", True)
      for name, place in [("gru_backward", 6), ("gru_backward_with_gates", 6), ("attention_pool_backward", 6),
                          ("power_spectrogram_backward", 7), ("self_attention_backward", 2)]),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["op", "reference", "fake"])
@pytest.mark.parametrize(("name", "position", "change", "sentence", "by_value"), BAD_BACKWARD)
def test_backward_refuses_bad_input(name, position, change, sentence, by_value, backend):
    arguments = changed(name, position, change(ARGUMENTS[name][position]))
    if backend == "fake":
        if by_value:
            return
        arguments = tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments)
    with pytest.raises(RuntimeError, match=sentence):
        call(name, arguments, backend)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.empty(0, dtype=torch.int64)}, r"limits has shape \[0\]; it must be \[5\]"),
        ({0: torch.tensor([1])}, r"limits has shape \[1\]; it must be \[5\]"),
        ({0: torch.ones(5)}, "limits has dtype float32; it must be int64"),
        ({0: torch.tensor([1, 1, -1, 1, 1])}, r"limits\[2\] is -1; it must be at least 0"),
        ({1: 0}, r"batch is 0; it must be in 1\.\."),
        ({1: 2**63 - 1}, r"batch is 9223372036854775807; it must be in 1\.\."),
        ({2: 3}, r"directions is 3; it must be in 1\.\.2"),
        ({3: -1}, r"hidden is -1; it must be in 1\.\."),
        ({5: 99}, "product is 99; it must be 0, 1 or 2"),
        ({5: -1}, "product is -1; it must be 0, 1 or 2"),
    ],
)
def test_gru_plan_refuses_bad_input(change, sentence):
    valid = (torch.tensor([232448, 132, 66, 33, 16]), 64, 2, 128, True, 0, False)
    with pytest.raises(RuntimeError, match=sentence):
        op("gru_plan")(*(change.get(position, value) for position, value in enumerate(valid)))


@pytest.mark.usefixtures("needs_kernels")
def test_gru_plan_reads_strided_and_huge_limits():
    limits = torch.tensor([232448, 132, 66, 33, 16])
    sizes = (64, 2, 128, True, 0, False)
    wanted = op("gru_plan")(limits, *sizes)
    assert wanted[0] == 128
    assert torch.equal(op("gru_plan")(torch.stack([limits, -limits], 1)[:, 0], *sizes), wanted)
    assert op("gru_plan")(torch.full((5,), 2**63 - 1), *sizes)[0] == 128


@pytest.mark.usefixtures("needs_kernels")
def test_gru_plan_leaves_spared_multiprocessors_to_others():
    """Waves of 32 tiles of 8 rows on clusters of which 33 run at once, and fewer."""
    limits, sizes = torch.tensor([232448, 0, 0, 33, 0]), (128, 2, 256, True, 0, False)
    try:
        for spared, waves in ((0, 1), (1, 1), (2, 2), (17, 2), (18, 3), (33, 32), (1000, 32)):
            ser_fast.backends.spare(spared)
            plan = op("gru_plan")(limits, *sizes)
            assert plan[1] * plan[5] == 128 and plan[6] == -(-2 * plan[5] // max(1, 33 - spared)), (spared, plan)
            assert plan[1] == 16 or plan[6] == waves
    finally:
        ser_fast.backends.spare(0)
    for bad in (-1, 1.0, True, None, 2**31):
        with pytest.raises(ValueError, match=f"multiprocessors is {bad}; it must be an int in 0..2147483647"):
            ser_fast.backends.spare(bad)


@pytest.mark.parametrize("argument", ["wave", "window", "mean", "std", "lengths"])
@pytest.mark.parametrize("backend", ["op", "reference"])
def test_out_refuses_to_overlap_an_input(argument, backend):
    """Also by one element, and through another tensor on the same memory."""
    values = ARGUMENTS["power_spectrogram"]
    position = spectrogram_op.Arguments._fields.index(argument)
    shape = spectrogram_op.output_shape(spectrogram_op.Arguments(*values))
    count, given = torch.Size(shape).numel(), values[position]
    memory = torch.zeros(count + given.numel(), dtype=torch.float64)
    write = spectrogram_op._reference_out if backend == "reference" else op("power_spectrogram_out")
    inside = torch.from_numpy(memory.numpy()).view(given.dtype)[-given.numel() :].view(given.shape)
    arguments = (*values[:position], inside.copy_(given), *values[position + 1 :])
    write(*arguments, memory[:count].view(shape))
    with pytest.raises(RuntimeError, match=f"some elements of the input tensor {argument} and the written-to tensor"):
        write(*arguments, memory[1 : count + 1].view(shape))


@pytest.mark.parametrize("backend", ["op", "reference"])
def test_out_refuses_overlap_within_itself(backend):
    values = ARGUMENTS["power_spectrogram"]
    shape = spectrogram_op.output_shape(spectrogram_op.Arguments(*values))
    write = spectrogram_op._reference_out if backend == "reference" else op("power_spectrogram_out")
    with pytest.raises(RuntimeError, match="out is strided; it must be contiguous"):
        write(*values, torch.zeros(1, 1, 1, dtype=torch.float64).expand(shape))


@pytest.mark.parametrize("argument", ["window", "mean", "std"])
def test_constant_that_requires_a_gradient_is_refused(argument):
    position = spectrogram_op.Arguments._fields.index(argument)
    arguments = changed(
        "power_spectrogram", position, ARGUMENTS["power_spectrogram"][position].clone().requires_grad_()
    )
    with pytest.raises(RuntimeError, match=f"{argument} requires a gradient; it must be a constant"):
        op("power_spectrogram")(*arguments)
    with torch.no_grad():
        op("power_spectrogram")(*arguments)


HUGE = 2**48  # more than addresses reach


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: op("gru")(
                torch.zeros(6).expand(1, HUGE, 1, 6), torch.zeros(1, 6, 2), None, None, None, True, False
            ),
            rf"gru needs {8 * HUGE} bytes for y of shape \[1, {HUGE}, 1, 2\]",
        ),
        (
            lambda: op("attention_pool")(torch.zeros(2).expand(HUGE, 1, 2), torch.zeros(2), None),
            rf"attention_pool needs {8 * HUGE} bytes for pooled of shape \[{HUGE}, 2\]",
        ),
        (
            lambda: op("attention_pool")(torch.zeros(4)[::2].expand(HUGE, 1, 2), torch.zeros(2), None),
            rf"attention_pool needs {8 * HUGE} bytes for h of shape \[{HUGE}, 1, 2\]",
        ),
        (
            lambda: op("self_attention")(torch.zeros(1, 2, 1, 1).expand(HUGE, 1, 2, 1, 1), None, 0.0, None),
            rf"self_attention needs {4 * HUGE} bytes for output of shape \[{HUGE}, 1, 1\]",
        ),
        (
            lambda: power_spectrogram(torch.zeros(3).expand(HUGE, 3), torch.ones(2), 2, 1),
            rf"power_spectrogram needs {16 * HUGE} bytes for the spectrogram of shape \[{HUGE}, 2, 2\]",
        ),
    ],
)
def test_op_names_what_it_has_no_memory_for(call, sentence):
    with pytest.raises(RuntimeError, match=f"can't allocate memory: {sentence}"):
        call()


def test_cuda_op_without_memory_raises_torchs_type(monkeypatch):
    def kernel(tensor):
        raise RuntimeError("gru: can't allocate memory: gru needs 8 bytes for y of shape [2]")

    monkeypatch.setattr(dispatch, "path_on_cuda", lambda *args, **named: "cuda")
    with pytest.raises(torch.OutOfMemoryError, match="gru needs 8 bytes for y"):
        registry.on_cuda_tensors("gru", kernel, cuda=kernel)(torch.zeros(2))


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("place", range(2))
def test_compiled_ops_name_a_tensor_that_is_none(place):
    arguments = [torch.zeros(2, 3, 4), torch.zeros(4)]
    arguments[place] = None
    with pytest.raises(
        RuntimeError, match=f"attention_pool: {'hw'[place]} is on no device, it is None; it must be on"
    ):
        torch.ops.ser_fast.attention_pool(*arguments, None)
