"""Names of the audio to predict."""

import io
import json
import os

import pytest

from ser_fast.prediction.listing import Item, check, listing


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_listing_walks_folders_in_order(tmp_path):
    """Hidden files are skipped, linked folders come last and once, and what is passed over is counted."""
    touch(tmp_path, "b/2.wav", "b/1.flac", "b.wav", "a/c/x.wav", ".git/h.wav", "a/.h.wav", "a/v.wma", "other/o.wav")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "0").symlink_to(tmp_path / "other")
    lines = []
    found = [os.path.relpath(item.file, tmp_path) for item in listing([tmp_path], lines.append)]
    assert found == ["a/c/x.wav", "b/1.flac", "b/2.wav", "b.wav", "other/o.wav"]
    assert len(lines) == 1 and "passed over 1 of 6 audio files: 1 .wma" in lines[0]


def test_listing_goes_on_after_what_is_missing(tmp_path):
    touch(tmp_path, "empty/readme.wma", "a.wav")
    found = list(listing(["nowhere", tmp_path / "empty", tmp_path / "a.wav"]))
    assert found[0] == Item("nowhere", error="no such file or folder") and found[2] == Item(str(tmp_path / "a.wav"))
    assert found[1].error.startswith("no audio file in this folder") and "1 .wma" in found[1].error


def test_listing_reads_standard_input():
    assert list(listing(["-"], stdin=io.StringIO("a b.wav\r\n\nc.wav"))) == [Item("a b.wav"), Item("c.wav")]
    assert list(listing(["-"], stdin=io.BytesIO(b"\xd6.wav\n"))) == [Item(os.fsdecode(b"\xd6.wav"))]


def rows(*extra):
    return [{"file": "a.wav", "start": 0.5, "end": 2}, {"file": "b.wav", "start": None, "end": None}, *extra]


def write(path, suffix):
    path = path / f"list{suffix}"
    if suffix == ".txt":
        path.write_text("a.wav\nb.wav\n")
    elif suffix == ".csv":
        path.write_text("file,label,start,end\na.wav,x,0.5,2\nb.wav,x,,\n")
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows())))
    else:
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        table = arrow.table({"path": ["a.wav", "b.wav"], "start": [0.5, None], "end": [2.0, None]})
        parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_listing_reads_lists(suffix, tmp_path):
    """Names are relative to the folder of the list."""
    path = write(tmp_path, suffix)
    a, b = str(tmp_path / "a.wav"), str(tmp_path / "b.wav")
    span = (None, None) if suffix == ".txt" else (0.5, 2.0)
    assert list(listing([path])) == [Item(a, *span), Item(b)]
    assert check([str(path)]) == (suffix != ".txt")


def test_check_finds_spans_of_later_objects(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('[]\n{"file": "a.wav"}\n{"file": "a.wav", "end": 1}\n')
    assert check([str(path)])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"file": 3}', "column 'file' is 3; it must be a name"),
        ('{"name": "a.wav"}', "column 'file' is None; it must be a name"),
        ('{"file": "a.wav", "start": "soon"}', "start is 'soon'; it must be a number of seconds >= 0"),
        ('{"file": "a.wav", "end": -1}', "end is -1; it must be a number of seconds >= 0"),
        ("[]", "not a JSON object"),
        ("{", "not a JSON object"),
    ],
)
def test_listing_goes_on_after_bad_rows(line, error, tmp_path):
    (tmp_path / "list.jsonl").write_text(f'{line}\n{{"file": "b.wav"}}\n')
    first, second = listing([tmp_path / "list.jsonl"])
    assert first.error == error and second == Item(str(tmp_path / "b.wav"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "mark"), [("list.csv", ";"), ("list.csv", "\t"), ("list.tsv", "\t"), ("list.csv", ",")]
)
def test_listing_reads_tables_of_spreadsheets(tmp_path, name, mark, encoding):
    rows = [["path", "start", "note"], ["ü.wav", "0.5", '"a, b; c"'], ["b.wav", "", ""]]
    (tmp_path / name).write_bytes("\r\n".join(map(mark.join, rows)).encode(encoding))
    found = [Item(str(tmp_path / "ü.wav"), 0.5), Item(str(tmp_path / "b.wav"))]
    assert list(listing([tmp_path / name])) == found and check([str(tmp_path / name)])


def test_listing_keeps_rows_with_stray_quotes_between_tabs(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text('file\tsentence\n000.wav\t"oops\n001.wav\tfine\n002.wav\tsaid "so"\n003.wav\t"Hi" he said\n')
    assert list(listing([path])) == [Item(str(tmp_path / f"00{number}.wav")) for number in range(4)]
    path.write_text('file\tnote\n"a\tb.wav"\t"one\ntwo"\n')
    assert list(listing([path])) == [Item(str(tmp_path / "a\tb.wav"))]


def test_check_refuses_an_open_quote(tmp_path):
    """It would take all rows up to the end of the table into one cell."""
    path = tmp_path / "list.csv"
    path.write_text('file,sentence\na.wav,x\nb.wav,"oops\nc.wav,fine\n')
    with pytest.raises(
        ValueError, match=r"list\.csv, line 3: unexpected end of data; it must be values separated by"
    ):
        check([str(path)])


@pytest.mark.parametrize("top", ["", " \n", ",,,\n", "sep=;\n"])
def test_listing_finds_the_header_and_its_separator(tmp_path, top):
    """Names decide, ``path`` too; a decimal comma is one where semicolons separate."""
    path = tmp_path / "list.csv"
    path.write_text(f"{top}path;a, b, c, d;start\nx, y.wav;1;0,5\n;;\nz.wav\n")
    assert list(listing([path])) == [Item(str(tmp_path / "x, y.wav"), 0.5), Item(str(tmp_path / "z.wav"))]
    path.write_text("path;start\nx.wav;0,5s\n")
    assert [item.error for item in listing([path])] == ["start is '0,5s'; it must be a number of seconds >= 0"]


def test_listing_refuses_utf16_without_a_mark(tmp_path):
    (tmp_path / "list.csv").write_bytes("file,start\na.wav,1\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"line 1: byte 0x00; it must be UTF-8, or UTF-16 with a byte order mark"):
        check([str(tmp_path / "list.csv")])


def test_listing_refuses_tables_without_names(tmp_path):
    (tmp_path / "list.csv").write_text("File,label\na.wav,x\n")
    found = r"has the columns File, label \(the closest is 'File'\); it must be a table with 'file' or 'path'"
    with pytest.raises(ValueError, match=found):
        check([str(tmp_path / "list.csv")])
    (tmp_path / "list.parquet").write_text("no table")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"list\.parquet: not readable as Parquet"):
        check([str(tmp_path / "list.parquet")])
