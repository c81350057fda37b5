"""The rules of the CPU's kernels: what a measurement chooses, what is stored, and who follows it."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys

import pytest
import torch

import ser_fast
from ser_fast import cli
from ser_fast.backends import cpu_rules, dispatch, state, tuned
from ser_fast.backends.cpu_rules import Rules
from ser_fast.tuning import cpu

pytestmark = pytest.mark.usefixtures("needs_kernels")
FEW = {"float32": {"64": 4, "512": 16}}


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_FAST_TUNED", str(tmp_path / "tuned.json"))
    yield tmp_path / "tuned.json"
    dispatch.follow(Rules())


def fake_rounds(times):
    """Return ``rounds`` with given seconds by value, the same in every round."""

    def rounds(call, values, enter):
        return {value: [times(call, value)] * cpu.ROUNDS for value in values}

    return rounds


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        (lambda call, value: 1.0, 100_000),
        (lambda call, value: {25_000: 0.96}.get(value, 1.0), 100_000),  # not clearly faster
        (lambda call, value: {25_000: 0.9, 50_000: 0.8}.get(value, 1.0), 50_000),
        (lambda call, value: {50_000: 0.8 if call == "a" else 1.1}.get(value, 1.0), 100_000),  # slower in one call
        (lambda call, value: {400_000: 0.8 if call == "a" else 1.0}.get(value, 1.0), 400_000),
    ],
)
def test_value_is_chosen_if_a_call_is_clearly_faster_and_none_slower(monkeypatch, times, chosen):
    monkeypatch.setattr(cpu, "rounds", fake_rounds(times))
    assert cpu.best_value("nanoseconds_per_thread", Rules(), ["a", "b"]) == chosen


@pytest.mark.parametrize(
    ("ratio", "fewest"),
    [
        (lambda steps, batch: 0.5, 1),
        (lambda steps, batch: 2 / steps, 4),
        (lambda steps, batch: 1.0 if batch == 8 and steps < 16 else 0.5, 16),
        (lambda steps, batch: 0.5 if steps == 2 else 4 / steps, 8),  # one that wins by chance does not decide
        (lambda steps, batch: 1.0, 128),
    ],
)
def test_fewest_steps_are_those_that_win_at_every_batch_size(monkeypatch, ratio, fewest):
    monkeypatch.setattr(cpu, "against_torch", lambda precision, steps, batch, size: [ratio(steps, batch)] * 11)
    assert cpu.fewest_of("float32", 64, float("inf")) == fewest
    assert cpu.fewest_of("float32", 64, 0) is None


def test_sizes_that_are_not_reached_keep_the_default(monkeypatch):
    left = iter([1, 1, None])
    monkeypatch.setattr(cpu, "fewest_of", lambda *case: next(left))
    said = []
    assert cpu.fewest_steps(0, said.append) == {"float32": {"32": 1, "64": 1, "128": 2, "256": 8, "512": 16}}
    assert said == ["fewest steps of a GRU with a gradient, float32 from H=128 on: the time is over"]
    monkeypatch.setattr(cpu, "fewest_of", lambda *case: None)
    assert cpu.fewest_steps(0, said.append) == {}


def test_drift_is_measured_under_the_same_rules(monkeypatch):
    """A rule that makes the repeated case faster is no drift."""
    monkeypatch.setattr(cpu, "rounds", fake_rounds(lambda call, value: 0.5 if value == 25_000 else 1.0))
    monkeypatch.setattr(cpu, "fewest_steps", lambda end, say: {})
    monkeypatch.setattr(cpu, "against_torch", lambda *case: [state.current.rules.nanoseconds_per_thread])
    assert cpu.measure(lambda line: None).nanoseconds_per_thread == 25_000
    assert state.current.rules == Rules()


def test_measurements_are_not_stored_if_the_machine_has_changed_its_speed(monkeypatch, own_file):
    turns = iter(range(1000))
    monkeypatch.setattr(cpu, "rounds", fake_rounds(lambda call, value: 1.0))
    monkeypatch.setattr(cpu, "against_torch", lambda *case: [1.0 + 0.1 * (next(turns) > 0)] * 11)
    with pytest.raises(RuntimeError, match=r"differs by 10 % .*nothing is stored"):
        cpu.tune(lambda line: None)
    assert not own_file.exists() and state.current.rules == Rules()


def test_wrong_results_are_not_timed(monkeypatch):
    forward = ser_fast.GRU.forward
    monkeypatch.setattr(ser_fast.GRU, "forward", lambda *args: [1.001 * part for part in forward(*args)])
    with pytest.raises(RuntimeError, match=r"a GRU of T=3 B=2 H=8 in float32 is off by"):
        cpu.against_torch("float32", 3, 2, 8)


def test_tune_measures_stores_and_follows(monkeypatch, own_file):
    """In small: another process then follows the file, and an outdated key is not followed."""
    monkeypatch.setattr(cpu, "ROUNDS", 7)
    monkeypatch.setattr(cpu, "SHORTEST", 1e-5)
    monkeypatch.setattr(cpu, "DRIFT", float("inf"))
    monkeypatch.setattr(cpu, "HIDDEN", (8,))
    monkeypatch.setattr(cpu, "STEPS", (1, 2))
    calls = cpu.small_calls()[:2]
    monkeypatch.setattr(cpu, "small_calls", lambda: calls)
    said = []
    assert cpu.tune(said.append) == 0
    assert [line.partition(":")[0] for line in said[:2]] == list(cpu.VALUES) and str(own_file) in said[-1]
    entry, _ = tuned.read("cpu")
    assert cpu_rules.parse(entry["rules"]) == state.current.rules
    assert set(state.current.rules.fewest_steps) == set(cpu.PRECISIONS)

    script = "from ser_fast import backends; print(backends.rules.nanoseconds_per_thread)"
    wanted = entry["rules"]["nanoseconds_per_thread"] + 1
    entries = json.loads(own_file.read_text())
    for change, followed in (({}, wanted), ({"threads": 99}, 100_000)):
        entries[tuned.digest(entry["key"])]["rules"]["nanoseconds_per_thread"] = wanted
        key = entry["key"] | change
        own_file.write_text(json.dumps({tuned.digest(key): entries[tuned.digest(entry["key"])] | {"key": key}}))
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
        assert found.stdout.strip() == str(followed), found.stderr


def test_dry_run_measures_nothing(own_file, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "measure", None)
    assert cli.main(["tune", "--device", "cpu", "--dry_run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("at most 120 s in all") and said[-1] == f"store   the rules in {own_file}"
    assert [line.split()[1].strip(":") for line in said[1:-1]] == list(dataclasses.asdict(Rules()))
    assert not list(own_file.parent.iterdir())


@pytest.mark.parametrize("options", [["--all"], ["--shapes", "300,64,2,128"]])
def test_options_of_a_gpu_are_refused(monkeypatch, capsys, options):
    monkeypatch.setattr(cpu, "measure", None)
    assert cli.main(["tune", "--device", "cpu", *options]) == 1
    assert f"{options[0]} is for a GPU; omit it with --device cpu" in capsys.readouterr().err


def test_gru_takes_torchs_path_below_the_fewest_steps(monkeypatch):
    dispatch.follow(dataclasses.replace(Rules(), fewest_steps=FEW))
    paths = []
    torch_layers = ser_fast.GRU._torch_layers
    monkeypatch.setattr(ser_fast.GRU, "_torch_layers", lambda *args: paths.append("torch") or torch_layers(*args))
    for size, steps, path in ((8, 3, ["torch"]), (8, 4, []), (65, 15, ["torch"]), (600, 16, [])):
        gru = ser_fast.GRU(3, size)
        gru(torch.randn(steps, 2, 3))
        assert paths == path, (size, steps)
        with torch.no_grad():
            gru(torch.randn(steps, 2, 3))
        assert paths == path  # the rule is for gradients
        paths.clear()
    assert (
        dispatch.select("gru", steps=3, dtype=torch.float64, hidden_size=8) == "compiled"
    )  # not measured: from 2 on


def test_results_do_not_depend_on_the_rules():
    wave, window = torch.randn(3, 9000), torch.hamming_window(400)
    gru, x = ser_fast.GRU(8, 8), torch.randn(40, 4, 8)

    def run():
        power = ser_fast.functional.power_spectrogram(wave, window, 512, 160, (0, 257), center=True)
        return power, *(part.detach() for part in gru(x))

    wanted = run()
    for share, frames in ((1, 1), (1, 7), (10**12, 1000)):
        dispatch.follow(Rules(share, frames))
        assert all(torch.equal(one, other) for one, other in zip(run(), wanted))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([], "the rules are []; it must be an object"),
        ({"speed": 1}, "a rule is 'speed'; it must be one of nanoseconds_per_thread, frames_per_task, fewest_steps"),
        ({"frames_per_task": 0}, "frames_per_task is 0; it must be an integer in 1..2147483647"),
        ({"frames_per_task": True}, "frames_per_task is True; it must be an integer in 1..2147483647"),
        ({"fewest_steps": 2}, "fewest_steps is 2; it must be an object"),
        ({"fewest_steps": {"int8": {}}}, "a precision is 'int8'; it must be one of float32, float64, bfloat16"),
        ({"fewest_steps": {"float32": 2}}, "fewest_steps of float32 is 2; it must be an object"),
        ({"fewest_steps": {"float32": {"a": 2}}}, "a hidden size is 'a'; it must be a positive integer"),
        ({"frames_per_task": 2**63}, f"frames_per_task is {2**63}; it must be an integer in 1..2147483647"),
        ({"fewest_steps": {"float32": {"064": 2}}}, "a hidden size is '064'; it must be a positive integer"),
        (
            {"fewest_steps": {"float32": {"8": 0}}},
            "fewest_steps of float32 8 is 0; it must be an integer in 1..2147483647",
        ),
    ],
)
def test_bad_rules_are_refused(found, sentence):
    with pytest.raises(ValueError) as error:
        cpu_rules.parse(found)
    assert str(error.value) == sentence


def test_kernels_refuse_bad_rules():
    import ser_fast._C

    for share, frames in ((0.0, 1), (float("nan"), 1), (1.0, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            ser_fast._C.set_rules(share, frames)


def test_rounds_alternate_and_count_every_call():
    seen = []
    found = cpu.rounds(lambda: None, ["a", "b"], seen.append)
    assert seen == ["a", "b"] * (cpu.ROUNDS + 1)
    assert all(len(taken) == cpu.ROUNDS and statistics.median(taken) >= 0 for taken in found.values())
