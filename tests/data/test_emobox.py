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


@pytest.mark.parametrize(
    ("name", "wav", "speaker"),
    [
        ("aesdd", "anger/a03 (3).wav", "3"),
        ("aesdd", "sadness/s01 (05)b.wav", "5"),
        ("ased", "05Angry/a5-02-01-01-33.wav", "33"),
        ("asvpesd", "Audio/actor_36/03-01-09-01-06-36-02-02-01-39.wav", "36"),
        ("asvpesd", "Audio/actor_150/03-02-04-01-52-150-04-01-00-14 -01.wav", "150"),
        ("cafe", "CaFE_48k/Peur/Fort/12-P-2-5.wav", "12"),
        ("casia", "wangzhe/neutral/239.wav", "wangzhe"),
        ("cremad", "AudioWAV/1087_IWL_ANG_XX.wav", "1087"),
        ("emodb", "wav/03a01Wa.wav", "03"),
        ("emovdb", "jenie_Amused/amused_57-84_0057.wav", "jenie"),
        ("emovo", "f2/gio-f2-b2.wav", "f2"),
        ("enterface", "subject 19/anger/sentence 4/s19_an_4.avi", "s19"),
        ("enterface", "subject 3/fear/sentence 5/s_3_fe_5.avi", "s3"),
        ("esd", "0005/Neutral/0005_000001.wav", "0005"),
        ("iemocap", "Session1/sentences/wav/Ses01F_impro04/Ses01F_impro04_M000.wav", "Ses01M"),
        ("jlcorpus", "Raw/JL(wav+txt)/male2_concerned_6b_1.wav", "male2"),
        ("mead", "W019/audio/neutral/level_1/020.m4a", "W019"),
        ("meld", "train/train_splits/dia0_utt0.mp4", "unknown"),
        ("oreau", "Oréau/f/sessj/10a02Ja.wav", "10"),
        ("polish", "m3.s_trzymaj_5.wav", "m3"),
        ("ravdess", "audio/Actor_18/03-01-05-01-02-01-18.wav", "18"),
        ("resd", "train/happiness_enthusiasm_32/32_happiness_enthusiasm_h_120.wav", "unknown"),
        ("savee", "JE_n23.wav", "JE"),
        ("shemo", "male/M36S02.wav", "M36"),
        ("subesco", "F_10_FAHMEE_S_6_FEAR_5.wav", "F_10"),
        ("tess", "OAF_lid_fear.wav", "OAF"),
        ("turevdb", "Sound Source/Calm/1984_sk_eger.wav", "1984"),
        ("urdu", "Neutral/SM20_F8_N012.wav", "SM20"),
    ],
)
def test_emobox_finds_the_speaker_in_the_path(tmp_path, name, wav, speaker):
    folder, place = tmp_path / "data" / name, f"downloads/{name}/{wav}"
    (folder / "fold_1").mkdir(parents=True)
    row = json.dumps({"key": "one", "wav": place, "emo": "sad"})
    for table in (f"{name}.jsonl", f"fold_1/{name}_train_fold_1.jsonl"):
        (folder / table).write_text(row)
    (folder / f"fold_1/{name}_test_fold_1.jsonl").write_text(row.replace("one", "two"))
    other = json.dumps({"key": "two", "wav": "downloads/x.wav", "emo": "sad"})
    (folder / f"{name}.jsonl").write_text(f"{row}\n{other}")
    audio = (tmp_path / place).with_suffix(".wav")
    audio.parent.mkdir(parents=True)
    audio.touch()
    (tmp_path / "downloads/x.wav").touch()
    corpus = load_corpus(f"emobox:{folder}")
    assert [one.speaker for one in corpus.utterances] == [speaker, "unknown"]
    assert corpus.utterances[0].path == audio, "a WAV file in place of a film"


def test_emobox_says_whether_a_fold_shares_speakers(tmp_path):
    folder = tree(tmp_path)
    corpus = load_corpus(f"emobox:{folder}")
    protocols = [split_corpus(corpus, test_fold=fold, validation="none").protocol for fold in "12"]
    assert protocols[0].startswith("fold 1 of the corpus's own 2, speakers shared (1 of 1); ")
    assert protocols[1].startswith("fold 2 of the corpus's own 2, no speakers shared; ")
    (folder.parent / "emodb").rename(folder.parent / "meld")
    for path in (folder.parent / "meld").rglob("emodb*"):
        path.rename(path.with_name(path.name.replace("emodb", "meld")))
    unknown = split_corpus(load_corpus(f"emobox:{folder.parent / 'meld'}"), test_fold="1").protocol
    assert unknown.startswith("fold 1 of the corpus's own 2, speakers unknown; ")


def test_emobox_leaves_out_the_same_audio_again(tmp_path):
    """PAVOQUE lists sections of its files twice, with two labels."""
    folder = tree(tmp_path)
    again = {"key": "again", "wav": "downloads/emodb/wav/03a01Wa.wav", "emo": "neutral"}
    later = again | {"key": "later", "start_time": 1, "end_time": 2}
    with (folder / "emodb.jsonl").open("a") as file:
        file.write(f"{json.dumps(again)}\n{json.dumps(later)}\n")
    corpus = load_corpus(f"emobox:{folder}")
    assert [one.name for one in corpus.utterances][-2:] == ["emodb-08a02Na", "later"] and len(corpus.utterances) == 5
    assert corpus.notes == ("left out 1 lines with the audio of an earlier one (again)",)


def test_emobox_of_films_names_the_command(tmp_path):
    folder = tree(tmp_path)
    for path in folder.rglob("*.jsonl"):
        path.write_text(path.read_text().replace(".wav", ".avi"))
    assert len(load_corpus(f"emobox:{folder}").utterances) == 4, "WAV files beside"
    wav = tmp_path / "downloads/emodb/wav"
    for path in wav.iterdir():
        path.rename(path.with_suffix(".avi"))
    with pytest.raises(ValueError, match=rf"4 files .* not read; it must be audio; .*: find {wav} -name '\*\.avi' "):
        load_corpus(f"emobox:{folder}")
