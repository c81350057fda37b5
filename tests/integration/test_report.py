"""A report in headless Chromium, opened from its file as a user opens it."""

import contextlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import soundfile

from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.reports import browser, embedded, html
from ser_fast.training.evaluation import EvaluateConfig, results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome was found"),
]
OPTIONS = ["--model=cgru", "--cgru.channels=[4,4]", "--cgru.hidden_size=8", "--epochs=2", "--batch_size=6",
           "--valid_fraction=0.25"]  # fmt: skip
GLAD, SPEAKER, FILE = "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "<b>&amp;#%.wav"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two classes of two speakers in four takes, with names that would be HTML."""
    root = tmp_path_factory.mktemp("voices")
    rows = ["file,speaker,label"]
    for label, emotion in (("angry", "anger"), (GLAD, "sadness")):
        for number, speaker in enumerate((SPEAKER, "b")):
            for take in range(4):
                name = f"{emotion} {number} {take} {FILE}"
                soundfile.write(root / name, synthesize(emotion, number, take, 8000).numpy()[:12000], 8000)
                rows.append(f'"{name}","{speaker}","{label}"')
    (root / "all.csv").write_text("\n".join(rows) + "\n")
    return root / "all.csv"


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A cross-validation whose page embeds everything."""
    out = tmp_path_factory.mktemp("runs") / "cv"
    assert main(["cv", f"--data={corpus}", f"--out={out}", *OPTIONS]) == 0
    return out


@pytest.fixture
def opened():
    """Return a function that opens a page, which must run without an error, a dialog or a request to a host."""
    from playwright.sync_api import sync_playwright

    faults = []
    with sync_playwright() as playwright, contextlib.ExitStack() as stack:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=120_000)
        stack.callback(chromium.close)

        def open_page(path):
            page = chromium.new_page(viewport={"width": 1100, "height": 900})
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
            page.on("request", lambda request: request.url.startswith("http") and faults.append(request.url))
            page.goto(path.as_uri())
            return page

        yield open_page
    assert not faults


def counts(page, words: str) -> None:
    """Wait until the list, which follows a pause in typing, has this count."""
    page.wait_for_function("(words) => document.getElementById('count').textContent === words", arg=words)


def fold(run: Path) -> Path:
    return sorted(run.glob("seed0/fold*"))[0]


def play(audio) -> dict:
    """Play an audio element for at most 20 s until it has moved; return its place, duration and error."""
    return audio.evaluate(
        """async (audio) => {
            await audio.play();
            for (let i = 0; i < 200 && !(audio.currentTime > 0.05); i++) await new Promise((go) => setTimeout(go, 100));
            return { at: audio.currentTime, duration: audio.duration, error: audio.error };
        }"""
    )


def test_cell_of_the_matrix_lists_its_utterances(run, opened):
    page = opened(run / "report.html")
    names = page.locator("#utterances .name")
    assert names.count() == 16 and page.locator("#count").inner_text() == "16 of 16 predictions"
    confusion = json.loads((run / "summary.json").read_text())["pooled"]["confusion"]
    cells = page.locator("#confusion button:not([disabled])")
    assert cells.count() == sum(count > 0 for row in confusion for count in row)
    cell = cells.first
    true, predicted, count = (
        int(cell.get_attribute("data-true")),
        int(cell.get_attribute("data-predicted")),
        int(cell.inner_text()),
    )
    assert count == confusion[true][predicted]
    cell.focus()
    page.keyboard.press("Enter")
    assert cell.get_attribute("aria-pressed") == "true"
    assert names.count() == count and page.locator("#count").inner_text() == f"{count} of 16 predictions"
    classes = json.loads((run / "summary.json").read_text())["classes"]
    for row in page.locator("#utterances tbody tr").all():
        cells_of_row = row.locator("td").all_inner_texts()
        assert [text.strip() for text in cells_of_row[3:5]] == [classes[true], classes[predicted]]
    heard = play(page.locator("#utterances audio").first)
    assert heard["at"] > 0.05 and heard["error"] is None and heard["duration"] == pytest.approx(1.5, abs=0.01)
    cell.click()
    assert cell.get_attribute("aria-pressed") == "false" and names.count() == 16


def test_names_are_shown_as_text(run, opened):
    """No dialog opens, which the fixture checks, and no element comes from a name."""
    page = opened(run / "report.html")
    shown = page.locator("#browser").inner_text()
    assert GLAD in shown and SPEAKER in shown and FILE in shown
    assert page.locator("img[src=x]").count() == page.locator("#browser b").count() == 0
    page.locator("#utterances .name").first.click()
    assert GLAD in page.locator("#utterances .detail").inner_text()
    assert GLAD in page.locator("#filters select[name=truth]").inner_text()


def test_utterance_shows_spectrogram_and_attention(run, opened):
    page = opened(run / "report.html")
    name = page.locator("#utterances .name").first
    name.click()
    assert name.get_attribute("aria-expanded") == "true"
    detail = page.locator("#utterances .detail")
    drawn = detail.locator("svg image").evaluate(
        """async (image) => {
            const loaded = new Image();
            loaded.src = image.getAttribute("href");
            await loaded.decode();
            return [loaded.naturalWidth, loaded.naturalHeight];
        }"""
    )
    assert min(drawn) > 10 and detail.locator("svg path").count() == 1
    assert detail.locator("meter").count() == 2
    line = detail.locator("svg line")
    assert line.get_attribute("visibility") == "hidden"
    assert play(page.locator("#utterances audio").first)["at"] > 0
    page.wait_for_function("document.querySelector('.detail svg line').getAttribute('visibility') === 'visible'")
    name.click()
    assert detail.count() == 0 and name.get_attribute("aria-expanded") == "false"


def test_list_is_filtered_and_sorted(run, opened):
    page = opened(run / "report.html")
    data = json.loads(page.locator("#browser-data").text_content())
    counted = page.locator("#count")
    page.locator("select[name=speaker]").select_option(label=SPEAKER)
    assert counted.inner_text() == "8 of 16 predictions"
    page.locator("input[name=text]").fill("anger 0 2")
    counts(page, "1 of 16 predictions")
    page.get_by_role("button", name="Reset", exact=True).click()
    counts(page, "16 of 16 predictions")
    confidence = sorted(max(row[4]) for row in data["rows"])
    page.locator("input[name=least]").fill(str(100 * confidence[8]))
    counts(page, f"{sum(value >= confidence[8] for value in confidence)} of 16 predictions")
    page.locator("input[name=least]").fill("")
    counts(page, "16 of 16 predictions")
    page.locator("input[name=wrong]").check()
    assert int(counted.inner_text().split()[0]) == sum(row[2] != row[3] for row in data["rows"])
    page.locator("input[name=wrong]").uncheck()
    heading = page.locator("#utterances th", has_text="confidence")
    for direction in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        at = page.locator("#utterances th").all_inner_texts().index("confidence")
        values = [
            float(row.locator("td").nth(at).inner_text().split()[0])
            for row in page.locator("#utterances tbody tr").all()
        ]
        assert values == sorted(values, reverse=direction == "descending")


def test_linked_audio_plays_from_its_file(run, corpus, opened, monkeypatch):
    monkeypatch.setattr(embedded, "AUDIO_BYTES", 1)
    out = run.with_name("linked")
    assert main(["evaluate", str(fold(run)), f"--data={corpus}", f"--out={out}"]) == 0
    page = opened(out / "report.html")
    audio = page.locator("#utterances audio").first
    assert audio.get_attribute("src").startswith("../../")
    heard = play(audio)
    assert heard["at"] > 0.05 and heard["error"] is None
    assert "Audio of 16 others is played from the corpus" in page.locator("body").inner_text()


def test_utterance_without_spectrogram_says_why(run, corpus, opened, monkeypatch):
    monkeypatch.setattr(embedded, "LONGEST", 1.25)
    out = run.with_name("long")
    assert main(["evaluate", str(fold(run)), f"--data={corpus}", f"--out={out}"]) == 0
    page = opened(out / "report.html")
    page.locator("#utterances .name").nth(15).click()
    said = page.locator("#utterances .detail .note").inner_text()
    assert said == "Spectrograms of utterances longer than 1.25 s are not in this page."


def test_typing_updates_the_list_once(run, opened):
    page = opened(run / "report.html")
    counts(page, "16 of 16 predictions")
    page.evaluate(
        """() => {
            window.updates = 0;
            const body = document.querySelector("#utterances tbody");
            const replace = body.replaceChildren.bind(body);
            body.replaceChildren = () => { window.updates++; replace(); };
            const field = document.querySelector("input[name=text]");
            for (const text of ["s", "sa", "sad"]) {
                field.value = text;
                field.dispatchEvent(new Event("input", { bubbles: true }));
            }
        }"""
    )
    assert page.evaluate("window.updates") == 0
    counts(page, "8 of 16 predictions")
    page.locator("input[name=wrong]").check()
    assert page.evaluate("window.updates") == 2, "a box needs no pause"


def test_names_are_sorted_by_their_numbers(run, corpus, opened):
    found = results(EvaluateConfig(str(fold(run)), data=str(corpus), out=run.with_name("sorted")))
    rows = [row._replace(name=f"take {17 - place}") for place, row in enumerate(found.tested[0].predictions)]
    found = found._replace(tested=[found.tested[0]._replace(predictions=rows)])
    path = run.with_name("sorted.html")
    page = opened(html.write(path, "sorted", browser.section(found, path)))
    for order in (1, -1):
        page.locator("#utterances th button", has_text="name").click()
        names = page.locator("#utterances .name").all_inner_texts()
        assert names == [f"take {number}" for number in range(2, 18)][::order]
    page.locator("#utterances .name").first.click()
    assert "another utterance in its place" in page.locator("#utterances .detail").inner_text()


def test_page_fits_a_narrow_screen(run, opened):
    page = opened(run / "report.html")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.locator("meta[name=viewport]").get_attribute("content") == "width=device-width, initial-scale=1"
    page.wait_for_function("document.documentElement.scrollWidth <= 400")
    assert page.locator("table").count() == page.locator(".wide > table").count() > 5
    assert page.get_by_role("columnheader", name="minutes").count() == 2
    assert page.locator("#curves").get_attribute("role") == "group"


def test_curves_show_values_under_the_pointer(run, opened):
    pytest.importorskip("plotly")
    page = opened(run / "report.html")
    drag = page.locator("#curves .nsewdrag").first
    drag.scroll_into_view_if_needed()
    box = drag.bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2, steps=3)
    page.wait_for_selector("#curves .hoverlayer text")
    shown = page.locator("#curves .hoverlayer").text_content()
    assert "seed 0, without " + SPEAKER in shown and "validation" in shown
    assert page.locator("#curves .legend a, #curves .legend img").count() == 0


def test_list_of_ten_thousand_is_shown_in_steps(run, corpus, opened):
    config = EvaluateConfig(str(fold(run)), data=str(corpus), out=run.with_name("one"))
    found = results(config)
    found = found._replace(tested=found.tested * 625)
    path = html.write(run.with_name("many.html"), "many", browser.section(found, run.with_name("many.html")))
    page = opened(path)
    assert page.locator("#count").inner_text() == "10000 of 10000 predictions, the first 50 shown"
    page.locator("#more").click()
    assert page.locator("#utterances .name").count() == 100
    page.locator("select[name=run]").select_option(index=1)
    assert page.locator("#count").inner_text() == "16 of 10000 predictions" and page.locator("#more").is_hidden()


def test_values_are_listed_with_their_errors(corpus, tmp_path, opened):
    """Two targets, one of them with a name that would be HTML."""
    rows = [line.split('","') for line in corpus.read_text().splitlines()[1:]]
    table = [f'{file}","{speaker}",{place % 4},{10 * place}' for place, (file, speaker, _) in enumerate(rows)]
    path = corpus.with_name("values.csv")
    path.write_text("\n".join(["file,speaker,arousal,<i>", *table]) + "\n")
    options = [f"--data={path}", "--targets=arousal,<i>", "--test_speakers=b", f"--out={tmp_path / 'values'}"]
    assert main(["train", *options, *OPTIONS, "--validation=none"]) == 0
    page = opened(tmp_path / "values" / "report.html")
    headings = page.locator("#utterances th").all_inner_texts()
    assert headings == ["name", "speaker", "true arousal", "predicted arousal", "true <i>", "predicted <i>",
                        "error (deviations)", "seconds", "audio"]  # fmt: skip
    assert page.locator("#confusion").count() == 0 and page.locator("#browser i").count() == 0
    errors = [float(row.locator("td").nth(6).inner_text()) for row in page.locator("#utterances tbody tr").all()]
    assert len(errors) == 8 and errors == sorted(errors, reverse=True)
    page.locator("input[name=least]").fill(str(errors[3]))
    counts(page, f"{sum(error >= errors[3] for error in errors)} of 8 predictions")
