"""The acceptance run on a GPU without a GPU: its cases on the CPU, and its report of given results."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from ser_fast import backends

pytest.importorskip("triton")  # which `pip install '.[test]'` brings

ROOT = Path(__file__).parents[2]
GPU = {"gpu": "a GPU of this test", "capability": "9.0", "torch": "2.11.0", "commit": "abc1234"}


@pytest.fixture(scope="module")
def driver():
    """The module that ``python -m benchmarks.device`` runs."""
    spec = importlib.util.spec_from_file_location("device_main", ROOT / "benchmarks/device/__main__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["device_main"] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["device_main"]


@pytest.fixture
def imported(monkeypatch):
    """Imports a module of the run as its parts do, which are started in benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def rehearse(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.device", "--rehearse", "--installed", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.thorough
def test_device_run_can_be_rehearsed(tmp_path):
    result = rehearse(tmp_path, "--part=pool", "--part=spectrogram", "--part=gru", "--part=sanitizer")
    assert result.returncode == 0, result.stdout + result.stderr
    first = json.loads((tmp_path / "run.json").read_text())
    assert {name: part["state"] for name, part in first["parts"].items()} == {
        "pool": "passed", "spectrogram": "passed", "gru": "passed", "sanitizer": "cut short",
    }  # fmt: skip
    assert all(case["seconds"] for name in ("pool", "spectrogram", "gru") for case in first["parts"][name]["cases"])
    assert first["machine"]["gpu"] == "none: a rehearsal on the CPU"

    result = rehearse(tmp_path, "--part=spectrogram")
    assert result.returncode == 0, result.stdout + result.stderr
    again = json.loads((tmp_path / "run.json").read_text())
    assert again["parts"]["pool"] == first["parts"]["pool"]
    assert again["parts"]["spectrogram"]["seconds"] != first["parts"]["spectrogram"]["seconds"]
    shown = (tmp_path / "run.md").read_text()
    assert "A rehearsal on the CPU at small sizes: its times are meaningless." in shown
    assert shown.count("| not measured | not measured |") == len(importlib_aims())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "run.json", "run.md", "run.png"]

    (tmp_path / "run.json").write_text(json.dumps(again | {"machine": again["machine"] | {"gpu": "another"}}))
    result = rehearse(tmp_path, "--part=pool")
    assert "which holds a run of another" in result.stderr and result.returncode == 1


def importlib_aims() -> list:
    spec = importlib.util.spec_from_file_location("aims_alone", ROOT / "benchmarks/device/aims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.AIMS


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["--minutes=0"], "--minutes is 0.0; it must be above 0"),
        (["--wheel=missing.whl"], "--wheel is missing.whl; it must be a file"),
        (["--data=missing"], "--data is missing; it must be the folder of Emo-DB"),
        (["--part=everything"], "invalid choice: 'everything'"),
    ],
)
def test_device_run_refuses_bad_options(tmp_path, arguments, sentence):
    result = rehearse(tmp_path / "out", *arguments)
    assert sentence in result.stderr and result.returncode == 2
    assert not (tmp_path / "out").exists()


PYTHON = sys.executable
# A part of three cases, each of which does what its script says; they come after --first.
CASES = """
import json, os, subprocess, sys, time
first = int(sys.argv[sys.argv.index("--first") + 1])
with open(sys.argv[sys.argv.index("--out") + 1], "a") as file:
    def line(number, **found):
        file.write(json.dumps({{"number": number, "case": str(number)}} | found) + "\\n")
        file.flush()
    for number in range(first, 3):
        line(number, state="begun")
        if number == 1:
            {script}
        line(number)
"""


@pytest.mark.parametrize(
    ("script", "states", "whole", "said"),
    [
        ("pass", [None, None, None], "passed", None),
        ("sys.exit('no torch')", [None, "failed"], "failed", "no torch"),
        ("os.abort()", [None, "failed", None], "failed", "it ended the process"),
        ("line(1, state='failed', error='hangs'); os._exit(3)", [None, "failed", None], "failed", "hangs"),
        ("subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])", [None, "not run"], "cut short", "ran out"),
    ],
)  # fmt: skip
def test_device_case_failing_stops_no_other(driver, tmp_path, monkeypatch, script, states, whole, said):
    """A process that a case ends is followed by one that begins with the next; one that hangs ends with its time."""
    place = driver.Workspace(tmp_path, tmp_path / "site", [])
    call, script = place.call, CASES.format(script=script)
    limit = 5 if whole == "cut short" else 60

    def part(command, seconds):
        return call([PYTHON, "-c", script, *command[3:]], min(seconds, limit))

    monkeypatch.setattr(place, "call", part)
    found = driver.run_part("gru", place, 30.0)
    assert [case.get("state") for case in found["cases"]] == states and found["state"] == whole
    assert said is None or said in found["cases"][1]["error"]
    assert driver.run_part("gru", place, 3)["state"] == "not run"


@pytest.mark.parametrize("works", [True, False])
def test_device_run_rebuilds_a_failing_wheel(driver, tmp_path, monkeypatch, works):
    place, wheel = driver.Workspace(tmp_path, tmp_path / "site", []), tmp_path / "ser_fast-9.whl"
    commands = []

    def call(command, seconds, where=None):
        commands.append(command)
        wrong = str(wheel) in command and not works
        return (1, "is not a supported wheel") if wrong else (0, "")

    monkeypatch.setattr(place, "call", call)
    how = driver.install(place, wheel, tmp_path / "machine.jsonl")["how"]
    built = any(str(ROOT) in command for command in commands)
    if works:
        assert how == "the wheel ser_fast-9.whl, as it is" and not built
    else:
        assert "is not a supported wheel" in how and how.startswith("built here, because") and built


def test_device_run_keeps_test_outcomes(imported, tmp_path, monkeypatch):
    """By backend; those of a file that cannot be collected too; and what was known when time ran out."""
    proofs, bench = imported("device.proofs"), imported("device.bench")
    (tmp_path / "test_some.py").write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('backend', ['cuda', 'triton'])\n"
        "def test_all(backend): assert backend == 'triton', 'cuda is wrong'\n"
        "def test_skips(): pytest.skip('why')\n"
        "def test_both(): pass\n"
    )
    (tmp_path / "test_broken.py").write_text("import does_not_exist\n")
    (tmp_path / "test_hangs.py").write_text("import time\ndef test_fast(): pass\ndef test_slow(): time.sleep(600)\n")
    monkeypatch.setattr(proofs, "TESTS", tmp_path)
    here = bench.Bench(True, tmp_path, 60, None)
    here.rehearse = False
    cuda, triton = proofs.tested(here, "both", ["test_some.py"], 1)
    assert (cuda["passed"], cuda["failed"], cuda["skipped"]) == (1, 1, 1) and cuda["state"] == "failed"
    assert "cuda is wrong" in cuda["failures"]["test_some.py::test_all[cuda]"]
    assert (triton["passed"], triton["failed"], triton["skipped"]) == (2, 0, 1) and "state" not in triton
    assert cuda["by test"] == {"test_all": "failed", "test_skips": "skipped", "test_both": "passed"}
    broken = proofs.tested(here, "cuda", ["test_broken.py"], 1)[0]
    assert broken["state"] == "failed" and "does_not_exist" in broken["failures"]["test_broken.py"]
    here.end = bench.time.monotonic() + 6
    hung = proofs.tested(here, "triton", ["test_hangs.py"], 1)[0]
    assert hung["passed"] == 1 and hung["state"] == "not run" and "time ran out" in hung["error"]


def test_machine_without_git_has_no_commit(imported, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert imported("harness").machine()["commit"] == ""


def on_a_gpu() -> dict:
    """A run as a GPU would leave it, with made-up times."""
    gru = {"op": "gru", "precision": "tf32", "hidden_size": 128, "mode": "training", "batch": 64, "width": 401,
           "directions": 2, "errors": {"ours, cuda": 1e-4}}  # fmt: skip
    seconds = {"ours, cuda": 1e-3, "ours, cuda, graph": 9e-4, "ours, triton": 2e-3, "nn.GRU": 4e-3, "nn.LSTM": 5e-3}
    slow = seconds | {"nn.GRU": 2e-3}
    step = {"recurrence": 1e-3, "other": 1e-3}
    cases = {
        "tests": [
            {"case": "test_gpu.py, cuda", "backend": "cuda", "passed": 9, "failed": 1, "skipped": 0, "state": "failed",
             "failures": {"test_gpu.py::test_a": "assert 1 == 2"}, "error": "test_gpu.py::test_a"},
            {"case": "test_gpu.py, triton", "backend": "triton", "passed": 10, "failed": 0, "skipped": 0,
             "by test": {"test_bitwise_repeatable": "passed"}},
        ],
        "sanitizer": [{"case": "racecheck, cuda", "backend": "cuda", "tool": "racecheck", "said": "0 hazards"}],
        "recurrence": [
            {"case": "tf32 T=1000 B=64 D=2 H=128 reset_after=True, ours, cuda", "seconds": {"forward": 8e-4},
             "us a step": {"forward": 0.8}},
            {"case": "tf32 T=1000 B=64 D=2 H=256 reset_after=True, ours, cuda", "seconds": {"forward": 3e-3},
             "us a step": {"forward": 3.0}},
        ],
        "gru": [
            gru | {"case": "long", "frames": 1000, "seconds": seconds},
            gru | {"case": "short", "frames": 300, "seconds": slow, "left out": {"nn.LSTM, graph": "no capture"}},
            gru | {"case": "wrong", "frames": 300, "seconds": {"nn.GRU": 1e-3}, "state": "failed",
                   "error": "ours, cuda: differs"},
            gru | {"case": "long, ragged", "frames": 1000, "ragged": True,
                   "seconds": {"ours, cuda": 1e-3, "nn.GRU, packed": 3e-2, "nn.LSTM, packed": 3e-2}},
            {"case": "late", "state": "not run", "error": "no time was left"},
        ],
        "models": [{"case": "CGRU, B=64", "seconds": {"ours, cuda": 2e-3, "torch LSTM, padded": 4e-3},
                    "parts": {"ours, cuda": step, "torch LSTM, padded": {"recurrence": 3e-3, "other": 1e-3}},
                    "predicted": {"ours, cuda": [0.5, 0.5]}}],
    }  # fmt: skip
    part = {"state": "passed", "seconds": 9.0, "commit": "abc1234", "date": "2026-01-01"}
    return {"machine": GPU, "install": {"how": "the wheel"}, "rehearsal": False,
            "parts": {name: part | {"cases": found} for name, found in cases.items()}}  # fmt: skip


def test_aims_are_judged_by_their_worst_case(imported):
    aims, run = imported("device.aims"), on_a_gpu()
    found = {aim.name: aims.reached(aim, run["parts"]) for aim in aims.AIMS}
    assert found["recurrence forward, tf32, H=128, B=64 D=2"] == ("0.8 µs a step", "met")
    assert found["recurrence forward, tf32, H=256, B=64 D=2"] == ("3 µs a step", "**missed**")
    assert found["recurrence forward, bfloat16, H=128, B=64 D=2"] == ("not measured", "not measured")
    # A case that is not measured, for its result was wrong, does not meet an aim.
    assert found["GRU forward and backward, H=128, CUDA, against nn.GRU"] == (
        "2 × at worst (short), 1 of 2 meet it; 1 not measured", "**missed**",
    )  # fmt: skip
    assert found["the same ragged, H=128, CUDA, against packed nn.GRU"] == ("30 ×", "met")
    assert found["step time relative to the LSTM version, deviation from the sum of parts"] == ("0 %", "met")


def test_device_report_shows_results_and_failures(imported, tmp_path):
    report, run = imported("device.report"), on_a_gpu()
    shown = report.markdown(run)
    assert shown.startswith("# a GPU of this test\n") and "rehearsal" not in shown
    assert "| GRU forward and backward, H=128, CUDA, against nn.GRU | at least 3 × | 2 × at worst (short)" in shown
    assert "| test_gpu.py, cuda | 9 | 1 | 0 |" in shown and "assert 1 == 2" in shown
    assert "| test_bitwise_repeatable | passed |" in shown
    assert "| racecheck | cuda | passed | 0 hazards |" in shown
    assert "| long | 1 (1.00) | 2 (2.00) | 4 (4.00) | 5 (5.00) |" in shown
    assert "- wrong: ours, cuda: differs" in shown and "Not run: late." in shown
    assert "Left out: nn.LSTM, graph (no capture), in 1 cases, first short." in shown
    assert "ours, cuda: 50 % of the LSTM version's time by the parts, 50 % measured" in shown
    report.draw(run, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    report.draw(run | {"parts": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


class PlayedEvent:
    """Replacement of ``torch.cuda.Event`` that reads the CPU's clock."""

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


class PlayedGraph:
    def replay(self):
        pass


@pytest.fixture
def played(imported, native, fresh_state, monkeypatch, tmp_path):
    """A part's Bench as on a GPU, whose tensors are the CPU's; the CUDA ops are the runner's."""
    bench = imported("device.bench")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", PlayedEvent)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PlayedGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "played")
    fresh_state.widest = {None: (512, 256, 256)}
    monkeypatch.setattr(backends, "use", lambda name: setattr(fresh_state, "on_cuda", name))
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    here = bench.Bench(False, tmp_path, 600, None)
    here.device = torch.device("cpu")
    yield here
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.thorough
def test_device_part_ends_after_a_hanging_case(imported, tmp_path):
    """After it has said so, and with the status by which the next process goes on."""
    script = """
import sys, time
from device import bench, part
part.PARTS["gru"] = lambda bench: [part.Case("fast", dict), part.Case("slow", lambda: time.sleep(60)), part.Case("next", dict)]
part.LIMIT = 1
bench.Bench.lost = lambda self: sys.argv[-1] == "1"
sys.exit(part.main())
"""
    for first, states in (
        ("0", ["begun", None, "begun", "failed"]),
        ("2", ["begun", None]),
        ("1", ["begun", "failed"]),
    ):
        out = tmp_path / f"{first}.jsonl"
        command = [sys.executable, "-c", script, "gru", "--rehearse", "--out", str(out), "--first", first]
        result = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
        found = [json.loads(line) for line in out.read_text().splitlines()]
        assert [case.get("state") for case in found] == states, result.stderr
        assert result.returncode == (0 if first == "2" else 3)
    assert found[1]["error"] == "it did not end within 1 s"


def some(cases: list, *starts: str) -> list[dict]:
    """Return the results of the first case for each start of a name."""
    found = []
    for start in starts:
        case = next(case for case in cases if case.name.startswith(start))
        result = case.run()
        found += [{"case": case.name} | each for each in (result if isinstance(result, list) else [result])]
    return found


def whole(case: dict, *names: str) -> None:
    """Ours by both kernels and these peers were timed, one by one and, but for what packs, as graphs."""
    assert "state" not in case and "left out" not in case, case.get("error", case.get("left out"))
    for name in ("ours, cuda", "ours, triton", *names):
        assert name in case["seconds"] and ("packed" in name) != (f"{name}, graph" in case["seconds"]), name


@pytest.mark.thorough
def test_gpu_parts_run_on_a_simulated_gpu(played, imported, monkeypatch):
    """Every line but the kernels' own, at small sizes."""
    gru, pool, spectrogram = (imported(f"device.{name}") for name in ("gru", "attention_pool", "power_spectrogram"))
    for module, name, value in (
        (gru, "HIDDEN", (16, 32, 600)), (gru, "RECURRENCE", (20, 3)), (gru, "PLANNED", (20, 3)), (gru, "LAYERS", [(5, 20, 6)]),
        (gru, "CORNERS", [(1, 18, 6)]), (gru, "MORE", []), (pool, "SIZES", [(3, 20, 16)]), (pool, "COPIED", 1 << 12),
        (spectrogram, "SIZES", [(2, 1)]),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    dense, ragged, single, alone = some(
        gru.gru(played), "tf32 B=5 T=20 I=6 H=16 D=2, training", "float32 B=5 T=20 I=6 H=32 D=1, training",
        "bfloat16 B=1 T=18 I=6 H=16 D=2, inference",
    )  # fmt: skip
    assert ragged["case"].endswith(", ragged") and ragged["ragged"]
    for case in (dense, single, alone):
        whole(case, "nn.GRU", "nn.LSTM", "ours, cuda, reset_after=False")
    whole(ragged, "nn.GRU, packed", "nn.LSTM, packed", "nn.GRU, padded")
    large = some(gru.recurrence(played), "float32 T=20 B=3 D=2 H=600 reset_after=True, ours, cuda")[0]
    assert "seconds" not in large and large["left out"] == {"ours, cuda": gru.NOT_ON_CHIP}
    wide = some(gru.gru(played), "tf32 B=5 T=20 I=6 H=600 D=1, training")[0]
    assert wide["left out"].keys() == {"ours, cuda", "ours, cuda, reset_after=False", "ours, triton"}
    assert wide["seconds"].keys() >= {"nn.GRU", "ours, triton, reset_after=False"}
    named = "T=20 B=3 D=2 H=16 reset_after"
    for case in some(
        gru.recurrence(played), f"tf32 {named}=True, ours, cuda", f"bfloat16 {named}=False, ours, triton"
    ):
        assert case["seconds"].keys() == case["us a step"].keys() == {"inference", "forward", "backward"}
    planned = some(
        gru.plans(played), "bfloat16 T=20 B=3 D=2 H=32, clusters of 2", "float32 T=20 B=3 D=2 H=600, clusters of 1"
    )
    steps = {"inference", "forward", "backward", "forward, estimated", "backward, estimated"}
    assert planned[0]["us a step"].keys() == steps
    assert planned[1]["fits"] is False
    for case in some(pool.pool(played), "bfloat16 B=3 T=20 D=16, training", "float32 B=3 T=20 D=16, inference"):
        whole(case, "eager torch", "one-query SDPA")
        assert case["% of the copy bandwidth"]["ours, triton"] > 0
    for case in some(spectrogram.spectrogram(played), "2 x 1 s, normalised", "2 x 1 s, power"):
        whole(case, "torch.stft chain")


@pytest.mark.thorough
def test_model_steps_run_on_a_simulated_gpu(played, imported, monkeypatch):
    models, bench_models = imported("device.models"), imported("bench_models")
    monkeypatch.setattr(models, "BATCHES", (2,))
    monkeypatch.setattr(bench_models, "EMODB_FRAMES", [40, 30])
    case = some(models.models(played), "BiGRU-MHA, B=2")[0]
    assert case.pop("left out") == {"ours, triton, reset_after=True": models.NOT_ON_CHIP}  # cuDNN would run for it
    whole(case, "torch LSTM, padded", "torch GRU, packed", "ours, cuda, reset_after=True")
    assert (
        case["parts"]["ours, cuda"].keys() >= {"recurrence", "optimiser"}
        and len(case["predicted"]["ours, cuda"]) == 2
    )


@pytest.mark.parametrize("wrong", [None, "ours, cuda"])
def test_wrong_results_are_not_timed(played, wrong):
    def matches(name: str) -> float:
        if name == wrong:
            raise AssertionError("differs by 1")
        return 0.0

    names = ("ours, cuda", "ours, triton", "a peer")
    steps = dict.fromkeys(names, lambda: None) | {"a broken peer": lambda: 1 / 0}
    found = played.compare(steps, {name: lambda name=name: matches(name) for name in names[:2]}, graphs=False)
    assert found["left out"] == {"a broken peer": "ZeroDivisionError: division by zero"}
    assert found["seconds"].keys() == set(names) - {wrong}
    assert (found.get("state"), found.get("error")) == (
        ("failed", "ours, cuda: AssertionError: differs by 1") if wrong else (None, None)
    )  # fmt: skip
