"""IEMOCAP, CH-SIMS and MOSI become manifests: from trees as their owners ship them, and from broken ones."""

import re
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch

from ser_fast.cli import main
from ser_fast.data.audio import read_corpus
from ser_fast.data.corpora import load_corpus
from ser_fast.data.corpora.convert import convert
from ser_fast.data.dataset import split_corpus
from ser_fast.training.config import TrainConfig
from ser_fast.training.cross_validation import plan_corpus
from ser_fast.training.folds import Folds

HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"


def waved(root: Path, *names: str) -> Path:
    """Short tones, each of another length, so that one mistaken for another is seen."""
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, 0.1 * torch.sin(torch.arange(800.0 + index)).numpy(), 16000)
    return root


def evaluation(root: Path, dialog: str, *turns: tuple[str, str]) -> Path:
    """A dialog's table: the release's header, and below each turn some of the annotators' votes."""
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for index, (turn, emotion) in enumerate(turns):
        values = f"[{2 + 0.1 * index:.4f}, 3.5000, {4 - 0.1 * index:.4f}]"
        lines.append(f"[{index}.2901 - {index + 1}.2357]\t{dialog}_{turn}\t{emotion}\t{values}")
        lines += ["C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
    path = root / f"Session{dialog[4]}" / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def iemocap(tmp_path) -> Path:
    root = tmp_path / "IEMOCAP_full_release"
    improvised = [("F000", "neu"), ("M000", "exc"), ("F001", "xxx"), ("M001", "hap"), ("F002", "ang")]
    table = evaluation(root, "Ses01F_impro01", *improvised)
    evaluation(root, "Ses02M_script01_1b", ("F000", "sad"), ("MXX0", "fru"), ("M001", "exc"), ("M002", "neu"))
    (table.parent / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05[\n[")
    (table.parent / "Categorical").mkdir()
    (table.parent / "Categorical" / "Ses01F_impro01_e1_cat.txt").write_text(
        "Ses01F_impro01_F000 :Neutral state; ()\n"
    )
    first, second = "Session1/sentences/wav/Ses01F_impro01", "Session2/sentences/wav/Ses02M_script01_1b"
    waved(root, *(f"{first}/Ses01F_impro01_{turn}.wav" for turn, _ in improvised))
    return waved(root, *(f"{second}/Ses02M_script01_1b_{turn}.wav" for turn in ("F000", "M001", "M002")))


def found(corpus) -> list[tuple]:
    return [(Path(u.name).stem.split("_", 1)[1], u.speaker, u.label) for u in corpus.utterances]


def test_convert_iemocap(iemocap, tmp_path, capsys):
    out = tmp_path / "tables" / "four.csv"
    corpus, title, header, rows, notes = convert("iemocap", iemocap, out)
    assert found(corpus) == [
        ("impro01_F000", "Ses01F", "neutral"),
        ("impro01_M001", "Ses01M", "happiness"),
        ("impro01_F002", "Ses01F", "anger"),
        ("script01_1b_F000", "Ses02F", "sadness"),
        ("script01_1b_M002", "Ses02M", "neutral"),
    ]
    assert corpus == load_corpus(str(out)) and corpus.classes == ["anger", "happiness", "neutral", "sadness"]
    assert [utterance.group for utterance in corpus.utterances] == ["Ses01"] * 3 + ["Ses02"] * 2
    assert all(len(samples) >= 800 for samples in read_corpus(corpus.utterances)[1])
    assert (title, header) == ("iemocap", ["label", "utterances", "speakers"])
    assert ["neutral", "2", "2"] in rows and rows[-1] == ["all", "5", "4"]
    left_out = "left out: 2 excitement, 1 no agreement of the annotators, 1 frustration"
    columns = "further columns, which --targets=valence,arousal,dominance predicts: valence, arousal, dominance"
    assert notes == [left_out, columns, f"manifest: {out}"] and capsys.readouterr().out == ""
    out = out.with_name("again.csv")
    assert main(["convert", "iemocap", str(iemocap), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"neutral +2 +2\n", printed) and re.search(r"all +5 +4\n", printed)
    assert printed.endswith(f"{left_out}\n{columns}\nmanifest: {out}\n")
    assert not list(out.parent.glob(".*"))


def test_convert_iemocap_leaves_one_session_out(tmp_path):
    """Five folds, named by the session; each has two speakers for the test, and one of the others for validation."""
    root = tmp_path / "IEMOCAP_full_release"
    turns = [(f"{gender}00{number}", emotion) for gender in "FM" for number, emotion in enumerate(("ang", "sad"))]
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        evaluation(root, dialog, *turns)
        waved(root, *(f"Session{session}/sentences/wav/{dialog}/{dialog}_{turn}.wav" for turn, _ in turns))
    corpus = convert("iemocap", root, tmp_path / "two.csv").corpus
    runs, sentence = plan_corpus(TrainConfig(), Folds("logo"), corpus)
    assert sentence == "leave one group out, 5 groups" and [run.name for run in runs] == [
        f"Ses0{i}" for i in range(1, 6)
    ]
    for run in runs:
        found = split_corpus(corpus, **run.config.held_out)
        tested, chosen, trained = (
            {corpus.utterances[i].speaker for i in index} for index in (found.test, found.valid, found.train)
        )
        assert tested == {f"{run.name}F", f"{run.name}M"} and (len(chosen), len(trained)) == (1, 7)
        assert not (tested | chosen) & trained


def test_convert_iemocap_with_options(iemocap, tmp_path):
    corpus = convert("iemocap", iemocap, tmp_path / "five.csv", excited_as_happy=True).corpus
    happy = [name for name, _, label in found(corpus) if label == "happiness"]
    assert happy == ["impro01_M000", "impro01_M001", "script01_1b_M001"]
    corpus, *_, notes = convert("iemocap", iemocap, tmp_path / "improvised.csv", improvised_only=True)
    assert {name for name, _, _ in found(corpus)} == {"impro01_F000", "impro01_M001", "impro01_F002"}
    assert notes[0].startswith("left out: 4 scripted, 1 excitement, 1 no agreement")


def test_convert_iemocap_refuses_missing_files(iemocap, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no Session\*/dialog/EmoEvaluation.*; it must be IEMOCAP_full_release.*usc"
    ):
        convert("iemocap", iemocap / "Session1", tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match=r"nope.*; it must be IEMOCAP_full_release"):
        convert("iemocap", tmp_path / "nope", tmp_path / "t.csv")
    (iemocap / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F002.wav").unlink()
    with pytest.raises(
        ValueError, match=r"1 file \(Session1/sentences/wav/.*_F002\.wav\).* missing; it must be IEMOCAP"
    ):
        convert("iemocap", iemocap, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_convert_iemocap_keeps_the_values(iemocap, tmp_path):
    out = tmp_path / "four.csv"
    assert convert("iemocap", iemocap, out).corpus.targets == []
    assert out.read_text().startswith("file,speaker,label,group,valence,arousal,dominance\n")
    corpus = load_corpus(str(out), ["arousal", "dominance"])
    assert (corpus.classes, corpus.targets) == ([], ["arousal", "dominance"])
    assert [utterance.values for utterance in corpus.utterances] == [
        {"arousal": 3.5, "dominance": dominance} for dominance in (4.0, 3.7, 3.6, 4.0, 3.7)
    ]
    assert "arousal from 3.5 to 3.5; dominance from 3.6 to 4" in corpus.summary()


def test_convert_iemocap_keeps_all_turns(iemocap, tmp_path):
    waved(iemocap / "Session1" / "sentences" / "wav" / "Ses01F_impro01", "Ses01F_impro01_F001.wav")
    waved(iemocap / "Session2" / "sentences" / "wav" / "Ses02M_script01_1b", "Ses02M_script01_1b_MXX0.wav")
    corpus, *_, notes = convert("iemocap", iemocap, tmp_path / "all.csv", all_turns=True)
    assert Counter(label for _, _, label in found(corpus)) == {
        "neutral": 2, "excitement": 2, "happiness": 1, "anger": 1, "sadness": 1, "frustration": 1,
        "no agreement of the annotators": 1,
    }  # fmt: skip
    assert not notes[0].startswith("left out")
    happy = convert("iemocap", iemocap, tmp_path / "happy.csv", excited_as_happy=True, all_turns=True).corpus
    assert "excitement" not in happy.classes and len(happy.utterances) == 9
    assert len(load_corpus(str(tmp_path / "all.csv"), ["valence"]).utterances) == 9


@pytest.mark.parametrize(
    "values", ["2.5, 2.5", "2.5, high, 2.5", "2.5, nan, 2.5", "2.5, 2.5, 2.5, 2.5", "2.5; 2.5; 2.5"]
)
def test_convert_iemocap_refuses_malformed_values(iemocap, tmp_path, values):
    table = iemocap / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    table.write_text(f"%\n\n[0.1 - 2.0]\tSes01F_impro01_F000\tneu\t[{values}]\n")
    with pytest.raises(ValueError, match=rf"line 3: \[V, A, D\] is \[{values}\]; it must be three finite numbers"):
        convert("iemocap", iemocap, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[0.1 - 2.0]\tSes01F_impro01_F000\tjoy\t[2.5, 2.5, 2.5]",
        "[0.1 - 2.0]\tSes01F_impro01_X000\tneu\t[2.5, 2.5, 2.5]",
        "[0.1 - 2.0]\tSes01F_impro01_F000\tneu",
    ],
)
def test_convert_iemocap_refuses_malformed_lines(iemocap, tmp_path, line):
    table = iemocap / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    table.write_text(f"%\n\n{line}\n")
    with pytest.raises(ValueError, match=r"Ses01F_impro01\.txt, line 3: .*; it must be \[START - END\], the turn"):
        convert("iemocap", iemocap, tmp_path / "t.csv")


def labelled(root: Path, *rows: str, header: str | None = HEADER, encoding: str = "utf-8") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "label.csv").write_text("\n".join([*([header] if header else []), *rows, ""]), encoding=encoding)
    return root


SIMS = (
    'video_0001,0001,"好, 吗？",-1.0,-1.0,-0.8,-1.0,Negative,train',
    "video_0001,0002,好,0.6,0.4,,1.0,Positive,test",
    "video_0002,0001,嗯,0.0,,,,Neutral,valid",
)
CLIPS = ("Raw/video_0001/0001.wav", "Raw/video_0001/0002.wav", "Raw/video_0002/0001.wav")


@pytest.mark.parametrize(("header", "encoding"), [(HEADER, "utf-8-sig"), (None, "utf-8"), (HEADER, "gb18030")])
def test_convert_ch_sims(tmp_path, header, encoding):
    root = waved(labelled(tmp_path / "sims", *SIMS, header=header, encoding=encoding), *CLIPS)
    out = tmp_path / "sims.csv"
    corpus, _, _, rows, notes = convert("ch_sims", root, out)
    assert [(u.name, u.speaker, u.label, u.value, u.part) for u in corpus.utterances] == [
        ("sims/Raw/video_0001/0001.wav", "video_0001", "", -1.0, "train"),
        ("sims/Raw/video_0001/0002.wav", "video_0001", "", 0.6, "test"),
        ("sims/Raw/video_0002/0001.wav", "video_0002", "", 0.0, "valid"),
    ]
    assert corpus == load_corpus(f"manifest:{out}") and corpus.classes == [] and corpus.sentiment_scale == 1
    assert [len(samples) for samples in read_corpus(corpus.utterances)[1]] == [800, 801, 802]
    assert notes == ["1 of 2 speakers are in more than one part", f"manifest: {out}"]
    assert ["train", "1", "1"] in rows and rows[-1] == ["all", "3", "2"]


def test_convert_ch_sims_after_a_spreadsheet(tmp_path):
    rows = [row.replace(",000", ",") for row in SIMS]
    root = waved(labelled(tmp_path / "sims", *rows), *CLIPS)
    assert len(convert("ch_sims", root, tmp_path / "sims.csv").corpus.utterances) == 3


def test_convert_names_the_command_that_extracts_audio(tmp_path):
    root = waved(labelled(tmp_path / "my sims", *SIMS), CLIPS[0])
    (root / CLIPS[1]).with_suffix(".mp4").touch()
    with pytest.raises(ValueError, match=r"2 files \(video_0001/0002, video_0002/0001\).* without audio") as error:
        convert("ch_sims", root, tmp_path / "sims.csv")
    command = f"find '{root}/Raw' -name '*.mp4' -exec sh -c 'ffmpeg -nostdin -loglevel error -y -i \"$1\""
    assert command in str(error.value)
    assert not (tmp_path / "sims.csv").exists()


def test_convert_mosi_from_films_or_segments(tmp_path):
    rows = ["a$_,1,FINE,2.4,,,,Positive,train", "-b,11,AWFUL,-3.0,,,,Negative,test"]
    films = waved(labelled(tmp_path / "films", *rows), "Raw/a$_/1.wav", "Raw/-b/11.wav")
    cut = "Raw/Audio/WAV_16000/Segmented"
    segments = waved(labelled(tmp_path / "cut", *rows), f"{cut}/a$__1.wav", f"{cut}/-b_11.wav")
    for root in (films, segments):
        corpus = convert("mosi", root, tmp_path / f"{root.name}.csv").corpus
        assert [(u.speaker, u.value, u.part) for u in corpus.utterances] == [
            ("a$_", 2.4, "train"),
            ("-b", -3.0, "test"),
        ]
    with pytest.raises(ValueError, match=r"line 2: label is '2\.4'; it must be a number from -1 to 1"):
        convert("ch_sims", films, tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("v,1,hm,0.5,,,,Positive,dev", r"line 3: mode is 'dev'; it must be one of train, valid, test"),
        ("v,1,hm,much,,,,Positive,test", r"line 3: label is 'much'; it must be a number from -1 to 1"),
        ("v,1,hm,nan,,,,Positive,test", r"line 3: label is 'nan'"),
        ("v,1,hm,,,,,Positive,test", r"line 3: .*label, mode are not empty"),
        ("v,1,hm, well,0.5,,,,Positive,test", r"line 3: .*; it must be cells for video_id, clip_id, text"),
        ('v,1,"hm,0.5,,,,Positive,test', r"line 3: unexpected end of data; it must be comma"),
    ],
)
def test_convert_refuses_malformed_label_tables(tmp_path, row, message):
    root = waved(labelled(tmp_path, SIMS[0], row), *CLIPS)
    with pytest.raises(ValueError, match=rf"label\.csv, {message}"):
        convert("ch_sims", root, tmp_path / "t.csv")


def test_convert_refuses_missing_label_tables(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no label\.csv; it must be the folder of mosi's label\.csv and Raw/.*thuiar/MMSA"
    ):
        convert("mosi", tmp_path, tmp_path / "t.csv")
    with pytest.raises(ValueError, match="0 utterances"):
        convert("mosi", labelled(tmp_path), tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"line 2: .*; it must be cells for"):
        convert("mosi", labelled(tmp_path, "v,1", header="video_id,clip_id"), tmp_path / "t.csv")


def test_convert_writes_whole_paths_elsewhere(tmp_path):
    root = waved(labelled(tmp_path / "sims", *SIMS), *CLIPS)
    out = tmp_path / "elsewhere" / "sims.csv"
    assert convert("ch_sims", root, out).corpus.utterances[0].path == root / CLIPS[0]
    assert str(root) in out.read_text()


def test_convert_refuses_bad_arguments(iemocap, tmp_path):
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    with pytest.raises(ValueError, match=r"out is '.*taken\.csv', which exists; it must be a new file"):
        convert("iemocap", iemocap, taken)
    assert taken.read_text() == "mine"
    with pytest.raises(ValueError, match=r"out is '.*t\.jsonl'; it must be a \.csv file"):
        convert("iemocap", iemocap, tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match="corpus is 'savee'; it must be one of iemocap, ch_sims, mosi"):
        convert("savee", iemocap, tmp_path / "t.csv")
    with pytest.raises(ValueError, match="improvised_only is True, but the corpus is mosi; omit it"):
        convert("mosi", iemocap, tmp_path / "t.csv", improvised_only=True)
