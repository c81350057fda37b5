"""Ops and modules: what the float64 reference computes, or one clear error.

Two thirds of the cases are valid calls with random sizes, dtypes, strides, lengths and threads, part of them with NaN,
infinities and denormals: outputs and gradients must be those of the reference, no input may change. The others have one
fault, which must be refused.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from hostile import spoil
from samples import outputs, spread
from targets import MAKERS, Target, doubled, parameters
from torch import Tensor

# Relative to the largest value, beside the peer's error: some thousand roundings of float64, some hundred of float32,
# some ten of bfloat16.
SLACK = {torch.float64: 1e-12, torch.float32: 512 * 2**-23, torch.bfloat16: 16 * 2**-8}
# What only the inside of torch or C++ says; an error must be one that a user understands.
INTERNAL = (
    "INTERNAL ASSERT",
    "torch_call_dispatcher",
    "aoti_torch",
    "bad_alloc",
    "vector::",
    "basic_string",
    "Exception raised",
)


@dataclass
class Case:
    target: Target
    fault: str
    values: bool  # NaN, infinities or denormals were put into the arguments
    threads: int
    seed: int

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={text(value)}" for name, value in self.target.arguments.items())
        return f"{self.target.name}({shown}){f' with {self.fault}' if self.fault else ''}"


def text(value) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    found = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value.layout != torch.strided or value.device.type != "cpu" or not value.untyped_storage().size():
        return found
    values = value.tolist() if not value.is_floating_point() and value.numel() < 6 else ""
    return f"{found} strides {list(value.stride())} {values}".rstrip()


def case(random: Random, folder: Path) -> Case:
    seed = random.getrandbits(32)
    torch.manual_seed(seed)
    target = random.choice(MAKERS)(random)
    fault, values = "", False
    if random.random() < 0.35:
        fault = spoil(random, target)
    else:
        values = target.name in ("gru", "attention_pool", "power_spectrogram") and random.random() < 0.3
        for name, value in target.arguments.items():
            if isinstance(value, Tensor) and name != "out":
                value = strange(random, name, value) if values and value.is_floating_point() else value
                # Results of the forward must stay those of the arguments of the forward; among equal pixels of
                # conv_pool rounding decides which one wins.
                bound = target.name == "conv_pool" or ("_backward" in target.name and not name.startswith("grad"))
                value = laid_out(random, value, bound)
                target.arguments[name] = value.long() if name in ("limits", "seed") else value  # take no int32
    return Case(target, fault, values, random.choice((1, 1, 2, 3)), seed)


def laid_out(random: Random, tensor: Tensor, bound: bool) -> Tensor:
    """Return the tensor in another layout, or, unless its values are ``bound``, with one axis expanded."""
    lengths = not tensor.is_floating_point()
    kind = random.choice(
        ("same", "same", "spread", "permuted", "offset", "offset" if lengths or bound else "expanded", "negative")
    )
    if kind == "spread":
        return spread(tensor)
    if kind == "permuted":
        order = random.sample(range(tensor.dim()), tensor.dim())
        return tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(tensor.dim())])
    if kind == "offset":
        skipped = random.randint(1, 7)
        return torch.cat([tensor.new_zeros(skipped), tensor.flatten()])[skipped:].view(tensor.shape)
    if kind == "expanded":
        return tensor.narrow(random.randrange(tensor.dim()), 0, 1).expand_as(tensor)
    if kind == "negative":
        return tensor.int() if lengths and tensor.dtype == torch.int64 else torch._neg_view(-tensor)
    return tensor


def strange(random: Random, name: str, tensor: Tensor) -> Tensor:
    """Return a copy with a few special values."""
    tiny = torch.finfo(tensor.dtype).tiny
    values = [0.0, -0.0, tiny / 8, -tiny / 3]
    if name != "wave":  # whose samples must be finite
        values += [torch.nan]
        # A large weight magnifies the rounding of the state and of r * h to bfloat16, the operands of the kernel's products.
        values += [] if name == "w_hh" and tensor.dtype == torch.bfloat16 else [1e4, -1e4]
    # 0 * inf, which an infinite state or weight brings, depends on a gate's rounding to 0.
    if name in ("gx", "h", "w"):
        values += [torch.inf, -torch.inf]
    tensor = tensor.clone()
    for _ in range(random.randint(0, 3)):
        tensor[tuple(map(random.randrange, tensor.shape))] = random.choice(values)
    return tensor


def check(case: Case) -> None:
    torch.manual_seed(case.seed)
    torch.set_num_threads(case.threads)
    # New tensors are filled with NaN, so unwritten elements show; a fault may ask for terabytes, which are not filled.
    torch.use_deterministic_algorithms(not case.fault)
    try:
        refused(case.target) if case.fault else equal(case)
    finally:
        torch.use_deterministic_algorithms(False)


def refused(target: Target) -> None:
    try:
        found = outputs(target.call(*target.arguments.values()))
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        said = str(error)
        assert said.strip() and not any(word in said for word in INTERNAL), f"unclear error: {said[:500]}"
        return
    raise AssertionError(f"no error; it returned {', '.join(map(text, found))}")


def equal(case: Case) -> None:
    target = case.target
    given = list(target.arguments.values())
    differentiate = target.derivative is not None and not case.values
    if differentiate:
        given = [
            value.detach().requires_grad_() if name in target.derivative and isinstance(value, Tensor) else value
            for name, value in target.arguments.items()
        ]
    before = [value.clone() if isinstance(value, Tensor) else value for value in given]
    found = outputs(target.call(*given))
    for name, value, kept in zip(target.arguments, given, before):
        changed = (
            isinstance(value, Tensor) and name != "out" and not torch.equal(value.nan_to_num(), kept.nan_to_num())
        )
        assert not changed, f"{name} was changed"
    exact = [doubled(value) for value in given]
    truth = outputs(target.truth(*exact))
    peer = truth if target.module else outputs(target.truth(*given))
    assert len(found) == len(truth) or target.name == "gru", f"{len(found)} outputs; the reference has {len(truth)}"
    for place, results in enumerate(zip(found, truth, peer)):
        near(f"output {place}", *results, case)
    if differentiate and not target.logarithm:
        compare_gradients(case, found, given, truth, peer)


def compare_gradients(case: Case, found, given, truth, peer) -> None:
    """Compare the gradients of the outputs' sum weighted at random; the gates of ``gru`` have no gradient."""
    count = 2 if case.target.name == "gru" else len(found)
    cotangents = [torch.randn_like(result) for result in found[:count] if result.is_floating_point()]
    wanted = [value for value in given if isinstance(value, Tensor) and value.requires_grad] + parameters(case.target)
    results = []
    for each in (found, truth) if case.target.module else (found, truth, peer):
        total = sum((result * cotangent).sum() for result, cotangent in zip(each, cotangents) if result.requires_grad)
        if not isinstance(total, Tensor):
            return
        # The truth's graph leads through .double() to the same leaves; a module's parameters were copied.
        leaves = wanted[: len(wanted) - len(parameters(case.target))] if each is truth else wanted
        results.append(torch.autograd.grad(total, leaves, allow_unused=True))
    results += [results[1]] * (3 - len(results))
    for place, grads in enumerate(zip(*results)):
        if any(grad is None for grad in grads):
            assert all(grad is None for grad in grads), f"gradient {place} is None in one of them"
            continue
        near(f"gradient {place}", *grads, case)


def near(what: str, found: Tensor, truth: Tensor, peer: Tensor, case: Case) -> None:
    """Fail unless ``found`` has NaN and infinities where the peer has them, and elsewhere the allowed error at most."""
    found, truth, peer = found.detach(), truth.detach(), peer.detach()
    assert found.shape == truth.shape, f"{what} has shape {list(found.shape)}; the reference has {list(truth.shape)}"
    if not found.is_floating_point():
        assert torch.equal(found, truth), f"{what} is {text(found)}; the reference {text(truth)}"
        return
    if not found.numel():
        return
    slack = SLACK[found.dtype] * (30 if case.target.module or case.target.rounds else 1)
    if case.target.logarithm:
        slack, found, truth, peer = (
            1000 * slack,
            *(each.double().clamp(max=100).exp() for each in (found, truth, peer)),
        )
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        places = kind(found) != kind(peer)
        count = int(places.sum())
        assert not count, (
            f"{what} differs in {kind.__name__} at {count} of {found.numel()} elements, first at "
            f"{places.nonzero()[0].tolist()}: {found[places][0]}, the reference {peer[places][0]}"
        )
    finite = torch.isfinite(peer) & torch.isfinite(truth)
    found, truth, peer = (torch.where(finite, each, 0).double() for each in (found, truth, peer))
    scale = max(1.0, float(truth.abs().max()))
    error, allowed = ((each - truth).abs().max().item() for each in (found, peer))
    assert error <= 4 * allowed + slack * scale, (
        f"{what} is off by {error:.2e}, the peer by {allowed:.2e}; scale {scale:.2e}"
    )
