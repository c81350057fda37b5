"""One fault in the arguments of a valid call, for the attack ``ops``."""

from random import Random

import torch
from targets import Target, parameters
from torch import Tensor

HUGE = (-1, -(2**63), 2**62, 2**63 - 1)


def spoil(random: Random, target: Target) -> str:
    """Put a fault into the target's arguments and return its description."""
    while True:
        fault = random.choice((shape, dtype, lengths, freed, number, device, huge, overlap, missing))(random, target)
        if fault:
            return fault


def tensors(target: Target) -> dict[str, Tensor]:
    return {name: value for name, value in target.arguments.items() if isinstance(value, Tensor)}


def shape(random: Random, target: Target) -> str:
    """One tensor has an axis more or less, or one of another size, unless that is valid."""
    name, tensor = random.choice(list(tensors(target).items()))
    sizes, axis = list(tensor.shape), random.randrange(max(1, tensor.dim()))
    kind = random.choice(("longer", "shorter", "empty", "added", "dropped") if sizes else ("added",))
    if name == "qkv" and kind in ("added", "dropped"):  # packed or padded, which may be valid
        return ""
    if kind == "added":
        if name in ("gx", "x") and "gru" in target.name:  # packed; with an axis more it is a batch
            return ""
        sizes.insert(0, 1)
    elif kind == "dropped":
        if name in ("input", "hx") or (name == "x" and target.name == "gru_layer"):  # unbatched or packed
            return ""
        sizes.pop()
    else:
        takes_any = (name, axis) in target.free or (name in ("input", "hx") and axis < 2)
        if takes_any and (kind != "empty" or target.module):  # modules of torch take empty batches
            return ""
        sizes[axis] = {"longer": sizes[axis] + 1, "shorter": sizes[axis] - 1, "empty": 0}[kind]
    target.arguments[name] = tensor.new_zeros(sizes)
    return f"{name}'s axis {axis} {kind}"


def dtype(random: Random, target: Target) -> str:
    name, tensor = random.choice(list(tensors(target).items()))
    kinds = [torch.float64, torch.float32, torch.int64, torch.int8, torch.bool, torch.complex64, torch.complex128,
             torch.float16, torch.float8_e4m3fn, torch.uint16]  # fmt: skip
    if name in ("lengths", "limits"):
        kinds.remove(torch.int64)
    if target.name in ("PowerSpectrogram", "MelSpectrogram") and name == "wave":
        kinds = kinds[2:]  # both are computed
    if tensor.dtype == torch.int16:  # a wave that may as well be float32
        kinds.remove(torch.float32)
    kind = random.choice([kind for kind in kinds if kind != tensor.dtype])
    fixed = ("lengths", "seed")  # whose dtype does not follow the others'
    alone = not target.module and len([each for each in tensors(target) if each not in fixed]) == 1
    if alone and name not in fixed:
        return ""
    target.arguments[name] = tensor.to(kind)
    return f"{name} as {kind}"


def lengths(random: Random, target: Target) -> str:
    given = target.arguments.get("lengths")
    if given is None:
        return ""
    longest = max(size for tensor in tensors(target).values() for size in tensor.shape)
    bad = random.choice((-1, 1 + longest, -(2**63), 2**63 - 1))
    changed = given.clone()
    changed[random.randrange(len(given))] = bad
    target.arguments["lengths"] = changed
    return f"a length of {bad}"


def freed(random: Random, target: Target) -> str:
    """The storage of a tensor was freed, as FSDP frees those of parameters."""
    if target.module and random.random() < 0.5 and parameters(target):
        name, tensor = "a parameter", random.choice(parameters(target))
    else:
        name, tensor = random.choice(list(tensors(target).items()))
        target.arguments[name] = tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return f"{name} freed"


def number(random: Random, target: Target) -> str:
    """A number or a mode is out of range."""
    given = target.arguments
    names = [
        name for name, value in given.items() if isinstance(value, int | float | str) and not isinstance(value, bool)
    ]
    names = [name for name in names if name != "floor" or given["log"]]
    if not names:
        return ""
    name = random.choice(names)
    if name == "pad_mode":
        bad = random.choice(("", "Reflect", "reflect\0", "x" * 10**5, "\ud800", "恒定"))
    elif name == "floor":
        bad = random.choice((float("nan"), float("inf"), -1.0, 0.0, -float("inf")))
    else:
        any_size = name in ("hop_length", "range")  # of one frame any hop is valid
        bad = random.choice(HUGE[:2] if any_size else HUGE)
    given[name] = bad
    return f"{name} {str(bad)[:20]!r}"


def device(random: Random, target: Target) -> str:
    """One tensor of several has no data, or another layout."""
    found = tensors(target)
    if len(found) < 2 and not target.module:
        return ""
    name, tensor = random.choice(list(found.items()))
    if random.random() < 0.5 or target.name not in ("GRU", "AttentionPool", "PowerSpectrogram", "MelSpectrogram"):
        target.arguments[name] = tensor.to("meta")
        return f"{name} on meta"
    target.arguments[name] = tensor.to_sparse()
    return f"{name} sparse"


def huge(random: Random, target: Target) -> str:
    """The first tensor claims more memory than there is, from one element."""
    name, tensor = next(iter(tensors(target).items()))
    if (name, 0) not in target.free or (name, 1) not in target.free:
        return ""
    target.arguments |= {key: None for key in ("h0", "hx", "lengths") if key in target.arguments}
    rest = tensor.shape[2:]
    sizes = random.choice(((2**20, 2**20), (2**31, 2**20), (2**40, 1), (1, 2**44)))
    packed = target.name == "gru" and tensor.dim() == 3
    if packed or rest.numel() * sizes[0] * sizes[1] >= 2**60:
        return ""
    target.arguments[name] = tensor.new_zeros((1, 1, *rest)).expand(*sizes, *rest)
    return f"{name} of {list(sizes)}"


def overlap(random: Random, target: Target) -> str:
    """``out`` shares memory with itself or with an input."""
    if target.name != "power_spectrogram_out":
        return ""
    given = target.arguments
    out = given["out"]
    if random.random() < 0.2 and out.numel() > 1:
        given["out"] = out.new_zeros(1).expand(out.shape)
        return "out expanded"
    name = random.choice([name for name in ("wave", "window", "mean", "std") if given[name] is not None])
    tensor = given[name].to(out.dtype)
    skipped = random.randrange(tensor.numel())
    memory = out.new_zeros(skipped + max(tensor.numel(), out.numel()) + tensor.numel())
    given[name] = memory[: tensor.numel()].view(tensor.shape).copy_(tensor)
    given["out"] = memory[skipped : skipped + out.numel()].view(out.shape)
    return f"out over {name}"


def missing(random: Random, target: Target) -> str:
    """A tensor that must be there is None."""
    if target.module:  # torch's modules do not check it either
        return ""
    name = next(iter(tensors(target)))
    target.arguments[name] = None
    return f"{name} None"
