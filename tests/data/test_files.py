"""Names of files, and the search for audio files."""

import os
from collections import Counter
from pathlib import Path

import pytest

from ser_fast.data.corpora import Corpus, Utterance
from ser_fast.data.corpora.manifest import write_manifest
from ser_fast.data.files import Found, passed_over, printable, search

GBK = b"\xc9\xfa\xc6\xf8"  # "angry" in Chinese, which is not UTF-8


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("name", [GBK, b"a\n\x1b[31m.wav", "生气/a b\u00a0\u200d.wav".encode(), "\u202egnp".encode()])
def test_printable_is_reversible(name):
    decoded = os.fsdecode(name)
    printed = printable(Path(decoded))
    assert printable(printed) == printed and printed.encode("utf-8")
    assert os.fsencode(printed.encode("latin-1", "backslashreplace").decode("unicode_escape")) == name


def test_printable_escapes_what_it_must():
    assert printable(os.fsdecode(GBK)) == r"\udcc9\udcfa\udcc6\udcf8"
    assert printable("a\n\x1b\u202e\x85") == r"a\n\x1b\u202e\x85"
    assert printable("C:\\udc00\\生气 \u00a0é.wav") == "C:\\udc00\\生气 \u00a0é.wav"


def test_write_manifest_refuses_names_not_utf8(tmp_path):
    corpus = Corpus("c", [Utterance("u", "s", "l", tmp_path / os.fsdecode(GBK))], ["l"])
    with pytest.raises(ValueError, match=r"file is .*\\udcc9\\udcfa.*; it must be a name in UTF-8"):
        write_manifest(corpus, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_search_counts_other_files(tmp_path):
    names = ("b.wav", "a/z.FLAC", "a/y.mp3", ".hidden.wav", ".git/x.wav", "c.WMA", "a/d.wma", "e.x.m4a", "README")
    touch(tmp_path, *names)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    found = search(tmp_path)
    # A dangling link is a file that cannot be read; it must not vanish from its class.
    assert found.audio == [tmp_path / name for name in ("a/y.mp3", "a/z.FLAC", "b.wav", "gone.wav")]
    assert found.others == {".wma": 2, ".m4a": 1, "": 1} and found.closed == []


def test_search_visits_every_folder_once(tmp_path):
    """Links to a folder above, to itself by another name, and to a neighbour; real names win over linked ones."""
    touch(tmp_path, "d/x.wav", "d/e/y.wav", "elsewhere/z.wav")
    (tmp_path / "d" / "a").symlink_to(".")
    (tmp_path / "d" / "b").symlink_to("..")
    (tmp_path / "d" / "c").symlink_to("e")
    (tmp_path / "d" / "e" / "f").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "g").symlink_to(tmp_path / "d")
    found = [str(path.relative_to(tmp_path / "d")) for path in search(tmp_path / "d").audio]
    # "b" leads above the folder, where "elsewhere" is under its real name.
    assert found == ["b/elsewhere/z.wav", "e/y.wav", "x.wav"]


def test_search_names_closed_folders(tmp_path, monkeypatch):
    touch(tmp_path, "a.wav", "lost+found/b.wav")
    closed = str(tmp_path / "lost+found")

    def scandir(folder, old=os.scandir):
        if os.fspath(folder) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return old(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert search(tmp_path) == Found([tmp_path / "a.wav"], closed=[Path(closed)])


@pytest.mark.parametrize(
    ("audio", "others", "closed", "sentence"),
    [
        (45, {".txt": 45, ".csv": 1, ".textgrid": 45, "": 2}, [], ""),
        (27, {".wma": 18, ".txt": 3}, [], r"passed over 18 of 45 audio files: 18 .wma (not read; readable: .wav, "),
        (0, {".m4a": 1, ".aac": 2, ".mp4": 3}, [], "passed over 6 of 6 audio files: 3 .mp4, 2 .aac, 1 .m4a (not "),
        (9, {".bak": 1, ".x\udcd6": 2}, [], r"passed over 3 other files: 2 .x\udcd6, 1 .bak"),
        (9, {}, [Path("a\udcd6")], r"passed over 1 folder that cannot be opened: a\udcd6"),
        (9, {f".{i}": 9 - i for i in range(7)}, [], "passed over 42 other files: 9 .0, 8 .1, 7 .2, 6 .3, 5 .4, ..."),
    ],
)
def test_passed_over(audio, others, closed, sentence):
    found = passed_over(Found([Path("a.wav")] * audio, Counter(others), closed))
    assert found.startswith(sentence) and bool(found) == bool(sentence)
