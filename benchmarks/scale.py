"""Cost of each stage for an hour of audio: ``python -m benchmarks.scale FOLDER [--json PATH]``.

FOLDER holds speech as mono WAV at 16 kHz. Its utterances are written in the formats that archives use; then one core,
with one thread, reads them, runs the models on them and writes rows of predictions. Prints times as multiples of real
time, bytes an hour of audio, and the counted bounds of the GPU kernels as Markdown; ``docs/scale.md`` quotes them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import soundfile
import soxr
import torch

import ser_fast
from benchmarks.harness import machine
from benchmarks.report import table
from ser_fast.data.audio import find_audio, read_audio
from ser_fast.data.batches import LengthSortedBatches

RATE = 16000
HOUR = 3600
ROUNDS = 5
UTTERANCES = 200


class Format(NamedTuple):
    """A form in which archives keep speech: suffix, subtype of libsndfile, rate in hertz and channels."""

    suffix: str
    subtype: str
    rate: int
    channels: int


FORMATS = {
    "WAV, 16 kHz mono": Format("wav", "PCM_16", 16000, 1),
    "FLAC, 16 kHz mono": Format("flac", "PCM_16", 16000, 1),
    "FLAC, 44.1 kHz stereo": Format("flac", "PCM_16", 44100, 2),
    "WAV, 8 kHz µ-law, a telephone's": Format("wav", "ULAW", 8000, 1),
    "MP3, 16 kHz mono": Format("mp3", "MPEG_LAYER_III", 16000, 1),
    "Ogg Opus, 16 kHz mono": Format("ogg", "OPUS", 16000, 1),
}
MODELS = {
    "CGRU": lambda: ser_fast.CGRU(7),
    "BiGRU-MHA": lambda: ser_fast.BiGRUMHA(7),
}

# An H100 by its data sheet: multiprocessors, clock in hertz, float32 FLOP/s without tensor cores, bytes/s of PCIe.
MULTIPROCESSORS, CLOCK, FLOPS, PCIE = 132, 1.98e9, 67e12, 55e9


def seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call."""
    call()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def written(waves: list[torch.Tensor], form: Format, folder: Path) -> list[Path]:
    """Write utterances in a format and return the files."""
    folder.mkdir()
    files = []
    for number, wave in enumerate(waves):
        samples = soxr.resample(wave.numpy(), RATE, form.rate)
        samples = samples.clip(-1, 1)[:, None].repeat(form.channels, 1)
        files.append(folder / f"{number:04d}.{form.suffix}")
        soundfile.write(files[-1], samples, form.rate, form.subtype)
    return files


def reading(waves: list[torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return for each format the megabytes of an hour of audio and the real-time factor of one core that reads it."""
    hours = sum(map(len, waves)) / RATE / HOUR
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, form) in enumerate(FORMATS.items()):
            files = written(waves, form, Path(folder, str(number)))
            taken = seconds(lambda files=files: [read_audio(file, RATE) for file in files])
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            found[name] = {"MB an hour": megabytes / hours, "times real time": hours * HOUR / taken}
    return found


def computing(waves: list[torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return for each model the real-time factor of one core that predicts, and of one that trains."""
    audio = sum(map(len, waves)) / RATE
    batches = list(LengthSortedBatches(waves, [0] * len(waves), 32).epoch())
    found = {}
    for name, make in MODELS.items():
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), fused=True)

        @torch.no_grad()
        def predict(model=model) -> None:
            model.eval()
            for batch in batches:
                model(batch.wave, batch.lengths)

        def train(model=model, optimizer=optimizer) -> None:
            model.train()
            for batch in batches:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(
                    model(batch.wave, batch.lengths), torch.tensor(batch.labels)
                ).backward()
                optimizer.step()

        found[name] = {"predicts": audio / seconds(predict), "trains": audio / seconds(train)}
    return found


def bounds() -> dict[str, dict[str, float]]:
    """Return counted lower bounds in milliseconds of an H100 for an hour of audio; none of these times is measured.

    Spectrogram and GRU: warp-instructions (``benchmarks/NOTES.md``, bfloat16, inference) over the issue rate of all
    multiprocessors. Products and convolutions: float32 operations over the data sheet's rate. Copy: int16 samples.
    """
    frames = HOUR * RATE / 160
    issue = 4 * MULTIPROCESSORS * CLOCK  # warp-instructions a second
    steps = {"CGRU": frames / 4, "BiGRU-MHA": 2 * frames}
    spectrogram = {"CGRU": 486, "BiGRU-MHA": 1353}
    # An H = 128 step of eight rows: eight warps with 180 instructions each.
    step = 8 * 180 / 8
    conv1, conv2 = 2 * 129 * 16 * (5 * 3 * 2) * 2, 65 * 32 * (5 * 3 * 16) * 2 / 2
    products = {
        "CGRU": conv1 + conv2 + 33 * 32 * 384 * 2 / 4,
        "BiGRU-MHA": 401 * 768 * 2 + 256 * 768 * 2 + 300 * 256 * 2,  # scores over utterances of 300 frames
    }
    return {
        name: {
            "copy": 1e3 * HOUR * RATE * 2 / PCIE,
            "spectrogram": 1e3 * frames * spectrogram[name] / issue,
            "GRU": 1e3 * steps[name] * step / issue,
            "products": 1e3 * frames * products[name] / FLOPS,
        }
        for name in MODELS
    }


def rows(found: dict[str, dict[str, float]], first: str) -> str:
    """Return named numbers as a Markdown table with three significant digits."""
    columns = list(next(iter(found.values())))
    return table([first, *columns], [[name, *(number(row[key]) for key in columns)] for name, row in found.items()])


def number(value: float) -> str:
    """Return a number with three significant digits and without an exponent.

    Example:
        >>> number(1234.5), number(0.01234)
        ('1230', '0.0123')
    """
    return f"{float(f'{value:.3g}'):g}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="speech, mono WAV at 16 kHz")
    parser.add_argument("--json", type=Path, help="file that the numbers are written to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    waves = [read_audio(file, RATE) for file in find_audio(options.folder)[:UTTERANCES]]
    found = {"machine": machine(), "reading": reading(waves), "computing": computing(waves), "bounds": bounds()}
    print(f"{len(waves)} utterances, {sum(map(len, waves)) / RATE / 60:.1f} minutes; one core, one thread\n")
    print(rows(found["reading"], "format"), end="\n\n")
    print(rows(found["computing"], "model, times real time"), end="\n\n")
    print(rows(found["bounds"], "H100, ms an hour of audio, counted, not measured"))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
