"""CREMA-D, TESS, SAVEE and MELD as their owners release them, from made-up trees; and how a folder is recognised."""

import json
import os
import re
from pathlib import Path

import pytest

from ser_fast.data.corpora import load_corpus
from ser_fast.data.corpora.cremad import cremad
from ser_fast.data.corpora.meld import meld
from ser_fast.data.corpora.savee import savee
from ser_fast.data.corpora.tess import tess
from ser_fast.data.dataset import split_corpus

DATA = Path(os.environ.get("SER_FAST_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_emobox = pytest.mark.skipif(not (DATA / "emobox").is_dir(), reason=f"EmoBox's lists are not in {DATA}")


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def seen(corpus) -> list[tuple[str, str, str]]:
    return [(one.name, one.speaker, one.label) for one in corpus.utterances]


CREMAD = ["1001_DFA_ANG_XX.wav", "1091_IEO_SAD_LO.wav", "1040_ITH_SAD_X.wav", "1002_WSI_NEU_XX.wav"]
TESS = ["OAF_angry/OAF_back_angry.wav", "YAF_pleasant_surprised/YAF_lid_ps.wav", "OAF_neutral/OA_bite_neutral.wav"]
SAVEE = ["DC/a01.wav", "KL/su15.wav", "JE/sa02.wav", "JE/n30.wav"]


@pytest.mark.parametrize("folder", ["", "AudioWAV/"])
def test_cremad_names(tmp_path, folder):
    touched(tmp_path, *(f"{folder}{name}" for name in CREMAD), "README.md")
    if folder:  # the release has the same names as MP3
        touched(tmp_path, *(f"AudioMP3/{Path(name).stem}.mp3" for name in CREMAD))
    corpus = load_corpus(f"cremad:{tmp_path}")
    assert (corpus.name, corpus.classes) == ("cremad", ["anger", "neutral", "sadness"])
    assert seen(corpus) == [
        ("1001_DFA_ANG_XX", "1001", "anger"),
        ("1002_WSI_NEU_XX", "1002", "neutral"),
        ("1040_ITH_SAD_X", "1040", "sadness"),
        ("1091_IEO_SAD_LO", "1091", "sadness"),
    ]


def test_tess_names(tmp_path):
    corpus = load_corpus(f"tess:{touched(tmp_path, *TESS)}")
    assert (corpus.name, corpus.classes) == ("tess", ["anger", "neutral", "surprise"])
    assert seen(corpus) == [
        ("OAF_back_angry", "OAF", "anger"),
        ("OAF_bite_neutral", "OAF", "neutral"),
        ("YAF_lid_ps", "YAF", "surprise"),
    ]


@pytest.mark.parametrize("form", ["AudioData/{}", "{}", "ALL/{flat}", "{flat}"])
def test_savee_names(tmp_path, form):
    names = [form.format(name, flat=name.replace("/", "_")) for name in SAVEE]
    corpus = load_corpus(f"savee:{touched(tmp_path, *names)}")
    assert (corpus.name, corpus.classes) == ("savee", ["anger", "neutral", "sadness", "surprise"])
    assert sorted(seen(corpus)) == [
        ("DC_a01", "DC", "anger"),
        ("JE_n30", "JE", "neutral"),
        ("JE_sa02", "JE", "sadness"),
        ("KL_su15", "KL", "surprise"),
    ]
    assert load_corpus(str(tmp_path)) == corpus


@needs_emobox
@pytest.mark.parametrize(
    ("name", "read", "speakers", "each"), [("tess", tess, 2, {400}), ("savee", savee, 4, {60, 120})]
)
def test_owners_names_are_those_that_emobox_lists(tmp_path, name, read, speakers, each):
    listed = [json.loads(line) for line in (DATA / "emobox" / name / f"{name}.jsonl").read_text().splitlines()]
    corpus = read(touched(tmp_path, *(Path(row["wav"]).name for row in listed)))
    codes = {Path(row["wav"]).stem: row["emo"] for row in listed}
    assert len(corpus.utterances) == len(listed) and len(corpus.speakers) == speakers and len(corpus.classes) == 7
    assert len({(codes[one.path.stem], one.label) for one in corpus.utterances}) == 7, "one class for each code"
    counts = {sum(one.label == label for one in corpus.utterances) for label in corpus.classes}
    assert counts == each


@pytest.mark.parametrize(
    ("read", "good", "stray", "fault"),
    [
        (cremad, CREMAD[0], "1001_DFA_SUR_XX.wav", "not named like 1001_DFA_ANG_XX.wav; it must be CREMA-D's"),
        (cremad, CREMAD[0], "x/101_DFA_ANG_XX.wav", "not named like 1001_DFA_ANG_XX.wav"),
        (tess, TESS[0], "XAF_back_angry.wav", "not named like OAF_back_angry.wav; it must be TESS's"),
        (tess, TESS[0], "OAF_angry/back.wav", "not named like OAF_back_angry.wav"),
        (savee, SAVEE[0], "AB_a01.wav", "not named like DC/a01.wav or DC_a01.wav; it must be SAVEE's"),
        (savee, SAVEE[0], "a01.wav", "not named like DC/a01.wav or DC_a01.wav"),
        (cremad, CREMAD[0], TESS[0], "not named like 1001"),
    ],
)
def test_owners_names_refuse_strays(tmp_path, read, good, stray, fault):
    with pytest.raises(ValueError, match=re.escape(f"has 1 file ({stray}) {fault}")):
        read(touched(tmp_path, good, stray))


@pytest.mark.parametrize("read", [cremad, tess, savee])
def test_owners_names_refuse_repetition_and_nothing(tmp_path, read):
    name = {cremad: CREMAD[0], tess: "OAF_back_angry.wav", savee: "DC_a01.wav"}[read]
    with pytest.raises(ValueError, match=rf"\({Path(name).stem}\) more than once; it must be a folder without"):
        read(touched(tmp_path / "twice", f"one/{name}", f"two/{name}"))
    with pytest.raises(ValueError, match="no audio file in this folder"):
        read(touched(tmp_path / "none", "x.txt"))
    with pytest.raises(FileNotFoundError, match="is not an existing folder; it must be"):
        read(tmp_path / "nowhere")


HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def meld_tree(root: Path, suffix: str = ".wav", count: int = 4, nested: bool = True) -> Path:
    """MELD with some utterances in each part, tables and folders as in the release or all in one folder."""
    for part, folder in FOLDERS.items():
        above = root / "train" if nested and part == "train" else root
        rows = [f'{i + 1},"Oh, no; “{i}”",{("Joey", "Rachel")[i % 2]},{("joy", "anger")[i % 2]},x,{i},7,1,1,"00:00:01,2",z'
                for i in range(count)]  # fmt: skip
        above.mkdir(parents=True, exist_ok=True)
        (above / f"{part}_sent_emo.csv").write_text(HEADER + "\n".join(rows) + "\n")
        touched(above / folder, *(f"dia{i}_utt7{suffix}" for i in range(count)), "._dia0_utt7.mp4")
    return touched(root, "output_repeated_splits_test/final_videos_testdia1_utt7.mp4", "README.txt")


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_meld_has_parts_and_speakers(tmp_path, suffix, nested):
    corpus = load_corpus(f"meld:{meld_tree(tmp_path, suffix, nested=nested)}")
    assert (corpus.name, corpus.classes, corpus.speakers) == ("meld", ["anger", "happiness"], ["Joey", "Rachel"])
    assert seen(corpus)[:2] == [("train/dia0_utt7", "Joey", "happiness"), ("train/dia1_utt7", "Rachel", "anger")]
    assert [one.part for one in corpus.utterances] == ["train"] * 4 + ["valid"] * 4 + ["test"] * 4
    assert not corpus.passed_over and load_corpus(str(tmp_path)) == corpus
    assert split_corpus(corpus).protocol.startswith(
        "the corpus's own test part, speakers shared (2 of 2); best epoch"
    )


def test_meld_prefers_audio_and_passes_over_the_rest(tmp_path):
    meld_tree(tmp_path)
    touched(tmp_path / "train/train_splits", *(f"dia{i}_utt7.mp4" for i in range(4)))
    (tmp_path / "train/train_splits/dia2_utt7.wav").unlink()
    (tmp_path / "dev_splits_complete/dia1_utt7.wav").unlink()
    corpus = meld(tmp_path)
    assert len(corpus.utterances) == 10 and {one.path.suffix for one in corpus.utterances} == {".wav"}
    found = (
        "passed over 2 of 12 utterances (train/dia2_utt7, valid/dia1_utt7), of which 1 are .mp4 alone and 1 missing"
    )
    assert corpus.passed_over == found and corpus.summary()[-1] == found


@pytest.mark.parametrize("spec", ["meld:{}", "{}"])
def test_meld_of_films_names_the_command(tmp_path, spec):
    meld_tree(tmp_path, ".mp4")
    found = re.escape(
        "has no audio of 12 of 12 utterances (train/dia0_utt7, train/dia1_utt7, train/dia2_utt7, train/dia3_utt7, "
        "valid/dia0_utt7, ...), of which 12 are .mp4 alone and 0 missing; it must be audio, for films are not read; "
        f"this command extracts it: find {tmp_path} -name '*.mp4' -exec sh -c 'ffmpeg "
    )
    with pytest.raises(ValueError, match=found):
        load_corpus(spec.format(tmp_path))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda root: (root / "dev_sent_emo.csv").unlink(), r"holds no dev_sent_emo\.csv; it must be MELD\.Raw"),
        (lambda root: (root / "train/train_splits").rename(root / "x"), r"holds no train_splits; it must be MELD\.Raw"),
        (lambda root: (root / "test_sent_emo.csv").write_text("Speaker,Emotion,Dialogue_ID\nJoey,joy,1\n"),
         r"test_sent_emo\.csv, line 2: column 'Utterance_ID' is missing"),
        (lambda root: (root / "test_sent_emo.csv").write_text(HEADER + "1,x,Joey,bliss,x,0,7,1,1,a,b\n"),
         r"test_sent_emo\.csv, line 2: column 'Emotion' is 'bliss'; it must be one of anger, disgust"),
        (lambda root: (root / "test_sent_emo.csv").write_text(HEADER + "1,x,,joy,x,0,7,1,1,a,b\n"),
         r"test_sent_emo\.csv, line 2: column 'Speaker' is ''; it must be a text"),
    ],
)  # fmt: skip
def test_meld_refuses_broken_trees(tmp_path, edit, message):
    edit(meld_tree(tmp_path))
    with pytest.raises(ValueError, match=message):
        meld(tmp_path)


def test_meld_refuses_a_download_that_ended(tmp_path):
    """Six missing files are more than the release lacks."""
    meld_tree(tmp_path, count=20)
    for i in range(6):
        (tmp_path / f"train/train_splits/dia{i}_utt7.wav").unlink()
    with pytest.raises(ValueError, match=r"has no audio of 6 of 60 utterances .* 0 are \.mp4 alone and 6 missing"):
        meld(tmp_path)


@pytest.mark.parametrize(("kind", "names"), [("cremad", CREMAD), ("tess", TESS), ("savee", SAVEE)])
def test_load_corpus_recognises_owners_names(tmp_path, kind, names):
    touched(tmp_path, *names)
    corpus = load_corpus(str(tmp_path))
    assert corpus.name == kind and corpus == load_corpus(f"{kind}:{tmp_path}")
    touched(tmp_path, "extra.wav")
    message = f"has {len(names) + 1} audio files, {len(names)} as in {kind}, but not extra.wav; it must be named: "
    with pytest.raises(ValueError, match=re.escape(f'{message}--data="{kind}:{tmp_path}" or --data="folders:')):
        load_corpus(str(tmp_path))


def test_load_corpus_refuses_folders_that_fit_two_corpora(tmp_path):
    """CASIA is recognised by its folders, the others by the names of the files."""
    touched(tmp_path, *(f"wangzhe/angry/{name}" for name in CREMAD))
    with pytest.raises(
        ValueError, match="4 audio files, 4 as in casia, 4 as in cremad; it must be named: "
    ) as raised:
        load_corpus(str(tmp_path))
    assert all(f'--data="{kind}:{tmp_path}"' in str(raised.value) for kind in ("casia", "cremad", "folders"))


def test_load_corpus_takes_classes_where_few_names_fit(tmp_path):
    corpus = load_corpus(str(touched(tmp_path, f"sad/{CREMAD[0]}", "sad/x.wav", "happy/y.wav")))
    assert corpus.classes == ["happy", "sad"]
