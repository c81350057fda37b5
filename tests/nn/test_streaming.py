"""Chunks through a stream and through a GRU that carries its state give what the whole wave gives."""

import random

import pytest
import torch
from samples import assert_exact

import ser_fast
from ser_fast.data.corpora.synthetic import synthesize


def chunks(wave: torch.Tensor, draw: random.Random, largest: int = 300) -> list[torch.Tensor]:
    """The wave in chunks of random sizes, 0, 1 and more than the rest among them."""
    parts, begin = [], 0
    while begin < wave.shape[1]:
        size = draw.choice([0, 1, 2, draw.randint(0, 20), draw.randint(0, largest)])
        parts.append(wave[:, begin : begin + size])
        begin += size
    return parts


def streamed(stream, parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([*(stream(part) for part in parts), stream.finish()], 1)


def random_spectrogram(draw: random.Random) -> ser_fast.PowerSpectrogram:
    n_fft = draw.choice([1, 2, 3, 7, 8, 13, 15, 16, 25, 64, 75])
    width = draw.randint(1, n_fft)
    hop = draw.choice([1, draw.randint(1, width), width + draw.randint(1, 100)])
    center, log = draw.random() < 0.6, draw.random() < 0.5
    pad_mode = draw.choice(["reflect", "constant", "replicate"])
    module = ser_fast.PowerSpectrogram(
        100, n_fft, win_length=width, hop_length=hop, f_max=50, center=center, pad_mode=pad_mode, log=log
    )
    if draw.random() < 0.5:
        module.set_statistics(torch.randn_like(module.mean), torch.rand_like(module.std) + 0.5)
    return module.double() if draw.random() < 0.5 else module


@pytest.mark.usefixtures("needs_kernels")  # torch's FFT rounds by the number of frames
@pytest.mark.parametrize("seed", range(100))
def test_stream_of_chunks_equals_the_whole_bitwise(seed):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    module = random_spectrogram(draw)
    stream, batch = module.stream(), draw.randint(1, 3)
    for _ in range(3):  # utterances of one stream
        samples = draw.choice([module.n_fft // 2 + 1, draw.randint(module.n_fft // 2 + 1, 800)])
        wave = torch.randn(batch, samples, dtype=module.window.dtype)
        if draw.random() < 0.3:
            wave = torch.randint(-(2**15), 2**15, (batch, samples), dtype=torch.int16)
        assert torch.equal(streamed(stream, chunks(wave, draw)), module(wave)), (
            f"{module} {module.pad_mode} {samples}"
        )


@pytest.mark.parametrize(
    "module",
    [
        ser_fast.PowerSpectrogram(log=True),
        ser_fast.PowerSpectrogram(center=True),
        ser_fast.MelSpectrogram(),
        ser_fast.MelSpectrogram(center=False),
    ],
)
def test_stream_of_a_voice_equals_the_whole(module):
    """A mel is a sum of at most 257 terms, none below 0, in an order that may differ: 257 2^-24 of itself each way."""
    wave = synthesize("surprise", 0, 1)[None]
    found, whole = streamed(module.stream(), chunks(wave, random.Random(0), 3000)), module(wave)
    assert found.shape == whole.shape
    mel = isinstance(module, ser_fast.MelSpectrogram)
    assert torch.allclose(found, whole, rtol=2**-22 if mel else 0, atol=2 * 257 * 2**-24 if mel else 0)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("n_fft", "width", "hop"), [(16, 10, 4), (15, 12, 5), (16, 6, 20)])
def test_stream_gives_each_frame_with_its_last_sample(center, n_fft, width, hop):
    module = ser_fast.PowerSpectrogram(
        100, n_fft, win_length=width, hop_length=hop, f_max=50, center=center, pad_mode="constant"
    )
    stream, given = module.stream(), 0
    wave = torch.randn(1, 90)
    before = n_fft // 2 - (n_fft - width) // 2 if center else 0  # padding that the first window sees
    for sample in range(90):
        given += stream(wave[:, sample : sample + 1]).shape[1]
        assert given == max(0, 1 + (sample + 1 + before - width) // hop)
    assert given + stream.finish().shape[1] == module(wave).shape[1]


def test_stream_memory_is_bounded():
    for module in (
        ser_fast.MelSpectrogram(),
        ser_fast.PowerSpectrogram(hop_length=5000),
        ser_fast.PowerSpectrogram(),
    ):
        stream, draw = module.stream(), random.Random(0)
        for _ in range(100):
            stream(torch.randn(2, draw.choice([1, 100, 20000])))
            assert stream._held.untyped_storage().nbytes() <= 2 * 4 * max(module.win_length, module.n_fft // 2 + 1)


def test_stream_does_not_keep_the_chunk():
    module, wave, buffer = ser_fast.PowerSpectrogram(), torch.randn(1, 4000), torch.empty(1, 100)
    stream, frames = module.stream(), []
    for begin in range(0, 4000, 100):
        buffer.copy_(wave[:, begin : begin + 100])
        frames.append(stream(buffer))
    assert torch.equal(torch.cat([*frames, stream.finish()], 1), module(wave))


def test_stream_of_short_and_empty_utterances():
    plain = ser_fast.PowerSpectrogram()
    stream, wave = plain.stream(), torch.randn(2, 639)
    assert stream(wave).shape == (2, 0, 401)
    assert torch.equal(stream.finish(), plain(wave))
    assert stream(wave[:, :0]).shape == (2, 0, 401) and stream.finish().shape == (2, 0, 401)
    with pytest.raises(
        RuntimeError, match=r"finish\(\) is called before the first chunk; it must be called after one"
    ):
        stream.finish()
    mel = ser_fast.MelSpectrogram().stream()
    assert mel(wave[:, :0]).shape == mel.finish().shape == (2, 0, 80)


@pytest.mark.parametrize("samples", [1, 200, 256])
def test_stream_too_short_to_reflect_raises_the_ops_error(samples):
    module, wave = ser_fast.MelSpectrogram(), torch.randn(1, 3000)
    with pytest.raises(RuntimeError) as whole:
        module(wave[:, :samples])
    stream = module.stream()
    assert stream(wave[:, :samples]).shape == (1, 0, 80)
    with pytest.raises(RuntimeError) as parts:
        stream.finish()
    assert str(parts.value) == str(whole.value) and "it must be empty or at least 257 samples" in str(whole.value)
    assert streamed(stream, [wave]).shape == module(wave).shape


def test_stream_refuses_circular_padding():
    with pytest.raises(
        ValueError, match="pad_mode is 'circular', which begins with the wave's end; it must be 'reflect'"
    ):
        ser_fast.PowerSpectrogram(center=True, pad_mode="circular").stream()
    module, wave = ser_fast.PowerSpectrogram(pad_mode="circular"), torch.randn(1, 3000)
    assert torch.equal(streamed(module.stream(), [wave]), module(wave))


@pytest.mark.parametrize(
    ("chunk", "sentence"),
    [
        (torch.zeros(3, 10), "chunk has batch size 3; it must be 2, as in the utterance's first chunk"),
        (torch.zeros(2, 10, dtype=torch.int16), "chunk has dtype torch.int16; it must be torch.float32, as in"),
        (torch.zeros(2, 10).double(), "chunk has dtype torch.float64; it must be torch.float32, as in"),
        (torch.zeros(2, 10).half(), "chunk has dtype float16; it must be float32, float64 or int16"),
        (torch.zeros(2, 10, device="meta"), "chunk is on meta; it must be on cpu"),
        (torch.zeros(10), r"chunk has shape \[10\]; it must be \[B, n\] with B at least 1"),
        (torch.zeros(0, 10), r"chunk has shape \[0, 10\]"),
        ([0.0], r"chunk is a list; it must be a torch\.Tensor"),
        (torch.tensor([[0.0, 1.0], [2.0, float("inf")]]), r"chunk\[1, 1\] is inf; it must be finite"),
    ],
)  # fmt: skip
def test_stream_refuses_bad_chunks_without_a_change(chunk, sentence):
    module, wave = ser_fast.PowerSpectrogram(), torch.randn(2, 3000)
    stream = module.stream()
    frames = [stream(wave[:, :1000])]
    with pytest.raises(RuntimeError, match=f"SpectrogramStream: {sentence}"):
        stream(chunk)
    frames += [stream(wave[:, 1000:]), stream.finish()]
    assert torch.equal(torch.cat(frames, 1), module(wave))
    assert stream(torch.zeros(3, 700, dtype=torch.int16)).shape == (3, 1, 401)  # another utterance, another kind


@pytest.mark.parametrize("center", [False, True])
def test_stream_gradient_reaches_the_chunks(center):
    module = ser_fast.MelSpectrogram(100, 20, win_length=16, hop_length=5, n_mels=4, center=center).double()
    wave = torch.randn(2, 90, dtype=torch.float64, requires_grad=True)
    whole = module(wave)
    cotangent = torch.randn_like(whole)
    (truth,) = torch.autograd.grad((whole * cotangent).sum(), wave)
    parts = streamed(module.stream(), chunks(wave, random.Random(1), 30))
    assert_exact(torch.autograd.grad((parts * cotangent).sum(), wave)[0], truth)


def carried(gru: ser_fast.GRU, frames: torch.Tensor, draw: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and last states of batch-first frames in chunks of random sizes, one frame first."""
    outputs, state, begin = [], None, 0
    while begin < frames.shape[1]:
        size = draw.choice([1, 1, draw.randint(1, 9)]) if begin else 1
        y, state = gru(frames[:, begin : begin + size], state)
        outputs.append(y)
        begin += size
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_gru_in_chunks_equals_the_whole(layers, reset_after):
    """One frame at a time is torch's path, more is the kernel's: float64 to 1e-12."""
    gru = ser_fast.GRU(7, 19, layers, batch_first=True, reset_after=reset_after).double()
    frames = torch.randn(3, 50, 7, dtype=torch.float64)
    for found, truth in zip(carried(gru, frames, random.Random(layers)), gru(frames)):
        assert_exact(found, truth)


def test_bidirectional_gru_cannot_be_streamed():
    gru = ser_fast.GRU(7, 19, batch_first=True, bidirectional=True).double()
    frames = torch.randn(3, 50, 7, dtype=torch.float64)
    with torch.no_grad():
        error = (carried(gru, frames, random.Random(0))[0] - gru(frames)[0]).abs()
    assert float(error[..., 19:].amax(-1).median()) > 0.01, "the second direction begins at the end"
    assert float(error[..., :19].max()) < 1e-12


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("make", [ser_fast.PowerSpectrogram, ser_fast.MelSpectrogram])
def test_stream_through_gru_equals_the_whole(make, reset_after):
    spectrogram = make(log=True).double()
    wave = synthesize("anger", 1, 0)[None].double()
    frames = spectrogram(wave)
    spectrogram.set_statistics(frames.mean((0, 1)), frames.std((0, 1)))
    gru = ser_fast.GRU(frames.shape[2], 24, 2, batch_first=True, reset_after=reset_after).double()
    truth, last = gru(spectrogram(wave))
    stream, state, outputs = spectrogram.stream(), None, []
    for part in [*chunks(wave, random.Random(0), 2000), None]:
        frames = stream.finish() if part is None else stream(part)
        if frames.shape[1]:
            y, state = gru(frames, state)
            outputs.append(y)
    assert len(outputs) > 10
    assert_exact(torch.cat(outputs, 1), truth)
    assert_exact(state, last)
