"""Runs that write a file: the same rows in every format, in parts that resume."""

import csv
import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_fast.models import MODELS
from ser_fast.prediction import parts
from ser_fast.prediction.config import PredictConfig
from ser_fast.prediction.formats import Writer
from ser_fast.prediction.local import Engine, answers
from ser_fast.prediction.parts import OutputError
from ser_fast.prediction.reading import Reader
from ser_fast.prediction.run import run
from ser_fast.prediction.summary import Summary
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint

COLUMNS = ["file", "seconds", "label", "p_x", "p_y", "p_z", "flag", "error"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "FILES", 3)


@pytest.fixture
def config(checkpoint, folder, tmp_path):
    """Eight files: five voices, silence, one that is no audio and one that is missing."""
    soundfile.write(folder / "silence.wav", np.zeros(16000), 16000)
    (folder / "text.wav").write_text("no audio")

    def make(out="out.jsonl", **options) -> PredictConfig:
        return PredictConfig(str(checkpoint), [str(folder), "nowhere"], tmp_path / out, workers=0, **options)

    return make


def rows(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


def test_run_writes_a_row_for_every_file(config):
    outcome = run(config())
    found = rows(config().out)
    assert [list(row) for row in found] == [COLUMNS] * 8
    assert [Path(row["file"]).name for row in found] == [
        "0.wav", "1.wav", "2.wav", "3.wav", "4.wav", "silence.wav", "text.wav", "nowhere",
    ]  # fmt: skip
    for row in found[:5]:
        numbers = {name: row[f"p_{name}"] for name in "xyz"}
        assert row["label"] == max(numbers, key=numbers.get) and math.isclose(sum(numbers.values()), 1, abs_tol=1e-6)
    assert [row["flag"] for row in found] == ["no_speech short", *["no_speech"] * 4, "silent", "", ""]
    nothing = dict.fromkeys(("label", "p_x", "p_y", "p_z"))
    assert found[5] == found[5] | nothing | {"seconds": 1.0, "error": None}
    assert found[6] == found[6] | nothing | {
        "seconds": None, "error": "not readable as audio: Format not recognised."
    }  # fmt: skip
    assert found[7]["error"] == "no such file or folder"
    whole = outcome.whole
    assert (whole.files, whole.rows, whole.failed, whole.unpredicted) == (8, 8, 2, 1)
    assert whole.errors.by_reason() == ["1 not readable as audio: Format not recognised.", "1 no such file or folder"]
    assert math.isclose(whole.audio, 1.0 + 6000 * 15 / 16000)
    assert not list(config().out.parent.glob("*.parts"))


def test_run_gives_what_is_printed(config):
    """The windows of a run are cut at the parts, which moves the numbers by rounding alone."""
    run(config())
    engine = Engine(config())
    for found, row in zip(answers(engine, print, Summary()), rows(config().out), strict=True):
        expected = engine.columns.row(found)
        for name in engine.columns.numbers:
            assert row.pop(name) == pytest.approx(expected.pop(name), abs=1e-6)
        assert row == expected


def test_run_writes_the_same_in_every_format(config):
    pytest.importorskip("pyarrow")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        run(config(name))
    lines, table, columns = (rows(config(name).out) for name in ("out.jsonl", "out.csv", "out.parquet"))
    for line, cells, row in zip(lines, table, columns, strict=True):
        assert cells == {name: "" if value is None else str(value) for name, value in line.items()}
        assert row == {name: value if value is None else pytest.approx(value, rel=1e-7) if isinstance(value, float)
                       else value for name, value in line.items()}  # fmt: skip


def test_run_gives_segments_and_embeddings(config):
    run(config(segment=0.5, hop=0.25, embeddings=True))
    found = rows(config().out)
    assert list(found[0]) == ["file", "start", "end", *COLUMNS[1:], "embedding"]
    last = [(row["start"], row["end"]) for row in found if row["file"].endswith("4.wav")]
    assert last == [(0.25 * i, 0.25 * i + 0.5) for i in range(6)] + [(1.5, 1.875)]
    assert {len(row["embedding"]) for row in found if row["label"]} == {8}


def test_run_predicts_values(config, checkpoint):
    model = MODELS["cgru"](1, channels=(4, 4), hidden_size=8)
    save_checkpoint(checkpoint, Checkpoint("cgru", {"channels": (4, 4), "hidden_size": 8}, [], model.state_dict()))
    run(config())
    found = rows(config().out)
    assert list(found[0]) == ["file", "seconds", "value", "flag", "error"]
    assert isinstance(found[0]["value"], float) and found[5]["value"] is None


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_run_resumes_to_the_same_bytes(name, config, monkeypatch):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    run(config(f"whole_{name}"))

    def interrupt(files, seconds):
        if files >= 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(config(name), progress=interrupt)
    assert not config(name).out.exists()
    opened = []
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, item, block: opened.append(item.file) or read(self, item, block))
    outcome = run(config(name))
    assert [Path(file).name for file in opened] == ["3.wav", "4.wav", "silence.wav", "text.wav", "nowhere"]
    assert config(name).out.read_bytes() == config(f"whole_{name}").out.read_bytes()
    assert (outcome.whole.files, outcome.now.files, outcome.whole.failed) == (8, 5, 2)
    with pytest.raises(ValueError, match=rf"out is .*{name}, which exists; it must be a new file"):
        run(config(name))


def interrupted(config) -> None:
    def interrupt(files, seconds):
        if files >= 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(config, progress=interrupt)


def test_run_refuses_a_changed_listing(config, folder):
    interrupted(config())
    (folder / "1.wav").rename(folder / "1b.wav")
    changed = r"the listing changed after 1 files: '.*1b\.wav', before '.*1\.wav'; it must be the same"
    with pytest.raises(ValueError, match=changed):
        run(config())
    (folder / "1b.wav").rename(folder / "1.wav")
    run(config())


def test_run_refuses_a_shorter_listing(config, folder):
    interrupted(config())
    shorter = config()
    shorter.files = [str(folder / "0.wav")]
    with pytest.raises(ValueError, match="the listing changed after 1 files: nothing, before '"):
        run(shorter)
    (folder / "none.txt").write_text("")
    shorter.files = [str(folder / "none.txt")]
    with pytest.raises(ValueError, match="has parts of more than 0 files, and the listing has fewer"):
        run(shorter)


def test_run_refuses_other_options(config, checkpoint):
    interrupted(config())
    with pytest.raises(ValueError, match=r"out\.jsonl\.parts, which contains a run with different batch_size"):
        run(config(batch_size=2))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="which contains a run with different checkpoint"):
        run(config())


def test_run_ends_an_interruption_after_joining(config, monkeypatch):
    """The output is whole and the parts were not yet removed."""
    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "remove", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config())
    whole = config().out.read_bytes()
    outcome = run(config())
    assert (outcome.whole.files, outcome.now.files) == (8, 0)
    assert config().out.read_bytes() == whole and not list(config().out.parent.glob("*.parts"))


def test_run_leaves_nothing_of_a_join_beside_the_output(config, monkeypatch):
    """The file that a killed run was joining lies in the folder of the parts, where the next run removes it."""
    beside = []
    join = parts.formats.join

    def joined(*arguments):
        join(*arguments)
        beside.extend(path.name for path in config().out.parent.iterdir() if "out" in path.name)

    monkeypatch.setattr(parts.formats, "join", joined)
    run(config())
    assert beside == ["out.jsonl.parts"]


def test_run_keeps_parts_when_the_disk_is_full(config, monkeypatch):
    write, written = Writer.write, []

    def full(self, row):
        written.append(row)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", full)
        safe = (
            r"No space left on device; the 3 files of 1 finished parts are safe in .*, and the same command resumes"
        )
        with pytest.raises(OutputError, match=safe):
            run(config())
    assert not list(config().out.parent.glob("out.jsonl.parts/.0*"))
    assert run(config()).now.files == 5


def test_run_lists_no_further_than_a_part(config, folder, monkeypatch):
    """The listing is not read to its end before the first part is predicted."""
    (folder / "list.txt").write_text("".join(f"{i % 5}.wav\n" for i in range(400)))
    long, listed, ahead = config(), 0, []
    long.files = [str(folder / "list.txt")]
    numbered = parts.numbered

    def counted(items):
        nonlocal listed
        for number, part in numbered(items):
            listed += len(part)
            yield number, part

    monkeypatch.setattr(parts, "FILES", 50)
    monkeypatch.setattr(parts, "numbered", counted)
    run(long, progress=lambda files, seconds: ahead.append(listed - files))
    assert listed == 400 and max(ahead) <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": []}, "files is empty; it must be one name at least"),
        ({"files": ["-", "-"]}, "files has '-' twice; it must be there once"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"segment": 0.0}, "segment is 0.0; it must be a number of seconds above 0"),
        ({"segment": math.nan}, "segment is nan"),
        ({"hop": 1.0}, "hop is 1.0 without segment"),
        ({"segment": 1.0, "hop": 2.0}, "hop is 2.0; it must be above 0 and at most segment, 1.0"),
        ({"out": Path("a.txt")}, "out is a.txt; it must be a name ending in .parquet, .jsonl, .csv"),
        ({"out": Path("a.csv"), "embeddings": True}, "embeddings is true with out=a.csv"),
        ({"embeddings": True}, "embeddings is true with a table printed"),
        ({"engine": "ray"}, "engine is ray without out"),
        ({"out": Path("a.csv"), "json": True}, "json is true with out=a.csv"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(ValueError) as error:
        PredictConfig(**{"checkpoint": "a", "files": ["b"]} | options)
    assert str(error.value).startswith(message)
