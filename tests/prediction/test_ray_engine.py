"""The steps that Ray runs, in this process; tests/integration/test_ray.py starts Ray."""

import pickle
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from ser_fast.prediction import ray_engine, stream
from ser_fast.prediction.config import PredictConfig
from ser_fast.prediction.listing import Item
from ser_fast.prediction.local import Engine
from ser_fast.prediction.parts import OutputError
from ser_fast.prediction.summary import Summary
from ser_fast.prediction.workers import read_beside


@pytest.fixture
def engine(checkpoint) -> Engine:
    """An engine of segments of 0.3 s, 16 files a chunk."""
    return Engine(PredictConfig(str(checkpoint), ["-"], segment=0.3, device="cpu"))


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    """40 short noises, of which one is damaged, one is missing and one is listed twice."""
    folder = tmp_path_factory.mktemp("noises")
    for number in range(40):
        soundfile.write(folder / f"{number}.wav", 0.1 * torch.randn(4000 + 300 * number).numpy(), 16000)
    (folder / "7.wav").write_text("no audio")
    listed = [Item(str(folder / f"{number}.wav")) for number in range(40)]
    return [*listed[:20], listed[19], Item("gone.wav", error="no such file or folder"), *listed[20:]]


@pytest.fixture
def rows(engine, items, monkeypatch) -> list[dict]:
    """Return the rows of results that Ray gives for these files."""
    monkeypatch.setattr(ray_engine, "read_beside", lambda reader, items, **_: read_beside(reader, items, 0))
    monkeypatch.setattr(stream, "SAMPLES_AT_ONCE", 50_000)
    chunks = [
        {"offset": start, "items": pickle.dumps(items[start : start + 16])} for start in range(0, len(items), 16)
    ]
    actor = ray_engine._Actor(ray_engine._Model(str(engine.predictor.path), 32, "cpu", False))
    windows = [window for chunk in chunks for window in ray_engine._read(chunk, engine.reader)]
    assert len(windows) > len(chunks) == 3
    return [actor(window) for window in windows]


def results(rows: list[dict], items: list[Item], part: Summary | None = None) -> list[stream.Found]:
    nothing = Summary()
    return list(ray_engine._results(iter(rows), items, part or Summary(), nothing, lambda files, seconds: None))


def test_ray_engine_equals_the_local_one(engine, items, rows):
    part, expected = Summary(), Summary()
    found = results(rows, items, part)
    local = list(engine.results(read_beside(engine.reader, items, 0), expected))
    assert [engine.columns.row(one) for one in found] == [engine.columns.row(one) for one in local]
    assert [one.item for one in found] == [one.item for one in local]
    assert part.files == expected.files == len(items) and part.reading > 0 and part.model > 0
    assert sum(one.error != "" for one in found) == 2
    assert all(one.clip is None or one.clip.samples is None for one in found)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: rows[:1] + rows[2:],
        lambda rows: rows[:2] + rows[1:],
        lambda rows: [rows[1], rows[0], *rows[2:]],
    ],
    ids=["last missing", "missing", "twice", "swapped"],
)
def test_ray_engine_refuses_lost_or_doubled_results(items, rows, change):
    with pytest.raises(OutputError, match="of a part are missing or twice there"):
        results(change(rows), items)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ray"}, "engine is ray without out; it must be local, or out given"),
        ({"actors": 2}, "actors is 2 in engine local; it must be at least 1, in engine ray"),
        ({"engine": "ray", "actors": 0, "out": Path("x.csv")}, "actors is 0 in engine ray"),
    ],
)
def test_ray_engine_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PredictConfig("a", ["b"], **options)


@pytest.mark.parametrize(
    ("resources", "options", "expected"),
    [
        ({"CPU": 2.0}, {}, (1, "cpu")),
        ({"CPU": 64.0}, {}, (32, "cpu")),
        ({"CPU": 64.0, "GPU": 8.0}, {}, (8, "cuda")),
        ({"CPU": 4.0, "GPU": 8.0}, {}, (3, "cuda")),
        ({"CPU": 64.0, "GPU": 8.0}, {"device": "cpu", "actors": 63}, (63, "cpu")),
        ({"CPU": 64.0, "GPU": 8.0}, {"device": "cuda", "actors": 3}, (3, "cuda")),
        ({"CPU": 1.0}, {}, "Ray has 1 cores; it must be a cluster of 2 or more"),
        ({"CPU": 4.0}, {"device": "cuda"}, "device is cuda; it must be auto or cpu, for Ray has no GPU"),
        ({"CPU": 4.0}, {"actors": 4}, r"actors is 4; it must be in 1\.\.3 on this cluster"),
    ],
)
def test_ray_engine_shares_the_cluster(resources, options, expected):
    config = PredictConfig("a", ["b"], out=Path("x.csv"), engine="ray", **options)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            ray_engine._actors(config, resources)
    else:
        assert ray_engine._actors(config, resources) == expected


def test_ray_engine_names_the_missing_extra(engine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    config = PredictConfig(str(engine.predictor.path), ["b"], out=tmp_path / "x.csv", engine="ray")
    with pytest.raises(ImportError, match=r"engine ray needs ray: pip install 'ser_fast\[scale\]'"):
        ray_engine.run(config, print, print)
    assert not list(tmp_path.glob("x.csv*"))
