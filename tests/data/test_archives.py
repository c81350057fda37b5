"""Corpora in archives: WebDataset shards and saved Hugging Face datasets."""

import io
import json
import pickle
import re
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from ser_fast.data.audio import read_corpus, read_utterance
from ser_fast.data.corpora import Utterance, load_corpus
from ser_fast.data.corpora.manifest import write_manifest
from ser_fast.data.sources import Section
from ser_fast.data.wav import AudioError

np = pytest.importorskip("numpy")
sf = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")

NAMES = ["angry/bob/1.wav", "angry/eve/2.flac", "calm/bob/3.wav", "calm/eve/4.flac", "calm/eve/5.wav"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the copies that datasets makes of Parquet files out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of five short noises, a folder per class and in it one per speaker."""
    root = tmp_path_factory.mktemp("archives") / "voices"
    draw = np.random.default_rng(0)
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(root / name, draw.uniform(-0.5, 0.5, draw.integers(3000, 5000)), 16000)
    return root


def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member(archive, name, content)
    return path


def samples(folder: Path, names: list[str]) -> dict[str, bytes]:
    """Return the members of a shard: audio and JSON of each utterance."""
    found = {}
    for name in names:
        label, speaker, _ = name.split("/")
        found[name] = (folder / name).read_bytes()
        found[name.rpartition(".")[0] + ".json"] = json.dumps({"label": label, "speaker": speaker}).encode()
    return found


def saved(path: Path, splits: dict[str, list[dict]] | list[dict], **casts) -> Path:
    """Save rows, or splits of rows, as a dataset whose column ``audio`` has the feature ``Audio``."""

    def made(rows):
        found = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
        for column, feature in casts.items():
            found = found.cast_column(column, feature)
        return found

    whole = isinstance(splits, list)
    found = made(splits) if whole else datasets.DatasetDict({name: made(rows) for name, rows in splits.items()})
    found.save_to_disk(path)
    return path


def rows(folder: Path, names: list[str]) -> list[dict]:
    found = []
    for name in names:
        label, speaker, _ = name.split("/")
        audio = {"bytes": (folder / name).read_bytes(), "path": name}
        found.append({"audio": audio, "label": label, "speaker_id": speaker, "file": name})
    return found


def in_tar(folder: Path, tmp_path: Path) -> str:
    for number, some in enumerate((NAMES[:2], NAMES[2:])):
        shard(tmp_path / f"voices-{number:02}.tar", samples(folder, some))
    return f"tar:{tmp_path}/voices-{{00..01}}.tar"


def in_dataset(folder: Path, tmp_path: Path) -> str:
    label = datasets.ClassLabel(names=["calm", "angry"])
    listed = [one | {"label": label.str2int(one["label"])} for one in rows(folder, NAMES)]
    return f"hf:{saved(tmp_path / 'voices', listed, label=label)}"


def in_parquet(folder: Path, tmp_path: Path) -> str:
    for number, some in enumerate((NAMES[:2], NAMES[2:])):
        found = datasets.Dataset.from_list(rows(folder, some)).cast_column("audio", datasets.Audio(decode=False))
        found.to_parquet(made_folder(tmp_path / "voices") / f"train-{number:05}-of-00002.parquet")
    return f"hf:{tmp_path / 'voices'}"


def made_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("made", [in_tar, in_dataset, in_parquet])
def test_archive_equals_the_folder(folder, tmp_path, made):
    corpus, plain = load_corpus(made(folder, tmp_path)), load_corpus(str(folder))
    assert (corpus.name, corpus.classes, corpus.speakers) == ("voices", ["angry", "calm"], ["bob", "eve"])
    described = [[(u.name, u.label, u.speaker, u.part) for u in one.utterances] for one in (corpus, plain)]
    assert described[0] == described[1]
    copies = pickle.loads(pickle.dumps(corpus.utterances))
    for rate in (16000, 8000):
        waves, expected = read_corpus(copies, rate)[1], read_corpus(plain.utterances, rate)[1]
        assert all(map(torch.equal, waves, expected))
    assert len({utterance.key() for utterance in corpus.utterances}) == 5
    assert [one.key() for one in copies] == [one.key() for one in corpus.utterances]


@pytest.mark.thorough
@pytest.mark.parametrize("made", [in_tar, in_dataset])
def test_archive_trains_as_the_folder(folder, tmp_path, made):
    metrics = []
    for data in (str(folder), made(folder, tmp_path)):
        out = tmp_path / f"run{len(metrics)}"
        command = [sys.executable, "-m", "ser_fast", "train", f"--data={data}", "--test_speakers=eve", f"--out={out}"]
        options = [
            "--validation=none",
            "--epochs=2",
            "--batch_size=2",
            "--device=cpu",
            "--model=cgru",
            "--cgru.hidden_size=8",
        ]
        subprocess.run([*command, *options], check=True, capture_output=True)
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        metrics.append([{key: value for key, value in row.items() if "seconds" not in key} for row in rows])
    assert metrics[0] == metrics[1] and len(metrics[0]) == 2


@pytest.mark.parametrize("made", [in_tar, in_dataset])
def test_archive_without_soundfile(folder, tmp_path, monkeypatch, made):
    corpus = load_corpus(made(folder, tmp_path))
    expected = [read_utterance(one) for one in corpus.utterances]
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for utterance, wave in zip(corpus.utterances, expected):
        if utterance.name.endswith(".wav"):
            assert torch.equal(read_utterance(utterance), wave)
        else:
            with pytest.raises(AudioError, match="only PCM WAV can be read"):
                read_utterance(utterance)


DAMAGED = {
    "empty": (b"", r"the file is empty \(0 bytes\)"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer instead of audio"),
    "text": (b"no audio at all", "not readable as audio"),
    "short": (None, "truncated, 1000 bytes less than its header says"),
    "nan": (None, "holds NaN or infinite samples"),
}


@pytest.mark.parametrize("kind", ["tar", "hf"])
def test_archive_audio_is_checked_as_files(folder, tmp_path, kind):
    """Damaged audio is a bad utterance, named by archive and key or row; the others are read."""
    good = (folder / NAMES[0]).read_bytes()
    contents = {f"{name}.wav": content for name, (content, _) in DAMAGED.items()}
    contents["short.wav"] = good[:-1000]
    not_finite = io.BytesIO()
    sf.write(not_finite, np.full(2000, np.nan), 16000, format="WAV", subtype="FLOAT")
    contents |= {"nan.wav": not_finite.getvalue(), "a.wav": good, "b.wav": (folder / NAMES[2]).read_bytes()}
    if kind == "tar":
        label = {name: json.dumps({"label": "b" if name == "b.wav" else "a"}).encode() for name in contents}
        members = {m: c for name in contents for m, c in ((name, contents[name]), (name[:-4] + ".json", label[name]))}
        corpus = load_corpus(f"tar:{shard(tmp_path / 'x.tar', members)}")
        places = [f"x.tar:{name}.wav" for name in DAMAGED]
    else:
        listed = [
            {"audio": {"bytes": content, "path": name}, "emotion": "b" if name == "b.wav" else "a"}
            for name, content in contents.items()
        ]
        corpus = load_corpus(f"hf:{saved(tmp_path / 'x', listed)}")
        places = [f"x[{row}]" for row in range(len(DAMAGED))]
    utterances, waves, errors = read_corpus(corpus.utterances, skip_bad=True)
    assert [one.name for one in utterances] == ["a.wav", "b.wav"] and len(waves) == 2
    for error, place, (_, reason) in zip(errors, places, DAMAGED.values(), strict=True):
        assert re.match(rf"{re.escape(place)}: .*{reason}", str(error))
    with pytest.raises(AudioError, match=r"5 of 7 utterances cannot be read"):
        read_corpus(corpus.utterances)


@pytest.mark.parametrize("kind", ["tar", "hf"])
def test_archive_takes_targets(kind, folder, tmp_path):
    """Numbers beside a label, or without one, are the targets; what they name must be there."""
    audio = [(folder / name).read_bytes() for name in NAMES[:2]]
    rated = [{"arousal": 1.5, "valence": 4, "label": "calm"}, {"arousal": 3, "valence": 2.5, "label": "angry"}]

    def spec(name: str, cells: list[dict]) -> str:
        if kind == "hf":
            listed = [row | {"audio": {"bytes": content, "path": f"{i}.wav"}, "arousal": row["arousal"] and float(row["arousal"])}
                      for i, (row, content) in enumerate(zip(cells, audio))]  # fmt: skip
            return f"hf:{saved(tmp_path / name, listed)}"
        members = {}
        for i, (row, content) in enumerate(zip(cells, audio)):
            members |= {f"{i}.wav": content, f"{i}.json": json.dumps(row).encode()}
        return f"tar:{shard(tmp_path / f'{name}.tar', members)}"

    both = spec("both", rated)
    corpus = load_corpus(both, ["valence", "arousal"])
    assert [utterance.values for utterance in corpus.utterances] == [
        {"valence": 4, "arousal": 1.5},
        {"valence": 2.5, "arousal": 3},
    ]
    assert corpus.classes == [] and load_corpus(both).classes == ["angry", "calm"]
    alone = spec("alone", [{name: row[name] for name in ("arousal", "valence")} for row in rated])
    assert load_corpus(alone, ["arousal"]).targets == ["arousal"]
    with pytest.raises(ValueError, match=r"targets names 'arousl', which is no column \(the closest is 'arousal'\)"):
        load_corpus(both, ["arousl"])
    with pytest.raises(
        ValueError, match=r"(\[1\]|1\.json): column 'arousal' is missing.*; it must be a finite number"
    ):
        load_corpus(spec("gap", [rated[0], rated[1] | {"arousal": None}]), ["valence", "arousal"])


def test_tar_reads_parts_values_and_seconds(folder, tmp_path):
    whole = samples(folder, NAMES[:1])[NAMES[0]]
    row = {"value": 0.5, "start": 0.05, "end": 0.1, "part": "train", "sentiment_scale": 3}
    path = shard(tmp_path / "x.tar", {"a.wav": whole, "a.json": json.dumps(row).encode()})
    corpus = load_corpus(f"tar:{path}")
    (utterance,) = corpus.utterances
    assert (utterance.value, utterance.part, utterance.speaker) == (0.5, "train", "unknown")
    assert (corpus.sentiment_scale, corpus.classes, utterance.name) == (3, [], "a.wav[0.05:0.1]")
    assert torch.equal(
        read_utterance(utterance), torch.from_numpy(sf.read(folder / NAMES[0], dtype="float32")[0][800:1600])
    )


def test_tar_labels_without_json(folder, tmp_path):
    wave = (folder / NAMES[0]).read_bytes()
    members = {
        "a.wav": wave,
        "a.cls": b"3\n",
        "a.txt": b"good morning\nto you",
        "b.wav": wave,
        "b.txt": b"froh",
    }
    corpus = load_corpus(f"tar:{shard(tmp_path / 'x.tar', members)}")
    assert [(u.label, u.speaker) for u in corpus.utterances] == [("3", "unknown"), ("froh", "unknown")]


def test_tar_keys_may_repeat_between_shards(folder, tmp_path):
    wave = (folder / NAMES[0]).read_bytes()
    for name in ("a.tar", "b.tar"):
        shard(tmp_path / name, {"0.wav": wave, "0.cls": name[:1].encode()})
    corpus = load_corpus(f"tar:{tmp_path}/*.tar")
    assert [u.name for u in corpus.utterances] == ["a.tar:0.wav", "b.tar:0.wav"]
    with pytest.raises(ValueError, match=r"lists .*a\.tar more than once"):
        load_corpus(f"tar:{tmp_path}/{{a,a}}.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.wav": b"", "b.wav": b"", "b.cls": b"1"},
            r"x\.tar: sample 'a' has no label \(wav\); it must be a \.json",
        ),
        ({"a.cls": b"1"}, r"sample 'a' has 0 audio files \(cls\); it must be one of \.wav"),
        ({"a.wav": b"", "a.flac": b"", "a.cls": b"1"}, r"sample 'a' has 2 audio files \(cls, flac, wav\)"),
        ({"a.wav": b"", "a.json": b"[1]"}, r"x\.tar:a\.json: value is \[1\]; it must be a JSON object"),
        ({"a.wav": b"", "a.json": b"{"}, r"x\.tar:a\.json: .*; it must be one JSON object"),
        ({"a.wav": b"", "a.json": b"\xff"}, r"x\.tar:a\.json: byte 0xff; it must be UTF-8"),
        (
            {"a.wav": b"", "a.json": b'{"lable": 1}'},
            r"x\.tar:a\.json: has \['lable'\]; it must be an object with label",
        ),
        ({"a.wav": b"", "a.json": b'{"label": 1, "speaker": ""}'}, r"x\.tar:a\.json: column 'speaker' is ''"),
        ({"a.wav": b"", "a.txt": b"good\nmorning"}, r"a\.txt: label is .*; it must be a name in one line"),
        (
            {"a.wav": b"", "a.cls": b"x", "b.wav": b"", "b.json": b'{"value": 1}'},
            r"b\.json: has 'value' in a table of",
        ),
        ({"a.WAV": b"", "a.wav": b"", "a.cls": b"1"}, r"x\.tar: a\.wav: duplicate file name; it must be there once"),
        ({}, r"has 0 utterances in 1 shards"),
    ],
)
def test_tar_refuses_malformed_samples(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(f"tar:{shard(tmp_path / 'x.tar', members)}")


def test_tar_refuses_other_archives(folder, tmp_path):
    path = shard(tmp_path / "x.tar", samples(folder, NAMES))
    whole = path.read_bytes()
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        member(archive, "a.wav", b"")
    with pytest.raises(ValueError, match=r"x\.tar\.gz is compressed; it must be an uncompressed \.tar.*; gunzip it"):
        load_corpus(f"tar:{tmp_path}/x.tar.gz")
    path.write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"x\.tar: damaged, or not a tar archive: unexpected end of data"):
        load_corpus(f"tar:{path}")
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        second = archive.getmembers()[2].offset
    path.write_bytes(whole[:second] + b"x" * 512 + whole[second + 512 :])
    with pytest.raises(ValueError, match=rf"x\.tar: damaged, no header of a tar archive at byte {second}"):
        load_corpus(f"tar:{path}")
    path.write_bytes(b"RIFF" + struct.pack("<I", 4) + b"WAVE" + bytes(2000))
    with pytest.raises(ValueError, match=r"x\.tar: damaged, or not a tar archive"):
        load_corpus(f"tar:{path}")
    with pytest.raises(FileNotFoundError, match=r"shard '.*y-01\.tar' does not exist"):
        shard(tmp_path / "y-00.tar", {})
        load_corpus(f"tar:{tmp_path}/y-{{00..01}}.tar")


def test_section_reads_its_bytes_alone(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(100)))
    with Section(tmp_path / "x", "x:a", 10, 20).open() as file:
        assert file.read() == bytes(range(10, 30))
        assert (file.seek(-5, 2), file.read(9)) == (15, bytes(range(25, 30)))
        assert (file.seek(40), file.read()) == (40, b"")
        assert (file.seek(3), file.read(2), file.tell()) == (3, bytes([13, 14]), 5)


def test_dataset_splits_are_parts(folder, tmp_path):
    splits = {
        "train": rows(folder, NAMES[:2]),
        "validation": rows(folder, NAMES[2:3]),
        "test": rows(folder, NAMES[3:]),
    }
    corpus = load_corpus(f"hf:{saved(tmp_path / 'x', splits)}")
    assert [u.part for u in corpus.utterances] == ["train", "train", "valid", "test", "test"]
    assert [len(wave) > 2000 for wave in read_corpus(corpus.utterances)[1]] == [True] * 5
    only = load_corpus(f"hf:{saved(tmp_path / 'y', {'train': splits['train']})}")
    assert [u.part for u in only.utterances] == [None, None]
    with pytest.raises(ValueError, match=r"has the splits train, extra; it must be some of train, valid"):
        load_corpus(f"hf:{saved(tmp_path / 'z', {'train': splits['train'], 'extra': splits['test']})}")


def test_dataset_of_paths_and_values(folder, tmp_path):
    """save_to_disk stores the bytes of local files; what other tools write may have the path alone."""
    listed = [{"audio": {"bytes": None, "path": str(folder / name)}, "value": len(name) / 2} for name in NAMES]
    audio = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": audio, "value": datasets.Value("float32")})
    datasets.Dataset.from_list(listed, features).save_to_disk(tmp_path / "x")
    info = tmp_path / "x" / "dataset_info.json"
    described = json.loads(info.read_text())
    described["features"]["audio"] = {"_type": "Audio"}
    info.write_text(json.dumps(described))
    corpus = load_corpus(f"hf:{tmp_path / 'x'}")
    assert corpus.classes == [] and [u.value for u in corpus.utterances] == [len(name) / 2 for name in NAMES]
    assert [u.path for u in corpus.utterances] == [folder / name for name in NAMES]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"lable": "x"}, r"has the columns audio, lable; it must be a dataset with a column label, emotion or value"),
        ({"label": "x", "value": 1.0}, r"columns audio, label, value; it must be a dataset with one label or value"),
        ({"label": ""}, r"x\[0\]: column 'label' is ''; it must be a text that is not empty"),
        ({"value": float("nan")}, r"x\[0\]: column 'value' is nan; it must be a finite number"),
        ({"label": "x", "speaker": None}, None),
    ],
)
def test_dataset_refuses_bad_columns(folder, tmp_path, row, message):
    audio = {"bytes": (folder / NAMES[0]).read_bytes(), "path": "a.wav"}
    path = saved(tmp_path / "x", [{"audio": audio} | row])
    if message is None:
        assert load_corpus(f"hf:{path}").speakers == ["unknown"]
        return
    with pytest.raises(ValueError, match=message):
        load_corpus(f"hf:{path}")


def test_dataset_refuses_other_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nope"):
        load_corpus(f"hf:{tmp_path}/nope")
    with pytest.raises(ValueError, match=r"is not readable as a dataset .*; it must be what datasets' save_to_disk"):
        load_corpus(f"hf:{folder}")
    (made_folder(tmp_path / "torn") / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"torn' is not readable as a dataset"):
        load_corpus(f"hf:{tmp_path}/torn")
    datasets.Dataset.from_dict({"audio": ["x"], "label": ["y"]}).save_to_disk(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"has 0 columns of the feature Audio among audio, label; it must be one"):
        load_corpus(f"hf:{tmp_path}/plain")
    unlabelled = rows(folder, NAMES[:1])
    unlabelled[0]["label"] = -1
    path = saved(tmp_path / "unlabelled", unlabelled, label=datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(ValueError, match=r"unlabelled\[0\]: column 'label' is -1; it must be in 0\.\.1"):
        load_corpus(f"hf:{path}")


@pytest.mark.parametrize(("spec", "library"), [("hf:{}", "datasets"), ("tar:{}/x.tar", "webdataset")])
def test_archive_names_the_missing_extra(tmp_path, monkeypatch, spec, library):
    shard(tmp_path / "x.tar", {})
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'ser_fast\[scale\]'"):
        load_corpus(spec.format(tmp_path))


def test_manifest_refuses_archives(folder, tmp_path):
    corpus = load_corpus(in_tar(folder, tmp_path))
    message = r"the audio of angry/bob/1\.wav is inside another file or in memory; it must be a file of its own"
    with pytest.raises(ValueError, match=message):
        write_manifest(corpus, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_utterance_key_follows_the_audio(folder, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"1")
    before = Utterance("a", "s", "x", path).key()
    assert before == Utterance("b", "t", "y", tmp_path / "." / "a.wav").key()
    path.write_bytes(b"12")
    assert Utterance("a", "s", "x", path).key() != before
    assert Utterance("a", "s", "x", path, 0.5).key() != Utterance("a", "s", "x", path).key()
    waves = [torch.zeros(8), torch.ones(8)]
    keys = [Utterance("a", "s", "x", samples=wave, sample_rate=16000).key() for wave in (*waves, torch.zeros(8))]
    assert keys[0] == keys[2] != keys[1]


def test_archives_have_groups(folder, tmp_path):
    sessions = ["one", "one", "two", "two", "two"]
    listed = [row | {"group": session} for row, session in zip(rows(folder, NAMES), sessions)]
    assert [u.group for u in load_corpus(f"hf:{saved(tmp_path / 'x', listed)}").utterances] == sessions
    members = samples(folder, NAMES)
    for name, session in zip(NAMES, sessions):
        place = name.rpartition(".")[0] + ".json"
        members[place] = json.dumps(json.loads(members[place]) | {"group": session}).encode()
    assert [u.group for u in load_corpus(f"tar:{shard(tmp_path / 'x.tar', members)}").utterances] == sessions
