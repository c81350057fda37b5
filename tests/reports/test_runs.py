"""Reports of whole runs."""

import soundfile

from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize


def test_report_survives_a_failing_picture(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no ink")

    for emotion in ("anger", "sadness"):
        for speaker in ("00", "01"):
            folder = tmp_path / "voices" / emotion / speaker
            folder.mkdir(parents=True)
            for take in range(4):
                soundfile.write(folder / f"{take}.wav", synthesize(emotion, int(speaker), take, 8000).numpy(), 8000)
    monkeypatch.setattr("ser_fast.reports.figures.confusion", fail)
    out = tmp_path / "out"
    options = [
        "--model=cgru",
        "--cgru.channels=[4,4]",
        "--cgru.hidden_size=8",
        "--epochs=1",
        "--batch_size=6",
        "--valid_fraction=0.25",
    ]
    command = ["train", f"--data=folders:{tmp_path / 'voices'}", f"--out={out}", "--test_speakers=01", *options]
    assert main(command) == 0
    page = (out / "report.html").read_text()
    assert "confusion.png could not be drawn: no ink" in page and page.count("data:image/png;base64,") == 2
