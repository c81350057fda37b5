"""Databases of audformat, as audformat itself writes them."""

import pickle
import sys
from pathlib import Path

import pytest

from ser_fast import cli
from ser_fast.data.corpora import Corpus, load_corpus, takes_columns
from ser_fast.data.dataset import read_dataset, split_corpus
from ser_fast.data.failures import UnreadableError
from ser_fast.data.storage import Storage

np = pytest.importorskip("numpy")
sf = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
audformat = pytest.importorskip("audformat")

FILES = [f"audio/{number}.wav" for number in range(6)]
EMOTIONS = ["anger", "neutral", "sadness", "anger", "neutral", "sadness"]
SPEAKERS = ["s1", "s1", "s1", "s2", "s2", "s2"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, about audformat's calls


def database(**schemes):
    """Return a database with the splits train, dev and test, and a table of the speakers of six files."""
    db = audformat.Database("voices")
    for name in ("train", "dev", "test"):
        db.splits[name] = audformat.Split(type=name)
    db.schemes["speaker"] = audformat.Scheme(labels={"s1": {"gender": "f"}, "s2": {"gender": "m"}})
    for name, scheme in ({"emotion": audformat.Scheme(labels=sorted({*EMOTIONS}))} | schemes).items():
        db.schemes[name] = scheme
    add(db, "files", audformat.filewise_index(FILES), speaker=("speaker", SPEAKERS))
    return db


def add(db, name: str, index, split: str | None = None, **columns) -> None:
    """Add a table; each column is its scheme and its cells."""
    db[name] = audformat.Table(index, split_id=split)
    for column, (scheme, cells) in columns.items():
        db[name][column] = audformat.Column(scheme_id=scheme)
        db[name][column].set(cells)


def emotions(db, name: str = "emotion", among=slice(None), **more) -> None:
    add(db, name, audformat.filewise_index(FILES[among]), emotion=("emotion", EMOTIONS[among]), **more)


def saved(db, folder: Path, storage: str = "csv") -> str:
    db.save(str(folder), storage_format=storage)
    return f"audformat:{folder}"


def shown(corpus: Corpus) -> list[tuple]:
    return [(u.name, u.speaker, u.label, u.part) for u in corpus.utterances]


@pytest.mark.parametrize("storage", ["csv", "parquet"])
def test_database_is_read(tmp_path, storage):
    db = database()
    emotions(db)
    corpus = load_corpus(saved(db, tmp_path, storage))
    assert corpus.name == "voices" and corpus.classes == ["anger", "neutral", "sadness"] and not corpus.notes
    assert shown(corpus) == [(*row, None) for row in zip(FILES, SPEAKERS, EMOTIONS)]
    assert [u.path for u in corpus.utterances] == [tmp_path / file for file in FILES]
    assert {(u.start, u.end) for u in corpus.utterances} == {(None, None)}


def test_tables_of_other_splits_are_the_own_division(tmp_path):
    db = database()
    for number, part in enumerate(("train", "dev", "test")):
        emotions(db, f"emotion.{part}", slice(2 * number, 2 * number + 2), split=part)
    corpus = load_corpus(saved(db, tmp_path))
    expected = dict(zip(FILES, ["train"] * 2 + ["valid"] * 2 + ["test"] * 2))
    assert {u.name: u.part for u in corpus.utterances} == expected
    split = split_corpus(corpus, validation="none", allow_missing_classes=True)
    assert {corpus.utterances[i].name for i in split.test} == set(FILES[4:])
    single = load_corpus(f"audformat:{tmp_path}", columns="label=emotion.test/emotion")
    assert shown(single) == [(file, "s2", label, None) for file, label in zip(FILES[4:], EMOTIONS[4:])]


def test_several_tables_are_refused_and_chosen(tmp_path):
    db = database()
    emotions(db)
    emotions(db, "emotion.train", slice(0, 3), split="train")
    emotions(db, "emotion.test", slice(3, 6), split="test")
    spec = saved(db, tmp_path)
    tables = "emotion.test/emotion, emotion.train/emotion, emotion/emotion"
    with pytest.raises(ValueError) as refused:
        load_corpus(spec)
    names = str(refused.value).partition(": ")[2].partition(";")[0]
    assert sorted(names.split(", ")) == tables.split(", ")
    assert f"has 3 columns that may be the label: {names}; it must be named which one, such as --data=" in str(
        refused.value
    )
    option = str(refused.value).rpartition("--columns=")[2]
    assert load_corpus(spec, columns=option).utterances
    assert len(load_corpus(spec, columns="label=emotion/emotion").utterances) == 6
    assert len(load_corpus(spec, columns="file=emotion.train").utterances) == 3
    for chosen in ("label=emotion.*/emotion", "file=emotion.*", {"file": "emotion.*", "label": "emotion"}):
        corpus = load_corpus(spec, columns=chosen)
        assert (
            [u.part for u in corpus.utterances].count("test")
            == 3
            == [u.part for u in corpus.utterances].count("train")
        )
    with pytest.raises(ValueError, match=r"lists (audio/\d\.wav) and \1, the same audio"):
        load_corpus(spec, columns="label=*/emotion")


def test_segments_have_start_and_end(tmp_path):
    """The speaker of a segment is that of the whole file; an end that is not given is that of the file."""
    db = database()
    index = audformat.segmented_index([FILES[0], FILES[0], FILES[3]], ["0s", "1.5s", "0s"], ["1.5s", None, None])
    add(db, "emotion", index, emotion=("emotion", EMOTIONS[:3]))
    corpus = load_corpus(saved(db, tmp_path))
    assert [(u.start, u.end) for u in corpus.utterances] == [(0.0, 1.5), (1.5, None), (None, None)]
    assert [u.name for u in corpus.utterances] == ["audio/0.wav[0.0:1.5]", "audio/0.wav[1.5:]", "audio/3.wav"]
    assert [u.speaker for u in corpus.utterances] == ["s1", "s1", "s2"]


@pytest.mark.parametrize("storage", ["csv", "parquet"])
def test_segment_without_start_begins_with_the_file(tmp_path, storage):
    db = database()
    index = audformat.segmented_index(FILES[:2], [None, None], ["1.5s", None])
    add(db, "emotion", index, emotion=("emotion", EMOTIONS[:2]))
    corpus = load_corpus(saved(db, tmp_path, storage))
    assert [(u.start, u.end) for u in corpus.utterances] == [(0.0, 1.5), (None, None)] and not corpus.notes


@pytest.mark.parametrize("name", ["", '" "'])
def test_row_without_file_is_named(tmp_path, name):
    db = database()
    emotions(db)
    spec = saved(db, tmp_path)
    (tmp_path / "db.emotion.csv").write_text(f"file,emotion\naudio/0.wav,anger\n{name},neutral\n")
    with pytest.raises(ValueError, match=r", emotion, row 2: file is .+; it must be the name of a file"):
        load_corpus(spec)


def test_audio_of_segments_is_read_and_a_missing_file_skipped(tmp_path):
    db = database()
    index = audformat.segmented_index([FILES[0], FILES[0], FILES[3]], ["0s", "0.5s", "0s"], ["0.5s", None, None])
    add(db, "emotion", index, emotion=("emotion", EMOTIONS[:3]))
    spec = saved(db, tmp_path)
    (tmp_path / "audio").mkdir()
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    sf.write(tmp_path / FILES[0], wave, 16000, subtype="FLOAT")
    with pytest.raises(UnreadableError, match=r"audio/3\.wav"):
        read_dataset(load_corpus(spec), 16000, False, lambda line: None, Storage())
    corpus, dataset = read_dataset(load_corpus(spec), 16000, True, lambda line: None, Storage())
    assert [len(wave) for wave in dataset.waves] == [8000, 8000] == [len(corpus.utterances) * 4000] * 2
    np.testing.assert_array_equal(dataset.waves[1].numpy(), wave.astype(np.float32)[8000:])


def test_labels_have_the_names_of_the_scheme(tmp_path):
    """Keys with texts, numbers with texts, keys with fields, and a table of labels."""
    db = database(
        german=audformat.Scheme(labels={"W": "anger", "N": "neutral"}),
        numbers=audformat.Scheme("int", labels={0: "anger", 1: "neutral"}),
        described=audformat.Scheme(labels={"anger": {"label": "Wut"}, "neutral": {"description": "none"}}),
    )
    db["kinds"] = audformat.MiscTable(audformat.filewise_index(["anger", "neutral"]).rename("kind"))
    db.schemes["listed"] = audformat.Scheme("str", labels="kinds")
    index = audformat.filewise_index(FILES[:2])
    for scheme, cells in (
        ("german", ["W", "N"]),
        ("numbers", [0, 1]),
        ("described", ["anger", "neutral"]),
        ("listed", ["anger", "neutral"]),
    ):
        add(db, f"table.{scheme}", index, **{scheme: (scheme, cells)})
    spec = saved(db, tmp_path)
    for scheme, label in (("german", "anger"), ("numbers", "anger"), ("described", "Wut"), ("listed", "anger")):
        corpus = load_corpus(spec, columns=f"label={scheme}")
        assert [u.label for u in corpus.utterances] == [label, "neutral"], scheme
    with pytest.raises(ValueError, match="has 4 columns that may be the label"):
        load_corpus(spec)


def test_column_of_emotions_is_found_by_name_scheme_and_labels(tmp_path):
    db = database(mood=audformat.Scheme(labels=["happy", "sad"]), gender=audformat.Scheme(labels=["f", "m"]))
    index = audformat.filewise_index(FILES[:2])
    add(db, "ratings", index, mood=("mood", ["happy", "sad"]), gender=("gender", ["f", "m"]), free=(None, ["x", "y"]))
    assert load_corpus(saved(db, tmp_path / "labels")).classes == ["happy", "sad"]
    add(db, "other", index, rated=("emotion", ["anger", "neutral"]))
    assert load_corpus(saved(db, tmp_path / "scheme")).classes == ["anger", "neutral"]
    add(db, "more", index, emotion=(None, ["joy", "fear"]))
    assert load_corpus(saved(db, tmp_path / "name")).classes == ["fear", "joy"]


def test_speaker_is_found_in_columns_schemes_and_labels(tmp_path):
    index, cells = audformat.filewise_index(FILES[:2]), ("emotion", EMOTIONS[:2])
    db = database()
    add(db, "emotion", index, emotion=cells, speaker=(None, ["own1", "own2"]), actor=(None, ["a", "b"]))
    spec = saved(db, tmp_path / "own")
    assert load_corpus(spec).speakers == ["own1", "own2"]
    assert load_corpus(spec, columns="speaker=actor").speakers == ["a", "b"]
    assert load_corpus(spec, columns="speaker=files/speaker").speakers == ["s1"]
    assert [u.group for u in load_corpus(spec, columns="group=actor").utterances] == ["a", "b"]
    db = database()
    db.drop_tables("files")
    add(db, "emotion", index, emotion=cells)
    assert load_corpus(saved(db, tmp_path / "none")).speakers == ["unknown"]
    db.schemes["tape"] = audformat.Scheme(labels={"t1": {"speaker": "eve"}, "t2": {"speaker": "bob"}})
    add(db, "tapes", index, tape=("tape", ["t1", "t2"]))
    assert load_corpus(saved(db, tmp_path / "field")).speakers == ["bob", "eve"]
    add(db, "who", index, actor=("speaker", ["s2", "s1"]))
    assert load_corpus(saved(db, tmp_path / "scheme")).speakers == ["s1", "s2"]


@pytest.mark.parametrize("storage", ["csv", "parquet"])
def test_numbers_of_speakers_may_have_gaps(tmp_path, storage):
    """pandas reads them as floats, since one is missing."""
    db = database()
    db.drop_tables("files")
    index = audformat.filewise_index(FILES[:3])
    add(db, "emotion", index, emotion=("emotion", EMOTIONS[:3]), speaker=(None, [7, None, 12]))
    assert [u.speaker for u in load_corpus(saved(db, tmp_path, storage)).utterances] == ["7", "unknown", "12"]


def test_part_may_be_a_column(tmp_path):
    db = database()
    emotions(db, set=(None, ["train"] * 3 + ["dev", "dev", "test"]))
    corpus = load_corpus(saved(db, tmp_path), columns="split=set")
    assert [u.part for u in corpus.utterances] == ["train"] * 3 + ["valid"] * 2 + ["test"]


def test_targets_are_columns_of_numbers(tmp_path):
    scheme = audformat.Scheme("float", minimum=0, maximum=1)
    db = database(arousal=scheme, valence=scheme)
    index, values = audformat.filewise_index(FILES), np.linspace(0, 1, 6)
    add(
        db,
        "dimensions",
        index,
        arousal=("arousal", values),
        valence=("valence", values[::-1]),
        note=(None, ["x"] * 6),
    )
    spec = saved(db, tmp_path)
    corpus = load_corpus(spec, ["valence", "arousal"])
    assert corpus.targets == ["valence", "arousal"] and not corpus.classes and corpus.speakers == ["s1", "s2"]
    assert [u.values["arousal"] for u in corpus.utterances] == pytest.approx(values)
    single = load_corpus(spec, columns="value=dimensions/arousal")
    assert [u.value for u in single.utterances] == pytest.approx(values)
    found = r"targets is arousal, anger, but no table of '.*' has all of them; .* numbers are dimensions/arousal, dim"
    with pytest.raises(ValueError, match=found):
        load_corpus(spec, ["arousal", "anger"])
    with pytest.raises(
        ValueError, match=r"dimensions, audio/0\.wav: column 'dimensions/note' \(value\) is 'x'; it must be a finite"
    ):
        load_corpus(spec, columns="value=note")
    add(db, "again", index, arousal=("arousal", values))
    with pytest.raises(
        ValueError, match=r"has 2 tables with arousal: \w+, \w+; .* --columns=file=(dimensions|again)$"
    ):
        load_corpus(saved(db, tmp_path / "two"), ["arousal"])
    assert load_corpus(f"audformat:{tmp_path}/two", ["arousal"], "file=again").targets == ["arousal"]


def test_rows_without_label_are_left_out_and_counted(tmp_path):
    db = database()
    add(
        db,
        "emotion",
        audformat.filewise_index(FILES),
        emotion=("emotion", ["anger", None, "neutral", None, None, "anger"]),
    )
    corpus = load_corpus(saved(db, tmp_path / "some"))
    assert [u.name for u in corpus.utterances] == [FILES[0], FILES[2], FILES[5]]
    assert corpus.summary()[-1] == "3 rows of emotion without label are left out"
    db["emotion"]["emotion"].set([None] * 6)
    with pytest.raises(ValueError, match=r"emotion of '.*' has 0 rows with label; it must be at least one"):
        load_corpus(saved(db, tmp_path / "none"))


class Ran:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_database_runs_no_code(tmp_path):
    """A pickle beside a table is not read, and a tag in the header is refused."""
    db = database()
    emotions(db)
    spec, mark = saved(db, tmp_path), tmp_path / "ran"
    (tmp_path / "db.emotion.pkl").write_bytes(pickle.dumps(Ran(mark)))
    assert len(load_corpus(spec).utterances) == 6 and not mark.exists()
    (tmp_path / "db.emotion.csv").unlink()
    with pytest.raises(
        ValueError, match=r"has no db\.emotion\.parquet and no db\.emotion\.csv; .* pickles are not read"
    ):
        load_corpus(spec)
    header = tmp_path / "db.yaml"
    header.write_text(header.read_text() + f"evil: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ValueError, match=r"db\.yaml is not the header of a database .*python/object"):
        load_corpus(spec)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, r"has no db\.yaml; it must be the folder of a database"),
        ("- a\n- b\n", r"db\.yaml is not the header of a database \(.+\); it must be the folder"),
        ("name: [", r"db\.yaml is not the header of a database \(while parsing"),
        ("name: x\nsource: ''\nusage: research\n", "has no column of emotions, only none; it must be"),
    ],
)
def test_other_folders_are_refused(tmp_path, header, message):
    if header is not None:
        (tmp_path / "db.yaml").write_text(header)
    with pytest.raises(ValueError, match=message):
        load_corpus(f"audformat:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="is not an existing folder"):
        load_corpus(f"audformat:{tmp_path}/nope")


def test_torn_table_is_refused(tmp_path):
    db = database()
    emotions(db)
    spec = saved(db, tmp_path, "parquet")
    (tmp_path / "db.emotion.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"db\.emotion\.parquet is not readable as a table \(.+\); it must be one"):
        load_corpus(spec)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("label=emotio/emotion", r"columns names 'emotio/emotion' for 'label', which is no column \(the closest is 'emotion/emotion'\)"),
        ("speaker=spk", "columns names 'spk' for 'speaker', which is no column.*; it must be one of .*files/speaker"),
        ("file=nope", "columns names 'nope' for 'file', which is no table of .*; it must be one of emotion, files"),
        ("file=files", "has no column of emotions, only files/speaker; it must be a database with one"),
        ("start=begin", "columns names 'start', which a database has beside its files; it must be one of file, speaker"),
    ],
)  # fmt: skip
def test_wrong_columns_are_named(tmp_path, columns, message):
    db = database()
    emotions(db)
    with pytest.raises(ValueError, match=message):
        load_corpus(saved(db, tmp_path), columns=columns)


def test_bare_folder_is_recognised(tmp_path):
    """Unless its files are all named as in a known corpus, which was read without audformat before."""
    db = database()
    emotions(db)
    saved(db, tmp_path / "any")
    (tmp_path / "any" / "audio").mkdir()
    (tmp_path / "any" / FILES[0]).touch()
    assert load_corpus(str(tmp_path / "any")).name == "voices"
    (tmp_path / "emodb" / "wav").mkdir(parents=True)
    (tmp_path / "emodb" / "db.yaml").touch()
    (tmp_path / "emodb" / "wav" / "03a01Wa.wav").touch()
    assert load_corpus(str(tmp_path / "emodb")).name == "emodb"
    assert takes_columns(f"audformat:{tmp_path}") and not takes_columns(str(tmp_path / "any"))


def test_missing_audformat_is_named(tmp_path, monkeypatch):
    (tmp_path / "db.yaml").touch()
    monkeypatch.setitem(sys.modules, "audformat", None)
    message = r"a database of audformat needs audformat: pip install 'ser_fast\[audformat\]'"
    with pytest.raises(ImportError, match=message):
        load_corpus(f"audformat:{tmp_path}")


def test_data_command_describes_a_database(tmp_path, capsys):
    db = database()
    emotions(db)
    saved(db, tmp_path)
    (tmp_path / "audio").mkdir()
    for number, file in enumerate(FILES):
        sf.write(tmp_path / file, np.random.default_rng(number).uniform(-0.5, 0.5, 8000), 16000)
    assert (
        cli.main(["data", f"audformat:{tmp_path}", "--columns=label=emotion/emotion", "--out=", "--headers_only"])
        == 0
    )
    out = capsys.readouterr().out
    assert "voices: 6 utterances, 3 classes, 2 speakers" in out and "anger" in out
