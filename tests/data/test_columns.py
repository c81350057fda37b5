"""Tables as people have them: their own names of columns, other separators and encodings, names of parts."""

import json
import shlex

import pytest

from ser_fast.data.corpora import load_corpus, takes_columns
from ser_fast.data.corpora.columns import parse_columns
from ser_fast.data.corpora.manifest import manifest

OURS = [["file", "speaker", "label", "part"], ["a.wav", "s1", "sad", "train"], ["ü.wav", "s2", "so; so, so", "test"]]


def written(path, rows, mark=",", encoding="utf-8", end="\r\n"):
    quoted = [[f'"{cell}"' if set(cell) & set(",; ") else cell for cell in row] for row in rows]
    path.write_bytes((end.join(map(mark.join, quoted)) + end).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_manifest_reads_any_separator_and_encoding(tmp_path, name, mark, encoding):
    path = written(tmp_path / name, OURS, mark, encoding)
    if encoding in ("utf-16-le", "utf-16-be"):  # without the mark they cannot be told from UTF-8
        path.write_bytes("\ufeff".encode(encoding) + path.read_bytes())
    corpus = load_corpus(str(path))
    assert [(u.name, u.speaker, u.label, u.part) for u in corpus.utterances] == [
        ("a.wav", "s1", "sad", "train"),
        ("ü.wav", "s2", "so; so, so", "test"),
    ]
    assert corpus == load_corpus(f"manifest:{path}")


def test_manifest_leaves_out_what_spreadsheets_add(tmp_path):
    rows = [[*row, "", ""] for row in OURS] + [[""] * 6] * 3
    assert manifest(written(tmp_path / "t.csv", rows, ";")) == manifest(written(tmp_path / "t.csv", OURS))


def test_manifest_takes_the_separator_of_the_header(tmp_path):
    """A header decides by its known names, however many other separators its cells and the rows have."""
    rows = [["file", "speaker", '"a,b,c,d,e"', "label"], ["a,1,2,3,4.wav", "s,1", "x", "sad"]]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(map(";".join, rows)))
    only = manifest(path).utterances[0]
    assert (only.name, only.speaker, only.label) == ("a,1,2,3,4.wav", "s,1", "sad")


def test_manifest_refuses_other_encodings(tmp_path):
    path = written(tmp_path / "t.csv", OURS, encoding="latin-1")
    with pytest.raises(ValueError, match=r"t\.csv, line 3: byte 0xfc; it must be UTF-8, or UTF-16 with a byte order"):
        manifest(path)
    path.write_bytes(b"\xff\xfef\x00i\x00l")
    with pytest.raises(ValueError, match=r"t\.csv, line 1: byte .*; it must be UTF-8, or UTF-16"):
        manifest(path)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_manifest_refuses_utf16_without_a_mark(tmp_path, name, encoding):
    text = "file,speaker,label\na,s,l\n" if name == "t.csv" else '{"file": "a", "speaker": "s", "label": "l"}'
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(
        ValueError, match=rf"{name}, line 1: byte 0x00; it must be UTF-8, or UTF-16 with a byte order"
    ):
        manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("top", "mark"),
    [(" \n", ";"), ("\r\n,,\r\n", ";"), (";;\n", ","), ("sep=;\n", ";"), ('"SEP=;"\r\n', ";"), ("sep=|\n", "|"),
     ("sep=\t\n\n", "\t")],
)  # fmt: skip
def test_manifest_finds_the_header_below_other_lines(tmp_path, top, mark):
    rows = [["file", "speaker", "label"], ["a, b.wav", "s", "sad"], ["c.wav", "", "sad"]]
    path = tmp_path / "t.csv"
    path.write_bytes((top + "\n".join(map(mark.join, [[f'"{cell}"' for cell in row] for row in rows]))).encode())
    with pytest.raises(ValueError, match=rf"t\.csv, line {top.count(chr(10)) + 3}: column 'speaker' is ''"):
        manifest(path)
    path.write_text(path.read_text().replace('""', '"s"'))
    assert [one.name for one in manifest(path).utterances] == ["a, b.wav", "c.wav"]
    path.write_text(path.read_text().replace("speaker", "speakr"))
    with pytest.raises(
        ValueError, match=rf"t\.csv, line {path.read_text().count(chr(10)) - 1}: column 'speaker' occurs 0"
    ):
        manifest(path)


@pytest.mark.parametrize(
    "sentences",
    [['"Hello" he said', "fine"], ['"oops', "fine"], ['"oops', 'the end"'], ["fine", 'the "end'], ['"', '"'],
     ['"whole"', "it's"]],
)  # fmt: skip
def test_manifest_reads_quotes_of_tabs_as_text(tmp_path, sentences):
    """Tables such as Common Voice's separate by tabs and quote nothing; every row is there, with its label."""
    rows = [
        ["file", "speaker", "sentence", "label"],
        *([f"{n}.wav", "s", one, "sad"] for n, one in enumerate(sentences)),
    ]
    path = tmp_path / "cv.tsv"
    path.write_text("\n".join(map("\t".join, rows)))
    assert [(one.name, one.label) for one in manifest(path).utterances] == [("0.wav", "sad"), ("1.wav", "sad")]


def test_manifest_reads_quoted_cells_of_tabs(tmp_path):
    """Cells in quotes may contain a tab or a line end, as a spreadsheet exports them."""
    path = tmp_path / "t.tsv"
    path.write_text('file\tspeaker\tlabel\n"a\tb.wav"\t"s ""1"""\tsad\nb.wav\ts\t"sad\nor so"\n')
    first, second = manifest(path).utterances
    assert (first.path.name, first.speaker, second.label) == ("a\tb.wav", 's "1"', r"sad\nor so")


def test_manifest_reads_decimal_commas_between_semicolons(tmp_path):
    rows = ["file;speaker;label;start;end;mood", "a.wav;1,5;2,5;0,25;1,5E+01;-0,5", "b.wav;s;x;1.5;;+1,25"]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows))
    first, second = manifest(path, columns="group=mood").utterances
    assert (first.speaker, first.label, first.start, first.end, first.group) == ("1,5", "2,5", 0.25, 15.0, "-0,5")
    assert (second.start, second.end) == (1.5, None)
    assert [one.values for one in manifest(path, ["mood"]).utterances] == [{"mood": -0.5}, {"mood": 1.25}]
    path.write_text("\n".join(rows).replace("0,25", "1.000,25"))
    with pytest.raises(ValueError, match=r"line 2: column 'start' is '1\.000,25'"):
        manifest(path)
    path.write_text("\n".join(rows).replace(";", "\t"))
    with pytest.raises(ValueError, match="line 2: column 'start' is '0,25'"):
        manifest(path)


THEIRS = [["path", "emotion", "spk", "set", "label"], ["a.wav", "sad", "s1", "Training", "7"],
          ["b.wav", "froh", "s2", "dev", "8"], ["c.wav", "froh", "s3", "eval", "9"]]  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_manifest_takes_other_names_of_columns(tmp_path, form):
    path = tmp_path / f"t.{form}"
    if form == "jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(THEIRS[0], row))) for row in THEIRS[1:]))
    else:
        written(path, THEIRS, "\t" if form == "tsv" else ",")
    corpus = load_corpus(str(path), columns="file=path,label=emotion,speaker=spk,split=set")
    assert [(u.name, u.speaker, u.label, u.part) for u in corpus.utterances] == [
        ("a.wav", "s1", "sad", "train"),
        ("b.wav", "s2", "froh", "valid"),
        ("c.wav", "s3", "froh", "test"),
    ]
    assert corpus == manifest(path, columns={"file": "path", "label": "emotion", "speaker": "spk", "part": "set"})


def test_columns_may_name_one_column_twice_and_choose_the_target(tmp_path):
    rows = [["file", "speaker", "label", "value"], ["a.wav", "s1", "sad", "0.5"]]
    path = written(tmp_path / "t.csv", rows)
    with pytest.raises(ValueError, match="has 'label' in a table of 'value'"):
        manifest(path)
    assert manifest(path, columns="label=label,group=speaker").utterances[0].group == "s1"
    assert manifest(path, columns="label=label").classes == ["sad"]
    assert manifest(path, columns="value=value").utterances[0].value == 0.5
    assert manifest(path, ["value"], columns="label=label").utterances[0].label == ""


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_columns_refuse_names_that_the_table_lacks(tmp_path, form):
    path = tmp_path / f"t.{form}"
    path.write_text('{"Path": "a", "spk": "s", "label": "l"}' if form == "jsonl" else "Path,spk,label\na,s,l\n")
    message = (
        r"columns names 'path' for 'file', which is no column \(the closest is 'Path'\); it must be one of Path, spk"
    )
    with pytest.raises(ValueError, match=message):
        manifest(path, columns="file=path,speaker=spk")


HOLES = [
    ({"lab": ""}, "column 'lab' (label) is ''; it must be a text that is not empty"),
    ({"f": " "}, "column 'f' (file) is ' '"),
    ({"spk": ""}, "column 'spk' (speaker) is ''"),
    ({"from": "soon"}, "column 'from' (start) is 'soon'; it must be a number of seconds >= 0"),
    ({"from": "2", "to": "1"}, "column 'to' (end) is 1.0; it must be more than start, 2.0"),
    ({"set": "later"}, "column 'set' (part) is 'later'; it must be one of train"),
    ({"group": "x" * 5000}, "column 'group' is 'xxx"),
]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(("change", "message"), HOLES)
def test_manifest_errors_name_the_columns_of_the_table(tmp_path, form, change, message):
    columns = "file=f,label=lab,speaker=spk,start=from,end=to,split=set,group=group"
    good = {"f": "a", "lab": "sad", "spk": "s", "from": "", "to": "", "set": "train", "group": "g", "label": "7"}
    rows, path = [good, good | change], tmp_path / f"t.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        written(path, [list(good), *map(lambda row: list(row.values()), rows)])
    with pytest.raises(ValueError) as error:
        manifest(path, columns=columns)
    assert f"t.{form}, line {2 if form == 'jsonl' else 3}: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [("label=emotion", "line 1: column 'emotion' (label) is missing (the closest is 'emotions')"),
     ("value=emotion", "line 1: column 'emotion' (value) is missing"),
     ("value=score,sentiment_scale=scale", "line 2: column 'scale' (sentiment_scale) is 2")],
)  # fmt: skip
def test_manifest_jsonl_errors_name_missing_columns(tmp_path, columns, message):
    """A column ``label`` of the table is another one than that which ``columns`` names."""
    first = {"file": "a", "speaker": "s", "label": "7", "emotions": "sad", "score": 1, "scale": 1}
    rows = [first, {"file": "b", "speaker": "s", "label": "8", "emotion": "sad", "score": 1, "scale": 2}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError) as error:
        manifest(tmp_path / "t.jsonl", columns=columns)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "option"),
    [("", "file=audio"), ("file=audio", "file=audio,speaker=spk"),
     ("file=audio,speaker=spk,split=my set", "'file=audio,speaker=spk,part=my set,label=emotion'")],
)  # fmt: skip
def test_manifest_suggests_the_whole_option(tmp_path, given, option):
    """Typed as it stands, it keeps what was given and leads to the next error, or to none."""
    path = written(tmp_path / "t.csv", [["audio", "spk", "emotion", "my set"], ["a.wav", "s", "sad", "dev"]])
    with pytest.raises(ValueError, match=rf"it must be there once, or named by --columns={option}$"):
        manifest(path, columns=given)
    (typed,) = shlex.split(option)
    if "label" in typed:
        assert manifest(path, columns=typed).utterances[0].part == "valid"
    else:
        with pytest.raises(ValueError, match="it must be there once, or named by"):
            manifest(path, columns=typed)


@pytest.mark.parametrize("spec", ["{0}/d.csv", "folders:{0}/d.csv", "tar:{0}/x.csv", "hf:{0}/x.tsv", "emodb:x.jsonl"])
def test_columns_are_refused_for_what_is_no_table(tmp_path, spec):
    """A suffix makes no table of a folder, nor of the path of another kind of corpus."""
    (tmp_path / "d.csv" / "sad").mkdir(parents=True)
    (tmp_path / "d.csv" / "sad" / "a.wav").touch()
    spec = spec.format(tmp_path)
    assert not takes_columns(spec)
    with pytest.raises(
        ValueError,
        match=r"columns is given, but corpus '.*' is no \.csv, .* table, nor audformat:FOLDER; it must be omitted",
    ):
        load_corpus(spec, columns="file=nonsense")


def test_takes_columns_knows_tables(tmp_path):
    names = ["t.csv", "T.TSV", "none.jsonl", "manifest:t.txt", "a:b.csv", "audformat:x", str(tmp_path / "t.csv")]
    assert all(map(takes_columns, names)) and not any(
        map(takes_columns, ["manifest:", "audformat:", "csv", "", "x.txt", "synthetic"])
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("path", "columns is 'path'; it must be like file=path,label=emotion"),
        ("fiel=path", r"columns names 'fiel' \(the closest is 'file'\); it must be one of file, speaker, label"),
        ("part=a,split=b", "columns names 'part' twice; it must be there once"),
        ("file=", "columns has '' for 'file'; it must be the name of a column"),
        ({"file": 3}, "columns has 3 for 'file'; it must be the name of a column"),
        ({1: "path"}, "columns names 1; it must be one of file"),
    ],
)
def test_columns_refuse_other_forms(given, message):
    with pytest.raises(ValueError, match=message):
        parse_columns(given)
    assert parse_columns("") == {} and parse_columns(" file = a b ,") == {"file": "a b"}


def test_columns_are_for_tables_only(tmp_path):
    (tmp_path / "sad").mkdir()
    (tmp_path / "sad" / "a.wav").touch()
    with pytest.raises(
        ValueError,
        match=r"columns is given, but corpus '.*' is no \.csv, .* table, nor audformat:FOLDER; it must be omitted",
    ):
        load_corpus(str(tmp_path), columns="file=path")


@pytest.mark.parametrize(
    ("cells", "parts"),
    [(["Train", "VAL", "testing"], ["train", "valid", "test"]), (["training", "validation", "test"],
     ["train", "valid", "test"]), (["1", "2", "3"], [None] * 3), (["", "", ""], [None] * 3)],
)  # fmt: skip
def test_manifest_understands_split(tmp_path, cells, parts):
    rows = [f"{name}.wav,s,sad,{cell}" for name, cell in zip("abc", cells)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["file,speaker,label,split", *rows]))
    corpus = manifest(path)
    assert [one.part for one in corpus.utterances] == parts
    assert any("'split' names no parts ('1')" in line for line in corpus.summary()) == (cells[0] == "1")


def test_manifest_refuses_split_that_names_parts_here_and_there(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,speaker,label,split\na,s,sad,train\nb,s,sad,later\n")
    with pytest.raises(
        ValueError, match="line 3: column 'split' is 'later'; it must be one of train, valid, test, tr"
    ):
        manifest(path)
    path.write_text("file,speaker,label,split,part\na,s,sad,train,test\nb,s,sad,later,train\n")
    assert [one.part for one in manifest(path).utterances] == ["test", "train"], "part is used where there are both"
