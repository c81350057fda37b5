"""The papers' models: padding never leaks, the layers are what they say, options are checked."""

import inspect

import pytest
import torch
from matplotlib.figure import Figure
from samples import assert_exact
from torch import nn

import ser_fast
from ser_fast.models import MODELS, Baseline, DescriptorGRU, Functionals, frame_model, self_attention
from ser_fast.models.cgru import ChannelPairConv
from ser_fast.models.masking import masked_mean
from ser_fast.models.self_attention import MultiHeadSelfAttention, _random_bytes
from ser_fast.models.systems import PAPER_1, PAPER_2, PAPER_2_HEADS, SYSTEMS, System
from ser_fast.ops import checks
from ser_fast.reports import figures

SMALL = {"cgru": {"channels": (3, 4), "hidden_size": 8}, "bigru_mha": {"hidden_size": 16},
         "baseline": {"hidden_size": 16}}  # fmt: skip


def build(system: System, **options) -> nn.Module:
    """A small one, which 32 heads still divide."""
    return MODELS[system.model](**{"num_classes": 5} | SMALL[system.model] | system.options | options)


BUILDS = {
    "cgru": lambda: ser_fast.CGRU(5),
    "cgru-after": lambda: ser_fast.CGRU(5, reset_after=True, channels=(4, 6), hidden_size=17),
    "cgru-frames": lambda: ser_fast.CGRU(5, convolution=False),
    "cgru-frames-last-state": lambda: ser_fast.CGRU(5, convolution=False, attention=False),
    "bigru_mha": lambda: ser_fast.BiGRUMHA(5),
    "bigru_mha-power": lambda: ser_fast.BiGRUMHA(5, log=False, num_layers=2, hidden_size=32, num_heads=4),
    "bigru_mha-attention": lambda: ser_fast.BiGRUMHA(5, 32, pooling="attention", reset_after=True),
    "functionals": lambda: Functionals(5),
    "functionals-small": lambda: Functionals(5, n_mels=13, n_cepstra=4, n_lags=9, hop_length=320),
    "descriptor_gru": lambda: DescriptorGRU(5),
    "descriptor_gru-small": lambda: DescriptorGRU(
        5, members=3, groups=("voiced", "rhythm"), n_mels=13, n_cepstra=4, n_lags=9, channels=7, hidden_size=5, step=1
    ),
    "baseline-cnn-attention": lambda: Baseline(5, encoder="cnn", num_heads=4, pooling="attention"),
    "baseline-lstm-pool": lambda: Baseline(5, encoder="lstm", pooling="attention"),
    # A bound loop variable: every function makes its own system.
    **{name: (lambda system=system: build(system)) for name, system in SYSTEMS.items()},
}


def batch(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged waves, among them one shorter than a frame and one of nothing; behind their ends is noise."""
    lengths = torch.tensor([9000, 641, 7213, 100, 4000, 0])
    return torch.randn(6, 9000, dtype=dtype), lengths


@pytest.mark.parametrize("name", BUILDS)
def test_model_of_padded_batch_equals_rows(name):
    model = BUILDS[name]().double().eval()
    wave, lengths = batch()
    logits = model(wave, lengths)
    rows = [model(wave[row : row + 1, :length]) for row, length in enumerate(lengths[:-1].tolist())]
    rows.append(model(torch.ones(1, 800, dtype=torch.float64), torch.tensor([0])))  # a wave must have a sample
    assert_exact(logits, torch.cat(rows))
    with_weights, _ = model(wave, lengths, return_weights=True)
    assert_exact(with_weights, logits)


@pytest.mark.parametrize("name", ["cgru", "DCNN-LSTM", "baseline-cnn-attention", "CNN+LSTM"])
def test_model_convolutions_equal_rows(name, monkeypatch):
    model = BUILDS[name]().double().eval()
    wave, lengths = batch()
    rows = model(wave, lengths)
    monkeypatch.setattr(checks, "readable", lambda tensor: False)  # as on a GPU
    assert_exact(model(wave, lengths), rows)


@pytest.mark.parametrize("name", BUILDS)
def test_model_gives_every_weight_a_gradient(name):
    model = BUILDS[name]().train()
    wave, lengths = batch(torch.float32)
    nn.functional.cross_entropy(model(wave, lengths)[:5], torch.arange(5)).backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), key


def test_self_attention_by_rows_equals_the_batch(monkeypatch):
    """For every limit of kept weights and every chunk size; a random byte of 255 drops nothing."""
    attention = MultiHeadSelfAttention(8, 2, dropout=0.5).double()
    monkeypatch.setattr(self_attention, "takes_kernel", lambda x, lengths: False)
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


@pytest.mark.parametrize("kernel", [True, False])
def test_self_attention_dropout_is_unbiased(kernel, monkeypatch):
    attention = MultiHeadSelfAttention(8, 2, dropout=0.25)
    if not kernel:
        monkeypatch.setattr(self_attention, "takes_kernel", lambda x, lengths: False)
    x, lengths = torch.randn(1, 40, 8).expand(400, -1, -1), torch.full((400,), 30)
    lengths[0] = 0
    with torch.no_grad():
        dropped, means = attention.train()(x, lengths), attention(x, lengths, mean=True)
        exact = attention.eval()(x[1:2], lengths[1:2])
    assert masked_mean(dropped, lengths)[0].abs().max() == 0 == means[0].abs().max()
    for found, wanted in ((dropped[1:, :30], exact[0, :30]), (means[1:], exact[0, :30].mean(0))):
        spread = found.std(0) / 399**0.5
        assert ((found.mean(0) - wanted).abs() < 6 * spread + 1e-6).all()
        assert (spread > 0).all()
    share = (_random_bytes(torch.Size([80, 1000])) < 64).float().mean()
    assert abs(share - 0.25) < 6 * (0.25 * 0.75 / 80_000) ** 0.5


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("heads", [1, 4, 32])
def test_model_by_kernel_equals_torchs_attention(pooling, heads, monkeypatch):
    """Logits and gradients, without dropout; in float64, so to rounding."""
    model = ser_fast.BiGRUMHA(5, heads, hidden_size=16, pooling=pooling).double().eval()
    wave, lengths = batch()
    found = []
    for kernel in (True, False):
        if not kernel:
            for module in (self_attention, frame_model):
                monkeypatch.setattr(module, "takes_kernel", lambda x, lengths: False)
        logits = model(wave, lengths)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    for one, other in zip(*found):
        assert_exact(one, other)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("rows", [[7, 3, 0, 5], [7, 7, 7, 7], [0, 0, 0, 0]])
def test_self_attention_mean_equals_mean_of_output(rows):
    attention, lengths = MultiHeadSelfAttention(12, 3, dropout=0.4).double(), torch.tensor(rows)
    x = torch.randn(4, 7, 12, dtype=torch.float64, requires_grad=True)
    found = []
    for mean in (True, False):
        torch.manual_seed(3)
        y = attention(x, lengths, mean=mean)
        y = y if mean else masked_mean(y, lengths)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *attention.parameters()])])
    for one, other in zip(*found):
        assert_exact(one, other)
    mean, weights = attention(x, lengths, return_weights=True, mean=True)
    assert mean.shape == (4, 12) and weights.shape == (4, 3, 7, 7)


@pytest.mark.usefixtures("needs_kernels")
def test_model_keeps_nothing_of_the_attentions_size():
    """The tensors saved for the backward grow linearly with the frames."""

    def saved(samples: int) -> int:
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
        with hooks:
            model(torch.randn(2, samples), torch.tensor([samples, samples // 2]))
        return sum(sizes)

    model = ser_fast.BiGRUMHA(5, hidden_size=16).train()
    assert saved(64_000) < 2.2 * saved(32_000)


@pytest.mark.parametrize("name", ["cgru", "cgru-frames", "bigru_mha", "baseline-cnn-attention", "Bi-GRU"])
def test_model_compiles_without_a_graph_break(name):
    model = BUILDS[name]().eval()
    wave, lengths = batch(torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = compiled(wave, lengths)
    assert torch.allclose(logits, model(wave, lengths), atol=1e-6)
    logits.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_attention_weights_sum_to_one():
    wave, lengths = batch(torch.float32)
    cgru = ser_fast.CGRU(5).eval()
    _, weights = cgru(wave, lengths, return_weights=True)
    assert torch.allclose(weights.sum(1), (lengths > 0).float())
    frames = (cgru.spectrogram.frame_lengths(lengths) + 3) // 4
    assert [int(row.count_nonzero()) for row in weights] == frames.tolist()
    bigru = ser_fast.BiGRUMHA(5, 4).eval()
    _, weights = bigru(wave, lengths, return_weights=True)
    frames = bigru.spectrogram.frame_lengths(lengths)
    assert weights.shape == (6, 4, frames.max(), frames.max())
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for row, count in enumerate(frames[:-1].tolist()):
        assert not weights[row, :, :, count:].any()
    pooled = Baseline(5, encoder="cnn", pooling="attention").eval()
    _, weights = pooled(wave, lengths, return_weights=True)
    assert [int(row.count_nonzero()) for row in weights] == ((frames + 3) // 4).tolist()
    assert pooled.weights_hop == 4 * pooled.spectrogram.hop_length


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_builds_and_draws_its_attention(name, tmp_path, monkeypatch):
    """Its attention, where it has one, covers the utterance in steps of its hop; without one the picture has none."""
    system = SYSTEMS[name]
    assert set(system.options) <= set(inspect.signature(MODELS[system.model]).parameters)
    model = build(system, num_classes=1).eval()
    wave = torch.randn(1, 9000)
    value, weights = model(wave, return_weights=True)
    assert value.shape == (1, 1) and model.corpus_statistics == (system.model != "cgru")
    attends = model.pool is not None or getattr(model, "attention", None) is not None
    assert (weights is not None) == attends
    if attends:
        spec = model.spectrogram(wave)
        steps = -(-spec.shape[1] * model.spectrogram.hop_length // model.weights_hop)
        assert weights.shape[-1] == steps and figures.frame_attention(weights[0]).shape == (steps,)
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(len(figure.axes)))
    figures.attention(model, wave[0], tmp_path / "attention.png")
    assert drawn == [1 + attends]


def test_systems_have_the_papers_parts():
    """Compare each system's convolutions, recurrence, heads and pooling with the paper's."""

    def parts(system: System) -> tuple:
        model = build(system)
        convolution, attention = (getattr(model, name, None) for name in ("conv1", "attention"))
        heads = 0 if attention is None else attention.num_heads
        return convolution is not None, type(model.rnn), heads, model.pool is not None

    def of(systems: dict[str, System]) -> dict[str, tuple]:
        return {name: parts(system) for name, system in systems.items()}

    assert of(PAPER_1) == {
        "LSTM (paper 1)": (False, nn.LSTM, 0, False),
        "Attention-LSTM": (False, nn.LSTM, 0, True),
        "DCNN-LSTM": (True, nn.LSTM, 0, False),
        "CGRU without attention": (True, ser_fast.GRU, 0, False),
        "CGRU": (True, ser_fast.GRU, 0, True),
    }
    assert of(PAPER_2) == {
        "CNN": (True, nn.Linear, 0, False),
        "LSTM (paper 2)": (False, nn.LSTM, 0, False),
        "RNN": (False, nn.RNN, 0, False),
        "CNN+LSTM": (True, nn.LSTM, 0, False),
        "Bi-GRU": (False, ser_fast.GRU, 0, False),
        "Self-Attention": (False, nn.Linear, 1, False),
        "Bi-GRU + Self-Attention": (False, ser_fast.GRU, 1, False),
        "Multi-head Attention": (False, nn.Linear, 8, False),
        "Bi-GRU + MHA": (False, ser_fast.GRU, 8, False),
    }
    assert [found[2] for found in of(PAPER_2_HEADS).values()] == [0, 4, 8, 16, 32]


def test_baseline_with_gru_and_heads_equals_bigru_mha():
    baseline, ours = Baseline(5, encoder="bigru", num_heads=4).eval(), ser_fast.BiGRUMHA(5, 4).eval()
    baseline.load_state_dict(ours.state_dict())
    wave, lengths = batch(torch.float32)
    assert torch.equal(baseline(wave, lengths), ours(wave, lengths))


def test_channel_pair_conv_equals_conv3d():
    pair = ChannelPairConv(4).double()
    # [out, 1, frequency 3, time 5, channel 2], on [B, 1, F, T, 3]
    conv3d = nn.Conv3d(1, 4, (3, 5, 2), padding=(1, 2, 0)).double()
    with torch.no_grad():
        conv3d.weight.copy_(pair.conv.weight.permute(0, 3, 2, 1)[:, None])
        conv3d.bias.copy_(pair.conv.bias)
    x = torch.randn(2, 11, 9, 3, dtype=torch.float64)
    wanted = conv3d(x.transpose(1, 2)[:, None])  # [B, 4, F, T, 2]
    assert wanted.shape[-1] == 2
    pooled = nn.functional.max_pool2d(wanted.amax(-1), 2, ceil_mode=True).relu()
    assert_exact(pair(x), pooled.permute(0, 3, 2, 1))


def test_self_attention_equals_nn_multihead_attention():
    ours, theirs = MultiHeadSelfAttention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    ours.load_state_dict({name.replace("in_proj_", "in_proj."): value for name, value in theirs.state_dict().items()})
    x, lengths = torch.randn(3, 7, 12, dtype=torch.float64), torch.tensor([7, 2, 5])
    padding = torch.arange(7) >= lengths[:, None]
    wanted, scores = theirs(x, x, x, key_padding_mask=padding, average_attn_weights=False)
    found, weights = ours(x, lengths, return_weights=True)
    valid = ~padding[..., None]
    assert_exact(found * valid, wanted * valid)
    assert_exact(weights, scores)
    assert_exact(ours(x, lengths) * valid, found * valid)


def test_self_attention_dropout_keeps_the_mean():
    attention = MultiHeadSelfAttention(8, 2, dropout=0.5).train()
    x, lengths = torch.randn(1, 20, 8), torch.tensor([20])
    mean = torch.stack([attention(x, lengths) for _ in range(3000)]).mean(0)
    # 3000 draws: the standard error of the mean is some 1 % of the outputs' spread
    assert torch.allclose(mean, attention.eval()(x, lengths), atol=0.05)


def test_masked_mean_counts_valid_frames_alone():
    x = torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [5.0], [5.0]]])
    assert masked_mean(x, torch.tensor([2, 0])).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ser_fast.CGRU(0), "CGRU: num_classes is 0; it must be at least 1"),
        (lambda: ser_fast.CGRU(5, cell="rnn"), "CGRU: cell is 'rnn'; it must be one of gru, lstm"),
        (lambda: ser_fast.BiGRUMHA(0), "BiGRUMHA: num_classes is 0; it must be at least 1"),
        (lambda: ser_fast.BiGRUMHA(5, 0), r"BiGRUMHA: num_heads is 0; it must be a divisor of 2 \* hidden_size = 256"),
        (lambda: Baseline(0), "Baseline: num_classes is 0; it must be at least 1"),
        (lambda: Baseline(5, encoder="gru"), "encoder is 'gru'; it must be one of cnn, lstm, rnn, cnn_lstm, bigru, linear"),
        (lambda: Baseline(5, num_heads=-1), r"Baseline: num_heads is -1; it must be a divisor of 2 \* hidden_size = 256"),
        (lambda: Baseline(5, hidden_size=0), "Baseline: hidden_size is 0; it must be at least 1"),
        (lambda: Baseline(5, pooling="max"), "Baseline: pooling is 'max'; it must be one of mean, attention"),
        (lambda: Baseline(5, dropout=-0.1), "Baseline: dropout is -0.1; it must be in 0..1"),
        (lambda: ser_fast.BiGRUMHA(5, 7), r"BiGRUMHA: num_heads is 7; it must be a divisor of 2 \* hidden_size = 256"),
        (lambda: ser_fast.BiGRUMHA(5, pooling="max"), "BiGRUMHA: pooling is 'max'; it must be one of mean, attention"),
        (lambda: ser_fast.BiGRUMHA(5, attention_dropout=1.0), "BiGRUMHA: attention_dropout is 1.0; it must be in 0..1"),
        (lambda: ser_fast.BiGRUMHA(5, f_max=-1.0), "BiGRUMHA: f_max is -1.0; it must be above 0 hertz"),
        (lambda: ser_fast.CGRU(5, channels=(3,)), r"CGRU: channels is \(3,\); it must be two numbers of at least 1"),
        (lambda: ser_fast.CGRU(5)(torch.zeros(3)), r"CGRU: wave has shape \[3\]; it must be \[B, N\]"),
        (lambda: ser_fast.CGRU(3)([0.1]), "CGRU: wave is a list; it must be a torch.Tensor"),
        (lambda: ser_fast.BiGRUMHA(3)([0.1]), "BiGRUMHA: wave is a list; it must be a torch.Tensor"),
        (lambda: Baseline(3)(torch.zeros(1, 900), [900]), "Baseline: lengths is a list; it must be a torch.Tensor"),
        (lambda: ser_fast.CGRU(5)(torch.zeros(1, 900), torch.tensor([901])), r"lengths\[0\] is 901; it must be in 0..900"),
        (lambda: ser_fast.BiGRUMHA(5)(torch.full((1, 900), float("nan"))), r"wave\[0, 0\] is nan; it must be finite"),
        (lambda: ser_fast.BiGRUMHA(5)(torch.zeros(1, 0)), r"wave has shape \[1, 0\]"),
    ],
)  # fmt: skip
def test_models_refuse_bad_arguments(call, sentence):
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        call()
