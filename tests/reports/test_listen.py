"""The page of ``ser-fast listen``: what it answers, and what it refuses."""

import base64
import io
import json
import logging
import sys

import numpy as np
import pytest
import soundfile

from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.prediction.predictor import Predictor
from ser_fast.reports.listen import ListenConfig, listen

pytest.importorskip("starlette")
anyio = pytest.importorskip("anyio")
testclient = pytest.importorskip("starlette.testclient", exc_type=(ImportError, RuntimeError))  # it needs httpx2

from starlette.websockets import WebSocketDisconnect  # noqa: E402

from ser_fast.reports.listen_app import HEADERS, ROWS, Limits, application  # noqa: E402


@pytest.fixture(scope="module")
def predictor():
    return Predictor(device="cpu")


@pytest.fixture(scope="module")
def voice():
    return np.concatenate([synthesize("sadness", 1, take, 16000).numpy() for take in range(3)])[:32000]


@pytest.fixture
def client(predictor):
    """A browser at the page, whose limits are small."""
    limits = Limits(size=100_000, seconds=2.5, rate=48000, wait=5)
    app = application(predictor, seconds=1.0, about="the <model>", limits=limits)
    with testclient.TestClient(app, "http://127.0.0.1:8765") as client:
        yield client


def followed(client, path="/live?rate=16000", **options):
    return client.websocket_connect(f"ws://127.0.0.1:8765{path}", **options)


def encoded(wave, rate=16000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **{"format": "WAV", "subtype": "PCM_16"} | options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/listen.js", "text/javascript"), ("/listen.css", "text/css"),
     ("/microphone.js", "text/javascript"), ("/model", "application/json")],
)  # fmt: skip
def test_every_answer_forbids_scripts_of_others_and_caches(client, path, kind):
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"].split(";")[0] == kind
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert client.get("/nothing").headers["cache-control"] == "no-store"


def test_page_has_no_script_or_style_of_its_own(client):
    """The policy would not run them."""
    page = client.get("/").text
    assert "style=" not in page and "<style" not in page and "onclick" not in page
    assert page.count("<script") == page.count('<script src="listen.js" defer></script>') == 1


def test_model_names_its_classes_and_limits(client, predictor):
    found = client.get("/model").json()
    assert found["names"] == predictor.classes and found["classes"] and found["about"] == "the <model>"
    assert (found["size"], found["seconds"], found["window"], found["hop"]) == (100_000, 2.5, 1.0, 0.01)
    assert len(base64.b64decode(found["colours"])) == 3 * 256


@pytest.mark.parametrize("options", [{}, {"format": "FLAC"}, {"subtype": "ULAW"}], ids=["wav", "flac", "ulaw"])
def test_file_has_the_values_of_predict(client, predictor, voice, tmp_path, options):
    data = encoded(voice, **options)
    (tmp_path / "voice.any").write_bytes(data)
    found = client.post("/file", content=data).json()
    [(_, scores)] = predictor.files([tmp_path / "voice.any"])
    assert found["values"] == pytest.approx(list(scores.values()), abs=1e-5) and found["flags"] == scores.flag.split()
    assert found["seconds"] == 2.0
    jpeg, begin, end, top = found["picture"]
    assert base64.b64decode(jpeg)[:3] == b"\xff\xd8\xff" and 0 < begin < end < 2.1 and top == 8000
    levels, _, last, peak = found["attention"]
    assert max(base64.b64decode(levels)) == 255 and last <= 2.1 and 0 < peak <= 1


def test_file_of_another_rate_and_two_channels(client, predictor, voice):
    import soxr

    wave = soxr.resample(voice[:8000], 16000, 44100)
    found = client.post("/file", content=encoded(np.stack([wave, 0.5 * wave], 1), 44100, format="FLAC")).json()
    assert found["seconds"] == pytest.approx(0.5, abs=0.001) and sum(found["values"]) == pytest.approx(1)


def test_files_without_content_have_no_values(client):
    silent = client.post("/file", content=encoded(np.zeros(16000))).json()
    assert (silent["flags"], silent["values"], silent["picture"]) == (["silent"], None, None)
    wave = np.random.default_rng(0).normal(0, 0.1, (16000, 1))
    opposite = client.post("/file", content=encoded(np.hstack([wave, -wave]))).json()
    assert (opposite["flags"], opposite["values"]) == (["cancelled"], None)
    noise = client.post("/file", content=encoded(wave[:, 0])).json()
    assert (noise["flags"], noise["values"]) == (["no_speech"], None) and noise["picture"]
    short = client.post("/file", content=encoded(wave[:100, 0])).json()
    assert "too_short" in short["flags"] and short["picture"] is None


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"", 400, "the file: the file is empty (0 bytes)"),
        (b"<script>alert(1)</script>", 400, "the file: not readable as audio: Format not recognised."),
        (bytes(200_000), 413, "The file has more than 0.1 MB."),
        (encoded(np.zeros(30 * 1000), 8000), 400, "the file has 3.8 s; it must be at most 2.5 s; for longer files use "
         "`ser-fast predict --segment`"),
        (encoded(np.zeros(1000), 96000), 400, "its sample rate is 96000 Hz; it must be at most 48000 Hz"),
        (encoded(np.zeros(1000))[:-500], 400, "the file: truncated, 500 bytes less than its header says"),
    ],
    ids=["empty", "text", "large", "long", "rate", "truncated"],
)  # fmt: skip
def test_file_that_is_refused_gets_one_sentence(client, data, status, message):
    answer = client.post("/file", content=data)
    assert (answer.status_code, answer.text) == (status, message)
    assert answer.headers["content-type"].startswith("text/plain")
    assert client.post("/file", content=encoded(np.zeros(8000))).status_code == 200  # it goes on


def test_file_of_unknown_size_is_cut_off(client):
    answer = client.post("/file", content=(bytes(30_000) for _ in range(10)))
    assert "content-length" not in answer.request.headers and answer.status_code == 413


@pytest.mark.parametrize(
    ("pause", "status", "message"),
    [(True, 408, b"The file did not arrive within 0.2 s."), (False, 400, b"The file did not arrive whole.")],
    ids=["stalls", "ends"],
)
def test_upload_that_does_not_arrive_is_ended(predictor, pause, status, message):
    app, sent = application(predictor, 1.0, limits=Limits(wait=0.2)), []
    messages = iter([{"type": "http.request", "body": b"RIFF", "more_body": True}])

    async def receive():
        if (found := next(messages, None)) is None and pause:
            await anyio.sleep_forever()
        return found or {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/file",
        "headers": [(b"host", b"localhost")],
        "query_string": b"",
    }
    anyio.run(app, scope, receive, send)
    assert (sent[0]["status"], sent[1]["body"]) == (status, message)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8765"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Host": "192.168.1.7"}, 200),
        ({"Origin": "http://127.0.0.1:8765"}, 200),
        ({"Host": "attacker.example:8765"}, 403),
        ({"Host": "127.0.0.1.attacker.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "attacker.example", "Origin": "http://attacker.example"}, 403),
    ],
    ids=str,
)
def test_other_sites_are_refused(client, headers, status):
    assert client.get("/model", headers=headers).status_code == status
    assert client.post("/file", headers=headers, content=b"").status_code == (403 if status == 403 else 400)
    if status == 403:
        with pytest.raises(testclient.WebSocketDenialResponse), followed(client, headers=headers):
            pass
    else:
        with followed(client, headers=headers) as socket:
            socket.send_bytes(bytes(4 * 8000))
            assert socket.receive_text()


def test_name_that_was_given_is_served(predictor):
    with testclient.TestClient(application(predictor, 1.0, "Voice.example"), "http://voice.example") as client:
        assert client.get("/model").status_code == 200
        assert client.get("/model", headers={"Host": "other.example"}).status_code == 403


@pytest.mark.parametrize("rate", [16000, 48000])
def test_microphone_is_followed(client, predictor, voice, rate):
    import soxr

    sent = np.float32(soxr.resample(voice, 16000, rate))
    with followed(client, f"/live?rate={rate}") as socket:
        for chunk in np.array_split(sent, 200):
            socket.send_bytes(chunk.tobytes())
        found, frames = {"samples": 0}, 0
        while found["samples"] < len(sent) - 0.06 * rate:
            found = json.loads(socket.receive_text())
            levels = base64.b64decode(found["frames"])
            frames += len(levels) / ROWS
            assert found["work"] > 0 and found["seconds"] <= 1
    assert 170 <= frames <= 197
    end = found["samples"] * 16000 // rate
    [output] = predictor.predict([voice[end - 16000 : end].copy()])
    assert found["values"] == pytest.approx(output.values, abs=1e-4 if rate == 16000 else 0.05)
    assert max(base64.b64decode(found["attention"][0])) == 255


def test_microphone_without_sound_has_no_values(client):
    with followed(client) as socket:
        socket.send_bytes(bytes(4 * 8000))
        found = json.loads(socket.receive_text())
    assert (found["values"], found["attention"], found["flags"]) == (None, None, ["silent", "short"])
    assert set(base64.b64decode(found["frames"])) == {0}


@pytest.mark.parametrize(
    ("query", "message", "code", "reason"),
    [
        ("", None, 1007, "rate is ''; it must be a sample rate in hertz"),
        ("?rate=-1", None, 1007, "rate is '-1'; it must be a sample rate in hertz"),
        ("?rate=999", None, 1007, "sample_rate is 999; it must be 1000 to 768000 hertz"),
        ("?rate=99999999999999999999", None, 1007, "sample_rate is 999999999; it must be 1000 to 768000 hertz"),
        ("?rate=16000", b"abc", 1007, "3 bytes came; it must be float32 samples"),
        ("?rate=16000", np.full(4, np.nan, np.float32).tobytes(), 1007, "samples holds NaN or infinity; it must be finite"),
        ("?rate=16000", "text", 1007, "0 bytes came; it must be float32 samples"),
    ],
)  # fmt: skip
def test_microphone_that_sends_no_audio_is_ended(client, query, message, code, reason):
    with followed(client, f"/live{query}") as socket:
        if message is not None:
            (socket.send_text if isinstance(message, str) else socket.send_bytes)(message)
        with pytest.raises(WebSocketDisconnect) as error:
            socket.receive_text()
    assert (error.value.code, error.value.reason) == (code, reason)


def test_one_microphone_is_followed_at_a_time(client):
    with followed(client) as first:
        with followed(client) as second, pytest.raises(WebSocketDisconnect) as error:
            second.receive_text()
        assert (error.value.code, error.value.reason) == (1013, "Another page follows a microphone.")
        first.send_bytes(bytes(4 * 8000))
        assert first.receive_text()
    with followed(client) as again:
        again.send_bytes(bytes(4 * 8000))
        assert again.receive_text()


def test_nothing_is_written_or_logged(client, voice, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert client.post("/file", content=encoded(voice)).status_code == 200
        assert client.post("/file", content=b"no audio").status_code == 400
    assert list(tmp_path.iterdir()) == [] and not caplog.records and capfd.readouterr() == ("", "")


def test_port_in_use_is_one_error(capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["listen", f"--port={port}"]) == 1
    error = f"ser-fast: host is 127.0.0.1 and port is {port}: Address already in use; they must be an address of this"
    assert capsys.readouterr().err == f"{error} machine and a free port\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port=-1"], "port is -1; it must be in 0..65535"),
        (["--host="], "host is empty; it must be an address or a name, such as 127.0.0.1"),
        (
            ["--port=0", "--seconds=0"],
            "seconds is 0.0; it must be in 0.04..60 s, from a frame of the model to a minute",
        ),
        (["no/such/run", "--port=0"], "no/such/run"),
    ],
)
def test_options_out_of_range_are_errors(capsys, options, message):
    assert main(["listen", *options]) == 1
    assert message in capsys.readouterr().err


def test_missing_extra_names_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError) as error:
        listen("", ListenConfig())
    assert str(error.value) == "ser-fast listen needs uvicorn: pip install 'ser_fast[app]'"
