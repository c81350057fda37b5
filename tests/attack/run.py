"""A tiny corpus, a tiny training run and the command line in this process, for the attacks on files."""

import contextlib
import functools
import io
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch

from ser_fast.cli import main

torch.set_num_threads(1)
TINY = ("--model=cgru", "--cgru.channels=[2, 2]", "--cgru.hidden_size=4", "--cgru.n_fft=256", "--cgru.win_length=128",
        "--cgru.hop_length=128", "--batch_size=4", "--valid_fraction=0.3", "--cgru.sample_rate=8000")  # fmt: skip
INTERNAL = ("Traceback", "codec can't", "embedded null byte")  # what only Python says


def command(*arguments: str) -> tuple[int, str, str]:
    """Return the status, the standard output and the standard error of ``ser-fast``."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = main(list(arguments))
        except SystemExit as end:  # of --help and the like
            code = end.code or 0
    return code, out.getvalue(), errors.getvalue()


def assert_clear(code: int, errors: str, lines: int = 12, *, allowed: tuple[int, ...] = (0, 1, 2)) -> None:
    """Fail unless the command ended with a status of its own and, after an error, a short message."""
    assert code in allowed, f"exit status {code}: {errors[:1000]}"
    assert code == 0 or errors.startswith("ser-fast: "), f"status {code} with the message {errors[:1000]!r}"
    assert len(errors) < 3000 and errors.count("\n") <= lines, f"a long message: {errors[:3000]!r}"
    assert not any(word in errors for word in INTERNAL), f"unclear error: {errors[:500]}"
    assert all(letter.isprintable() or letter == "\n" for letter in errors), f"control characters in {errors[:500]!r}"


@functools.cache
def voices(folder: Path) -> Path:
    """Return a folder of 24 short voices: a class and a speaker each."""
    root, random = folder / "voices", np.random.default_rng(0)
    for label in ("anger", "sadness"):
        for speaker in ("s1", "s2"):
            (root / label / speaker).mkdir(parents=True)
            for take in range(6):
                wave = np.sin(np.arange(1200 + 300 * take) * (0.05 if label == "anger" else 0.2))
                wave = 0.2 * wave + random.normal(0, 0.02, len(wave))
                soundfile.write(root / label / speaker / f"{take}.wav", wave, 8000)
    return root


@functools.cache
def trained(folder: Path, epochs: int = 2) -> Path:
    """Return the run folder of a finished training."""
    out = folder / "trained"
    code, _, errors = command(
        "train", f"--data=folders:{voices(folder)}", f"--out={out}", f"--epochs={epochs}", *TINY
    )
    assert code == 0, errors
    return out


def copied(source: Path, target: Path) -> Path:
    """Return a fresh copy of a run folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def removed(path: Path) -> None:
    """Remove a file, a link or a folder with whatever names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(os.fsencode(path), ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
