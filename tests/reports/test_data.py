"""``ser-fast data``: each layout is described as it was read, and broken corpora by the right sentence."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_fast.cli import main

RATE = 8000
CLASSES, SPEAKERS = ("anger", "sadness"), ("03", "08")


def voice(number: int, seconds: float = 0.5) -> np.ndarray:
    """Return a vowel of changing pitch, of other samples for each number."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = (110 + 3 * number) * time + 20 * time**2
    wave = sum(np.sin(2 * np.pi * partial * pitch) / partial for partial in range(1, 9))
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def written(root: Path, *names: str) -> Path:
    """Write a voice for each name, of 0.5 s and longer, all different."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, voice(number, 0.5 + 0.05 * number), RATE)
    return root


def listed(root: Path, *rows: str, header: str = "file,speaker,label") -> str:
    """Write the audio of each row and the table; return the table's path."""
    written(root, *dict.fromkeys(row.split(",")[0] for row in rows))
    (root / "all.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(root / "all.csv")


def of_emobox(root: Path) -> str:
    folder, lines = root / "data" / "emodb", {}
    for key in ("03a01Wa", "03a02Ta", "08a01Wa", "08a02Ta"):
        row = {"key": key, "wav": f"downloads/emodb/wav/{key}.wav", "emo": {"W": "anger", "T": "sadness"}[key[5]]}
        lines[key] = json.dumps(row) + "\n"
    (folder / "fold_1").mkdir(parents=True)
    (folder / "emodb.jsonl").write_text("".join(lines.values()))
    for part, speaker in (("train", "03"), ("test", "08")):
        chosen = "".join(line for key, line in lines.items() if key.startswith(speaker))
        (folder / "fold_1" / f"emodb_{part}_fold_1.jsonl").write_text(chosen)
    written(root / "downloads/emodb/wav", *(f"{key}.wav" for key in lines))
    return f"emobox:{folder}"


def of_tar(root: Path) -> str:
    pytest.importorskip("webdataset")
    written(root, *(f"{number}.wav" for number in range(4)))
    with tarfile.open(root / "voices-0.tar", "w") as archive:
        for number in range(4):
            row = json.dumps({"label": CLASSES[number % 2], "speaker": SPEAKERS[number // 2]}).encode()
            info = tarfile.TarInfo(f"{number}.json")
            info.size = len(row)
            archive.add(root / f"{number}.wav", f"{number}.wav")
            archive.addfile(info, io.BytesIO(row))
    return f"tar:{root}/voices-*.tar"


def of_hugging_face(root: Path) -> str:
    datasets = pytest.importorskip("datasets")
    written(root, *(f"{number}.wav" for number in range(4)))
    rows = [
        {"audio": str(root / f"{number}.wav"), "label": CLASSES[number % 2], "speaker": SPEAKERS[number // 2]}
        for number in range(4)
    ]
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    made.save_to_disk(root / "saved")
    return f"hf:{root / 'saved'}"


def of_sections(root: Path) -> str:
    """A manifest of parts of one file."""
    rows = [f"{speaker}.wav,{speaker},{label},{at},{at + 0.25}" for speaker in SPEAKERS
            for label, at in zip(CLASSES, (0, 0.25))]  # fmt: skip
    return listed(root, *rows, header="file,speaker,label,start,end")


def of_emodb(root: Path) -> str:
    return f"emodb:{written(root, *(f'wav/{s}a0{n}{e}a.wav' for s in SPEAKERS for n, e in enumerate('WT')))}"


def of_ravdess(root: Path) -> str:
    names = (f"Actor_{s}/03-01-{e}-01-01-01-{s}.wav" for s in SPEAKERS for e in ("05", "04"))
    return f"ravdess:{written(root, *names)}"


def of_casia(root: Path) -> str:
    return f"casia:{written(root, *(f'{s}/{e}/1.wav' for s in ('wangzhe', 'liuchanhg') for e in ('angry', 'sad')))}"


LAYOUTS: dict[str, Callable[[Path], str]] = {
    "emodb": of_emodb,
    "ravdess": of_ravdess,
    "casia": of_casia,
    "folders": lambda root: str(written(root, *(f"{c}/{s}/1.wav" for c in CLASSES for s in SPEAKERS))),
    "speakers": lambda root: f"speakers:{written(root, *(f'{s}/{c}/1.wav' for c in CLASSES for s in SPEAKERS))}",
    "manifest": lambda root: listed(root, *(f"{s}{c}.wav,{s},{c}" for s in SPEAKERS for c in CLASSES)),
    "sections": of_sections,
    "emobox": of_emobox,
    "tar": of_tar,
    "hf": of_hugging_face,
}


def shown(capsys, *arguments: str) -> str:
    assert main(["data", *arguments]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_describes_each_layout(layout, tmp_path, capsys):
    """Two classes and two speakers, an utterance of each pair; nothing is wrong."""
    data = LAYOUTS[layout](tmp_path)
    text = shown(capsys, data, "--out=")
    noun = "utterances" if layout in ("sections", "tar", "hf") else "files"
    assert text.startswith(f"reading 4 {noun}\n")
    assert re.search(r"^.+: 4 utterances, 2 classes, 2 speakers, 0\.0 min; seconds 0\.[25]\d to 0\.\d+, ", text, re.M)
    assert f"audio: {RATE} Hz mono (4)\n" in text
    assert re.search(r"^anger +2 +2 +0\.0 ", text, re.M) and re.search(r"^sadness +2 +2 +0\.0 ", text, re.M)
    for speaker in ("wangzhe", "liuchanhg") if layout == "casia" else SPEAKERS:
        assert re.search(rf"^{speaker} +2 +0\.0 +1 +1$", text, re.M)
    assert text.endswith("\nno warnings\n") and "\x1b" not in text and "4/4" not in text
    assert ("folds of its own: 1\n" in text) == (layout == "emobox")
    found = json.loads(shown(capsys, data, "--json", "--headers_only", "--out="))
    assert found["utterances"] == found["readable"] == 4 and found["warnings"] == [] and found["seconds"] >= 1
    assert {name: one["utterances"] for name, one in found["classes"].items()} == {"anger": 2, "sadness": 2}
    assert found["formats"] == [{"sample_rate": RATE, "channels": 1, "utterances": 4}]


def test_data_describes_converted_values(tmp_path, capsys):
    """CH-SIMS as its owners release it, converted: values, parts, speakers of both, and no classes."""
    written(tmp_path, "Raw/v1/0001.wav", "Raw/v1/0002.wav", "Raw/v2/0001.wav", "Raw/v3/0001.wav")
    rows = ["v1,0001,x,-0.5,0,0,0,Negative,train", "v1,0002,x,0.5,0,0,0,Positive,test"]
    rows += ["v2,0001,x,0,0,0,0,Neutral,train", "v3,0001,x,1,0,0,0,Positive,valid"]
    header = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
    (tmp_path / "label.csv").write_text("\n".join([header, *rows]))
    table = tmp_path / "made.csv"
    assert main(["convert", "ch_sims", str(tmp_path), f"--out={table}"]) == 0
    capsys.readouterr()
    text = shown(capsys, str(table), f"--out={tmp_path / 'a.png'}")
    assert "4 utterances, 3 speakers, 0.0 min" in text and "parts: test 1, train 2, valid 1\n" in text
    assert text.endswith(f"\npicture: {tmp_path / 'a.png'}\n")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert re.search(r"^value +-0\.5 +0\.25 +1$", text, re.M) and re.search(r"^v1 +2 +0\.0$", text, re.M)
    assert "warning: speakers both in the test part and in another one (1 of 3): 'v1'\n" in text


def test_data_applies_the_options_of_train(tmp_path, capsys):
    data = LAYOUTS["folders"](tmp_path / "a")
    (tmp_path / "map.yaml").write_text("anger: loud\nsadness: null\n")
    text = shown(capsys, data, f"--labels={tmp_path / 'map.yaml'}", "--out=")
    assert "2 utterances, 1 class, 2 speakers" in text and "note: counted anger as loud; left out sadness (2)" in text
    assert "warning: the only class is 'loud'; there is nothing to tell apart\n" in text and "picture" not in text
    other = LAYOUTS["folders"](tmp_path / "b")
    assert "parts: test 4, train 4\n" in shown(capsys, data, f"--test_data={other}", "--out=", "--headers_only")


def clipped(path: Path) -> None:
    soundfile.write(path, np.clip(20 * voice(1), -1, 1), RATE)


# What is done to a corpus of two classes and two speakers in folders, and what is then said.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "spelling": (
        lambda root: written(root, "Anger/03/2.wav"),
        "note: class 'anger' (3 utterances) includes the spellings 'Anger' (1)",
    ),
    "synonym": (
        lambda root: written(root, "angry/03/7.wav", "angry/08/8.wav").joinpath("angry/03/7.wav").unlink(),
        "warning: classes that may be one emotion (2 of 3): 'anger', 'angry'",
    ),
    "speaker spelling": (
        lambda root: [(root / f"anger/{name}").mkdir() or soundfile.write(root / f"anger/{name}/1.wav", voice(n), RATE)
                      for n, name in ((20, "Eve"), (21, "eve"))],
        "warning: speakers that differ in case, blanks or Unicode form only (2 of 4): 'Eve', 'eve'; they are taken for "
        "different speakers",
    ),
    "copies": (
        lambda root: (root / "anger/03/copy.wav").write_bytes((root / "anger/03/1.wav").read_bytes()),
        "warning: utterances with the same audio (2 of 5): anger/03/1.wav = anger/03/copy.wav; copies may be in the "
        "training and the test part",
    ),
    "copies of speakers": (
        lambda root: soundfile.write(root / "anger/08/copy.flac", soundfile.read(root / "anger/03/1.wav")[0], RATE),
        "warning: utterances with the same audio and different speakers (2 of 5): anger/03/1.wav (03) = "
        "anger/08/copy.flac (08); copies",
    ),
    "copies of classes": (
        lambda root: (root / "sadness/03/copy.wav").write_bytes((root / "anger/03/1.wav").read_bytes()),
        "warning: utterances with the same audio and different labels (2 of 5): anger/03/1.wav (anger) = "
        "sadness/03/copy.wav (sadness); copies",
    ),
    "silent": (
        lambda root: [soundfile.write(root / f"anger/03/{n}.wav", np.zeros(RATE), RATE) for n in (7, 8)],
        "warning: silent utterances (2 of 6): 'anger/03/7.wav', 'anger/03/8.wav'; no sample exceeds -80 dB of full "
        "scale",
    ),
    "clipped": (
        lambda root: clipped(root / "anger/03/7.wav"),
        "warning: clipped utterances (1 of 5): 'anger/03/7.wav'; 1 % or more of the samples are at full scale",
    ),
    "noise": (
        lambda root: soundfile.write(root / "anger/03/7.wav", np.random.default_rng(0).normal(0, 0.1, RATE), RATE),
        "warning: utterances without speech (1 of 5): 'anger/03/7.wav'; no second has voiced sound of changing pitch",
    ),
    "unreadable": (
        lambda root: [(root / "anger/03/1.wav").write_text("no audio"), (root / "anger/08/1.wav").write_bytes(b"")],
        "warning: utterances that cannot be read (2 of 4): ",
    ),
    "short and long": (
        lambda root: [soundfile.write(root / f"anger/03/{n}.wav", voice(n, n), RATE) for n in (0.1, 31)],
        "warning: utterances below 0.2 s (1 of 6): 'anger/03/0.1.wav'\n"
        "warning: utterances above 30 s (1 of 6): 'anger/03/31.wav'",
    ),
    "rates": (
        lambda root: soundfile.write(root / "anger/03/7.wav", voice(9), 16000),
        "warning: utterances of 2 sample rates: 8000 Hz (4), 16000 Hz (1); not all classes have all of them",
    ),
    "class of one speaker": (
        lambda root: (root / "anger/08/1.wav").rename(root / "sadness/08/2.wav"),
        "warning: classes of one speaker alone (1 of 2): anger (speaker 03); a model can learn the speakers instead\n"
        "warning: speakers without some classes (1 of 2): 08 (anger)",
    ),
    "speakers of one class": (
        lambda root: [(root / name).unlink() for name in ("anger/08/1.wav", "sadness/03/1.wav")] + [
            soundfile.write(root / f"{c}/{s}/2.wav", voice(n), RATE)
            for n, (c, s) in enumerate((("anger", "03"), ("sadness", "08")), 30)],
        "warning: each of the 2 speakers has one class only, so a model can learn the speakers instead",
    ),
    "no speakers": (
        lambda root: [one.rename(one.parents[1] / f"{one.parent.name}.wav") for one in root.rglob("*.wav")],
        "warning: no speaker is known; a test on other speakers than those of the training, such as --protocol=loso, "
        "is impossible",
    ),
    "some speakers": (
        lambda root: (root / "anger/08/1.wav").rename(root / "anger/1.wav"),
        "warning: utterances without a speaker (1 of 4): 'anger/1.wav'; they are taken for one speaker",
    ),
    "parts": (
        lambda root: [(root / name / old).rename(root / name / new) for name in CLASSES
                      for old, new in zip(SPEAKERS, ("train", "test"))],
        "warning: speakers named like parts of a corpus (2 of 2): 'test', 'train'",
    ),
    "passed over": (
        lambda root: (root / "anger/03/7.wma").touch(),
        "passed over 1 of 5 audio files: 1 .wma (not read; readable: .wav, .flac, .ogg",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_data_says_what_is_wrong(fault, tmp_path, capsys):
    root = Path(LAYOUTS["folders"](tmp_path / "voices"))
    damage, sentence = BROKEN[fault]
    damage(root)
    text = shown(capsys, str(root), "--out=")
    assert f"\n{sentence}" in text and "no warnings" not in text
    if fault == "unreadable":
        assert f"{root}/anger/03/1.wav: not readable as audio" in text and "the file is empty (0 bytes)" in text
        assert "; --skip_bad leaves them out\n" in text and re.search(r"^anger +2 +2 +- +- +- +-$", text, re.M)


TABLES = {
    "speakers as classes": (
        [f"{n}.wav,{c},{s}" for n, (c, s) in enumerate((c, s) for c in CLASSES for s in SPEAKERS)],
        ["warning: classes named like speakers (2 of 2): '03', '08'",
         "warning: speakers named like classes (2 of 2): 'anger', 'sadness'"],
    ),
    "products": (
        [f"{s}{c}.wav,{s},{s}_{c}" for s in ("OAF", "YAF") for c in CLASSES],
        ["warning: the names of the classes contain speakers: 'oaf', 'yaf'"],
    ),
    "speakers are names of files": (
        [f"{n}.wav,{n}.wav,{CLASSES[n % 2]}" for n in range(4)],
        ["warning: each of the 4 utterances has a speaker of its own, as if speakers were names of files"],
    ),
    "one speaker": (
        [f"{n}.wav,eve,{CLASSES[n % 2]}" for n in range(4)],
        ["warning: the only speaker is 'eve'; a test on other speakers than those of the training"],
    ),
    "few of a class": (
        [f"{n}.wav,{SPEAKERS[n % 2]},{CLASSES[n < 2]}" for n in range(22)],
        ["warning: class 'anger' has 20 utterances and 'sadness' has 2; --balance=true repeats those"],
    ),
    "test part": (
        [f"{n}.wav,{n // 2},{CLASSES[n % 2]},{'test' if n == 3 else 'train'}" for n in (0, 2, 3, 4)],
        ["warning: speakers both in the test part and in another one (1 of 3): '1'",
         "warning: classes of the test part that no training utterance has (1 of 2): 'sadness'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TABLES)
def test_data_says_what_is_wrong_in_a_table(fault, tmp_path, capsys):
    rows, sentences = TABLES[fault]
    data = listed(tmp_path, *rows, header="file,speaker,label" + ",part" * (rows[0].count(",") == 3))
    text = shown(capsys, data, "--headers_only", "--out=")
    assert all(f"\n{sentence}" in text for sentence in sentences)
    assert "note: headers only; silence, clipping and copies were not looked for\n" in text


def refusing(root: Path, kind: str) -> str:
    """Make a corpus that cannot be loaded."""
    root.mkdir()
    if kind == "texts":
        (root / "notes.txt").write_text("none")
    elif kind == "speakers":
        written(root, "Actor_01/anger/1.wav", "Actor_02/sadness/1.wav")
    elif kind == "strays":
        written(root, *(f"anger/{n}.wav" for n in range(3)), "4.wav")
    elif kind == "twice":
        listed(root, "1.wav,eve,anger", "1.wav,bob,sadness")
    return str(root / "all.csv" if kind == "twice" else root)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("empty", "no audio file in this folder; it must be a folder with files of .wav"),
        ("texts", "no audio file in this folder"),
        ("speakers", "but those in them are emotions (anger, sadness); type --data=\"speakers:"),
        ("strays", "is in no class folder; it must be"),
        ("twice", "the same audio; it must be listed once"),
    ],
)  # fmt: skip
def test_data_fails_where_nothing_can_be_loaded(kind, sentence, tmp_path, capsys):
    assert main(["data", refusing(tmp_path / "voices", kind), f"--out={tmp_path / 'a.png'}"]) == 1
    found = capsys.readouterr()
    assert found.out == "" and sentence in found.err and found.err.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_data_refuses_another_picture(tmp_path, capsys):
    data = LAYOUTS["folders"](tmp_path)
    assert main(["data", data, "--out=a.jpg"]) == 1
    assert capsys.readouterr().err == "ser-fast: out is 'a.jpg'; it must be a file of the suffix .png\n"


def test_data_describes_a_corpus_without_readable_audio(tmp_path, capsys):
    """Many speakers and classes, whose names are odd: nothing of the table or the picture fails."""
    rows = [f"{n}.wav,s[{n}]$,{'klasse' * 9}_{n % 25}" for n in range(50)]
    data = listed(tmp_path, *rows)
    for n in range(50):
        (tmp_path / f"{n}.wav").write_bytes(b"")
    text = shown(capsys, data, f"--out={tmp_path / 'a.png'}")
    assert "audio: none can be read\n" in text and "warning: utterances that cannot be read (50 of 50)" in text
    assert "; by reason: 50 the file is empty (N bytes); --skip_bad leaves them out\n" in text
    assert re.search(r"^s\[0\]\$ +1 +-$", text, re.M) and re.search(r"^and 10 more +$", text, re.M)
    assert (tmp_path / "a.png").is_file()


def test_data_shows_a_bar_on_a_terminal(tmp_path):
    pty = pytest.importorskip("pty")
    data = LAYOUTS["folders"](tmp_path)
    command = [sys.executable, "-m", "ser_fast", "data", data, "--out="]
    near, far = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(command, stdout=far, stderr=far, env=environment) as process:
        os.close(far)
        seen = b""
        while block := _read(near):
            seen += block
        assert process.wait() == 0
    os.close(near)
    assert b"4/4" in seen and b"\x1b[?25h" in seen  # the cursor is shown again


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


def test_data_keeps_its_tables_if_the_picture_cannot_be_written(monkeypatch, tmp_path, capsys):
    def full(summary, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ser_fast.reports.data_figure.draw", full)
    data = LAYOUTS["folders"](tmp_path)
    assert main(["data", data, f"--out={tmp_path / 'x.png'}"]) == 1
    printed = capsys.readouterr()
    assert "4 utterances, 2 classes" in printed.out and "No space left" in printed.err and "x.png" in printed.err
    (tmp_path / "file").touch()
    assert main(["data", data, f"--out={tmp_path / 'file' / 'x.png'}"]) == 1
    printed = capsys.readouterr()
    assert not printed.out and "out is" in printed.err and "in a folder that can be written" in printed.err


def test_json_draws_nothing_by_default_and_names_all_copies(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    data = LAYOUTS["folders"](tmp_path)
    files = sorted(path for path in tmp_path.rglob("*.wav"))
    for path in files[1:]:
        path.write_bytes(files[0].read_bytes())
    assert main(["data", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.rglob("*.png"))
    (copies,) = (one["names"] for one in found["warnings"] if one["code"] == "same_audio_label")
    assert len(copies) == 1 and len(copies[0]) == 4
    assert all(sum(one["of_class"].values()) == one["utterances"] for one in found["speakers"].values())
