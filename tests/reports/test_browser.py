"""The tested utterances on a page: order, names, budget, links; what a browser does is in tests/integration."""

import base64
import gzip
import io
import json
import math
import os
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.data.corpora import Corpus, Utterance
from ser_fast.data.dataset import Dataset
from ser_fast.data.sources import Section
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import FileWaves
from ser_fast.models import MODELS
from ser_fast.reports import browser, corpus_tables, curves, embedded, html, media, runs
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint
from ser_fast.training.predictions import Prediction
from ser_fast.training.results import Predicted, Results

TINY = {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}
HOSTILE = "</script><script>alert(1)</script>\u2028&amp;<!--"


class Scripts(HTMLParser):
    """The contents of the script elements of a page by their id, and all other text."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.text, self._inside = {}, "", None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "script":
            self._inside = dict(attributes).get("id", f"code {len(self.found)}")
            self.found[self._inside] = ""

    def handle_endtag(self, tag):
        self._inside = None if tag == "script" else self._inside

    def handle_data(self, text):
        if self._inside is None:
            self.text += text
        else:
            self.found[self._inside] += text


def of(parts: list[str]) -> dict:
    found = {name: json.loads(text) for name, text in Scripts("".join(parts)).found.items() if "code" not in name}
    data = found.pop("browser-data")
    embedded = {name.removeprefix("media-"): media for name, media in found.items()}
    linked = {name: {"link": address} for name, address in data["links"].items()}
    return data | {"media": linked | embedded}


def results(folder: Path, odds: list[list[float]], truth: list[int], model: str = "cgru", **changed) -> Results:
    """Utterances of two classes in files, a second each, with these probabilities."""
    classes = ["angry", "glad"]
    waves = [torch.rand(16000, generator=torch.Generator().manual_seed(i)) - 0.5 for i in range(len(odds))]
    names = changed.get("names") or [f"{i}.wav" for i in range(len(odds))]
    speakers = changed.get("speakers") or [f"s{i % 2}" for i in range(len(odds))]
    utterances = [
        Utterance(name, speaker, classes[label], folder / name)
        for name, speaker, label in zip(names, speakers, truth)
    ]
    dataset = Dataset("corpus", waves, truth, speakers, names, classes, [])
    torch.manual_seed(0)
    options = TINY if model == "cgru" else {}
    checkpoint = folder / "best.safetensors"
    save_checkpoint(checkpoint, Checkpoint(model, options, classes, MODELS[model](2, **options).state_dict()))
    predictions = [
        Prediction(name, speaker, classes[label], classes[row.index(max(row))], tuple(row))
        for name, speaker, label, row in zip(names, speakers, truth, odds)
    ]
    tested = Predicted("", checkpoint, range(len(odds)), predictions)
    return Results({}, Corpus("corpus", utterances, classes), dataset, 16000, [tested])


def test_rows_have_the_worst_first(tmp_path):
    odds = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.45, 0.55], [0.5, 0.5]]
    given = results(tmp_path, odds, [0, 0, 0, 0, 1])
    found = browser.rows(given)
    assert [row.item for row in found] == [1, 3, 4, 2, 0]
    assert [row.margin for row in found] == pytest.approx([-0.6, -0.1, 0.0, 0.2, 0.8])
    old = [row._replace(probabilities=()) for row in given.tested[0].predictions]
    older = given._replace(tested=[given.tested[0]._replace(predictions=old)])
    assert [row.margin for row in browser.rows(older)] == [-1, -1, -1, 1, 1]


def test_row_of_another_utterance_has_no_audio(tmp_path):
    given = results(tmp_path, [[0.9, 0.1], [0.2, 0.8]], [0, 0])
    other = given.tested[0]._replace(predictions=[row._replace(name="x") for row in given.tested[0].predictions])
    data = of(browser.section(given._replace(tested=[other]), tmp_path / "report.html"))
    assert [row[-1] for row in data["rows"]] == [None, None] and data["media"] == {}


def test_names_are_data_and_text_only(tmp_path):
    given = results(tmp_path, [[0.9, 0.1], [0.2, 0.8]], [0, 1], speakers=[HOSTILE, "b"])
    predictions = [row._replace(truth=HOSTILE, predicted=HOSTILE) for row in given.tested[0].predictions[:1]]
    given.dataset.classes[0] = HOSTILE
    given.dataset.names[0] = HOSTILE
    predictions = [predictions[0]._replace(name=HOSTILE), given.tested[0].predictions[1]]
    given = given._replace(tested=[given.tested[0]._replace(predictions=predictions, name=HOSTILE)] * 2)
    parts = browser.section(given, tmp_path / "report.html")
    page = html.write(tmp_path / "report.html", HOSTILE, parts).read_text()
    found = Scripts(page)
    assert found.found.keys() == {"browser-data", "media-0", "media-1", "code 3"}
    assert "alert" not in found.found["code 3"]
    shown = HOSTILE.replace("\u2028", r"\u2028")
    data = json.loads(found.found["browser-data"])
    assert data["classes"][0] == data["runs"][0] == shown and shown in data["speakers"]
    assert shown in {row[0] for row in data["rows"]}
    assert found.text.count(shown) >= 3 and "<script>alert" not in page and "\u2028" not in page


def test_scripts_do_not_end_their_element():
    folder = Path(browser.__file__).parent
    for path in folder.glob("*.js"):
        assert "</script" not in path.read_text() and "<!--" not in path.read_text(), path
    assert "innerHTML" not in (folder / "browser.js").read_text()


def test_budget_embeds_the_worst_and_links_the_rest(tmp_path, monkeypatch):
    given = results(tmp_path, [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 0, 0])
    audio = len(base64.b64encode(media.audio(given.dataset.waves[1], 16000)[0]))
    monkeypatch.setattr(embedded, "AUDIO_BYTES", audio + 1000)
    monkeypatch.setattr(embedded, "PICTURE_BYTES", 1)
    parts = browser.section(given, tmp_path / "out" / "report.html")
    data = of(parts)
    assert data["media"]["1"].keys() == {"audio"} and data["attention"] == {}
    assert data["media"]["0"] == {"link": "../0.wav"} and data["media"]["2"] == {"link": "../2.wav"}
    assert "Audio of 1 and spectrograms of 0 of the 3 utterances" in "".join(parts)
    assert "Audio of 2 others is played from the corpus" in "".join(parts)
    monkeypatch.setattr(embedded, "AUDIO_BYTES", 10**9)
    monkeypatch.setattr(embedded, "LONGEST", 0.5)
    assert {"link"} == set().union(*of(browser.section(given, tmp_path / "report.html"))["media"].values())


def test_media_hold_what_the_model_hears_and_attends_to(tmp_path):
    given = results(tmp_path, [[0.9, 0.1], [0.2, 0.8]], [0, 0])
    data = of(browser.section(given, tmp_path / "report.html"))
    text, kind = data["media"]["1"]["audio"]
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(text)), dtype="float32")
    assert kind == "audio/flac" and rate == 16000
    assert np.abs(wave - given.dataset.waves[1].numpy()).max() <= 2**-16 + 1e-7
    torch.manual_seed(0)
    model = MODELS["cgru"](2, **TINY).eval()
    with torch.no_grad():
        weights = model(given.dataset.waves[1][None], return_weights=True)[1][0]
    levels, begin, end, peak = data["attention"]["0"]  # row 0 is the worst, utterance 1
    levels = torch.tensor(list(base64.b64decode(levels))) * peak / 255
    torch.testing.assert_close(levels, weights, atol=peak / 500, rtol=0)
    window, hop = model.spectrogram.win_length, model.spectrogram.hop_length
    assert begin == pytest.approx((window - hop) / 32000) and 0.9 < end < 1.2
    _, first, last, top = data["media"]["1"]["picture"]
    assert first == begin and 0.9 < last <= 1.1 and top == 4000


def test_attention_is_that_of_each_run(tmp_path, monkeypatch):
    given = results(tmp_path, [[0.9, 0.1]], [0])
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, Checkpoint("cgru", TINY, ["angry", "glad"], MODELS["cgru"](2, **TINY).state_dict()))
    (tested,) = given.tested
    runs = [tested._replace(name="one"), tested._replace(name="two", checkpoint=other)]
    data = of(browser.section(given._replace(tested=runs), tmp_path / "report.html"))
    assert data["attention"]["0"] != data["attention"]["1"] and list(data["media"]) == ["0"]
    assert [row[-2] for row in data["rows"]] == [0, 1] and data["runs"] == ["one", "two"]
    monkeypatch.setattr(embedded, "CURVES", 1)
    assert of(browser.section(given._replace(tested=runs), tmp_path / "a.html"))["attention"].keys() == {"0"}


def test_model_without_attention_is_said(tmp_path):
    parts = browser.section(results(tmp_path, [[0.9, 0.1]], [0], "functionals"), tmp_path / "report.html")
    assert of(parts)["attention"] == {} and "The model has no attention." in "".join(parts)


def test_unreadable_checkpoint_leaves_the_audio(tmp_path):
    given = results(tmp_path, [[0.9, 0.1]], [0])
    given.tested[0].checkpoint.write_bytes(b"no model")
    parts = browser.section(given, tmp_path / "report.html")
    data = of(parts)
    assert data["left"] == {"No spectrogram: the checkpoint of its run cannot be read.": [0]}
    assert data["media"]["0"].keys() == {
        "audio"
    } and "of 1 run are missing: its checkpoint cannot be read" in "".join(parts)


def test_failing_utterance_is_said_in_its_row(tmp_path):
    given = results(tmp_path, [[0.9, 0.1]], [0])
    soundfile.write(tmp_path / "0.wav", np.zeros(100), 16000)
    given.dataset.waves = FileWaves(given.corpus.utterances, [16000], 16000)
    found = of(browser.section(given, tmp_path / "report.html"))["media"]["0"]
    assert found.keys() == {"failure", "link"} and "it was changed" in found["failure"]


def test_table_of_many_rows_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "ROWS", 2)
    parts = browser.section(results(tmp_path, [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 0, 0]), tmp_path / "a.html")
    assert [row[-1] for row in of(parts)["rows"]] == [1, 2]
    assert "the 2 worst of 3 predictions" in "".join(parts)
    assert 'aria-label="true angry, predicted angry: 2"' in "".join(parts), "the matrix has all"


def cells(counts: Counter, classes: list[str]) -> list[tuple[int, int, int]]:
    """True and predicted class and count of each cell of a matrix."""
    found = re.findall(
        r'data-true="(\d+)" data-predicted="(\d+)".*?>(\d+)</button>', browser._matrix(counts, classes)
    )
    return [tuple(map(int, each)) for each in found]


def test_matrix_of_many_classes_has_those_with_most_errors(monkeypatch):
    monkeypatch.setattr(browser, "CLASSES", 3)
    classes = ["a", "unused", "b", "ab", "c", "d"]
    counts = Counter({("a", "a"): 90, ("b", "c"): 5, ("c", "c"): 2, ("d", "ab"): 1, ("ab", "d"): 1, ("a", "b"): 1})
    page = browser._matrix(counts, classes)
    assert "Of 5 classes the 3 with most errors are shown." in page
    shown = [2, 3, 4]  # b and c, then ab before d by their order
    assert cells(counts, classes) == [(i, j, counts[classes[i], classes[j]]) for i in shown for j in shown], (
        "in the order of the classes"
    )
    counts = Counter({("a", "a"): 1, ("c", "d"): 2})
    assert "most errors" not in browser._matrix(counts, classes)
    assert {true for true, _, _ in cells(counts, classes)} == {0, 4, 5}


def test_matrix_has_contrast_at_every_share():
    """WCAG 2 AA demands 4.5:1 between text and background."""
    css = Path(browser.__file__).with_name("browser.css").read_text()
    blue = tuple(map(int, re.search(r"background: rgb\((\d+) (\d+) (\d+) / var\(--share\)\)", css).groups()))
    texts = {
        dark: int(re.search(rf"^{rule} {{ color: #(\w)\1\1 }}", css, re.MULTILINE)[1] * 2, 16)
        for dark, rule in ((True, r"\.dark"), (False, r"#confusion button:not\(\.dark\):not\(:disabled\)"))
    }

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts))

    darks = set()
    for right in range(1, 1001):
        page = browser._matrix(Counter({("a", "a"): right, ("a", "b"): 1000 - right}), ["a", "b"])
        dark, share = re.search(r'data-predicted="0" aria-pressed="false"( class="dark")? .*?--share:([\d.]+)', page).groups()  # fmt: skip
        alpha = round(255 * float(share)) / 255
        back = luminance(tuple(255 + alpha * (part - 255) for part in blue))
        text = luminance((texts[bool(dark)],) * 3)
        assert (max(back, text) + 0.05) / (min(back, text) + 0.05) >= 4.5, right
        darks.add(bool(dark))
    assert darks == {True, False}


def test_values_have_errors_and_no_matrix(tmp_path):
    names, speakers = ["a", "b", "c"], ["s", "s", "t"]
    labels = [(1.0, 100.0), (2.0, 300.0), (3.0, 500.0)]
    dataset = Dataset("c", [torch.rand(16000)] * 3, labels, speakers, names, [], [], targets=["x", "<y>"])
    checkpoint = tmp_path / "best.safetensors"
    weights = MODELS["cgru"](2, **TINY).state_dict()
    save_checkpoint(checkpoint, Checkpoint("cgru", TINY, [], weights, targets=["x", "<y>"]))
    predicted = [("1", "100"), ("3", "300"), ("3", "900")]
    rows = [Prediction(*who, tuple(map(str, label)), value) for *who, label, value in zip(names, speakers, labels, predicted)]  # fmt: skip
    utterances = [Utterance(name, "s", "", samples=torch.rand(16000), sample_rate=16000, value=1.0) for name in names]
    given = Results({}, Corpus("c", utterances, []), dataset, 16000, [Predicted("", checkpoint, range(3), rows)])
    parts = browser.section(given, tmp_path / "report.html")
    data = of(parts)
    deviation = math.sqrt(2 / 3)
    assert [row[0] for row in data["rows"]] == ["c", "b", "a"]
    assert [row[5] for row in data["rows"]] == pytest.approx([1 / deviation, 0.5 / deviation, 0], rel=1e-3)
    assert data["rows"][0][2:4] == [[3, 500], [3, 900]] and data["targets"] == ["x", "<y>"]
    assert '<table id="confusion">' not in "".join(parts)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a b#c?d%.wav", "../corpus/a%20b%23c%3Fd%25.wav"),
        ("<b>\"'.wav", "../corpus/%3Cb%3E%22%27.wav"),
        (os.fsdecode(b"\xd6.wav"), "../corpus/%D6.wav"),
        ("javascript:alert(1).wav", "../corpus/javascript%3Aalert%281%29.wav"),
    ],
)
def test_link_is_relative_and_quoted(name, address, tmp_path):
    page = tmp_path / "out" / "report.html"
    assert media.link(Utterance("a", "s", "l", tmp_path / "corpus" / name), page) == address
    part = Utterance("a", "s", "l", tmp_path / "corpus" / name, start=1.25, end=2.5)
    assert media.link(part, page) == f"{address}#t=1.25,2.5"


@pytest.mark.parametrize(
    ("start", "end", "ends"),
    [
        (12345.6789, 12346.5, "12345.679,12346.5"),
        (1234567.25, None, "1234567.25"),
        (1e-5, 20.0, "0,20"),
        (None, 100, "0,100"),
    ],
)
def test_link_has_the_seconds_without_exponents(start, end, ends, tmp_path):
    part = Utterance("a", "s", "l", tmp_path / "a.wav", start=start, end=end)
    assert media.link(part, tmp_path / "report.html") == f"a.wav#t={ends}"


def test_link_follows_linked_folders(tmp_path):
    """``..`` in an address leaves the real folder of the page."""
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "runs")
    page = tmp_path / "out" / "report.html"
    assert media.link(Utterance("a", "s", "l", tmp_path / "a.wav"), page) == "../../a.wav"


def test_audio_in_an_archive_has_no_link(tmp_path, monkeypatch):
    inside = Utterance("a", "s", "l", source=Section(tmp_path / "a.tar", "a.tar:a.wav", 512, 44))
    assert media.link(inside, tmp_path / "report.html") == ""
    monkeypatch.setattr(embedded, "AUDIO_BYTES", 1)
    given = results(tmp_path, [[0.9, 0.1]], [0])
    given.corpus.utterances[0] = inside
    page = "".join(browser.section(given, tmp_path / "r"))
    assert "of the 1 utterance are in this page" in page
    assert "Audio of 1 other is left out: 1 beyond the limit of 1e-06 MB." in page


def test_what_is_left_out_has_its_cause(tmp_path, monkeypatch):
    """Utterances in an archive: too long, one that cannot be read, beyond the limits; and a file beyond them."""
    given = results(tmp_path, [[0.1, 0.9]] * 5 + [[0.9, 0.1]], [0] * 6)
    for number in range(5):
        inside = Section(tmp_path / "a.tar", f"a.tar:{number}.wav", 512, 44)
        given.corpus.utterances[number] = Utterance("a", "s", "l", source=inside)

    class Changed(list):
        def __getitem__(self, i):
            if i == 2:
                raise AudioError("it was changed")
            return super().__getitem__(i)

    given.dataset.waves = Changed([torch.zeros(31 * 16000)] * 2 + given.dataset.waves[2:])
    monkeypatch.setattr(embedded, "AUDIO_BYTES", 1)
    monkeypatch.setattr(embedded, "PICTURE_BYTES", 2)
    parts = browser.section(given, tmp_path / "report.html")
    data, page = of(parts), Scripts("".join(parts)).text
    assert "Audio of 5 others is left out: 2 longer than 30 s, 1 unreadable, 2 beyond the limit of 1e-06 MB." in page
    assert "Audio of 1 other is played" in page
    assert data["left"] == {
        "Spectrograms of utterances longer than 30 s are not in this page.": [0, 1],
        "Spectrograms of worse predictions take the 2e-06 MB that this page has for them.": [3, 4, 5],
    }
    assert data["media"].keys() == {"2", "5"} and data["media"]["2"] == {"failure": "it was changed"}


@pytest.mark.parametrize("rate", [16000, 22050, 1_000_000])
def test_audio_without_soundfile_is_wav(rate, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    content, kind = media.audio(torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5]), rate)
    monkeypatch.undo()
    wave, found = soundfile.read(io.BytesIO(content), dtype="int16")
    assert kind == "audio/wav" and found == rate and wave.tolist() == [0, 32767, -32768, 32767, 16384]


def test_audio_of_a_rate_that_flac_lacks_is_wav():
    assert media.audio(torch.zeros(10), 1_000_000)[1] == "audio/wav"


def test_corpus_tables_count_classes_speakers_and_durations():
    waves = [torch.zeros(16000 * n) for n in (1, 2, 3, 6)]
    dataset = Dataset("c", waves, [0, 0, 2, 2], ["b", "a", "a", "<a>"], list("abcd"), ["x", "y", "<z>"], [])
    page = "".join(corpus_tables.section(dataset, 16000, ["<lost>.wav: no"]))
    assert (
        '<th scope="col">x</th><th scope="col">&lt;z&gt;</th><th scope="col">utterances</th>' in page
        and ">y</th>" not in page
    )
    assert "<td>a</td><td>1</td><td>1</td><td>2</td>" in page and "<td>all</td><td>2</td><td>2</td><td>4</td>" in page
    assert "<td>&lt;z&gt;</td><td>2</td><td>0.1</td><td>3.00</td><td>4.50</td><td>6.00</td>" in page
    assert "&lt;lost&gt;.wav: no" in page and "<lost>" not in page
    valued = Dataset("c", waves, [(1.0,), (2.0,), (3.0,), (6.0,)], ["a"] * 4, list("abcd"), [], [])
    assert "<td>value</td><td>3</td><td>1.871</td><td>1</td><td>6</td>" in "".join(
        corpus_tables.section(valued, 16000)
    )


def test_corpus_tables_show_the_largest_speakers(monkeypatch):
    monkeypatch.setattr(corpus_tables, "SPEAKERS", 1)
    dataset = Dataset("c", [torch.zeros(100)] * 3, [0, 1, 0], ["a", "b", "b"], list("abc"), ["x", "y"], ["1", "2"])
    page = "".join(corpus_tables.section(dataset, 16000, dataset.skipped))
    assert "<td>b</td>" in page and "<td>a</td>" not in page and "all 2 speakers" in page
    assert "1 more are in unreadable.txt" in page


def test_corpus_tables_of_many_classes_have_no_column_for_each():
    names = [f"class {number}" for number in range(corpus_tables.CLASSES + 2)]

    def page(used: int) -> str:
        labels = list(range(used))
        dataset = Dataset("c", [torch.zeros(16000)] * used, labels, ["s"] * used, list(map(str, labels)), names, [])
        return "".join(corpus_tables.section(dataset, 16000))

    few, many = page(corpus_tables.CLASSES), page(corpus_tables.CLASSES + 1)
    assert few.count('<th scope="col">class ') == corpus_tables.CLASSES and "not counted by class" not in few
    assert many.count('<th scope="col">class ') == 0 and "not counted by class: 21 classes, over 20." in many
    assert many.count("<td>class ") == 21, "the durations have each class"
    assert "<td>s</td><td>21</td>" in many and "<td>all</td><td>21</td>" in many


ROWS = [{"epoch": 1, "loss": 2.0, "accuracy": 0.5, "valid_loss": 1.5, "valid_recall": 0.25},
        {"epoch": 2, "loss": 1.0, "accuracy": 0.75, "valid_loss": 1.25, "valid_recall": 0.5}]  # fmt: skip


def test_panels_have_the_measures_of_the_task():
    loss, measure = curves.panels({"a": ROWS})
    assert [(line.values, line.dotted) for line in loss.lines] == [([2, 1], False), ([1.5, 1.25], True)]
    assert (measure.label, measure.low, measure.top) == ("validation UA (%)", 0, 100)
    assert measure.lines == [curves.Line("a", [1, 2], [25, 50])]
    alone = [{"epoch": 1, "loss": 2.0, "accuracy": 0.5}]
    assert curves.panels({"a": alone})[1].lines[0].values == [50]
    valued = [{"epoch": 1, "loss": 2.0, "valid_loss": 1.0, "valid_mae": 3.0, "valid_ccc": 0.5}]
    assert curves.panels({"a": valued})[1].label == "validation MAE"
    assert curves.panels({"a": [valued[0] | {"valid_standardised_mae": 1.0}]})[1].lines[0].values == [0.5]


def test_curves_without_plotly_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    (note,) = curves.section({"a": ROWS})
    assert "ser_fast[report]" in note and curves.section({"a": []}) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_data_that_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        html.data("x", [{"y": value}])


def test_curves_of_a_diverged_run_become_a_note():
    pytest.importorskip("plotly.offline")
    (note,) = runs.learning({"a": [ROWS[0] | {"loss": math.nan}]})
    assert note.startswith('<p class="note">learning curves could not be drawn') and "JSON" in note


def test_curves_show_names_literally(monkeypatch):
    plotly = pytest.importorskip("plotly")
    pytest.importorskip("plotly.offline")
    page = Scripts("".join(curves.section({HOSTILE: ROWS, "<b>": ROWS})))
    data = json.loads(page.found["curves-data"])
    assert {line["name"] for line in data[1]["lines"]} == {
        HOSTILE.replace("\u2028", r"\u2028").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
        "&lt;b&gt;",
    }
    library = "".join(text for name, text in page.found.items() if name.startswith("code"))
    code = library[library.index('"use strict"') :]
    packed = base64.b64decode(library.removesuffix(code))
    assert "newPlot" in code and gzip.decompress(packed).decode() == plotly.offline.get_plotlyjs()
