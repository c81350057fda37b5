"""``ser-fast tune`` on a scripted GPU: every branch of proof, timing, choice and store; nothing imports torch twice."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from ser_fast import backends, cli
from ser_fast.backends import build, dispatch, info, measured, tuned
from ser_fast.tuning import cuda, process, store
from ser_fast.tuning.cases import cases
from ser_fast.tuning.schedule import Schedule

SCRIPT = Path(__file__).with_name("scripted.py")
KEY = {"device": "cuda", "name": "a GPU of this test", "torch": "2.13.0", "kernels": "ab12"}
MACHINE = {"key": KEY, "refused": {"cuda": None, "triton": None}, "busy": 0}
SECONDS = {"cuda": 0.5, "triton": 0.8, "torch": 1.0}
SHAPES = [(30, 2, 2, 64), (30, 2, 2, 128)]
WHOLE = {
    "gru": {name: {"64": ["cuda", "triton", "torch"], "128": ["cuda", "triton", "torch"]}
            for name in measured.PRECISIONS["gru"]},
    "attention_pool": {name: ["cuda", "triton", "torch"] for name in measured.PRECISIONS["attention_pool"]},
    "power_spectrogram": {"float32": ["cuda", "triton", "torch"]},
}  # fmt: skip


@pytest.fixture
def file(tmp_path, monkeypatch, fresh_state):
    """The file of the tuned choices; limits are short, so that a worker that hangs is killed soon."""
    path = tmp_path / "cache" / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    monkeypatch.setattr(cuda, "schedule", lambda cases, total: Schedule(20.0, 20.0, 20.0, 0.01, 20.0))
    return path


@pytest.fixture
def short(file, monkeypatch):
    """Limits of a second for a worker to end, or to say something."""
    monkeypatch.setattr(cuda, "schedule", lambda cases, total: Schedule(20.0, 1.5, 20.0, 0.01, 1.0))


def tuned_by(**script) -> str:
    """Return what a run prints whose workers play this script."""
    said: list[str] = []
    script = {"machine": MACHINE, "seconds": SECONDS} | {
        name.replace("_by_", " by "): value for name, value in script.items()
    }
    cuda.tune("cuda:0", SHAPES, worker=[sys.executable, str(SCRIPT), json.dumps(script)], say=said.append)
    return "\n".join(said)


def entry(file: Path) -> dict:
    (found,) = tuned.load(file).values()
    return found


def test_tune_stores_the_fastest_of_the_proven(file):
    said = tuned_by()
    found = entry(file)
    assert (found["key"], found["choices"], found["banned"]) == (KEY, WHOLE, {})
    assert "proof   gru by cuda: passed, 8 checks" in said and said.endswith(f"stored in {file}")
    assert "choice  gru tf32 H=64: cuda (cuda at most 0.50 of torch's time, triton at most 0.80" in said
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "tuned.json", "tuned.json.cuda-0.lock", "tuned.json.lock",
    ]  # fmt: skip


def test_choice_needs_a_clear_win_in_every_case(file):
    assert "gru tf32 H=64: torch (cuda at most 0.96" in tuned_by(
        seconds=SECONDS | {"cuda": 0.96, "triton": 0.94}
    ).replace("triton (cuda at most 0.96", "torch (cuda at most 0.96")
    assert entry(file)["choices"]["gru"]["tf32"]["64"] == ["triton", "torch", "cuda"]


def test_choice_takes_the_upper_bound_of_the_rounds(file):
    """Far ahead in most rounds, behind in one of seven."""
    tuned_by(rounds=[1.0] * 6 + [0.5], seconds=SECONDS | {"cuda": 0.6, "triton": 0.4})
    assert entry(file)["choices"]["gru"]["tf32"]["64"] == ["triton", "torch", "cuda"]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("fail", "float32 ragged: AssertionError: outputs: differs"),
        ("crash", "float32 ragged: its process ended with status -6: CUDA error: an illegal memory access"),
        ("silence", "start: its worker ended without a result"),
    ],
)
def test_failed_proof_bans_one_backend_of_one_op(file, deed, reason):
    said = tuned_by(gru_by_cuda=deed)
    found = entry(file)
    assert found["banned"] == {"gru by cuda": reason} and f"proof   gru by cuda: banned, {reason}" in said
    assert found["choices"]["gru"]["tf32"]["64"] == ["triton", "torch"]
    assert {op: found["choices"][op] for op in list(WHOLE)[1:]} == {op: WHOLE[op] for op in list(WHOLE)[1:]}


def test_hanging_proof_is_killed_and_costs_nothing_else(file, short):
    start = time.monotonic()
    tuned_by(attention_pool_by_triton="hang")
    assert time.monotonic() - start < 15
    assert entry(file)["banned"] == {"attention_pool by triton": "float32 ragged: it did not end within 2 s"}
    assert entry(file)["choices"] == WHOLE | {
        "attention_pool": {name: ["cuda", "torch"] for name in measured.PRECISIONS["attention_pool"]}
    }


def test_op_without_a_proven_backend_is_not_timed(file):
    said = tuned_by(**{"gru by cuda": "none", "gru by triton": "fail", "time gru by torch": "crash"})
    assert "proof   gru by cuda: no shape fits on the chip" in said
    assert entry(file)["choices"] == {op: WHOLE[op] for op in list(WHOLE)[1:]}


def test_nothing_proven_is_stored_as_torch(file):
    tuned_by(**{f"{op} by {name}": "fail" for op in WHOLE for name in measured.BACKENDS})
    found = entry(file)
    assert found["choices"] == {} and len(found["banned"]) == 6


@pytest.mark.parametrize("deed", ["hang", "crash"])
def test_timing_that_ends_its_worker_bans_the_backend(file, short, deed):
    said = tuned_by(**{"time attention_pool by triton": deed})
    (name,) = entry(file)["banned"]
    assert name == "attention_pool by triton" and "attention_pool float32 T=30 B=2 F=256, inference: it" in said
    assert entry(file)["choices"]["attention_pool"]["float32"] == ["cuda", "torch"]
    assert entry(file)["choices"]["gru"] == WHOLE["gru"], "what was timed before is kept, the rest goes on"


@pytest.mark.parametrize("deed", ["fail", "crash"])
def test_timing_of_torch_that_fails_leaves_torch(file, deed):
    said = tuned_by(**{"time power_spectrogram by torch": deed})
    assert "choice  power_spectrogram float32: torch (not every case was timed)" in said
    assert entry(file)["choices"] == WHOLE | {"power_spectrogram": {"float32": ["torch"]}}


def test_first_case_that_fails_is_not_the_one_repeated(file):
    said = tuned_by(**{"time gru by torch": "fail"})
    assert "timing  gru float32 T=30 B=2 D=2 H=64, inference: RuntimeError: CUDA out of order" in said
    found = entry(file)["choices"]
    assert found.pop("gru")["tf32"] == {"64": ["torch"], "128": ["torch"]}
    assert found == {op: WHOLE[op] for op in list(WHOLE)[1:]}


def test_path_left_out_of_one_case_is_not_chosen(file):
    """Out of memory, say: the backend is named, and stays out of that size alone."""
    said = tuned_by(**{"time attention_pool by cuda": "left out"})
    assert "timing  attention_pool float32 T=30 B=2 F=256, inference by cuda: OutOfMemoryError: 40 GB" in said
    assert entry(file)["choices"] == WHOLE | {
        "attention_pool": {name: ["triton", "torch"] for name in measured.PRECISIONS["attention_pool"]}
    }


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ({"drift": 1.06}, r"the first case by \w+ took \+6 % at the end, more than 5 %; nothing is stored"),
        ({"drift": 0.94}, r"the first case by \w+ took -6 % at the end"),
        ({"rounds": [1, 1.3, 1, 1.3, 1, 1.3, 1]}, "cuda:0 is busy: the time of one call by torch spreads by 30 %; nothing is"),
        ({"machine": MACHINE | {"busy": 55}}, "cuda:0 is busy: other processes use it 55 % of the time; nothing is stored"),
        ({"machine": {"error": "torch can see no GPU"}}, "cuda:0 cannot be tuned: torch can see no GPU"),
        ({"machine": {"deed": "crash"}}, "cuda:0 cannot be tuned: its process ended with status -6: CUDA error"),
        ({"machine": MACHINE | {"refused": {"cuda": "not built", "triton": "not installed"}}},
         "cuda:0 cannot run the kernels: cuda refused, not built; triton refused, not installed"),
    ],
)  # fmt: skip
def test_run_that_stores_nothing_says_why(file, script, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        tuned_by(**script)
    assert not file.exists()


def test_small_drift_and_unknown_load_are_accepted(file):
    tuned_by(drift=1.04, machine=MACHINE | {"busy": None}, rounds=[3, 1, 1, 1, 1, 1, 1.1])
    assert file.exists()


def test_backend_that_the_gpu_refuses_is_not_tried(file):
    tuned_by(machine=MACHINE | {"refused": {"cuda": "its driver is too old", "triton": None}}, gru_by_cuda="fail")
    assert entry(file)["choices"]["gru"]["tf32"]["64"] == ["triton", "torch"] and entry(file)["banned"] == {}


@pytest.mark.thorough
def test_run_in_which_everything_hangs_ends_in_time(file, monkeypatch):
    """Three proofs, and then every timing: each new worker is killed, until no time is left."""
    limits = Schedule(10.0, 2.0, 6.0, 0.01, 0.7)
    monkeypatch.setattr(cuda, "schedule", lambda cases, total: limits)
    hanging = {f"{op} by triton": "hang" for op in WHOLE} | {f"time {op} by torch": "hang" for op in WHOLE}
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the first case could not be timed twice, so nothing is stored"):
        tuned_by(**hanging)
    assert limits.proof < time.monotonic() - start < limits.worst
    assert not file.exists()


def test_worker_that_dies_after_its_work_bans_nothing(file):
    said = tuned_by(end="crash")
    assert entry(file)["choices"] == WHOLE and entry(file)["banned"] == {}
    assert "timing  its worker failed: its process ended with status -6" in said


def test_worker_that_cannot_start_timing_is_named(file):
    said: list[str] = []
    script = json.dumps({"machine": MACHINE, "seconds": SECONDS, "time": "crash"})
    with pytest.raises(RuntimeError, match="the first case could not be timed twice"):
        cuda.tune("cuda:0", SHAPES, worker=[sys.executable, str(SCRIPT), script], say=said.append)
    assert (
        said[-1]
        == "timing  its worker failed: its process ended with status -6: CUDA error: an illegal memory access"
    )


def test_second_run_on_the_same_gpu_is_refused(file):
    with store.alone("cuda-0"), pytest.raises(RuntimeError, match="another `ser-fast tune` is running on cuda-0"):
        tuned_by()
    tuned_by()


@pytest.mark.parametrize("place", ["/proc/none/tuned.json", "a file/tuned.json"])
def test_unwritable_cache_is_one_error_after_the_results(file, monkeypatch, tmp_path, capsys, place):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / place))  # an absolute place stays one
    script = json.dumps({"machine": MACHINE, "seconds": SECONDS})
    tune = cuda.tune
    monkeypatch.setattr(
        cuda, "tune", lambda device, *_, **__: tune(device, SHAPES, worker=[sys.executable, str(SCRIPT), script])
    )
    assert cli.main(["tune", "--device", "cuda:0"]) == 1
    shown = capsys.readouterr()
    assert "choice  gru tf32 H=64: cuda" in shown.out and "stored" not in shown.out
    assert shown.err.startswith("ser-fast: /") and shown.err.count("\n") == 1


@pytest.fixture
def gpu(file, monkeypatch, needs_kernels):
    """A GPU with KEY on which all kernels run."""
    pytest.importorskip("triton")
    monkeypatch.delenv("SER_FAST_BACKEND", raising=False)
    monkeypatch.setattr(build, "capability", lambda gpu: "9.0")
    monkeypatch.setattr(build, "missing", lambda backend: None)
    monkeypatch.setattr(build, "refused", lambda backend, gpu: None)
    monkeypatch.setattr(dispatch, "gru_limits", lambda gpu: torch.tensor(info.KNOWN_GPUS["H100"]))
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    key = tuned.key
    monkeypatch.setattr(tuned, "key", lambda device: KEY if torch.device(device).type == "cuda" else key(device))


def chosen(hidden_size: int = 64) -> str:
    return backends.select("gru", "cuda:0", hidden_size=hidden_size)


def test_choices_are_read_again_without_a_restart(gpu, monkeypatch):
    resets = []
    monkeypatch.setitem(sys.modules, "torch._dynamo", type("Compiler", (), {"reset": lambda: resets.append(1)}))
    with pytest.warns(UserWarning, match="`ser-fast tune` proves the kernels"):
        assert chosen() == "torch"
    tuned_by()
    assert (chosen(), resets) == ("cuda", [1])
    tuned_by(gru_by_cuda="fail")
    assert chosen() == "triton" and chosen(129) == "torch"
    assert tuned.described("cuda:0").endswith("gru by cuda: banned, float32 ragged: AssertionError: outputs: differs")
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    dispatch.reread()
    assert "torch._dynamo" not in sys.modules


def test_tuned_choices_precede_the_packaged_table(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "FILE", tmp_path / "measured.json")
    about = {"gpu": "NVIDIA H100", "date": "2026-12-01", "torch": "2.13.0", "commit": "0123abc"}
    measured.FILE.write_text(json.dumps({"9.0": about | {"gru": {"tf32": {"64": ["triton", "torch"]}}}}))
    assert chosen() == "triton"
    tuned_by()
    assert chosen() == "cuda"
    monkeypatch.setattr(tuned, "key", lambda device: KEY | {"kernels": "other"})
    dispatch.reread()
    assert chosen() == "triton" and tuned.described("cuda:0") == "no: kernels was ab12, is other"


@pytest.fixture
def destination(monkeypatch, tmp_path):
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))


def test_dry_run_starts_no_worker(destination, monkeypatch, capsys):
    monkeypatch.setattr(process, "Worker", None)
    assert cli.main(["tune", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("at most 120 s in all\nstart ") and "timing" in shown
    assert cli.main(["tune", "--dry_run", "--shapes", "300,64,1,96", "100,8,2,33"]) == 0
    count = len(cases([(300, 64, 1, 96), (100, 8, 2, 33)]))
    assert f"{count} cases of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device=mps"], "--device is mps; it must be cpu, cuda or cuda:NUMBER"),
        (["--shapes", "1,2,3,4"], "--shapes has 1,2,3,4; it must be T,B,D,H above 0 with D 1 or 2"),
        (["--shapes", *(f"300,32,2,{size}" for size in range(1, 99))], "the shapes give 791 cases to time; it must be at most"),
    ],
)  # fmt: skip
def test_tune_refuses_bad_options(destination, capsys, options, sentence):
    assert cli.main(["tune", *options]) == 1
    assert sentence in capsys.readouterr().err


def test_tune_without_a_place_for_the_choices_is_refused(monkeypatch, capsys):
    monkeypatch.setenv(tuned.VARIABLE, "0")
    assert cli.main(["tune", "--dry_run"]) == 1
    assert "SER_FAST_TUNED is 0" in capsys.readouterr().err
