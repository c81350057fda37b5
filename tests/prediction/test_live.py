"""Predictions of a recording that goes on: the same numbers as the model's on the same window."""

import numpy as np
import pytest
import torch

from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.prediction.live import Live
from ser_fast.prediction.predictor import Predictor
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint

soxr = pytest.importorskip("soxr")


@pytest.fixture(scope="module")
def shipped():
    return Predictor(device="cpu")


@pytest.fixture(scope="module")
def voice():
    """Four seconds of changing pitch at 16 kHz."""
    return torch.cat([synthesize("anger", 0, take, 16000) for take in range(4)])[:64000].numpy()


def follow(live, wave, sizes):
    """Push a wave in chunks of these sizes in turn; return the updates."""
    updates, at, number = [], 0, 0
    while at < len(wave):
        size = sizes[number % len(sizes)]
        live.push(wave[at : at + size])
        at, number = at + size, number + 1
        if update := live.update():
            updates.append(update)
    return updates


def expected(predictor, wave):
    return predictor.predict([np.ascontiguousarray(wave)])[0].values


@pytest.mark.parametrize("sizes", [(160,), (1, 997, 16, 3001), (7000,)], ids=str)
def test_update_equals_the_model_on_its_window(shipped, voice, sizes):
    updates = follow(Live(shipped, 16000, seconds=1.5, step=0.5), voice, sizes)
    assert 5 <= len(updates) <= 8
    for update in updates:
        window = voice[max(0, update.samples - 24000) : update.samples]
        assert update.seconds == pytest.approx(len(window) / 16000)
        assert update.values == pytest.approx(expected(shipped, window), abs=1e-4)
        assert sum(update.values) == pytest.approx(1) and update.weights.sum() == pytest.approx(1, abs=1e-4)
        assert update.flag in ("", "short") and update.work > 0
    assert updates[-1].seconds == 1.5


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_update_equals_the_model_at_other_rates(shipped, voice, rate):
    recorded = soxr.resample(voice, 16000, rate)
    *_, last = follow(Live(shipped, rate, seconds=2.0, step=0.25), recorded, (rate // 100, 13))
    assert 0 <= len(recorded) - last.samples <= 0.4 * rate  # the step and the resampler's delay
    end = round(last.samples * 16000 / rate)
    window = soxr.resample(recorded, rate, 16000, quality="HQ")[end - 32000 : end]
    assert last.values == pytest.approx(expected(shipped, window), abs=0.02)


def test_slow_updates_take_the_newest_window(shipped, voice):
    live = Live(shipped, 16000, seconds=1.0, step=0.1)
    for chunk in np.split(voice[:48000], 300):
        live.push(chunk)
    update = live.update()
    assert update.samples == 48000
    assert update.values == pytest.approx(expected(shipped, voice[32000:48000]), abs=1e-4)
    assert live.update() is None and not live.due
    live.push(voice[:1599])
    assert live.update() is None
    live.push(voice[1599:1600])
    assert live.update().samples == 49600


@pytest.mark.parametrize(
    ("wave", "flag"),
    [
        (np.zeros(16000), "silent"),
        (np.full(16000, 0.25), "constant"),
        (np.random.default_rng(0).normal(0, 0.1, 16000), "no_speech"),
        (np.ones(300), "too_short"),
    ],
    ids=["silent", "constant", "no_speech", "too_short"],
)
def test_sound_without_speech_has_no_values(shipped, wave, flag):
    *_, last = follow(Live(shipped, 16000, seconds=1.0, step=0.01), wave.astype(np.float32), (160,))
    assert flag in last.flag.split() and last.values is None and last.weights is None


def test_voice_that_has_ended_has_no_values(shipped, voice):
    live = Live(shipped, 16000, seconds=1.0, step=0.5)
    assert follow(live, voice[:32000], (160,))[-1].values
    assert follow(live, np.zeros(32000, np.float32), (160,))[-1][2:4] == ("silent", None)


def test_frames_of_all_updates_are_those_of_the_wave(shipped, voice):
    front = PowerSpectrogram(16000, 512, win_length=400, hop_length=160, log=True)
    live = Live(shipped, 16000, seconds=0.5, step=0.2, spectrogram=front)
    frames = torch.cat([update.frames for update in follow(live, voice[:19200], (331,))])
    whole = front(torch.from_numpy(voice[:19200])[None])[0]
    assert 0 <= len(whole) - len(frames) <= 20
    torch.testing.assert_close(frames, whole[: len(frames)], rtol=1e-4, atol=1e-4)
    for _ in range(30):
        live.push(voice[:16000])
    assert len(live.update().frames) == 500  # what no update took does not grow


def test_regression_has_values_without_softmax(tmp_path, voice):
    from ser_fast.models import MODELS

    options = {"channels": (2, 2), "hidden_size": 4}
    weights = MODELS["cgru"](2, **options).state_dict()
    saved = Checkpoint("cgru", options, [], weights, targets=["arousal", "valence"])
    save_checkpoint(tmp_path / "best.safetensors", saved)
    predictor = Predictor(tmp_path / "best.safetensors", device="cpu")
    *_, last = follow(Live(predictor, 16000, seconds=1.0), voice[:20000], (1600,))
    assert last.values == pytest.approx(expected(predictor, voice[last.samples - 16000 : last.samples]), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 10}, "sample_rate is 10; it must be 1000 to 768000 hertz"),
        ({"seconds": 0.01}, "seconds is 0.01; it must be in 0.04..60 s"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"step": 0.0}, "step is 0.0; it must be above 0 and at most seconds, 3.0"),
    ],
)
def test_options_out_of_range_are_errors(shipped, options, message):
    with pytest.raises(ValueError) as error:
        Live(shipped, **{"sample_rate": 16000} | options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 4), np.float32), "samples is float32 [2, 4]; it must be float32 [n]"),
        (np.zeros(4), "samples is float64 [4]; it must be float32 [n]"),
        (np.array([0, np.nan], np.float32), "samples holds NaN or infinity; it must be finite"),
        (np.array([np.inf], np.float32), "samples holds NaN or infinity; it must be finite"),
    ],
)
def test_samples_that_are_no_audio_are_errors(shipped, samples, message):
    live = Live(shipped, 16000)
    with pytest.raises(ValueError) as error:
        live.push(samples)
    assert str(error.value) == message
    live.push(np.zeros(0, np.float32))
    assert not live.due
