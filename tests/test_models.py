"""The papers' models: padding never leaks, the layers are what they say, options are checked."""

import pytest
import torch
from samples import assert_exact
from torch import nn

import ser_fast
from ser_fast.models import self_attention
from ser_fast.models.cgru import ChannelPairConv, _delta
from ser_fast.models.masking import masked_mean
from ser_fast.models.self_attention import MultiHeadSelfAttention, _random_bytes

BUILDS = {
    "cgru": lambda: ser_fast.CGRU(5),
    "cgru-after": lambda: ser_fast.CGRU(5, reset_after=True, channels=(4, 6), hidden_size=17),
    "cgru-lstm": lambda: ser_fast.CGRU(5, cell="lstm"),
    "cgru-last-state": lambda: ser_fast.CGRU(5, attention=False),
    "cgru-lstm-last-state": lambda: ser_fast.CGRU(5, attention=False, cell="lstm"),
    "bigru_mha": lambda: ser_fast.BiGRUMHA(5),
    "bigru_mha-power": lambda: ser_fast.BiGRUMHA(5, log=False, num_layers=2, hidden_size=32, num_heads=4),
    "bigru_mha-attention": lambda: ser_fast.BiGRUMHA(5, 32, pooling="attention", reset_after=True),
}


def batch(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged waves, among them one shorter than a frame; what lies behind their ends is noise."""
    lengths = torch.tensor([9000, 641, 7213, 100, 4000])
    return torch.randn(5, 9000, dtype=dtype), lengths


@pytest.mark.parametrize("name", BUILDS)
def test_a_padded_batch_equals_its_rows(name):
    model = BUILDS[name]().double().eval()
    wave, lengths = batch()
    logits = model(wave, lengths)
    rows = torch.cat([model(wave[row : row + 1, :length]) for row, length in enumerate(lengths.tolist())])
    assert_exact(logits, rows)
    with_weights, _ = model(wave, lengths, return_weights=True)
    assert_exact(with_weights, logits)


@pytest.mark.parametrize("name", BUILDS)
def test_every_weight_gets_a_gradient(name):
    model = BUILDS[name]().train()
    wave, lengths = batch(torch.float32)
    nn.functional.cross_entropy(model(wave, lengths), torch.arange(5)).backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), key


def test_attention_by_rows_equals_the_padded_batch(monkeypatch):
    """Whatever is kept and computed at once; nothing is dropped by a byte of 255."""
    attention = MultiHeadSelfAttention(8, 2, dropout=0.5).double()
    monkeypatch.setattr(self_attention, "_random_bytes", lambda shape: torch.full(shape, 255, dtype=torch.uint8))
    lengths = torch.tensor([7, 3, 1])
    found = []
    for kept, chunk in ((1 << 27, 1 << 24), (1, 1 << 24), (1 << 27, 2 * 7 * 2), (1, 1)):
        monkeypatch.setattr(self_attention, "KEPT_WEIGHTS", kept)
        monkeypatch.setattr(self_attention, "CHUNK_WEIGHTS", chunk)
        x = torch.linspace(-1, 1, 3 * 7 * 8, dtype=torch.float64).view(3, 7, 8).requires_grad_()
        y = attention(x, lengths)
        grads = torch.autograd.grad(masked_mean(y, lengths).square().sum(), [x, *attention.parameters()])
        found.append([y, *grads])
    for other in found[1:]:
        for one, two in zip(found[0], other):
            assert_exact(one, two)
    # Half of the weights would have been dropped, so what is kept counts twice.
    padded, _ = attention.eval()(x, lengths, return_weights=True)
    mixed = (padded - attention.out_proj.bias) * 2 + attention.out_proj.bias
    assert_exact(masked_mean(found[0][0], lengths), masked_mean(mixed, lengths))


def test_attention_dropout_is_unbiased_and_an_empty_row_pools_to_zero():
    attention = MultiHeadSelfAttention(8, 2, dropout=0.25)
    x, lengths = torch.randn(1, 40, 8).expand(400, -1, -1), torch.full((400,), 30)
    lengths[0] = 0
    with torch.no_grad():
        dropped = attention.train()(x, lengths)
        exact = attention.eval()(x[1:2], lengths[1:2])
    assert masked_mean(dropped, lengths)[0].abs().max() == 0
    spread = dropped[1:, :30].std(0) / 399**0.5
    assert ((dropped[1:, :30].mean(0) - exact[0, :30]).abs() < 6 * spread + 1e-6).all()
    assert (spread > 0).all()
    share = (_random_bytes(torch.Size([80, 1000])) < 64).float().mean()
    assert abs(share - 0.25) < 6 * (0.25 * 0.75 / 80_000) ** 0.5


@pytest.mark.parametrize("name", ["cgru", "bigru_mha"])
def test_compiles_without_a_graph_break(name):
    model = BUILDS[name]().eval()
    wave, lengths = batch(torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = compiled(wave, lengths)
    assert torch.allclose(logits, model(wave, lengths), atol=1e-6)
    logits.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_an_empty_row_is_finite():
    for name in ("cgru", "bigru_mha"):
        model = BUILDS[name]().eval()
        logits = model(torch.randn(2, 4000), torch.tensor([4000, 0]))
        assert torch.isfinite(logits).all()


def test_attention_weights_sum_to_one_over_the_valid_frames():
    wave, lengths = batch(torch.float32)
    cgru = ser_fast.CGRU(5).eval()
    _, weights = cgru(wave, lengths, return_weights=True)
    assert torch.allclose(weights.sum(1), torch.ones(5))
    frames = (cgru.spectrogram.frame_lengths(lengths) + 3) // 4
    assert [int(row.count_nonzero()) for row in weights] == frames.tolist()
    bigru = ser_fast.BiGRUMHA(5, 4).eval()
    _, weights = bigru(wave, lengths, return_weights=True)
    frames = bigru.spectrogram.frame_lengths(lengths)
    assert weights.shape == (5, 4, frames.max(), frames.max())
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for row, count in enumerate(frames.tolist()):
        assert not weights[row, :, :, count:].any()
    _, none = ser_fast.CGRU(5, attention=False)(wave, lengths, return_weights=True)
    assert none is None


def test_the_first_layer_is_the_papers_3d_convolution():
    pair = ChannelPairConv(4).double()
    # [out, 1, frequency 3, time 5, channel 2], on [B, 1, F, T, 3]
    conv3d = nn.Conv3d(1, 4, (3, 5, 2), padding=(1, 2, 0)).double()
    with torch.no_grad():
        conv3d.weight.copy_(pair.conv.weight.permute(0, 3, 2, 1)[:, None])
        conv3d.bias.copy_(pair.conv.bias)
    x = torch.randn(2, 3, 11, 9, dtype=torch.float64)  # [B, 3, T, F]
    wanted = conv3d(x.permute(0, 3, 2, 1)[:, None])  # [B, 4, F, T, 2]
    assert wanted.shape[-1] == 2
    assert_exact(pair(x), wanted.amax(-1).transpose(2, 3))


def test_delta_of_a_ramp_is_its_slope():
    ramp = (0.5 * torch.arange(9.0))[None, :, None].expand(2, 9, 3)
    delta = _delta(ramp, torch.tensor([9, 7]))
    assert torch.allclose(delta[0, 2:7], torch.tensor(0.5)) and torch.allclose(delta[1, 2:5], torch.tensor(0.5))
    assert not delta[1, 7:].any()


def test_heads_equal_torchs_multihead_attention():
    ours, theirs = MultiHeadSelfAttention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    ours.load_state_dict({name.replace("in_proj_", "in_proj."): value for name, value in theirs.state_dict().items()})
    x, lengths = torch.randn(3, 7, 12, dtype=torch.float64), torch.tensor([7, 2, 5])
    padding = torch.arange(7) >= lengths[:, None]
    wanted, scores = theirs(x, x, x, key_padding_mask=padding, average_attn_weights=False)
    found, weights = ours(x, lengths, return_weights=True)
    valid = ~padding[..., None]
    assert_exact(found * valid, wanted * valid)
    assert_exact(weights, scores)
    assert_exact(ours(x, lengths), found)


def test_attention_dropout_keeps_the_expectation():
    attention = MultiHeadSelfAttention(8, 2, dropout=0.5).train()
    x, lengths = torch.randn(1, 20, 8), torch.tensor([20])
    mean = torch.stack([attention(x, lengths) for _ in range(3000)]).mean(0)
    # 3000 draws: the standard error of the mean is some 1 % of the outputs' spread
    assert torch.allclose(mean, attention.eval()(x, lengths), atol=0.05)


def test_masked_mean_counts_valid_frames_only():
    x = torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [5.0], [5.0]]])
    assert masked_mean(x, torch.tensor([2, 0])).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ser_fast.CGRU(1), "CGRU: num_classes is 1; it must be at least 2"),
        (lambda: ser_fast.CGRU(5, cell="rnn"), "CGRU: cell is 'rnn'; it must be one of gru, lstm"),
        (lambda: ser_fast.BiGRUMHA(1), "BiGRUMHA: num_classes is 1; it must be at least 2"),
        (lambda: ser_fast.BiGRUMHA(5, 7), r"BiGRUMHA: num_heads is 7; it must be a divisor of 2 \* hidden_size = 256"),
        (lambda: ser_fast.BiGRUMHA(5, pooling="max"), "BiGRUMHA: pooling is 'max'; it must be one of mean, attention"),
        (lambda: ser_fast.BiGRUMHA(5, attention_dropout=1.0), "BiGRUMHA: attention_dropout is 1.0; it must be in 0..1"),
        (lambda: ser_fast.BiGRUMHA(5, f_max=-1.0), "BiGRUMHA: f_max is -1.0; it must be above 0 hertz"),
        (lambda: ser_fast.CGRU(5, channels=(3,)), r"CGRU: channels is \(3,\); it must be two numbers of at least 1"),
        (lambda: ser_fast.CGRU(5)(torch.zeros(3)), r"model: wave has shape \[3\]; it must be \[B, N\]"),
        (lambda: ser_fast.CGRU(5)(torch.zeros(1, 900), torch.tensor([901])), r"lengths\[0\] is 901; it must be in 0..900"),
        (lambda: ser_fast.BiGRUMHA(5)(torch.full((1, 900), float("nan"))), r"wave\[0, 0\] is nan; it must be finite"),
        (lambda: ser_fast.BiGRUMHA(5)(torch.zeros(1, 0)), r"wave has shape \[1, 0\]"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_clear_error(call, sentence):
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        call()
