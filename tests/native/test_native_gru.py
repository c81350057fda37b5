"""The CUDA kernels of the GRU through their ops, in every dtype, form and cluster size; and their plan.

On the GPU where there is one, otherwise on the host; what a plan may take of it is restricted.
"""

import ctypes

import pytest
import torch
from host_gpu import assert_near, ops, seed, spoilt
from samples import DEVICE, gru_arguments, spread, to
from selection import important

from ser_fast import backends
from ser_fast.backends import dispatch
from ser_fast.ops import gru

PRODUCTS = {  # a dtype, and torch's switch for tf32
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
}
ALONE = (132, 0, 0, 0)  # how many clusters of 1, 2, 4 and 8 blocks may run at once
ANY = 5 * [torch.iinfo(torch.int64).max]


@pytest.fixture
def gpu(native):
    """Restricts what plans may take."""

    def play(active=ANY[1:], shared=ANY[0]):
        left = ops.gru_restrict(to(torch.empty(0)), torch.tensor([shared, *active])).tolist()
        if not any(left[1:]):
            pytest.skip(f"this GPU has no clusters of {active}")
        return left

    yield play
    play()


def assert_close(found, peer, truth, product: str, what: str) -> None:
    """float32 at most twice the reference's error; otherwise within four roundings of the largest value.

    One is the result's, one the product's operands', one the state's that comes back through them, and one the saved
    gates'. tf32 rounds as float16 does.
    """
    if product == "tf32":
        assert torch.isfinite(found).all(), what
        error, scale = float((found.double() - truth).abs().max()), max(1.0, float(truth.abs().max()))
        assert error <= 4 * torch.finfo(torch.float16).eps * scale, f"{what} is off by {error:.1e} of {scale:.1e}"
    else:
        assert_near(found, peer, truth, 4, what)


def check(arguments: tuple, product: str) -> list:
    """Forward and backward of the ops against the reference in float64; all their outputs."""
    dtype, tf32 = PRODUCTS[product]
    given = to(arguments, dtype)
    gx, w_hh, _, h0, lengths, reset_after, _ = given
    garbage = gx if lengths is None or gx.dim() == 3 else spoilt(gx.transpose(0, 1), lengths).transpose(0, 1)
    found = ops.gru(garbage, *given[1:], tf32)
    peer, truth = gru.reference(*given), gru.reference(*to(given, torch.float64))
    for name, *one in zip(("y", "h_n", "gates"), found, peer, truth):
        assert_close(*one, product, name)
    y, h_n, gates = found
    backward = (torch.randn_like(y), torch.randn_like(h_n), y, gates, w_hh, h0, lengths, reset_after)
    peer, truth = (gru.reference_backward(*to(backward, kind)) for kind in (dtype, torch.float64))
    grads = ops.gru_backward(*backward, tf32)
    for name, *one in zip(("grad_gx", "grad_q", "grad_h0"), grads, peer, truth):
        if one[0].numel():
            assert_close(*one, product, name)
    return [*found, *grads]


SHAPES = [  # T, B, D, H, the GPU, what is given besides
    ((1, 1, 1, 1), ALONE, {}),
    ((5, 3, 2, 7), ALONE, {"ragged_rows": True}),
    ((4, 10, 2, 16), ALONE, {"ragged_rows": True, "batch_first": True}),
    ((4, 10, 2, 16), ALONE, {"ragged_rows": True, "packed": True}),
    ((3, 9, 2, 33), ALONE, {"biased": False}),
    ((3, 2, 1, 128), ALONE, {"ragged_rows": True}),
    ((6, 9, 2, 64), (0, 99, 0, 0), {"ragged_rows": True}),
    ((6, 9, 2, 60), (0, 0, 99, 0), {"ragged_rows": True}),
    ((5, 9, 1, 50), (0, 0, 99, 0), {"ragged_rows": True, "packed": True}),
    ((2, 3, 1, 129), (0, 0, 99, 0), {"ragged_rows": True}),
    ((2, 17, 1, 200), (0, 0, 0, 1), {"ragged_rows": True, "batch_first": True}),
]


def test_cuda_gru_plans_obey_restrictions(gpu):
    whole = gpu()
    assert gpu((9, 0, 1, 10**6), 50_000) == [50_000, 9, 0, 1, whole[4]]
    with pytest.raises(RuntimeError, match="H is 256; it must be so small that W_hh fits on this GPU's chip"):
        gpu(ALONE)
        ops.gru(*to(gru_arguments(1, 1, 1, 256, ragged_rows=False, reset_after=True), torch.float16), False)
    assert gpu() == whole


@pytest.mark.parametrize("product", important(PRODUCTS, lambda product: product in ("float32", "float16")))
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_cuda_gru(gpu, case, reset_after, product, poison):
    sizes, active, options = case
    gpu(active)
    options = {"ragged_rows": False} | options
    check(gru_arguments(*sizes, **options, reset_after=reset_after, dtype=torch.float32), product)


@pytest.mark.parametrize("product", important(["float16", "bfloat16"], 1))
@pytest.mark.parametrize("reset_after", [True, False])
def test_cuda_gru_on_the_largest_clusters(gpu, reset_after, product, poison):
    """512 units on eight blocks, 192 on one whose W_hh is partly in shared memory."""
    gpu()
    check(gru_arguments(2, 2, 1, 512, ragged_rows=True, reset_after=reset_after, dtype=torch.float32), product)
    gpu(ALONE)
    check(gru_arguments(2, 2, 1, 180, ragged_rows=True, reset_after=reset_after, dtype=torch.float32), product)


@pytest.mark.parametrize("product", ["float32", "float16"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_cuda_gru_does_not_depend_on_thread_order(native, gpu, reset_after, product):
    gpu((0, 0, 99, 0), 60_000)
    arguments = gru_arguments(6, 9, 2, 64, ragged_rows=True, reset_after=reset_after, dtype=torch.float32)
    results = []
    for number in range(6):
        seed(native, number)
        torch.manual_seed(1)
        results.append(check(arguments, product))
    assert all(torch.equal(one, other) for other in results for one, other in zip(results[0], other))


@pytest.mark.parametrize("packed", [False, True])
def test_cuda_gru_clamps_lengths(gpu, packed):
    """Into the tensor: packed frames that no row claims are zeros."""
    gpu(ALONE)
    given = to(gru_arguments(6, 4, 2, 8, ragged_rows=False, reset_after=True, dtype=torch.float32))
    gx, *rest, _, reset_after, _ = given
    if packed:
        gx = gx.flatten(0, 1)
    wild, tame = to((torch.tensor([-5, 3, 99, 2]), torch.tensor([0, 3, 21 if packed else 6, 0 if packed else 2])))
    for one, other in zip(*(ops.gru(gx, *rest, lengths, reset_after, True, False) for lengths in (wild, tame))):
        assert torch.equal(one, other)
    if packed:
        y = ops.gru(gx, *rest, to(torch.tensor([1, 2, 3, 4])), reset_after, True, False)[0]
        assert y[10:].eq(0).all() and y[:10].ne(0).any()


def beside(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, half a pair beside where pairs begin."""
    return tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("hidden", [16, 15])
@pytest.mark.parametrize("layout", [spread, beside])
def test_cuda_gru_takes_any_layout(gpu, layout, hidden):
    """Any strides and addresses, an odd H, lengths of 32 bits: the values decide alone, to the last bit."""
    gpu(ALONE)
    given = to(gru_arguments(5, 3, 2, hidden, ragged_rows=True, reset_after=True, dtype=torch.float16))
    gx, w_hh, b_hh, h0, lengths, *rest = given
    wanted = ops.gru(*given, False)
    found = ops.gru(*map(layout, (gx, w_hh, b_hh, h0)), lengths.int(), *rest, False)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted))
    y, h_n, gates = wanted
    backward = ops.gru_backward(y, h_n, y, gates, w_hh, h0, lengths, True, False)
    again = ops.gru_backward(*map(layout, (y, h_n, y, gates, w_hh, h0)), lengths.int(), True, False)
    assert all(torch.equal(one, other) for one, other in zip(backward, again))


GRU = gru_arguments(3, 2, 2, 4, ragged_rows=True, reset_after=True, dtype=torch.float32)


@pytest.mark.parametrize(
    ("position", "value", "sentence"),
    [
        (0, GRU[0].double(), "gru: gx has dtype float64; it must be float32, bfloat16 or float16"),
        (0, GRU[0][..., 1:], r"gx has shape \[3, 2, 2, 11\]; it must be \[T, B, D, 3H\]"),
        (1, GRU[1].half(), "w_hh has dtype float16; it must be float32"),
        (2, GRU[2][:1], r"b_hh has shape \[1, 12\]; it must be \[D, 3H\] = \[2, 12\]"),
        (3, GRU[3][:, :1], r"h0 has shape \[2, 1, 4\]; it must be \[D, B, H\] = \[2, 2, 4\]"),
        (4, torch.ones(3, dtype=torch.int64), r"lengths has shape \[3\]; it must be \[B\] = \[2\]"),
    ],
)
def test_cuda_gru_refuses_bad_input(native, position, value, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        ops.gru(*GRU[:position], value, *GRU[position + 1 :], False)


def test_cuda_gru_refuses_sizes_that_do_not_fit(gpu):
    gpu(ALONE)
    arguments = gru_arguments(1, 1, 1, 129, ragged_rows=False, reset_after=True, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="gru: H is 129; it must be so small that W_hh fits on this GPU's chip"):
        ops.gru(*arguments, False)


@pytest.mark.parametrize("hidden", [2, 3])
def test_cuda_gru_limits_what_a_tensor_spans(gpu, tmp_path, hidden):
    """A sparse file holds two frames that are far apart; an odd H is copied, so its span does not matter."""
    if DEVICE == "cuda":
        pytest.skip("on a GPU this takes 17 GB")
    gpu(ALONE)
    most = 2**33
    given = gru_arguments(2, 1, 1, hidden, ragged_rows=False, reset_after=True, dtype=torch.float16)
    file = torch.from_file(str(tmp_path / "sparse"), shared=True, size=most + 2, dtype=torch.float16)
    for gap in (most - 3 * hidden, most - 3 * hidden + 2):
        far = file.as_strided(given[0].shape, (gap, 3 * hidden, 3 * hidden, 1)).copy_(given[0])
        if gap + 3 * hidden > most and hidden % 2 == 0:
            with pytest.raises(RuntimeError, match=f"gru: gx spans {most + 2} elements; it must be at most {most}"):
                ops.gru(far, *given[1:], False)
        else:
            for one, other in zip(ops.gru(far, *given[1:], False), ops.gru(*given, False)):
                assert torch.equal(one, other)


GPUS = {
    "H100": (227, (132, 66, 32, 15)),
    "A100": (163, (108, 0, 0, 0)),
    "RTX 4090": (99, (128, 0, 0, 0)),
    "RTX 5090": (99, (170, 85, 42, 20)),
}


@pytest.mark.parametrize("gpu_name", GPUS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("product", [0, 1, 2], ids=dispatch.GRU_PRODUCTS)
def test_cuda_gru_plans_fit(native, gpu_name, product, backward):
    """All H and B up to 1024: rows are covered once, blocks and clusters are whole, shared memory is what there is."""
    shared, active = GPUS[gpu_name]
    limits = torch.tensor([1024 * shared, *active])
    for reset_after in (True, False):
        plans = torch.empty(1024, 1024, 9, dtype=torch.int32)  # struct GruPlan, whose last member is a float
        native.gru_plans(
            ctypes.c_void_p(limits.data_ptr()),
            product,
            backward,
            reset_after,
            1024,
            ctypes.c_void_p(plans.data_ptr()),
        )
        hidden, batch = torch.meshgrid(torch.arange(1, 1025), torch.arange(1, 1025), indexing="ij")
        fits = plans[..., 0] > 0
        assert fits[:64].all(), "64 units fit any GPU"
        assert torch.equal(fits, fits[:, :1].expand_as(fits)), "how many rows there are does not decide"
        width, rows, cluster, threads, stages, tiles, waves, block = plans[fits][:, :8].long().unbind(1)
        hidden, batch = hidden[fits], batch[fits]
        assert (hidden <= width).all() and (block <= 1024 * shared).all()
        assert torch.isin(rows, torch.tensor([8, 16])).all() and torch.isin(stages, torch.tensor([2, 4])).all()
        assert ((rows * (tiles - 1) < batch) & (batch <= rows * tiles)).all()
        at_once = limits[1:][cluster.float().log2().long()]
        assert ((at_once * (waves - 1) < 2 * tiles) & (2 * tiles <= at_once * waves)).all()
        assert ((threads % 32 == 0) & (threads <= 384) & (width // 16 % cluster == 0)).all()
        # W_hh lies in registers and shared memory of the cluster, 64 Ki registers of 4 bytes each a block.
        assert (3 * width**2 * (4 if product else 2) <= cluster * (4 * 65536 + 1024 * shared)).all()


@pytest.mark.usefixtures("needs_kernels")
def test_widest_gru_of_known_gpus():
    def widest(name):
        shared, active = GPUS[name]
        return dispatch.widest_gru(torch.tensor([1024 * shared, *active]))

    assert widest("H100") == [512, 256, 256]
    assert widest("A100") == [192, 128, 128]
    assert widest("RTX 4090")[:2] == [128, 128] and widest("RTX 4090")[2] >= 64
    assert widest("RTX 5090")[:2] == [512, 256] and widest("RTX 5090")[2] >= 128


def test_select_takes_cuda_gru_by_size(fresh_state, monkeypatch):
    fresh_state.on_cuda, fresh_state.widest = "cuda", {None: (512, 256, 128)}
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    for dtype, hidden, wanted in ((torch.float16, 512, "cuda"), (torch.float16, 513, "torch"), (torch.float32, 128, "cuda"),
                                  (torch.float32, 129, "torch"), (torch.float64, 8, "torch")):  # fmt: skip
        assert backends.select("gru", "cuda", dtype=dtype, hidden_size=hidden) == wanted
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    assert backends.select("gru", "cuda", hidden_size=129) == "cuda"


@pytest.mark.parametrize("most", [torch.tensor([1]), torch.ones(5), torch.tensor([1, 1, 1, 1, -1])], ids=str)
def test_gru_restrict_refuses_bad_limits(native, most):
    with pytest.raises(RuntimeError, match="gru_restrict: most"):
        ops.gru_restrict(to(torch.empty(0)), most)
