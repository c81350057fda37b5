"""When long tasks report."""

from ser_fast.data import pace
from ser_fast.data.corpora.synthetic import synthetic
from ser_fast.data.dataset import load_dataset
from ser_fast.data.pace import Pace


def reported(monkeypatch, seconds: float, steps: int = 1000) -> list[float]:
    """Return the shares at which a task of so many seconds and equal steps reports."""
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    task, found = Pace(), []
    for step in range(1, steps + 1):
        now[0] = seconds * step / steps
        found += [step / steps] if task.due(step / steps) else []
    return found


def test_pace_reports_tenths_or_every_ten_seconds(monkeypatch):
    assert reported(monkeypatch, 9) == reported(monkeypatch, 10) == []
    assert reported(monkeypatch, 1000) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert reported(monkeypatch, 40) == [0.25, 0.5, 0.75]
    assert reported(monkeypatch, 1000, steps=3) == [1 / 3, 2 / 3]


def test_reading_a_corpus_reports(monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    lines = []
    load_dataset(synthetic(speakers=2, takes=2), 16000, report=lines.append)
    assert lines[:2] == ["read 3 of 24 utterances", "read 5 of 24 utterances"] and len(lines) == 9
