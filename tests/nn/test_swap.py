"""swap and unswap: other people's models keep everything but the time they take."""

import copy
import itertools
import pickle
import sys
import types

import pytest
import torch
from samples import assert_exact
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn

import ser_fast


class Tagger(nn.Module):
    """Model of a user: two GRUs, one of them under two names, and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.rnns = nn.ModuleList([nn.GRU(6, 7, 2, batch_first=True, bidirectional=True), nn.GRU(14, 4, bias=False)])
        self.alias = self.rnns[1]
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.encoder(x), lengths, batch_first=True, enforce_sorted=False)
        y, _ = rnn.pad_packed_sequence(self.rnns[0](packed)[0], batch_first=True)
        y, h_n = self.alias(y.transpose(0, 1))
        return self.head(y.sum(0) + h_n[0])


@pytest.fixture
def tagger() -> Tagger:
    return Tagger().double()


def run(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 9, 5, generator=generator, dtype=torch.float64)
    model.zero_grad()
    y = model(x, torch.tensor([9, 2, 5, 1]))
    y.square().sum().backward()
    return [y, *(weight.grad.clone() for weight in model.parameters())]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for found, truth in zip(one, other, strict=True):
        assert_exact(found, truth)


def test_swap_keeps_objects_hooks_and_results(tagger):
    truth, before = run(tagger), dict(tagger.state_dict(keep_vars=True))
    objects, seen = list(tagger.modules()), []
    tagger.rnns[0].register_forward_hook(lambda module, args, output: seen.append("hook"))
    tagger.rnns[1].eval()
    report = ser_fast.swap(tagger)
    assert list(report.replaced) == ["rnns.0", "rnns.1"] and not report.left
    assert "rnns.0: nn.GRU is ser_fast.GRU(6, 7, num_layers=2, batch_first=True, bidirectional=True)" in str(report)
    assert [type(module) for module in tagger.rnns] == [ser_fast.GRU, ser_fast.GRU]
    assert tagger.alias is tagger.rnns[1] and not tagger.alias.training and tagger.rnns[0].training
    assert all(one is other for one, other in zip(tagger.modules(), objects, strict=True))
    after = dict(tagger.state_dict(keep_vars=True))
    assert list(after) == list(before) and all(after[name] is weight for name, weight in before.items())
    assert_same(run(tagger), truth)
    assert seen == ["hook"]
    assert str(ser_fast.swap(tagger)).startswith("nothing to replace")


def test_unswap_restores_torch_modules(tagger):
    truth, kinds = run(tagger), [type(module) for module in tagger.modules()]
    ser_fast.swap(tagger)
    native = ser_fast.GRU(2, 2)
    tagger.native = native
    # The model changes in between: another dtype and back, a weight replaced.
    tagger.float().double().rnns[1].weight_hh_l0 = nn.Parameter(torch.zeros_like(tagger.rnns[1].weight_hh_l0))
    assert ser_fast.unswap(tagger) == ["rnns.0", "rnns.1"]
    assert type(tagger.native) is ser_fast.GRU and not ser_fast.unswap(tagger)
    del tagger.native
    assert [type(module) for module in tagger.modules()] == kinds
    fresh = Tagger().double()
    fresh.load_state_dict(tagger.state_dict())
    assert_same(run(tagger), run(fresh))
    assert not torch.equal(run(tagger)[0], truth[0])
    assert vars(tagger.rnns[0]).keys() == vars(fresh.rnns[0]).keys()


def test_swapped_model_can_be_copied_and_pickled(tagger):
    ser_fast.swap(tagger)
    truth = run(tagger)
    for twin in (copy.deepcopy(tagger), pickle.loads(pickle.dumps(tagger))):
        assert type(twin.rnns[0]) is ser_fast.GRU
        assert_same(run(twin), truth)
        ser_fast.unswap(twin)
        assert type(twin.rnns[0]) is nn.GRU
        assert_same(run(twin), truth)


def test_swap_keeps_an_existing_optimizer():
    gru, twin = nn.GRU(3, 4).double(), nn.GRU(3, 4).double()
    twin.load_state_dict(gru.state_dict())
    steps = []
    for module in (gru, twin):
        optimizer = torch.optim.Adam(module.parameters(), 0.1)
        if module is gru:
            assert list(ser_fast.swap(gru).replaced) == [""]
        generator = torch.Generator().manual_seed(2)
        for _ in range(5):
            optimizer.zero_grad()
            x = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
            module(x)[0].square().sum().backward()
            optimizer.step()
        steps.append([weight.detach() for weight in module.parameters()])
    assert type(gru) is ser_fast.GRU
    # Adam divides by the gradient's size, so its rounding shows more than in a gradient.
    for one, other in zip(*steps):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


class Own(nn.GRU):
    """Somebody's subclass."""


def test_unswap_refuses_parametrized_modules(tagger):
    """swap itself says to parametrize afterwards; going back would leave torch's class without its weight."""
    ser_fast.swap(tagger)
    parametrizations.weight_norm(tagger.rnns[1], "weight_hh_l0")
    truth = run(tagger)
    with pytest.raises(
        ValueError, match=r"unswap: rnns\.1 is a ParametrizedGRU; it must have the class that swap set"
    ):
        ser_fast.unswap(tagger)
    assert type(tagger.rnns[0]) is ser_fast.GRU
    assert_same(run(tagger), truth)
    nn.utils.parametrize.remove_parametrizations(tagger.rnns[1], "weight_hh_l0")
    assert ser_fast.unswap(tagger) == ["rnns.0", "rnns.1"]
    assert_exact(run(tagger)[0], truth[0])


def test_swap_leaves_a_replaced_forward():
    gru = nn.GRU(2, 3)
    inner, seen = gru.forward, []
    gru.forward = lambda *given: seen.append("own") or inner(*given)
    report = ser_fast.swap(gru)
    assert not report.replaced and "its forward was replaced" in report.left[""]
    gru(torch.zeros(1, 1, 2))
    assert seen == ["own"]


def test_swap_reports_what_it_leaves():
    model = nn.ModuleDict({"own": Own(2, 3), "normed": nn.GRU(2, 3), "lstm": nn.LSTM(2, 3), "plain": nn.GRU(2, 3)})
    parametrizations.weight_norm(model["normed"], "weight_hh_l0")
    report = ser_fast.swap(model)
    assert list(report.replaced) == ["plain"]
    assert report.left == {
        "own": "Own is a subclass of GRU, whose code may do something else",
        "normed": "parametrized: swap the model before it is parametrized",
    }
    assert type(model["own"]) is Own and type(model["lstm"]) is nn.LSTM
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.Sequential(nn.GRU(2, 3)))
    assert "swap the model before it is scripted" in str(ser_fast.swap(scripted))
    for function in (ser_fast.swap, ser_fast.unswap):
        with pytest.raises(TypeError, match=r"model is a list; it must be a torch\.nn\.Module"):
            function([nn.GRU(2, 3)])


class StandIn(nn.Module):
    """The attributes of torchaudio.transforms.Spectrogram and what its documentation says it computes."""

    def __init__(self, n_fft, win_length, hop_length, pad=0, power=2.0, normalized=False, center=True,
                 pad_mode="reflect", onesided=True):  # fmt: skip
        super().__init__()
        self.n_fft, self.win_length, self.hop_length, self.pad, self.power = n_fft, win_length, hop_length, pad, power
        self.normalized, self.center, self.pad_mode, self.onesided = normalized, center, pad_mode, onesided
        self.register_buffer("window", torch.hann_window(win_length, dtype=torch.float64))

    def forward(self, waveform: Tensor) -> Tensor:
        wave = nn.functional.pad(waveform, (self.pad, self.pad))
        rows = wave.reshape(-1, wave.shape[-1])
        spectrum = torch.stft(rows, self.n_fft, self.hop_length, self.win_length, self.window, self.center,
                              self.pad_mode, self.normalized == "frame_length", self.onesided,
                              return_complex=True)  # fmt: skip
        if self.normalized in (True, "window"):
            spectrum = spectrum / self.window.square().sum().sqrt()
        return spectrum.reshape(*wave.shape[:-1], *spectrum.shape[1:]).abs().pow(self.power)


@pytest.fixture
def torchaudio(monkeypatch):
    """The real one where it imports, the stand-in elsewhere: torchaudio does not load beside a CPU torch."""
    try:
        from torchaudio.transforms import Spectrogram
    except (ImportError, OSError):
        transforms = types.ModuleType("torchaudio.transforms")
        transforms.Spectrogram = Spectrogram = StandIn
        monkeypatch.setitem(sys.modules, "torchaudio.transforms", transforms)
    return Spectrogram


@pytest.mark.parametrize(
    ("center", "normalized", "sizes"),
    list(itertools.product([False, True], [False, True, "frame_length"], [(64, 40, 10), (50, 50, 25), (33, 20, 40)])),
)
def test_swap_keeps_torchaudio_layout(torchaudio, center, normalized, sizes):
    for pad, pad_mode in ((0, "reflect"), (3, "constant")):
        theirs = torchaudio(*sizes, pad=pad, normalized=normalized, center=center, pad_mode=pad_mode).double()
        model = nn.Sequential(copy.deepcopy(theirs))
        assert list(ser_fast.swap(model).replaced) == ["0"]
        for shape in ((211,), (3, 180), (2, 3, 199)):
            wave = torch.randn(shape, dtype=torch.float64)
            assert_exact(model(wave), theirs(wave), f"{shape}")
        assert ser_fast.unswap(model) == ["0"] and type(model[0]) is torchaudio
        assert_exact(model(wave), theirs(wave))


def test_swap_leaves_unsupported_spectrograms(torchaudio):
    options = [{"power": 1.0}, {"power": None}, {"onesided": False}, {"pad_mode": "odd"}]
    model = nn.ModuleList([torchaudio(16, 16, 8, **option) for option in options])
    model.append(torchaudio(16, 16, 8).half())
    report = ser_fast.swap(model)
    assert not report.replaced
    assert [why.split(":")[0].split(" is ")[0] for why in report.left.values()] == [
        "power", "power", "onesided", "pad_mode", "its window"
    ]  # fmt: skip


def test_swapped_spectrogram_names_a_short_wave(torchaudio):
    model = nn.Sequential(torchaudio(16, 16, 8, center=False).float())
    ser_fast.swap(model)
    with pytest.raises(RuntimeError, match=r"Spectrogram: waveform has 15 samples; it must be at least n_fft = 16"):
        model(torch.zeros(15))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_swapped_spectrogram_promotes_dtypes_like_torchaudio(torchaudio, dtypes):
    theirs = torchaudio(64, 40, 10).to(dtypes[0])
    model, wave = nn.Sequential(copy.deepcopy(theirs)), torch.randn(2, 211, dtype=dtypes[1])
    ser_fast.swap(model)
    assert_exact(model(wave), theirs(wave))
