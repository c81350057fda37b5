import json
import math
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ser_fast.data.audio import read_corpus
from ser_fast.data.corpora import Corpus, Utterance, load_corpus
from ser_fast.data.corpora.casia import casia
from ser_fast.data.corpora.emodb import emodb
from ser_fast.data.corpora.folders import folders
from ser_fast.data.corpora.manifest import manifest, write_manifest
from ser_fast.data.corpora.ravdess import ravdess
from ser_fast.data.dataset import labels

DATA = Path(os.environ.get("SER_FAST_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_emodb = pytest.mark.skipif(not (DATA / "emodb" / "wav").is_dir(), reason=f"Emo-DB is not in {DATA}")


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@needs_emodb
@pytest.mark.parametrize("folder", ["emodb", "emodb/wav"])
def test_emodb_counts(folder):
    corpus = emodb(DATA / folder)
    assert len(corpus.utterances) == 535
    assert corpus.speakers == ["03", "08", "09", "10", "11", "12", "13", "14", "15", "16"]
    counts = Counter(utterance.label for utterance in corpus.utterances)
    assert [counts[label] for label in corpus.classes] == [127, 81, 46, 69, 71, 62, 79]
    assert corpus.classes == ["anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral"]


@needs_emodb
def test_emodb_is_readable():
    good, samples, errors = read_corpus(emodb(DATA / "emodb").utterances[::10])
    assert len(good) == 54 and not errors
    assert all(16000 < len(one) < 16000 * 10 and 0.01 < one.abs().max() <= 1.0 for one in samples)


def test_emodb_names(tmp_path):
    corpus = emodb(touched(tmp_path, "wav/16b10Lb.wav", "wav/03a01Wa.wav", "erkennung.txt"))
    first, second = corpus.utterances
    assert (first.name, first.speaker, first.label) == ("03a01Wa", "03", "anger")
    assert (second.name, second.speaker, second.label) == ("16b10Lb", "16", "boredom")
    assert first.path == tmp_path / "wav" / "03a01Wa.wav"
    assert corpus.name == "emodb" and corpus.classes == ["anger", "boredom"]


def test_emodb_refuses_stray_names(tmp_path):
    names = ["03a01Xa", "3a01Wa", "03a01W", "03a01Waa", "03A01Wa", "noise"]
    touched(tmp_path, "03a02Wa.wav", *(f"{name}.wav" for name in names))
    with pytest.raises(ValueError, match=r"6 files \(03A01Wa\.wav, .*, \.\.\.\).*WLEAFTN") as error:
        emodb(tmp_path)
    assert "03a02Wa.wav" not in str(error.value)


def test_emodb_refuses_a_name_twice(tmp_path):
    with pytest.raises(ValueError, match=r"1 file \(03a01Wa\).*more than once"):
        emodb(touched(tmp_path, "16k/03a01Wa.wav", "48k/03a01Wa.wav"))


def test_casia_names(tmp_path):
    names = ["same/liuchanhg/angry/201.wav", "same/wangzhe/Happy/201.wav", "same/wangzhe/neutral/201.wav"]
    names += ["other/Chang.Liu/sad/1.wav", "other/Zhe.Wang/normal/1.wav", "other/Chang.Liu/fear/1.wav"]
    corpus = casia(touched(tmp_path, *names, "other/Chang.Liu/texts.txt"))
    assert corpus.name == "casia" and corpus.speakers == ["liuchanhg", "wangzhe"]
    assert corpus.classes == ["anger", "fear", "happiness", "neutral", "sadness"]
    assert {(u.name, u.speaker, u.label) for u in corpus.utterances} == {
        ("same/liuchanhg/angry/201.wav", "liuchanhg", "anger"),
        ("same/wangzhe/Happy/201.wav", "wangzhe", "happiness"),
        ("same/wangzhe/neutral/201.wav", "wangzhe", "neutral"),
        ("other/Chang.Liu/sad/1.wav", "liuchanhg", "sadness"),
        ("other/Zhe.Wang/normal/1.wav", "wangzhe", "neutral"),
        ("other/Chang.Liu/fear/1.wav", "liuchanhg", "fear"),
    }
    assert len(load_corpus(f"casia:{tmp_path / 'same'}").utterances) == 3


@pytest.mark.parametrize("stray", ["angry/201.wav", "wangzhe/bored/201.wav", "wangzhe/201.wav"])
def test_casia_refuses_another_layout(tmp_path, stray):
    message = rf"1 file \({stray}\).*; it must be CASIA's SPEAKER/EMOTION/\*\.wav.*Institute of Automation"
    with pytest.raises(ValueError, match=message):
        casia(touched(tmp_path, "wangzhe/angry/202.wav", stray))


def test_casia_has_four_speakers(tmp_path):
    names = ["liuchanhg", "wangzhe", "zhaoquanyin", "ZhaoZuoxiang", "Zuoxiang.Zhao"]
    assert len(casia(touched(tmp_path, *(f"{name}/sad/1.wav" for name in names))).speakers) == 4
    with pytest.raises(
        ValueError, match=r"the speakers ZhaoZuoxiang, Zhe W, liuchanhg, .*; it must be CASIA's .*4 speakers"
    ):
        casia(touched(tmp_path, "Zhe W/sad/1.wav"))


def test_ravdess_names(tmp_path):
    names = ["Actor_12/03-01-06-01-02-01-12.wav", "Actor_01/03-01-08-02-01-02-01.wav"]
    names += ["Actor_01/03-01-01-01-01-01-01.wav"]
    corpus = ravdess(touched(tmp_path, *names, "Actor_01/01-01-01-01-01-01-01.mp4"))
    assert (corpus.name, corpus.classes) == ("ravdess", ["neutral", "fear", "surprise"])
    assert [(u.name, u.speaker, u.label) for u in corpus.utterances] == [
        ("03-01-01-01-01-01-01", "01", "neutral"),
        ("03-01-08-02-01-02-01", "01", "surprise"),
        ("03-01-06-01-02-01-12", "12", "fear"),
    ]


def test_ravdess_has_eight_emotions(tmp_path):
    corpus = ravdess(touched(tmp_path, *(f"Actor_01/03-01-0{code}-01-01-01-01.wav" for code in range(8, 0, -1))))
    emotions = ["neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise"]
    assert corpus.classes == [utterance.label for utterance in corpus.utterances] == emotions


@pytest.mark.parametrize(
    ("stray", "message"),
    [
        ("Actor_02/03-02-06-01-02-01-02.wav", r"\(03-02-06-01-02-01-02\).*of the song"),
        ("Actor_02/01-01-06-01-02-01-02.wav", r"\(01-01-06-01-02-01-02\).*of the films"),
        ("Actor_02/03-01-09-01-02-01-02.wav", r"\(03-01-09-01-02-01-02\.wav\).*not named by seven numbers"),
        ("all/Actor_01/03-01-01-01-01-01-01.wav", r"\(03-01-01-01-01-01-01\).*more than once"),
    ],
)
def test_ravdess_refuses_other_kinds(tmp_path, stray, message):
    with pytest.raises(
        ValueError, match=rf"1 file {message}; it must be (RAVDESS's audio-only.*zenodo|a folder without rep)"
    ):
        ravdess(touched(tmp_path, "Actor_01/03-01-01-01-01-01-01.wav", stray))


@pytest.mark.parametrize("read", [casia, emodb, folders, ravdess])
def test_corpus_refuses_a_root_that_is_no_folder(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="nope"):
        read(tmp_path / "nope")
    with pytest.raises(ValueError, match="no audio file"):
        read(tmp_path)


def test_folders_names(tmp_path):
    names = ["sad/x.wav", "angry/bob/y.FLAC", "angry/bob/day1/z.mp3", "angry/eve/y.ogg", ".git/v.wav"]
    touched(tmp_path, *names)
    corpus = folders(tmp_path)
    assert corpus.name == tmp_path.name and corpus.classes == ["angry", "sad"]
    assert [(u.name, u.label, u.speaker) for u in corpus.utterances] == [
        ("angry/bob/day1/z.mp3", "angry", "bob"),
        ("angry/bob/y.FLAC", "angry", "bob"),
        ("angry/eve/y.ogg", "angry", "eve"),
        ("sad/x.wav", "sad", "unknown"),
    ]
    assert all(utterance.path == tmp_path / utterance.name for utterance in corpus.utterances)


def test_folders_follow_links(tmp_path):
    touched(tmp_path, "elsewhere/bob/x.wav", "root/sad/y.wav")
    (tmp_path / "root" / "angry").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert folders(tmp_path / "root").classes == ["angry", "sad"]


def test_folders_refuse_files_outside_the_classes(tmp_path):
    with pytest.raises(ValueError, match=r"stray\.wav.*<label>"):
        folders(touched(tmp_path, "sad/x.wav", "stray.wav"))


def test_folders_refuse_empty_classes(tmp_path):
    with pytest.raises(ValueError, match=r"\['angry'\].*no audio file"):
        folders(touched(tmp_path, "sad/x.wav", "angry/x.m4a"))


SPEAKER_TREE = ["0001/Angry/a.wav", "0001/Sad/b.wav", "0002/Angry/train/a.wav", "0002/Sad/b.wav"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (SPEAKER_TREE, r'are 0001, 0002, but .* emotions \(Angry, Sad\); type --data="speakers:ROOT"'),
        (["anna/Wut/a.wav", "anna/Freude/b.wav", "jo/Wut/a.wav"], r'anna, jo.*; type --data="speakers:ROOT"'),
        (["甲/生气/a.wav", "乙/高兴/a.wav"], r'; type --data="speakers:ROOT"'),
        (["wangzhe/angry/a.wav", "liuchanhg/sad/a.wav"], r'files are those of casia; type --data="casia:ROOT"'),
        (["Actor_01/03-01-01-01-01-01-01.wav", "Actor_02/03-01-06-01-02-01-02.wav"], r'type --data="ravdess:ROOT"'),
        (["Actor_01/a.wav", "Actor_02/a.wav"], r"look like speakers; write a manifest.*file,speaker,label"),
        (["spk3/a.wav", "spk4/a.wav", "other/a.wav"], r"look like speakers"),
        (["S01/a.wav", "S02/b.wav"], r"look like speakers"),
        (["001/a.wav", "002/day/b.wav"], r"look like speakers"),
        (["OAF_angry/a.wav", "OAF_Sad/a.wav", "YAF_angry/a.wav", "YAF_sad/a.wav"], r"speakers oaf, yaf; move"),
        (["train/sad/a.wav", "test/sad/b.wav"], r'parts of a division; type --data="ROOT/test" for one'),
        (["ESD/angry/a.wav", "ESD/sad/b.wav"], r'emotions are below it; type --data="ROOT/ESD"'),
        (["one/bob/angry/a.wav", "two/eve/sad/b.wav"], r"emotions are two levels below \(angry, sad\); write a man"),
    ],
)
def test_folders_refuse_other_levels(tmp_path, names, message):
    with pytest.raises(ValueError, match=message.replace("ROOT", str(tmp_path))):
        folders(touched(tmp_path, *names))


@pytest.mark.parametrize(
    "names",
    [
        ["angry/a.wav", "sad/b.wav"],
        ["angry/Actor_01/a.wav", "sad/Actor_02/b.wav"],
        ["angry/Joy/a.wav", "sad/001/b.wav"],
        ["positive/spk1/a.wav", "negative/spk1/b.wav"],
        ["class1/Joy/a.wav", "class2/Bob/b.wav", "class2/Eve/b.wav"],
        ["0/a.wav", "1/b.wav", "2/c.wav"],
        ["male_angry/a.wav", "female_angry/b.wav", "male_sad/c.wav", "female_sad/d.wav"],
        ["anger/03-01-05-01-01-01-01.wav", "sadness/03-01-04-01-01-01-01.wav"],
        ["amusement/a.wav", "聊天/b.wav"],
    ],
)
def test_folders_take_ordinary_classes(tmp_path, names):
    assert folders(touched(tmp_path, *names)).classes == sorted({name.partition("/")[0] for name in names})


def test_speakers_names(tmp_path):
    corpus = load_corpus(f"speakers:{touched(tmp_path, *SPEAKER_TREE, '0002/ANGRY/c.wav')}")
    assert (corpus.classes, corpus.speakers) == (["Angry", "Sad"], ["0001", "0002"])
    assert corpus.notes == ("class 'Angry' (3 utterances) includes the spellings 'ANGRY' (1)",)
    with pytest.raises(ValueError, match=r"stray\.wav.*SPEAKER/LABEL"):
        load_corpus(f"speakers:{touched(tmp_path, '0001/stray.wav')}")


def test_folders_merge_spellings(tmp_path):
    """Case, blanks at the end and the Unicode form, which macOS changes, do not make a class."""
    names = ["Angry/a.wav", "ANGRY/b.wav", "angry /c.wav", "angry /d.wav", "w\u00fctend/a.wav", "wu\u0308tend/b.wav"]
    corpus = folders(touched(tmp_path, *names))
    assert corpus.classes == ["angry", "w\u00fctend"] and len(corpus.utterances) == 6
    assert corpus.notes[0] == "class 'angry' (4 utterances) includes the spellings 'ANGRY' (1), 'Angry' (1)"
    listed = manifest(table(tmp_path, "file,speaker,label\na.wav,s,Sad\nb.wav,s,sad\nc.wav,s,sad\n"))
    assert listed.classes == ["sad"] and "'Sad' (1)" in listed.summary()[-1]


def table(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_manifest_csv(tmp_path):
    absolute = tmp_path.parent / "b.wav"
    rows = ["sad,30,x/a.wav,s1,,", "", f"froh,31,{absolute},s2,1.5,2", "sad,3,c.wav,s1,,2"]
    text = "\n".join(["\ufefflabel,age,file,speaker,start,end", *rows])
    corpus = manifest(table(tmp_path, text))
    assert (corpus.name, corpus.classes, corpus.speakers) == ("table", ["froh", "sad"], ["s1", "s2"])
    assert corpus.utterances == [
        Utterance("x/a.wav", "s1", "sad", tmp_path / "x" / "a.wav"),
        Utterance(f"{absolute}[1.5:2.0]", "s2", "froh", absolute, 1.5, 2.0),
        Utterance("c.wav[:2.0]", "s1", "sad", tmp_path / "c.wav", None, 2.0),
    ]


def test_manifest_refuses_the_same_audio_twice(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,speaker,label,start,end\na.wav,1,x,0,1\na.wav,1,x,1,2\nb.wav,1,y,,\n")
    assert len(manifest(table).utterances) == 3
    table.write_text("file,speaker,label\na.wav,1,x\nb.wav,1,y\n./a.wav,2,y\n")
    with pytest.raises(
        ValueError, match=r"corpus 't' lists \./a\.wav and a\.wav, the same audio; it must be listed once"
    ):
        manifest(table)


def test_manifest_jsonl_equals_csv(tmp_path):
    rows = [
        {"file": "a, ü.wav", "speaker": 3, "label": "sad", "start": 0, "end": 1.5},
        {"file": "b.wav", "speaker": "4", "label": "froh", "start": None},
    ]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    in_csv = 'file, speaker, label, start, end\r\n"a, ü.wav",3,sad,0,1.5\r\nb.wav,4,froh\r\n'
    assert manifest(table(tmp_path, lines, "table.jsonl")) == manifest(table(tmp_path, in_csv))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: column 'file' occurs 0 times"),
        ("file,label\na.wav,sad\n", r"line 1: column 'speaker' occurs 0 times"),
        ("file\tspeakr\tlabel\na.wav\ts\tsad\n", r"line 1: column 'speaker' occurs 0 .* \(the closest is 'speakr'\)"),
        (
            "File,speaker,label\n",
            r"line 1: column 'file' occurs 0 times in .* \(the closest is 'File'\); .*, or named by --columns=file=File",
        ),
        ("path,speaker,label\n", r"column 'file' occurs 0 times in .*or named by --columns=file=path"),
        ("file,speaker,emotion\n", r"column 'label' occurs 0 times in .*or named by --columns=label=emotion"),
        ("file|speaker|label\n", r"column 'file' occurs 0 times in \['file\|speaker\|label'\]"),
        ("file;speaker;label\na;s;l;;x\n", r"line 2: the number of cells is 5; it must be 3"),
        ("file,speaker,label\na.wav,s,s\0d\n", r"line 2: column 'label' is 's\\x00d'"),
        ("file,speaker,label\na.wav,s," + "x" * 200_000, r"line 2: field larger than field limit"),
        (
            "file,speaker,label\n" + "x" * 5000 + ",s,l",
            r"line 2: column 'file' is 'x{76}\.\.\.; it must be at most 4096",
        ),
        ("file,speaker,label,end\na,s,l," + "1" * 5000, r"line 2: column 'end' is '1{76}\.\.\.; it must be a number"),
        ("file,speaker,label,label\na.wav,s,sad,froh\n", r"line 1: column 'label' occurs 2 times"),
        ("file,speaker,label\n", r"0 utterances"),
        ("file,speaker,label\na.wav,s,sad\nb.wav,,sad\n", r"line 3: column 'speaker' is ''"),
        ("file,speaker,label\na.wav,s\n", r"line 2: column 'label' is missing"),
        ("file,speaker,label\na,b.wav,s,sad\n", r"line 2: the number of cells is 4; it must be 3"),
        ('file,speaker,label\n"a.wav,s,sad\nb.wav,s,sad\n', r"line 2: unexpected end of data"),
        ("file,speaker,label,start\na.wav,s,sad,1s\n", r"line 2: column 'start' is '1s'; it must be .*seconds >= 0"),
        ("file,speaker,label,start\na.wav,s,sad,-1\n", r"line 2: column 'start' is '-1'"),
        ("file,speaker,label,end\na.wav,s,sad,nan\n", r"line 2: column 'end' is 'nan'"),
        ("file,speaker,label,end\na.wav,s,sad,0\n", r"line 2: column 'end' is 0\.0.*more than start, 0\.0"),
        ("file,speaker,label,start,end\na.wav,s,sad,2,1\n", r"line 2: column 'end' is 1\.0.*start, 2\.0"),
    ],
)
def test_manifest_csv_refuses_bad_rows(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"table\.csv.*{message}"):
        manifest(table(tmp_path, text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"it must be one JSON object"),
        ("[" * 100_000, r"maximum recursion depth.*; it must be one JSON object"),
        ('{"file": "a", "speaker": ' + "1" * 5000 + "}", r"5000 digits; it must be one JSON object"),
        ('{"file": "a\\u0000", "speaker": "s", "label": "l"}', r"column 'file' is 'a\\x00'"),
        ('{"file": "a\\ud800", "speaker": "s", "label": "l"}', r"column 'file' is 'a\\ud800'"),
        ('{"file": "a", "speaker": "s", "lable": "l"}', r"column 'label' is missing \(the closest is 'lable'\)"),
        ("[1]", r"value is \[1\]; it must be a JSON object"),
        ('{"file": "a", "speaker": "s"}', r"column 'label' is missing"),
        ('{"file": "a", "speaker": true, "label": "l"}', r"column 'speaker' is True"),
        ('{"file": "a", "speaker": "s", "label": "l", "start": true}', r"column 'start' is True"),
        ('{"file": "a", "speaker": "s", "label": "l", "end": 1e999}', r"column 'end' is inf"),
        ('{"file": "a", "speaker": "s", "label": "l", "end": [1]}', r"column 'end' is \[1\]"),
    ],
)
def test_manifest_jsonl_refuses_bad_lines(tmp_path, line, message):
    good = '{"file": "a", "speaker": "s", "label": "l"}\n'
    with pytest.raises(ValueError, match=rf"table\.jsonl, line 2: .*{message}"):
        manifest(table(tmp_path, good + line, "table.jsonl"))


def test_manifest_of_values_and_parts(tmp_path):
    text = "file,speaker,value,part\na.wav,s1,-0.4,train\nb.wav,s2,1,test\n"
    corpus = manifest(table(tmp_path, text))
    assert corpus.classes == []
    assert corpus.utterances == [
        Utterance("a.wav", "s1", "", tmp_path / "a.wav", value=-0.4, part="train"),
        Utterance("b.wav", "s2", "", tmp_path / "b.wav", value=1.0, part="test"),
    ]
    rows = [
        {"file": "a.wav", "speaker": "s1", "value": -0.4, "part": "train"},
        {"file": "b.wav", "speaker": "s2", "value": 1, "part": "test"},
    ]
    assert manifest(table(tmp_path, "\n".join(map(json.dumps, rows)), "table.jsonl")) == corpus

    labelled = "file,speaker,label,part\na.wav,s1,sad,valid\nb.wav,s2,froh,valid\n"
    assert [u.part for u in manifest(table(tmp_path, labelled)).utterances] == ["valid", "valid"]
    undivided = "file,speaker,value,part\na.wav,s1,0,\n"
    assert manifest(table(tmp_path, undivided)).utterances[0].part is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,speaker,label,value\na.wav,s,sad,1\n", r"line 2: has 'label' in a table of 'value'; it must be one"),
        ("file,speaker,value\na.wav,s,\n", r"line 2: column 'value' is ''; it must be a finite number"),
        ("file,speaker,value\na.wav,s\n", r"line 2: column 'value' is missing; it must be a finite number"),
        ("file,speaker,value\na.wav,s,0\nb.wav,s,inf\n", r"line 3: column 'value' is 'inf'"),
        (
            "file,speaker,value,part\na.wav,s,0,held out\n",
            r"line 2: column 'part' is 'held out'; it must be one of train, valid, test, training, dev",
        ),
        ("file,speaker,value,part\na.wav,s,0,train\nb.wav,s,0,\n", r"1 of 2 utterances without a part, such as b"),
    ],
)
def test_manifest_refuses_bad_values_and_parts(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        manifest(table(tmp_path, text))


@pytest.mark.parametrize(("cells", "scale"), [(("3", "3"), 3), (("1", "1"), 1), (("", ""), 0)])
def test_manifest_declares_a_sentiment_scale(cells, scale, tmp_path):
    rows = [f"{name}.wav,s,{value},{cell}" for name, value, cell in zip("ab", (-0.5, 1), cells)]
    corpus = manifest(table(tmp_path, "\n".join(["file,speaker,value,sentiment_scale", *rows])))
    assert corpus.sentiment_scale == scale
    write_manifest(corpus, tmp_path / "again.csv")
    assert manifest(tmp_path / "again.csv").sentiment_scale == scale


@pytest.mark.parametrize(
    ("cells", "message"),
    [(("3", "1"), "line 3: .* is 1; it must be 1 in every row"), (("2", "2"), "line 2: .* is 2; it must be 1 in every"),
     (("1", ""), "line 3: .* is 0"), (("x", "1"), "is 'x'; it must be 1 or 3"), (("nan", "1"), "is 'nan'; it must be 1"),
     (("1", "1"), "has the value 2.0; it must be in -1..1, the sentiment scale")],
)  # fmt: skip
def test_manifest_refuses_other_sentiment_scales(cells, message, tmp_path):
    rows = [f"{name}.wav,s,{value},{cell}" for name, value, cell in zip("ab", (-0.5, 2), cells)]
    with pytest.raises(ValueError, match=message):
        manifest(table(tmp_path, "\n".join(["file,speaker,value,sentiment_scale", *rows])))


def test_manifest_jsonl_refuses_labels_beside_values(tmp_path):
    lines = '{"file": "a", "speaker": "s", "label": "l"}\n{"file": "b", "speaker": "s", "value": 1}'
    with pytest.raises(ValueError, match="line 2: has 'value' in a table of 'label'"):
        manifest(table(tmp_path, lines, "table.jsonl"))


@pytest.mark.parametrize(
    ("classes", "fields", "message"),
    [
        (["sad"], {"label": "sad", "value": 0.5}, r"has the value 0\.5; it must be None"),
        (["sad"], {"label": "glad"}, r"has the label 'glad'; it must be one of sad"),
        ([], {"label": "sad", "value": 0.5}, r"has the label 'sad'; it must be empty beside a value"),
        ([], {"label": ""}, r"has the value None; it must be a finite number"),
        ([], {"label": "", "value": float("nan")}, r"has the value nan; it must be a finite number"),
        ([], {"label": "", "value": 0.5, "part": "dev"}, r"has the part 'dev'; it must be one of train, valid, test"),
    ],
)
def test_corpus_has_labels_or_values(classes, fields, message):
    with pytest.raises(ValueError, match=rf"corpus 'c': u1 {message}"):
        Corpus("c", [Utterance("u1", "s", **fields)], classes)


RATED = "file,speaker,label,arousal,valence,note\na.wav,s1,joy,4,3.5,x\nb.wav,s2,fear,1.5,-2,y\n"


def as_jsonl(text: str) -> str:
    header, *rows = (line.split(",") for line in text.splitlines())
    numbers = ("arousal", "valence")
    return "".join(
        json.dumps({name: float(cell) if name in numbers else cell for name, cell in zip(header, row)}) + "\n"
        for row in rows
    )


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_manifest_takes_targets(form, tmp_path):
    path = table(tmp_path, RATED if form == "csv" else as_jsonl(RATED), f"table.{form}")
    corpus = manifest(path, ["valence", "arousal"])
    assert (corpus.classes, corpus.targets, labels(corpus)) == ([], ["valence", "arousal"], [(3.5, 4.0), (-2.0, 1.5)])
    assert corpus.utterances[0] == Utterance(
        "a.wav", "s1", "", tmp_path / "a.wav", values={"arousal": 4, "valence": 3.5}
    )
    assert corpus.summary()[1] == "valence from -2 to 3.5; arousal from 1.5 to 4"
    assert load_corpus(str(path), ["valence", "arousal"]) == load_corpus(f"manifest:{path}", ["valence", "arousal"])
    assert manifest(path).classes == ["fear", "joy"], "without targets the labels"


def test_manifest_takes_value_as_a_target(tmp_path):
    """The target "value" beside a label is the same corpus as without the label; its sentiment scale counts."""
    beside = manifest(table(tmp_path, "file,speaker,label,value,sentiment_scale\na.wav,s1,joy,0.5,1\n"), ["value"])
    alone = manifest(table(tmp_path, "file,speaker,value,sentiment_scale\na.wav,s1,0.5,1\n"))
    assert beside == alone and alone.targets == ["value"] and alone.sentiment_scale == 1
    assert (
        manifest(table(tmp_path, "file,speaker,mood,sentiment_scale\na.wav,s1,9,1\n"), ["mood"]).sentiment_scale == 0
    )


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("targets", "change", "message"),
    [
        (["arousl"], None, "targets names 'arousl', which is no column (the closest is 'arousal'); it must be among the columns of numbers: arousal, valence"),
        (["valence", "arousal"], ("3.5", "NaN"), ": column 'valence' is "),
        (["speaker"], None, "targets names 'speaker'; it must be none of file, name, speaker"),
        (["valence", "valence"], None, "targets names 'valence' twice; it must be there once"),
    ],
)  # fmt: skip
def test_manifest_refuses_bad_targets(targets, change, message, form, tmp_path):
    text = RATED if form == "csv" else as_jsonl(RATED)
    if change:
        text = text.replace(*change)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        manifest(table(tmp_path, text, f"table.{form}"), targets)
    if change:
        line = 2 if form == "csv" else 1
        assert f"line {line}:" in str(raised.value) and "it must be a finite number" in str(raised.value)


def test_manifest_refuses_empty_and_repeated_targets(tmp_path):
    with pytest.raises(ValueError, match=r"line 3: column 'valence' is ''; it must be a finite number"):
        manifest(table(tmp_path, RATED.replace("-2", "")), ["valence"])
    with pytest.raises(ValueError, match=r"line 2: column 'note' is 'x'; it must be a finite number"):
        manifest(table(tmp_path, RATED), ["note"])
    with pytest.raises(ValueError, match=r"line 1: column 'arousal' occurs 2 times in .*; it must be there once"):
        manifest(table(tmp_path, RATED.replace("note", "arousal")), ["arousal"])
    with pytest.raises(ValueError, match="it must be among the columns of numbers: there are none"):
        manifest(table(tmp_path, "file,speaker,label\na.wav,s1,joy\n"), ["arousal"])


@pytest.mark.parametrize(("spec", "has"), [("synthetic", "labels"), ("synthetic-sentiment", "the column 'value'")])
def test_load_corpus_refuses_targets_without_columns(spec, has, monkeypatch):
    made = {
        "synthetic": Corpus("c", [Utterance("a", "s", "x", Path("a.wav"))], ["x"]),
        "synthetic_sentiment": Corpus("v", [Utterance("a", "s", "", Path("a.wav"), value=1.0)], []),
    }
    for name, corpus in made.items():
        monkeypatch.setattr(f"ser_fast.data.corpora.synthetic.{name}", lambda corpus=corpus: corpus)
    with pytest.raises(
        ValueError, match=f"targets is arousal, but corpus '{spec}' has {has} only; it must be omitted"
    ):
        load_corpus(spec, ["arousal"])
    assert load_corpus("synthetic-sentiment", ["value"]).targets == ["value"]


def test_write_manifest_keeps_values(tmp_path):
    rated = manifest(table(tmp_path, RATED), ["arousal", "valence"])
    write_manifest(rated, tmp_path / "again.csv")
    assert replace(manifest(tmp_path / "again.csv", rated.targets), name="table") == rated
    partly = [Utterance("a.wav", "s", "x", tmp_path / "a.wav", values={"arousal": 1.5}),
              Utterance("b.wav", "s", "y", tmp_path / "b.wav")]  # fmt: skip
    write_manifest(Corpus("partly", partly, ["x", "y"]), tmp_path / "partly.csv")
    assert (tmp_path / "partly.csv").read_text().split() == [
        "file,speaker,label,arousal",
        "a.wav,s,x,1.5",
        "b.wav,s,y,",
    ]
    with pytest.raises(ValueError, match="targets names 'label'; it must be none of"):
        write_manifest(Corpus("bad", [replace(partly[0], values={"label": 1.0})], ["x"]), tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("classes", "targets", "values", "message"),
    [
        (["x"], ["arousal"], {"arousal": 1.0}, r"has the targets \['arousal'\]; it must be none beside classes"),
        ([], ["arousal"], {"valence": 1.0}, "a has the arousal None; it must be a finite number"),
        (
            [],
            ["arousal", "valence"],
            {"arousal": 1.0, "valence": math.inf},
            "a has the valence inf; it must be a finite",
        ),
        ([], ["flag"], {"flag": 1.0}, "targets names 'flag'; it must be none of"),
    ],
)
def test_corpus_refuses_bad_targets(classes, targets, values, message):
    utterance = Utterance("a", "s", "x" if classes else "", Path("a.wav"), values=values)
    with pytest.raises(ValueError, match=message):
        Corpus("c", [utterance], classes, targets=targets)


def test_corpus_summary(tmp_path):
    """Classes and speakers are counted, and a wrong reading shows at once."""
    corpus = folders(touched(tmp_path, "sad/bob/x.wav", "sad/eve/x.wav", "glad/bob/x.wav", "glad/bob/y.m4a"))
    assert corpus.summary() == [
        f"{tmp_path.name}: 3 utterances of 2 speakers",
        "2 classes: glad 1, sad 2",
        "2 speakers: bob 2, eve 1",
        "passed over 1 of 4 audio files: 1 .m4a (not read; readable: .wav, .flac, .ogg, .opus, .mp3, .aif, .aiff)",
    ]
    values = manifest(table(tmp_path, "file,speaker,value\na.wav,s1,-0.5\nb.wav,s1,1\n")).summary()
    assert values == ["table: 2 utterances of 1 speaker", "values from -0.5 to 1", "1 speaker: s1 2"]


def test_manifest_refuses_other_file_types(tmp_path):
    with pytest.raises(ValueError, match=r"suffix '\.txt'; it must be one of \.csv, \.tsv, \.jsonl"):
        manifest(table(tmp_path, "file,speaker,label\n", "table.txt"))
    (tmp_path / "table.csv").write_bytes("file,speaker,label\nä.wav,s,l\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"table\.csv, line 2: byte 0xe4; it must be UTF-8"):
        manifest(tmp_path / "table.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
def test_manifest_takes_any_line_end(tmp_path, name, end):
    """Old spreadsheets on macOS write CR alone, and a BOM."""
    row = '{"file": "%s", "speaker": "s", "label": "l"}'
    lines = ["file,speaker,label", "a,s,l", "b,s,l"] if name.endswith("csv") else [row % "a", row % "b"]
    (tmp_path / name).write_bytes(("\ufeff" + end.join([*lines, ""])).encode())
    assert [utterance.name for utterance in manifest(tmp_path / name).utterances] == ["a", "b"]


def test_load_corpus_by_kind_and_by_guess(tmp_path):
    db = touched(tmp_path / "db", "wav/03a01Wa.wav", "wav/03a01Fa.wav")
    sorted_db = touched(tmp_path / "sorted", "anger/03a01Wa.wav", "happiness/03a01Fa.wav")
    classes = touched(tmp_path / "classes", "sad/x.wav", "sad/03a01Wa.wav")
    csv = table(tmp_path, "file,speaker,label\na.wav,s,sad\n")

    actors = touched(tmp_path / "actors", "Actor_01/03-01-01-01-01-01-01.wav", "Actor_02/03-01-06-01-02-01-02.wav")
    assert load_corpus(f"ravdess:{actors}") == load_corpus(str(actors)) == ravdess(actors)
    with pytest.raises(ValueError, match="of the song"):
        load_corpus(str(touched(actors, "Actor_02/03-02-06-01-02-01-02.wav")))
    speakers = touched(tmp_path / "CASIA database", "wangzhe/angry/201.wav", "ZhaoQuanyin/sad/201.wav")
    assert load_corpus(f"casia:{speakers}") == load_corpus(str(speakers)) == casia(speakers)
    assert load_corpus(f"emodb:{db}") == load_corpus(str(db)) == emodb(db)
    assert load_corpus(str(sorted_db)).speakers == ["03"]
    assert load_corpus(f"folders:{sorted_db}").speakers == ["unknown"]
    assert load_corpus(f"folders:{classes}") == load_corpus(str(classes)) == folders(classes)
    assert load_corpus(f"manifest:{csv}") == load_corpus(str(csv)) == manifest(csv)


def test_load_corpus_synthetic(monkeypatch):
    corpus = Corpus("synthetic", [], [])
    sentiment = Corpus("synthetic-sentiment", [], [])
    stub = SimpleNamespace(synthetic=lambda: corpus, synthetic_sentiment=lambda: sentiment)
    monkeypatch.setitem(sys.modules, "ser_fast.data.corpora.synthetic", stub)
    monkeypatch.setattr("ser_fast.data.corpora.synthetic", stub, raising=False)
    assert load_corpus("synthetic") is corpus
    assert load_corpus("synthetic-sentiment") is sentiment


@pytest.mark.parametrize(
    "spec", ["", "nope", "savee:x", "ravdess:nope", "casia:nope", "emodb:nope", "folders:nope", "manifest:no.csv"]
)
def test_load_corpus_refuses_missing_paths(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=spec.rpartition(":")[2] or "corpus ''"):
        load_corpus(spec)


def test_load_corpus_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="names no path"):
        load_corpus("emodb:")
    with pytest.raises(ValueError, match=r"is a \.txt file; it must be synthetic"):
        load_corpus(str(table(tmp_path, "", "notes.txt")))
    with pytest.raises(ValueError, match="no audio file"):
        load_corpus(str(touched(tmp_path / "empty", "x.txt").resolve()))


def test_manifest_of_groups(tmp_path):
    text = "file,speaker,label,group\na.wav,s1,sad,Ses01\nb.wav,s2,froh,2\n"
    corpus = manifest(table(tmp_path, text))
    assert [utterance.group for utterance in corpus.utterances] == ["Ses01", "2"]
    assert "2 groups: 2 1, Ses01 1" in corpus.summary()
    rows = [{"file": "a.wav", "speaker": "s1", "label": "sad", "group": "Ses01"},
            {"file": "b.wav", "speaker": "s2", "label": "froh", "group": 2}]  # fmt: skip
    listed = table(tmp_path, "\n".join(map(json.dumps, rows)), "t.jsonl")
    assert manifest(listed).utterances == corpus.utterances
    write_manifest(corpus, tmp_path / "again.csv")
    assert manifest(tmp_path / "again.csv").utterances == corpus.utterances
    without = manifest(table(tmp_path, "file,speaker,label,group\na.wav,s1,sad,\n")).utterances[0]
    assert without.group is None
    with pytest.raises(
        ValueError, match=r"1 of 2 utterances without a group, such as b\.wav; it must be none or all"
    ):
        manifest(table(tmp_path, text.replace(",2\n", ",\n")))


def test_corpus_refuses_uneven_folds():
    one, two = Utterance("a", "s", "sad", folds=("test",)), Utterance("b", "s", "sad", folds=("test", "train"))
    with pytest.raises(ValueError, match="'c' has utterances in 1 and 2 folds; it must be the same number for all"):
        Corpus("c", [one, two], ["sad"])
    with pytest.raises(ValueError, match="a has the part 'dev'; it must be one of train, valid, test"):
        Corpus("c", [Utterance("a", "s", "sad", folds=("dev",))], ["sad"])
