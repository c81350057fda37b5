import math
import os
import re
import struct
import sys
from pathlib import Path

import pytest
import torch

from ser_fast.data.audio import AUDIO_SUFFIXES, find_audio, read_audio, read_corpus, read_utterance
from ser_fast.data.corpora import Utterance, load_corpus
from ser_fast.data.dataset import load_dataset
from ser_fast.data.wav import AudioError

np = pytest.importorskip("numpy")
sf = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def sine(hertz: float, rate: int, seconds: float = 1.0, amplitude: float = 0.5):
    phase = 2 * math.pi * hertz * np.arange(round(rate * seconds)) / rate
    return (amplitude * np.sin(phase)).astype("float32")


def pitch(samples: torch.Tensor, rate: int) -> float:
    """The frequency of the highest spectral peak, in hertz."""
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    return spectrum.argmax().item() * rate / len(samples)


def written(path: Path, samples, rate: int = 16000, **options) -> Path:
    sf.write(path, samples, rate, **options)
    return path


def with_data_size(path: Path, size: int) -> Path:
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def cut(path: Path, missing: int) -> Path:
    path.write_bytes(path.read_bytes()[:-missing])
    return path


@pytest.fixture(params=["soundfile", "python"])
def reader(request, monkeypatch):
    """Reader of WAV files: soundfile, or our own reader if soundfile is missing."""
    if request.param == "python":
        monkeypatch.setitem(sys.modules, "soundfile", None)


either_reader = pytest.mark.usefixtures("reader")


@pytest.fixture
def wav(tmp_path) -> Path:
    return written(tmp_path / "a.wav", sine(440, 16000))


@pytest.mark.parametrize(("subtype", "tolerance"), [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0.0)])
def test_read_audio_returns_wav_samples(tmp_path, subtype, tolerance):
    expected = sine(440, 16000)
    samples = read_audio(written(tmp_path / "a.wav", expected, subtype=subtype))
    assert samples.dtype == torch.float32 and samples.shape == (16000,)
    torch.testing.assert_close(samples, torch.from_numpy(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".aiff"])
def test_read_audio_of_other_formats(tmp_path, suffix):
    samples = read_audio(written(tmp_path / f"a{suffix}", sine(440, 16000)))
    assert samples.shape == (16000,)
    assert pitch(samples, 16000) == pytest.approx(440, abs=1)


def test_read_audio_averages_channels(tmp_path):
    left, right = sine(300, 16000), sine(1000, 16000)
    samples = read_audio(written(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))
    torch.testing.assert_close(samples, torch.from_numpy((left + right) / 2))


@pytest.mark.parametrize("rate", [8000, 11025, 24000, 44100, 48000])
def test_read_audio_resampling_keeps_pitch_and_level(tmp_path, rate):
    samples = read_audio(written(tmp_path / "a.wav", sine(1000, rate), rate, subtype="FLOAT"))
    assert abs(len(samples) - 16000) <= 1
    assert pitch(samples, 16000) == pytest.approx(1000, abs=1)
    assert samples[1000:-1000].abs().max() == pytest.approx(0.5, abs=1e-3)


def test_read_audio_resampling_there_and_back(tmp_path):
    expected = sine(1000, 16000)
    up = read_audio(written(tmp_path / "a.wav", expected, subtype="FLOAT"), sample_rate=24000)
    back = read_audio(written(tmp_path / "b.wav", up.numpy(), 24000, subtype="FLOAT"))
    torch.testing.assert_close(back[500:-500], torch.from_numpy(expected)[500:-500], rtol=0, atol=1e-3)


def test_read_audio_resampling_does_not_alias(tmp_path):
    samples = read_audio(written(tmp_path / "a.wav", sine(11000, 24000), 24000, subtype="FLOAT"))
    assert samples[500:-500].abs().max() < 1e-3


@either_reader
def test_read_audio_between_start_and_end(wav):
    whole = read_audio(wav)
    assert torch.equal(read_audio(wav, start=0.25, end=0.5), whole[4000:8000])
    assert torch.equal(read_audio(wav, start=0.25), whole[4000:])
    assert torch.equal(read_audio(wav, end=0.5), whole[:8000])
    assert torch.equal(read_audio(wav, end=1.004), whole)


@either_reader
@pytest.mark.parametrize(
    ("start", "end"),
    [(-0.1, None), (0.5, 0.5), (0.5, 0.4), (1.0, None), (0.0, 1.5), (0.2, 0.200001), (math.nan, 1.0)],
)
def test_read_audio_refuses_parts_outside_the_file(wav, start, end):
    with pytest.raises(AudioError, match=r"a\.wav: start=.*; it must be 0 <= start < end <= 1\.000 seconds"):
        read_audio(wav, start=start, end=end)


@either_reader
def test_read_audio_refuses_missing_files_and_folders(tmp_path):
    with pytest.raises(AudioError, match=r"nope\.wav: no such file"):
        read_audio(tmp_path / "nope.wav")
    with pytest.raises(AudioError, match=tmp_path.name):
        read_audio(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_read_audio_refuses_pipes(tmp_path):
    """Opening one would wait for ever."""
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav: is a pipe; it must be a file"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.raw"])
def test_read_audio_refuses_text(tmp_path, name):
    (tmp_path / name).write_text("no audio at all\n" * 20)
    with pytest.raises(AudioError, match=rf"{name}: not readable as audio"):
        read_audio(tmp_path / name)


@either_reader
def test_read_audio_refuses_empty_files(tmp_path):
    (tmp_path / "bytes.wav").touch()
    with pytest.raises(AudioError, match=r"bytes\.wav: the file is empty"):
        read_audio(tmp_path / "bytes.wav")
    with pytest.raises(AudioError, match=r"frames\.wav: holds no samples"):
        read_audio(written(tmp_path / "frames.wav", sine(440, 16000, 0)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_read_audio_refuses_samples_not_finite(tmp_path, value):
    samples = sine(440, 16000)
    samples[5000] = value
    with pytest.raises(AudioError, match=r"a\.wav: holds NaN or infinite"):
        read_audio(written(tmp_path / "a.wav", samples, subtype="FLOAT"))


@pytest.mark.parametrize("missing", [1, 2, 10000, 31999])
@pytest.mark.parametrize(
    "options", [{}, {"format": "WAVEX"}, {"format": "RF64"}, {"endian": "BIG"}, {"format": "AIFF"}], ids=str
)
def test_read_audio_refuses_truncated_files(tmp_path, options, missing):
    path = written(tmp_path / "a.wav", sine(440, 16000), **options)
    assert len(read_audio(path)) == 16000
    with pytest.raises(AudioError, match=rf"a\.wav: truncated, {missing} bytes"):
        read_audio(cut(path, missing))


def test_read_audio_refuses_truncated_flac(tmp_path):
    with pytest.raises(AudioError, match=r"a\.flac: "):
        read_audio(cut(written(tmp_path / "a.flac", sine(440, 16000)), 3000))


def test_read_audio_of_truncated_mp3_is_short(tmp_path):
    path = written(tmp_path / "a.mp3", sine(440, 16000))
    assert 0 < len(read_audio(cut(path, path.stat().st_size // 2))) < 16000


@either_reader
@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_read_audio_of_streamed_wav_without_size(wav, size):
    whole = read_audio(wav)
    assert torch.equal(read_audio(with_data_size(wav, size)), whole)


def test_read_audio_of_more_than_a_block(tmp_path):
    expected = sine(1.0, 16000, seconds=70, amplitude=0.9)
    samples = read_audio(written(tmp_path / "a.wav", np.stack([expected] * 2, 1), subtype="FLOAT"))
    assert torch.equal(samples, torch.from_numpy(expected))


@either_reader
def test_read_audio_of_streamed_wav_of_size_zero(wav):
    with pytest.raises(AudioError, match="holds no samples"):
        read_audio(with_data_size(wav, 0))


@either_reader
def test_read_audio_skips_odd_chunks(tmp_path):
    """An odd chunk before the samples is padded; the pad byte after odd samples may be absent."""
    path = written(tmp_path / "a.wav", sine(440, 16000, 0.01)[:99], subtype="PCM_U8")
    content = path.read_bytes().rstrip(b"\0")
    at, size = content.index(b"data"), 99
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    path.write_bytes(content[:at] + odd + content[at : at + 8 + size])
    assert len(read_audio(path)) == 99
    path.write_bytes(content[:at] + odd + content[at : at + 8 + size] + b"\0" + odd)
    assert len(read_audio(path)) == 99
    path.write_bytes(content[:at] + odd + content[at : at + 8 + size - 1])
    with pytest.raises(AudioError, match="truncated, 1 bytes"):
        read_audio(path)


@either_reader
@pytest.mark.parametrize("length", [4, 12, 20, 40, 43])
def test_read_audio_refuses_cut_headers(wav, length):
    wav.write_bytes(wav.read_bytes()[:length])
    with pytest.raises(AudioError, match=r"a\.wav: "):
        read_audio(wav)


@either_reader
def test_read_audio_refuses_waves_too_short_to_resample(tmp_path):
    path = written(tmp_path / "a.wav", sine(440, 48000)[:1], 48000)
    with pytest.raises(AudioError, match="1 samples at 48000 Hz are none at 8000 Hz"):
        read_audio(path, sample_rate=8000)


@either_reader
@pytest.mark.parametrize("rate", [0, 999, 768_001, 16000.5, math.nan])
def test_read_audio_refuses_bad_sample_rates(wav, rate):
    """The error is that of the argument, not of a file, which skip_bad would leave out."""
    for read, given in ((read_audio, wav), (read_utterance, Utterance("a", "s", "l", wav))):
        with pytest.raises(ValueError, match=f"sample_rate is {rate}; it must be 1000 to 768000 hertz") as error:
            read(given, rate)
        assert not isinstance(error.value, AudioError)


@either_reader
@pytest.mark.parametrize("rate", [1, 999, 768_001, 0xFFFFFFFF])
def test_read_audio_refuses_implausible_rates(wav, rate):
    content = bytearray(wav.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    wav.write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.wav: (its sample rate is|not readable)"):
        read_audio(wav)


@pytest.mark.parametrize("rate", [1000, 8000, 16000, 768_000])
def test_read_audio_refuses_samples_that_overflow(tmp_path, rate):
    """Averaging channels, resampling and spectra of such samples would be infinite, for the whole batch."""
    samples = np.float32(3.3e38) * np.sign(sine(440, rate) + np.float32(1e-3))
    for channels in (1, 2):
        path = written(tmp_path / "a.wav", np.stack([samples] * channels, 1), rate, subtype="FLOAT")
        with pytest.raises(AudioError, match=r"a\.wav: (the largest sample is 3\.3e\+38|holds NaN or infinite)"):
            read_audio(path)


@pytest.mark.parametrize(("rate", "options"), [(8000, {"subtype": "DOUBLE"}), (16000, {"subtype": "DOUBLE"})])
def test_read_audio_refuses_doubles_beyond_floats(tmp_path, rate, options):
    path = written(tmp_path / "a.wav", 1e300 * sine(440, rate).astype("float64"), rate, **options)
    with pytest.raises(AudioError, match=r"a\.wav: holds NaN or infinite"):
        read_audio(path)


def test_read_audio_of_floats_scaled_as_integers(tmp_path):
    loud = 2.0**31 * sine(440, 8000, amplitude=1.0)
    samples = read_audio(written(tmp_path / "a.wav", loud, 8000, subtype="FLOAT"))
    assert samples.isfinite().all() and samples.abs().max() > 2.0**30


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16"])
def test_read_audio_of_formats_without_seeking(tmp_path, subtype):
    path = written(tmp_path / "a.wav", sine(440, 8000), 8000, subtype=subtype)
    whole = read_audio(path, 8000)
    assert pitch(whole[:8000], 8000) == pytest.approx(440, abs=1)
    assert torch.equal(read_audio(path, 8000, start=0.25, end=0.5), whole[2000:4000])


@either_reader
@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are Unicode there")
def test_read_corpus_with_names_not_utf8(tmp_path):
    """Names in GBK, as unzipped from Chinese corpora, in folders of classes and speakers."""
    names = [b"\xc9\xfa\xc6\xf8/\xd6\xd0/\xce\xc4.wav", b"\xd6\xd0/a.wav", b"\xd6\xd0/\xce\xc4.wav"]
    paths = [tmp_path / os.fsdecode(name) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(written(tmp_path / "a.wav", sine(440, 16000)).read_bytes())
    (tmp_path / "a.wav").unlink()
    paths[2].write_text("text")

    corpus = load_corpus(f"folders:{tmp_path}")
    assert corpus.classes == [r"\udcc9\udcfa\udcc6\udcf8", r"\udcd6\udcd0"]
    dataset = load_dataset(corpus, 16000, skip_bad=True)
    assert dataset.names == [r"\udcc9\udcfa\udcc6\udcf8/\udcd6\udcd0/\udcce\udcc4.wav", r"\udcd6\udcd0/a.wav"]
    assert dataset.speakers == [r"\udcd6\udcd0", "unknown"] and len(dataset.digest()) == 64
    assert dataset.skipped[0].startswith(rf"{tmp_path}/\udcd6\udcd0/\udcce\udcc4.wav: not readable as audio")


@pytest.mark.parametrize(("module", "suffix"), [("soundfile", "flac"), ("soxr", "wav")])
def test_read_audio_names_the_missing_extra(tmp_path, monkeypatch, module, suffix):
    path = written(tmp_path / f"a.{suffix}", sine(440, 8000), 8000)
    monkeypatch.setitem(sys.modules, module, None)
    good = written(tmp_path / "good.wav", sine(440, 16000))
    utterances = [Utterance(one.stem, "s", "l", one) for one in (path, good)]
    kept, _, errors = read_corpus(utterances, skip_bad=True)
    assert [utterance.path for utterance in kept] == [good]
    assert re.match(rf"{path}: .* needs {module}: pip install 'ser_fast\[train\]'", str(errors[0]))


@either_reader
def test_read_utterance_on_disk(wav):
    utterance = Utterance("a", "s", "l", wav, start=0.25, end=0.5)
    assert torch.equal(read_utterance(utterance), read_audio(wav)[4000:8000])


def test_read_utterance_in_memory():
    samples = torch.from_numpy(sine(1000, 24000))
    same = read_utterance(Utterance("a", "s", "l", samples=samples, sample_rate=24000), 24000)
    assert torch.equal(same, samples)
    resampled = read_utterance(Utterance("a", "s", "l", samples=samples, sample_rate=24000))
    assert resampled.shape == (16000,) and pitch(resampled, 16000) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "neither path nor samples"),
        ({"samples": torch.zeros(8)}, "sample rate is None"),
        ({"samples": torch.zeros(8), "sample_rate": 1}, "sample rate is 1; it must be 1000 to 768000"),
        ({"samples": torch.full((8,), 1e300, dtype=torch.float64), "sample_rate": 16000}, "infinite"),
        ({"samples": torch.zeros(2, 8), "sample_rate": 16000}, r"\[2, 8\]"),
        ({"samples": torch.zeros(8, dtype=torch.int16), "sample_rate": 16000}, "torch.int16"),
        ({"samples": torch.zeros(0), "sample_rate": 16000}, "no samples"),
        ({"samples": torch.full((8,), math.nan), "sample_rate": 16000}, "NaN"),
    ],
)
def test_read_utterance_refuses_bad_samples(fields, reason):
    with pytest.raises(AudioError, match=f"mine: .*{reason}"):
        read_utterance(Utterance("mine", "s", "l", **fields))


def test_find_audio(tmp_path):
    for name in ("b.wav", "a/z.FLAC", "a/y.mp3", ".hidden.wav", ".git/x.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert find_audio(tmp_path) == [tmp_path / name for name in ("a/y.mp3", "a/z.FLAC", "b.wav")]
    assert find_audio(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]
    assert all(suffix == suffix.lower() for suffix in AUDIO_SUFFIXES)


def test_find_audio_refuses_empty_folders(tmp_path):
    with pytest.raises(AudioError, match="no audio file"):
        find_audio(tmp_path)
    with pytest.raises(AudioError, match="no such file"):
        find_audio(tmp_path / "nope")


@either_reader
def test_read_corpus(tmp_path):
    paths = [written(tmp_path / f"{i}.wav", sine(440, 16000, 0.1 + i / 100)) for i in range(6)]
    cut(paths[1], 100)
    paths[4].write_text("text")
    utterances = [Utterance(path.stem, "s", "l", path) for path in paths]

    with pytest.raises(AudioError, match="2 of 6 utterances") as error:
        read_corpus(utterances)
    assert "1.wav: truncated" in str(error.value) and "4.wav: not readable" in str(error.value)

    good, samples, errors = read_corpus(utterances, skip_bad=True)
    assert [utterance.name for utterance in good] == ["0", "2", "3", "5"]
    assert [len(one) for one in samples] == [1600, 1920, 2080, 2400]
    assert len(errors) == 2 and "1.wav" in str(errors[0]) and "4.wav" in str(errors[1])
    assert read_corpus([]) == ([], [], [])
