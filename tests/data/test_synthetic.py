"""The synthetic corpus: reproducible, well-formed, and as many utterances as asked for."""

import pytest
import torch

from ser_fast.data.corpora.synthetic import EMOTIONS, synthesize, synthetic, synthetic_sentiment


def test_synthesize_depends_on_its_arguments_alone():
    first = synthesize("anger", speaker=0, take=0)
    torch.manual_seed(1)
    assert torch.equal(first, synthesize("anger", speaker=0, take=0))


@pytest.mark.parametrize("other", [("fear", 0, 0), ("anger", 2, 0), ("anger", 0, 1)])
def test_synthesize_varies_with_every_argument(other):
    first, second = synthesize("anger", 0, 0), synthesize(*other)
    shorter = min(len(first), len(second))
    assert not torch.allclose(first[:shorter], second[:shorter], atol=1e-2)


@pytest.mark.parametrize("emotion", EMOTIONS)
@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_synthesize_is_in_range_and_about_a_second(emotion, sample_rate):
    for speaker in range(2):
        samples = synthesize(emotion, speaker, take=3, sample_rate=sample_rate)
        assert samples.dtype == torch.float32 and samples.dim() == 1
        assert samples.isfinite().all()
        assert 0.02 < samples.abs().max() <= 1
        assert 0.7 < len(samples) / sample_rate < 2.4


def test_synthesize_gives_speakers_their_pitch():
    def lowest_partials(speaker):
        spectrum = torch.fft.rfft(synthesize("neutral", speaker, take=0), 16000).abs().square()
        return spectrum[60:160].sum() / spectrum[60:300].sum()

    assert lowest_partials(0) > 2 * lowest_partials(1)


def test_synthetic_holds_every_utterance():
    corpus = synthetic(speakers=2, takes=2)
    assert corpus.name == "synthetic"
    assert corpus.classes == list(EMOTIONS)
    assert corpus.speakers == ["s00", "s01"]
    assert len({utterance.name for utterance in corpus.utterances}) == 2 * 2 * len(EMOTIONS)
    last = corpus.utterances[-1]
    assert (last.name, last.speaker, last.label) == ("s01_surprise_01", "s01", "surprise")
    assert last.path is None and last.sample_rate == 16000
    assert torch.equal(last.samples, synthesize("surprise", speaker=1, take=1))


def test_synthetic_sentiment_is_reproducible():
    corpus = synthetic_sentiment(speakers=2, takes=8)
    assert corpus.name == "synthetic-sentiment" and corpus.classes == []
    assert corpus.speakers == ["s00", "s01"] and len({u.name for u in corpus.utterances}) == 16
    values = [utterance.value for utterance in corpus.utterances]
    assert min(values) < -0.5 and max(values) > 0.5 and all(-1 <= value <= 1 for value in values)
    torch.manual_seed(1)
    again = synthetic_sentiment(speakers=1, takes=2).utterances
    assert all(torch.equal(a.samples, b.samples) and a.value == b.value for a, b in zip(again, corpus.utterances))


def test_synthetic_sentiment_is_audible():
    # Happiness is brighter than sadness by several decibels an octave, far more than takes and speakers differ.
    def brightness(samples):
        spectrum = torch.fft.rfft(samples, 32000).abs().square()
        return (spectrum[2000:8000].sum() / spectrum[:2000].sum()).log10().item()

    utterances = synthetic_sentiment(speakers=2, takes=8).utterances
    pairs = torch.tensor([[utterance.value, brightness(utterance.samples)] for utterance in utterances])
    assert torch.corrcoef(pairs.T)[0, 1] > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: synthesize("boredom", 0, 0), "emotion is 'boredom'; it must be one of anger, fear, "),
        (lambda: synthesize("anger", -1, 0), "speaker is -1; it must be at least 0"),
        (lambda: synthesize("anger", 0, -2), "take is -2; it must be at least 0"),
        (
            lambda: synthesize("anger", 0, 0, sample_rate=4000),
            "sample_rate is 4000; it must be at least 8000",
        ),
        (lambda: synthetic(speakers=0), "speakers is 0; it must be at least 1"),
        (lambda: synthetic(takes=0), "takes is 0; it must be at least 1"),
        (lambda: synthetic_sentiment(takes=0), "takes is 0; it must be at least 1"),
        (lambda: synthetic_sentiment(sample_rate=100), "sample_rate is 100; it must be at least 8000"),
    ],
)
def test_synthetic_refuses_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
