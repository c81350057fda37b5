"""Every op and module of ser_fast with random valid arguments and its reference, for the attack ``ops``."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from unittest import mock

import torch
from samples import (
    CASES,
    REFERENCES,
    attention_arguments,
    conv_pool_arguments,
    gray_arguments,
    gru_arguments,
    op,
    outputs,
    pool_arguments,
    spectrogram_arguments,
)
from torch import Tensor, nn

import ser_fast
from ser_fast import functional
from ser_fast.ops import attention_pool, checks, conv_pool, gru, gru_layer, power_spectrogram, self_attention
from ser_fast.ops.gru_layer_int8 import rows_to_int8

DTYPES = {"gru": (torch.float64, torch.float32, torch.bfloat16)}
# Sizes that an op takes as they come, so that another one is no error: a tensor's name and axis.
FREE = {
    "gru": {("gx", 0), ("gx", 1)},
    "attention_pool": {("h", 0), ("h", 1)},
    "self_attention": {("qkv", 0), ("qkv", 1), ("qkv", 2), ("qkv", 3), ("qkv", 4)},
    "self_attention_backward": {("qkv", 4)},
    "power_spectrogram": {("wave", 0), ("wave", 1), ("window", 0)},
    "power_spectrogram_backward": {("wave", 1), ("window", 0)},
    "power_spectrogram_out": {("wave", 1), ("window", 0)},
    "conv_pool": {*(("x", axis) for axis in range(4)), *(("weight", axis) for axis in range(4))},
    "conv_pool_backward": {("x", 1), ("x", 2), ("x", 3), ("weight", 1), ("weight", 2), ("weight", 3)},
    "gray_deltas": {("x", 0), ("x", 1), ("x", 2)},
    "gru_layer": {("x", 0), ("x", 1)},
    "gru_layer_forward": {("x", 0), ("x", 1)},
    "gru_cell": {("x", 0)},
    "gru_layer_int8": {("x", 0), ("x", 1)},
    "GRU": {("input", 0), ("input", 1)},
    "GRUCell": {("input", 0)},
    "AttentionPool": {("h", 0), ("h", 1)},
    "PowerSpectrogram": {("wave", 0), ("wave", 1)},
    "MelSpectrogram": {("wave", 0), ("wave", 1)},
}


@dataclass
class Target:
    """A call with valid arguments.

    Args:
        name: name of the op or the module.
        call: the op or the module.
        arguments: valid arguments by name, in order.
        truth: its reference; called with the arguments in float64 it returns what ``call`` must return.
        derivative: names of the arguments with a gradient; None if the call has none.
        module: the module, whose parameters have gradients too.
        logarithm: True if the results are logarithms, whose errors near the floor have no bound.
        rounds: True if the kernel rounds the state to a multiple of 2^-14 in every step.
    """

    name: str
    call: Callable
    arguments: dict[str, object]
    truth: Callable
    derivative: tuple[str, ...] | None = None
    module: nn.Module | None = None
    logarithm: bool = False
    rounds: bool = False
    free: set = field(init=False)

    def __post_init__(self):
        self.free = FREE.get(self.name, set())


def size(random: Random, most: int = 300) -> int:
    """Return a size, mostly small, often next to a multiple of a vector's width."""
    edge = 16 * random.randint(1, max(1, most // 16)) + random.choice((-1, 0, 1))
    return min(most, random.choice((1, 1, 2, 3, random.randint(1, 9), random.randint(1, 40), edge)))


def names(name: str) -> list[str]:
    return [argument.name for argument in op(name).default._schema.arguments]


def doubled(value):
    """Return a tensor in float64; int16 is a wave, which stands for sample / 32768."""
    if isinstance(value, Tensor) and value.dtype == torch.int16:
        return value.double() / 32768
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def cast(value, dtype: torch.dtype):
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def of_gru(random: Random) -> tuple:
    while True:
        frames, batch, hidden = size(random, 60), size(random, 70), size(random)
        if frames * batch * hidden * (hidden + 40) < 4e6:
            break
    ragged, after, biased, first, packed = (random.random() < 0.5 for _ in range(5))
    return gru_arguments(frames, batch, random.choice((1, 2)), hidden, ragged_rows=ragged or packed, reset_after=after,
                         biased=biased, batch_first=first, packed=packed)  # fmt: skip


def of_attention_pool(random: Random) -> tuple:
    while True:
        batch, frames, width = size(random, 40), size(random, 3000), size(random, 600)
        if batch * frames * width < 1e6:
            return pool_arguments(batch, frames, width, ragged_rows=random.random() < 0.5)


def of_power_spectrogram(random: Random) -> tuple:
    n_fft = size(random, 1700)
    width, center, log = random.randint(1, n_fft), random.random() < 0.5, random.random() < 0.5
    samples = n_fft // 2 + size(random, 3000)
    batch, hop = size(random, 20), random.randint(1, 2 * n_fft)
    while batch * (samples // hop + 1) * n_fft > 1e6:
        batch, hop = max(1, batch // 2), hop + 10
    begin = random.randint(0, n_fft // 2)
    bins = None if random.random() < 0.5 else (begin, random.randint(begin + 1, n_fft // 2 + 1))
    mode = random.choice(power_spectrogram.PAD_MODES)
    return spectrogram_arguments(
        batch, samples, width, n_fft, hop, ragged_rows=random.random() < 0.5, normalized=random.random() < 0.5,
        log=log, center=center, pad_mode=mode, bins=bins,
    )  # fmt: skip


def of_conv_pool(random: Random) -> tuple:
    while True:
        batch, frames, bins, channels, filters = (size(random, most) for most in (9, 60, 70, 40, 40))
        depth = random.randint(max(1, channels - 3), channels)
        if random.random() < 0.2:
            channels, depth = 3, 2  # the kernel has a form for them
        kernel_t, kernel_f = random.choice((1, 3, 5, 7)), random.choice((1, 3, 5))
        if batch * frames * bins * filters * depth * kernel_t * kernel_f < 2e7:
            break
    ragged, biased, last = (random.random() < 0.5 for _ in range(3))
    return conv_pool_arguments(batch, frames, bins, channels, filters, depth, kernel_t, kernel_f, ragged_rows=ragged,
                               packed=ragged and random.random() < 0.5, biased=biased, channels_last=last)  # fmt: skip


def of_gray_deltas(random: Random) -> tuple:
    sizes = size(random, 20), size(random, 200), size(random, 100)
    return gray_arguments(*sizes, ragged_rows=random.random() < 0.5, packed=random.random() < 0.5)


def of_self_attention(random: Random) -> tuple:
    while True:
        batch, frames, heads, width = size(random, 9), size(random, 700), size(random, 32), size(random)
        if batch * heads * frames * (frames + 9) * (width + 20) < 1e7:
            break
    packed, dropout = random.random() < 0.3, random.choice((0.0, random.random()))
    return attention_arguments(batch, frames, heads, width, ragged_rows=packed or random.random() < 0.5,
                               values=random.random() < 0.5, packed=packed, dropout=dropout)  # fmt: skip


ARGUMENTS = {"gru": of_gru, "attention_pool": of_attention_pool, "power_spectrogram": of_power_spectrogram,
             "conv_pool": of_conv_pool, "gray_deltas": of_gray_deltas, "self_attention": of_self_attention}  # fmt: skip
DERIVATIVES = {"gru": ("gx", "w_hh", "b_hh", "h0"), "attention_pool": ("h", "w"), "power_spectrogram": ("wave",),
               "conv_pool": ("x", "weight", "bias"), "gray_deltas": ("x",), "self_attention": ("qkv",)}  # fmt: skip


def forward(random: Random) -> Target:
    """Return an op that has a derivative, or its functional form."""
    name = random.choice(list(CASES))
    dtype = random.choice(DTYPES.get(name, (torch.float64, torch.float32)))
    given = dict(zip(names(name), (cast(value, dtype) for value in ARGUMENTS[name](random))))
    short = name == "power_spectrogram" and dtype == torch.float32 and random.random() < 0.3
    if short:
        given["wave"] = (given["wave"] * 8000).short()
    call, truth, derivative = op(name), REFERENCES[name], None if short else DERIVATIVES[name]
    if name == "gru" and random.random() < 0.3:
        del given["save_gates"]
        call = gru_as_functional
    elif name == "attention_pool" and random.random() < 0.3:
        call = functional.attention_pool
    elif name == "power_spectrogram" and random.random() < 0.3:
        call = spectrogram_as_functional
    return Target(name, call, given, truth, derivative, logarithm=given.get("log", False))


def gru_as_functional(gx, w_hh, b_hh, h0, lengths, reset_after):
    return functional.gru(gx, w_hh, b_hh, h0, lengths, reset_after=reset_after)


def spectrogram_as_functional(wave, window, n_fft, hop, begin, end, lengths, mean, std, log, floor, center, pad_mode):
    return functional.power_spectrogram(wave, window, n_fft, hop, (begin, end), lengths, mean, std, log=log,
                                        floor=floor, center=center, pad_mode=pad_mode)  # fmt: skip


def backward(random: Random) -> Target:
    """Return a backward op."""
    name = random.choice(("gru_backward", "gru_backward_with_gates", "attention_pool_backward",
                          "power_spectrogram_backward", "conv_pool_backward", "self_attention_backward"))  # fmt: skip
    kind = next(kind for kind in CASES if name.startswith(kind))
    given = dict(zip(names(kind), ARGUMENTS[kind](random)))
    results = outputs(REFERENCES[kind](*given.values()))
    grads = [torch.randn_like(result) for result in results]
    if kind == "gru":
        given |= {"y": results[0], "gates": results[2]}
        given |= {"grad_y": grads[0], "grad_h_n": grads[1], "grad_gates": grads[2]}
        truth = gru.reference_backward
    elif kind == "attention_pool":
        given |= {"pooled": results[0], "weights": results[1], "grad_pooled": grads[0]}
        given["grad_weights"] = random.choice((None, grads[1]))
        truth = attention_pool.reference_backward
    elif kind == "conv_pool":
        given |= {"grad": grads[0], "winners": REFERENCES[kind](*given.values())[1], "needs_grad_x": True}
        truth = conv_pool.reference_backward
    else:
        module = self_attention if kind == "self_attention" else power_spectrogram
        given["grad"], truth = grads[0], module.reference_backward
    dtype = random.choice(DTYPES.get(kind, (torch.float64, torch.float32)))
    arguments = {key: cast(given[key], dtype) for key in names(name)}
    return Target(name, op(name), arguments, truth, logarithm=given.get("log", False))


def layer(random: Random) -> Target:
    """Return a form of ``gru_layer`` or ``gru_cell``, whose weights are arguments of their own here."""
    frames, batch, features, hidden = size(random, 60), size(random, 20), size(random, 70), size(random, 140)
    ragged, packed, after, first = (random.random() < 0.5 for _ in range(4))
    x = torch.randn(*((batch, frames) if first else (frames, batch)), features)
    lengths = torch.randint(1, frames + 1, (batch,)) if ragged or packed else None
    if packed:
        x = torch.randn(int(lengths.sum()), features)
    shapes = {
        "w_ih": (3 * hidden, features),
        "w_hh": (3 * hidden, hidden),
        "b_ih": (3 * hidden,),
        "b_hh": (3 * hidden,),
    }
    given = {name: torch.randn(shape) / hidden**0.5 for name, shape in shapes.items()}
    name = random.choice(("gru_layer", "gru_layer_forward", "gru_layer_backward", "gru_cell"))
    dtype = random.choice((torch.float64, torch.float32) if name.endswith("ward") else DTYPES["gru"])
    ends = (True, after, first)
    if name == "gru_cell":
        given = {"x": torch.randn(batch, features), **given, "h": torch.randn(batch, hidden)}
        ends = (True, after)
    else:
        given = {"x": x, **given, "h0": torch.randn(1, batch, hidden), "lengths": lengths}
    if name.endswith("ward"):
        total = x.shape[:-1].numel() if lengths is None else int(lengths.sum())
        saved = gru_layer.forward_reference(x, list(given.values())[1:5], *list(given.values())[5:], total, *ends)
        if name == "gru_layer_forward":
            ends = (total, *ends)
        else:
            given |= {"gates": saved[2], "states": saved[3]}
            given = {"grad_y": torch.randn_like(saved[0]), "grad_h_n": torch.randn_like(saved[1]), **given}
            ends = (*ends, True, [True] * 4)

    place = list(given).index("w_ih")

    def calls(function):
        def call(*args):
            found = function(*args[:place], list(args[place : place + 4]), *args[place + 4 :], *ends)
            if name != "gru_layer_backward":
                return found
            return found[0], *found[1], found[2]

        return call

    truth = {
        "gru_layer": gru_layer.reference,
        "gru_layer_forward": gru_layer.forward_reference,
        "gru_layer_backward": gru_layer.reference_backward,
        "gru_cell": gru_layer.cell_reference,
    }[name]
    given = {key: cast(value, dtype) for key, value in given.items()}
    return Target(name, calls(op(name)), given, calls(truth))


def quantized_layer(random: Random) -> Target:
    """Return ``gru_layer_int8``, whose weights, scales and biases are arguments of their own here."""
    frames, batch, features, hidden = size(random, 60), size(random, 20), size(random, 70), size(random, 140)
    after = random.random() < 0.5
    given = {"x": torch.randn(frames, batch, features)}
    for name, width in (("w_ih", features), ("w_hh", hidden)):
        given[name], given[f"{name}_scale"] = rows_to_int8(torch.randn(3 * hidden, width) / hidden**0.5)
    given |= {"b_ih": torch.randn(3 * hidden), "b_hh": torch.randn(3 * hidden), "h0": torch.randn(1, batch, hidden)}
    given["lengths"] = random.choice((None, torch.randint(1, frames + 1, (batch,))))

    def call(x, w_ih, s_ih, w_hh, s_hh, b_ih, b_hh, *rest):
        return op("gru_layer_int8")(x, [w_ih, w_hh], [s_ih, s_hh], [b_ih, b_hh], *rest, after, False)

    def truth(x, w_ih, s_ih, w_hh, s_hh, b_ih, b_hh, *rest):
        weights = [w_ih * s_ih[:, None], w_hh * s_hh[:, None], b_ih, b_hh]
        return gru_layer.reference(x, weights, *rest, True, after, False)

    return Target("gru_layer_int8", call, given, truth, rounds=True)


def out(random: Random) -> Target:
    """Return ``power_spectrogram_out``."""
    given = dict(zip(names("power_spectrogram"), of_power_spectrogram(random)))
    given["out"] = torch.empty(
        power_spectrogram.output_shape(power_spectrogram.Arguments(**given)), dtype=torch.float64
    )

    def call(*args):
        op("power_spectrogram_out")(*args)
        return args[-1].clone()

    return Target("power_spectrogram_out", call, given, lambda *args: REFERENCES["power_spectrogram"](*args[:-1]),
                  logarithm=given["log"])  # fmt: skip


def plan(random: Random) -> Target:
    """Return ``gru_plan``, whose truth is its own plan for a fresh copy of the limits."""
    limits = torch.tensor([random.choice((99, 163, 227)) * 1024, *(random.randint(0, 200) for _ in range(4))])
    values = (limits, size(random), random.choice((1, 2)), size(random, 700), random.random() < 0.5,
              random.randint(0, 2), random.random() < 0.5)  # fmt: skip

    def truth(limits, *rest):
        return op("gru_plan")(limits.clone(memory_format=torch.contiguous_format), *rest)

    return Target("gru_plan", op("gru_plan"), dict(zip(names("gru_plan"), values)), truth)


def module(random: Random) -> Target:
    """Return a module; its truth is a copy in float64 on the ops' references."""
    dtype = random.choice((torch.float64, torch.float32))
    kind = random.choice((gru_module, cell_module, pool_module, spectrogram_module))
    made, given = kind(random)
    made, exact = made.to(dtype).eval(), copy.deepcopy(made).to(dtype).double().eval()
    given = {name: cast(value, dtype) for name, value in given.items()}

    def call(*args):
        return made(*args[:2], lengths=args[2]) if isinstance(made, ser_fast.GRU) else made(*args)

    def truth(*args):
        with mock.patch.object(checks, "transforming", lambda: True):
            return exact(*args[:2], lengths=args[2]) if isinstance(made, ser_fast.GRU) else exact(*args)

    derivative = tuple(
        name for name, value in given.items() if isinstance(value, Tensor) and value.is_floating_point()
    )
    if random.random() < 0.4:
        call, derivative = torch.no_grad()(call), None
    return Target(type(made).__name__, call, given, truth, derivative, made, getattr(made, "log", False))


def gru_module(random: Random) -> tuple[nn.Module, dict]:
    features, hidden, frames, batch = size(random, 40), size(random, 70), size(random, 40), size(random, 20)
    options = {"num_layers": random.choice((1, 1, 2, 3))} | {
        name: random.random() < 0.5 for name in ("bias", "batch_first", "bidirectional", "reset_after")
    }
    made = ser_fast.GRU(features, hidden, **options)
    x = torch.randn(*((batch, frames) if options["batch_first"] else (frames, batch)), features)
    states = options["num_layers"] * (1 + options["bidirectional"])
    hx = random.choice((None, torch.randn(states, batch, hidden)))
    return made, {"input": x, "hx": hx, "lengths": random.choice((None, torch.randint(0, frames + 1, (batch,))))}


def cell_module(random: Random) -> tuple[nn.Module, dict]:
    features, hidden, batch = size(random, 40), size(random, 70), size(random, 40)
    made = ser_fast.GRUCell(features, hidden, random.random() < 0.5, reset_after=random.random() < 0.5)
    return made, {"input": torch.randn(batch, features), "hx": random.choice((None, torch.randn(batch, hidden)))}


def pool_module(random: Random) -> tuple[nn.Module, dict]:
    h, _, lengths = of_attention_pool(random)
    return ser_fast.AttentionPool(h.shape[2]), {"h": h, "lengths": lengths}


def spectrogram_module(random: Random) -> tuple[nn.Module, dict]:
    mel, rate, n_fft = random.random() < 0.5, random.choice((8000, 16000, 44100)), random.randint(64, 1024)
    options = {"win_length": random.randint(1, n_fft), "hop_length": random.randint(1, n_fft),
               "center": random.random() < 0.5, "pad_mode": random.choice(power_spectrogram.PAD_MODES),
               "log": random.random() < 0.5, "f_max": rate / 2}  # fmt: skip
    if mel:
        options |= {"n_mels": random.randint(1, 8)}
    made = (ser_fast.MelSpectrogram if mel else ser_fast.PowerSpectrogram)(rate, n_fft, **options)
    wave = torch.randn(size(random, 9), n_fft // 2 + size(random, 2000))
    lengths = random.choice((None, torch.randint(n_fft // 2 + 1, wave.shape[1] + 1, (len(wave),))))
    return made, {"wave": wave, "lengths": lengths}


def parameters(target: Target) -> list[Tensor]:
    return list(target.module.parameters()) if target.module else []


MAKERS = (forward, forward, backward, layer, quantized_layer, out, plan, module, module)
# The attack must know every op: a new one is added above.
KNOWN = {*CASES, "gru_backward", "gru_backward_with_gates", "attention_pool_backward", "power_spectrogram_backward",
         "gru_layer", "gru_layer_forward", "gru_layer_backward", "gru_cell", "gru_layer_int8",
         "power_spectrogram_out", "conv_pool_backward", "self_attention_backward", "gru_plan"}  # fmt: skip
found = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("ser_fast::")}
assert found == KNOWN, f"tests/attack/targets.py lacks {found ^ KNOWN}"
