"""``ser-fast listen`` in headless Chromium: a file in, and a microphone that plays a file."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import soundfile
import torch

from ser_fast import pretrained
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.models import MODELS
from ser_fast.prediction.predictor import Predictor
from ser_fast.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGES = ("playwright", "starlette", "uvicorn", "websockets")
pytestmark = [
    *(
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
        for name in PACKAGES
    ),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome was found"),
]
GLAD = "<script>alert(1)</script>"
FILE = "<img src=x onerror=alert(2)><script>.wav"


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    """Five seconds of a voice, at a rate that is not the model's."""
    wave = torch.cat([synthesize("anger", 0, take, 22050) for take in range(6)])[: 5 * 22050]
    path = tmp_path_factory.mktemp("voice") / FILE.replace("/", "")
    soundfile.write(path, wave.numpy(), 22050)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The model that comes with ser_fast, with a class whose name would be HTML."""
    loaded = load_checkpoint(pretrained.path())
    loaded.classes[0] = GLAD
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    save_checkpoint(path, loaded)
    return path


@contextlib.contextmanager
def listening(checkpoint):
    """Yield the address of the page, as the command prints it; an interrupt ends the command."""
    command = [sys.executable, "-m", "ser_fast", "listen", str(checkpoint), "--port=0", "--seconds=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        try:
            line = process.stdout.readline()
            yield re.match(r"http://127\.0\.0\.1:\d+", line)[0]
        finally:
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (130, "", "ser-fast: interrupted\n")


@pytest.fixture(scope="module")
def address(checkpoint):
    with listening(checkpoint) as found:
        yield found


@pytest.fixture
def opened(address, wav):
    with browsing(address, wav) as page:
        yield page


@contextlib.contextmanager
def browsing(address, wav):
    """Yield the page, which must run without an error, a dialog or a request to another host."""
    from playwright.sync_api import sync_playwright

    faults = []
    flags = [
        "--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={wav}",
    ]  # fmt: skip
    with sync_playwright() as playwright, contextlib.ExitStack() as stack:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=120_000)
        stack.callback(chromium.close)
        page = chromium.new_page(viewport={"width": 1000, "height": 1150})
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith((address, "blob:", "data:")) or faults.append(request.url),
        )
        page.goto(address)
        yield page
    # A refused file is an answer of status 400, which the console reports too.
    assert not [fault for fault in faults if "status of 400" not in fault]


def updated(page, count):
    """Wait for a number of updates; Playwright's own wait evaluates text, which the page's policy forbids."""
    for _ in range(1200):
        if int(page.locator("#live").get_attribute("data-updates") or 0) >= count:
            return
        page.wait_for_timeout(100)
    pytest.fail(f"no {count} updates within two minutes: {page.locator('#live-status').inner_text()}")


def numbers(page, place):
    """Return the values of the bars by their names."""
    texts = page.locator(f"{place} > span").all_inner_texts()
    return dict(zip(texts[::3], texts[2::3]))


def test_file_gets_probabilities_and_a_picture(opened, wav, checkpoint):
    opened.locator("#file").set_input_files(wav)
    opened.locator("#file-result").wait_for()
    assert opened.locator("#name").inner_text() == wav.name
    found = numbers(opened, "#file-bars")
    [(_, scores)] = Predictor(checkpoint, device="cpu").files([wav])
    assert list(found) == list(scores) and GLAD in found
    for name, value in scores.items():
        assert float(found[name].removesuffix(" %")) == pytest.approx(100 * value, abs=0.11)
    best = opened.locator("#file-bars .first")
    assert best.inner_text() == max(scores, key=scores.get)
    assert (
        opened.locator("#file-picture svg image").count()
        == opened.locator("#file-picture path.attention").count()
        == 1
    )
    assert opened.locator("script").count() == 1 and opened.locator("img").count() == 0
    assert opened.locator("#player").evaluate("(audio) => audio.error") is None


def test_file_that_is_no_audio_gets_a_sentence(opened, tmp_path):
    (tmp_path / "notes.wav").write_text("<b>no audio</b>")
    with opened.expect_response("**/file") as response:
        opened.locator("#file").set_input_files(tmp_path / "notes.wav")
    assert response.value.status == 400
    status = opened.locator("#file-status.error")
    status.wait_for()
    assert "not readable as audio" in status.inner_text() and not opened.locator("#file-result").is_visible()


def test_microphone_moves_the_track(opened):
    """The delay is not judged here: other processes may be busy."""
    opened.locator("#start").click()
    updated(opened, 20)
    opened.locator("#live-bars .first").wait_for()
    found = numbers(opened, "#live-bars")
    assert GLAD in found and sum(float(text.removesuffix(" %")) for text in found.values()) == pytest.approx(
        100, abs=0.5
    )
    assert float(opened.locator("#live").get_attribute("data-delay")) > 0
    drawn = """(name) => {
        const { width, height } = document.getElementById(name);
        const { data } = document.getElementById(name).getContext("2d").getImageData(0, 0, width, height);
        const colours = new Set();
        for (let i = 0; i < data.length; i += 4) colours.add(data.slice(i, i + 4).join());
        return colours.size;
    }"""
    assert opened.evaluate(drawn, "spectrum") > 30 and opened.evaluate(drawn, "track") > 5
    assert opened.evaluate(drawn, "attention") > 2
    opened.locator("#start").click()
    assert opened.locator("#start").inner_text() == "Start"
    before = opened.locator("#live").get_attribute("data-updates")
    opened.wait_for_timeout(500)
    assert opened.locator("#live").get_attribute("data-updates") == before
    opened.locator("#start").click()  # a second time
    updated(opened, int(before) + 1)


def test_page_of_values_has_a_bar_and_a_track_for_each(wav, tmp_path):
    model = MODELS["cgru"](2, hidden_size=8)
    targets = ["arousal", "<b>valence</b>"]
    checkpoint = Checkpoint("cgru", {"hidden_size": 8}, [], model.state_dict(), targets=targets)
    save_checkpoint(tmp_path / "values.safetensors", checkpoint)
    with listening(tmp_path / "values.safetensors") as address, browsing(address, wav) as page:
        page.locator("#file").set_input_files(wav)
        page.locator("#file-result").wait_for()
        [(_, scores)] = Predictor(tmp_path / "values.safetensors", device="cpu").files([wav])
        found = numbers(page, "#file-bars")
        assert list(found) == list(scores) == targets
        for name, value in scores.items():
            assert float(found[name]) == pytest.approx(value, rel=1e-3)  # four digits are shown
        assert page.locator("#file-bars .first").count() == 0  # no value is the best one
        page.locator("#start").click()
        updated(page, 5)
        assert list(numbers(page, "#live-bars")) == targets
        assert "values of the last" in page.locator("#caption").inner_text()
