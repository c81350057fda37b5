"""Prediction by the model that comes with ser_fast."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_fast import pretrained
from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.prediction.predictor import Predictor
from ser_fast.prediction.shipped import checkpoint_and_files, notice

RATE = 16000


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A voice, and sounds that hold nothing to predict, by the flag that is expected."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    random, time = np.random.default_rng(0), np.arange(2 * RATE) / RATE
    voice = synthesize("anger", 0, 0).numpy()
    tone = 0.3 * np.sin(2 * np.pi * 50 * time)
    for name, samples in {
        "voice": voice,
        "silent": 0 * time,
        "constant": 0 * time + 0.3,
        "cancelled": np.stack([voice, -voice], 1),
        "too_short": voice[:300],
        "no_speech": 0.1 * random.standard_normal(2 * RATE),
        "no_speech-hum": tone,
    }.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE)
    return folder


def test_predict_without_checkpoint_says_which_model(sounds, capsys):
    assert main(["predict", str(sounds), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == f"ser-fast: {notice()}\n"
    for words in ("model emodb", "acted German speech", "train your own", str(pretrained.card())):
        assert words in said.err
    rows = {Path(row["file"]).stem: row for row in map(json.loads, said.out.splitlines())}
    assert rows["voice"]["flag"] in ("", "short") and rows["voice"]["label"] in rows["voice"]["probabilities"]
    for name in rows.keys() - {"voice"}:
        row = rows[name]
        assert (row["label"], row["probabilities"], row["flag"].split()[0]) == (None, None, name.split("-")[0])


def test_predict_without_checkpoint_writes_a_table(sounds, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert main(["predict", str(sounds / "voice.wav"), str(sounds / "silent.wav"), f"--out={out}"]) == 0
    assert "model emodb" in capsys.readouterr().err
    lines = out.read_text().splitlines()
    assert lines[0].startswith("file,seconds,label,p_anger,") and len(lines) == 3


def test_other_checkpoints_predict_sounds(checkpoint, sounds, capsys):
    """They may be trained on any sound: it is flagged, and has numbers."""
    for given in ([str(checkpoint)], [f"--checkpoint={checkpoint}"]):
        assert main(["predict", *given, str(sounds / "no_speech.wav"), "--json"]) == 0
        said = capsys.readouterr()
        row = json.loads(said.out)
        assert said.err == "" and row["label"] in "xyz" and row["flag"] == "no_speech"


def test_shipped_model_is_the_same_by_name_and_by_default(sounds, capsys):
    (_, expected), *_ = Predictor().files([sounds / "voice.wav"])
    main(["predict", str(pretrained.path()), str(sounds / "voice.wav"), "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["probabilities"] == pytest.approx(dict(expected), abs=1e-6)
    assert said.err == f"ser-fast: {notice()}\n"


def test_shipped_model_leaves_out_pauses(sounds, tmp_path, capsys):
    """Segments without speech have no label."""
    voice = synthesize("anger", 0, 0).numpy()[: 2 * RATE]
    voice = np.pad(voice, (0, 2 * RATE - len(voice)))
    silence = 0.01 * np.random.default_rng(0).standard_normal(2 * RATE)
    soundfile.write(tmp_path / "talk.wav", np.concatenate([voice, silence]), RATE)
    main(["predict", str(tmp_path / "talk.wav"), "--segment=2", "--json"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["label"] and second["label"] is None and second["flag"] == "no_speech"


def test_copy_of_the_shipped_model_is_no_shipped_one(tmp_path):
    """It says nothing, but still needs speech."""
    copy = shutil.copy(pretrained.path(), tmp_path / "copy.safetensors")
    assert notice(str(copy)) == "" and Predictor(copy).reader().speech


@pytest.mark.parametrize(
    ("names", "checkpoint"),
    [
        (["run", "a.wav"], "run"),
        (["begun", "a.wav"], "begun"),
        (["saved", "a.wav"], "saved"),
        (["runs", "a.wav"], "runs"),
        (["a.safetensors", "a.wav"], "a.safetensors"),
        (["gone.SAFETENSORS"], "gone.SAFETENSORS"),
        (["other.bin", "a.wav"], "other.bin"),
        (["gone", "a.wav"], "gone"),
        (["run"], "run"),
        (["a.wav"], ""),
        (["gone.wav", "a.wav"], ""),
        (["A.FLAC", "run"], ""),
        (["list.csv", "a.wav"], ""),
        (["-"], ""),
        (["voices"], ""),
        (["voices", "a.wav"], ""),
        (["gone"], ""),
        (["other.bin"], ""),
    ],
)
def test_first_name_is_a_checkpoint_or_a_file(names, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "run/best.safetensors",
        "begun/config.json",
        "saved/model.safetensors",
        "runs/one/best.safetensors",
        "voices/a.wav",
        "other.bin",
    ):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        Path(name).touch()
    assert checkpoint_and_files(names) == (checkpoint, names[bool(checkpoint) :])
