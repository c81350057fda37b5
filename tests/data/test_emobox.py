"""EmoBox: its metadata, folds and labels, from trees as it ships them, and from broken ones."""

import json
from pathlib import Path

import pytest

from ser_fast.data.corpora import load_corpus
from ser_fast.data.dataset import own_folds, split_corpus

LABELS = {"W": "anger", "N": "neutral"}


def lines(*keys: str) -> str:
    rows = [
        {"key": f"emodb-{key}", "wav": f"downloads/emodb/wav/{key}.wav", "emo": LABELS[key[5]], "length": 1.5}
        for key in keys
    ]
    return "\n".join(map(json.dumps, rows)) + "\n"


def tree(root: Path, audio: str = "downloads/emodb/wav") -> Path:
    """Two folds of four utterances: the first has a validation part, the second lacks one utterance."""
    keys = ["03a01Wa", "03a02Na", "08a01Wa", "08a02Na"]
    folder = root / "data" / "emodb"
    parts = {
        1: {"train": keys[:2], "valid": keys[2:3], "test": keys[3:]},
        2: {"train": keys[2:], "test": keys[:1]},
    }
    for number, named in parts.items():
        (folder / f"fold_{number}").mkdir(parents=True)
        for part, own in named.items():
            (folder / f"fold_{number}" / f"emodb_{part}_fold_{number}.jsonl").write_text(lines(*own))
    (folder / "emodb.jsonl").write_text(lines(*keys))
    (folder / "label_map.json").write_text(json.dumps({"anger": "Angry", "Neutral": "Neutral"}))
    for key in keys:
        (root / audio).mkdir(parents=True, exist_ok=True)
        (root / audio / f"{key}.wav").touch()
    return folder


@pytest.mark.parametrize("audio", ["downloads/emodb/wav", "data/emodb/wav", "emodb/wav"])
def test_emobox_has_its_folds(tmp_path, audio):
    corpus = load_corpus(f"emobox:{tree(tmp_path, audio)}")
    assert corpus.name == "emodb" and corpus.classes == ["Angry", "Neutral"] and own_folds(corpus) == 2
    assert [(u.name, u.speaker, u.label, u.folds) for u in corpus.utterances] == [
        ("emodb-03a01Wa", "03", "Angry", ("train", "test")),
        ("emodb-03a02Na", "03", "Neutral", ("train", "")),
        ("emodb-08a01Wa", "08", "Angry", ("valid", "train")),
        ("emodb-08a02Na", "08", "Neutral", ("test", "train")),
    ]
    assert all(u.path.is_file() and u.path.parent.match(audio) for u in corpus.utterances)
    found = split_corpus(corpus, test_fold="1")
    assert (found.train, found.valid, found.test) == ([0, 1], [2], [3])


def test_emobox_reads_seconds_and_speakers(tmp_path):
    folder = tree(tmp_path)
    table = folder / "emodb.jsonl"
    row = json.loads(table.read_text().splitlines()[0]) | {"speaker": "eve", "start_time": 0.5, "end_time": 1}
    table.write_text("\n".join([json.dumps(row), *table.read_text().splitlines()[1:]]))
    first = load_corpus(f"emobox:{folder}").utterances[0]
    assert (first.speaker, first.start, first.end) == ("eve", 0.5, 1.0)
    (folder / "label_map.json").unlink()
    assert load_corpus(f"emobox:{folder}").classes == ["anger", "neutral"]


def test_emobox_finds_audio_without_folders(tmp_path):
    folder = tree(tmp_path)
    for path in folder.rglob("*.jsonl"):
        path.write_text(path.read_text().replace("downloads/emodb/wav/", ""))
    for path in (tmp_path / "downloads/emodb/wav").iterdir():
        path.rename(folder / path.name)
    assert all(u.path.parent == folder for u in load_corpus(f"emobox:{folder}").utterances)


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.1), (0, 0)])
def test_emobox_refuses_an_end_before_the_start(tmp_path, start, end):
    folder = tree(tmp_path)
    table = folder / "emodb.jsonl"
    row = json.loads(table.read_text().splitlines()[0]) | {"start_time": start, "end_time": end}
    table.write_text(json.dumps(row) + "\n" + "".join(table.read_text().splitlines(True)[1:]))
    with pytest.raises(
        ValueError, match=f"line 1: column 'end_time' is {float(end)}; it must be more than start_time"
    ):
        load_corpus(f"emobox:{folder}")


def edited(name: str, *change: str):
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text().replace(*change, 1) if change else "")

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: (folder / "emodb.jsonl").unlink(), "emodb.jsonl' is not an existing file; it must be CORPUS"),
        (lambda folder: (folder / "fold_1").rename(folder / "fold_3"), r"has the folds \[2, 3\]; it must be fold_1"),
        (lambda folder: (folder / "fold_2" / "emodb_test_fold_2.jsonl").unlink(), "emodb_test_fold_2.jsonl' is not an"),
        (edited("emodb.jsonl"), "emodb.jsonl' lists 0 utterances"),
        (edited("emodb.jsonl", '"key": "emodb-03a02Na"', '"key": "emodb-03a01Wa"'), "has the key emodb-03a01Wa more"),
        (edited("emodb.jsonl", '"emo": "anger"', '"emo": "rage"'), "line 1: column 'emo' is 'rage'; it must be one of"),
        (edited("emodb.jsonl", "{", ""), "emodb.jsonl, line 1: "),
        (edited("fold_1/emodb_test_fold_1.jsonl", "emodb-08a02Na", "emodb-x"), "'emodb-x'; it must be a key of emodb"),
        (edited("fold_1/emodb_test_fold_1.jsonl", "emodb-08a02Na", "emodb-03a01Wa"), "is in the parts train and test"),
        (edited("label_map.json", "{", "["), "label_map.json: .*; it must be a JSON object of labels and classes"),
        (edited("label_map.json", '"Angry"', "1"), "label_map.json: value is .*; it must be a JSON object of labels"),
        (lambda folder: (folder.parents[1] / "downloads").rename(folder.parents[1] / "elsewhere"),
         "the audio downloads/emodb/wav/03a01Wa.wav is neither below .*; it must be there; link the folder of the"),
        (lambda folder: (folder.parents[1] / "downloads/emodb/wav/08a01Wa.wav").unlink(),
         r"has 1 file \(downloads/emodb/wav/08a01Wa.wav\) missing; it must be all of the corpus"),
    ],
)  # fmt: skip
def test_emobox_refuses_broken_trees(tmp_path, edit, message):
    folder = tree(tmp_path)
    edit(folder)
    with pytest.raises(ValueError, match=message):
        load_corpus(f"emobox:{folder}")


def test_emobox_refuses_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="none' is not an existing folder; it must be CORPUS with CORPUS"):
        load_corpus(f"emobox:{tmp_path / 'none'}")
