"""CSV tables: what a spreadsheet would compute is text, and is read back."""

import csv
import io
import os

import pytest

from ser_fast.data.corpora import Corpus, Utterance
from ser_fast.data.corpora.manifest import manifest, write_manifest
from ser_fast.data.tables import from_cell, to_csv
from ser_fast.training.predictions import Prediction, read_csv
from ser_fast.training.predictions import to_csv as predictions_to_csv

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x","y")', "＝1+1", "-b"]
TEXTS = [
    *FORMULAS,
    "'=1+1",
    "''=1",
    "'quoted'",
    "中性",
    "a,b",
    'a "b"',
    "",
    "-1.5",
    "+3",
    "1e-9",
    "-inf",
    "-1 ± 2",
    "-0.5 to +1",
    "-1 to =1",
    "a=b",
    "x-y",
]


@pytest.mark.parametrize("text", TEXTS)
def test_csv_cell_is_text_and_read_back(text):
    ((cell,),) = csv.reader(io.StringIO(to_csv([[text]]))) if text else (("",),)
    assert from_cell(cell) == text
    assert cell[:1] not in tuple("=+@＝") or text == "+3"
    assert (cell[:1] == "-") == (text in ("-1.5", "-inf", "-1 ± 2", "-0.5 to +1"))


@pytest.mark.parametrize("text", ["\t=1", "\r=1", "\n=1", "=1\x00", "\x1b[31m", "a\x07", os.fsdecode(b"\xd6\xd0=1")])
def test_csv_cell_has_no_control_characters(text):
    written = to_csv([[text, None, 0.5]])
    assert written.removesuffix("\n").isprintable() and written.encode().endswith(b",,0.5\n")
    assert written[0] not in "=+-@"


def test_predictions_and_manifests_escape_formulas(tmp_path):
    path = tmp_path / "predictions.csv"
    rows = [Prediction(f"{name}.wav", name, "=a", "@b", (0.25, 0.75)) for name in FORMULAS]
    path.write_text(predictions_to_csv(rows, ["=a", "@b"]), encoding="utf-8")
    assert read_csv(path, ["=a", "@b"]) == rows
    assert "\n=" not in path.read_text() and ",=" not in path.read_text() and ",@" not in path.read_text()
    utterances = [Utterance(f"{name[:2]}.wav", name, "=a", tmp_path / f"{number}{name[:2]}.wav")
                  for number, name in enumerate(FORMULAS)]  # fmt: skip
    write_manifest(Corpus("formulas", utterances, ["=a"]), tmp_path / "all.csv")
    found = manifest(tmp_path / "all.csv")
    assert found.classes == ["=a"] and [u.path for u in found.utterances] == [u.path for u in utterances]
    assert [u.speaker for u in found.utterances] == FORMULAS
    assert ",=" not in (tmp_path / "all.csv").read_text()
