"""Parts `models` (training steps), `epochs` (epochs on Emo-DB) and `papers` (the papers' experiments)."""

import atexit
import copy
import functools
import itertools
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from bench_models import (
    BATCHES,
    GRADIENTS,
    MODELS,
    TOLERANCE,
    Clock,
    by_reference,
    fresh,
    logits_and_gradients,
    training_step,
    voices,
)
from harness import check

from device.bench import Bench, Case
from device.gru import NOT_ON_CHIP, fits, left
from device.proofs import call
from ser_fast import backends, experiments
from ser_fast.experiments.settings import Settings
from ser_fast.models.peers import with_torch
from ser_fast.models.plain import plain
from ser_fast.tuning.checks import allow
from ser_fast.tuning.timing import by

STEPS = 5  # steps in which the parts are timed
# Later experiments reuse runs of earlier ones. `protocols` is omitted: most of its time is resampling on the CPU.
SHARING = ("claims", "comparison", "anova", "emotions", "attention", "lstm")
EXPERIMENTS = (*SHARING, "heads", "spectrograms", "optimizers")
JOBS = 8  # folds trained in parallel on the GPU
RUN = """
import json, sys
from ser_fast import experiments
from ser_fast.experiments.settings import Settings
if __name__ == "__main__":
    experiments.run(sys.argv[1], Settings(**json.loads(sys.argv[2])))
"""


def models(bench: Bench) -> list[Case]:
    """Time a training step, from waveforms to updated weights, against torch's GRU and LSTM in the same model.

    Ours is timed with both forms of the GRU, the papers' and torch's.
    """
    batches, options = ((4,), {"hidden_size": 16}) if bench.rehearse else (BATCHES, {})
    return [
        Case(f"{name}, B={batch}, 1.6..5.3 s", functools.partial(model_case, bench, name, batch, options))
        for batch in batches
        for name in MODELS
    ]


def model_case(bench: Bench, name: str, batch: int, options: dict) -> dict:
    """Time the steps of one model and batch size, whole and by part."""
    allow("tf32")
    waves = voices(batch)
    papers = fresh(name, *waves[:2], **options)
    torchs = fresh(name, *waves[:2], **options, reset_after=True)
    given = [tensor.to(bench.device) for tensor in waves]
    ours = {"": papers.to(bench.device), ", reset_after=True": torchs.to(bench.device)}
    twins, left_out = by_kernels(bench, ours)
    peers = {kind: (None, model) for kind, model in with_torch(plain(papers)).items()}
    steps, parts = {}, {}
    for kind, (kernels, model) in (twins | peers).items():
        steps[kind] = by(kernels, training_step(model, None, *given))
    # tf32 products round to 10 bits; the CPU has no tf32.
    tolerance = TOLERANCE if bench.rehearse else 100 * TOLERANCE
    checks = {
        kind: functools.partial(check_model, model, kernels, given, tolerance)
        for kind, (kernels, model) in twins.items()
    }
    found = bench.compare(steps, checks, tolerance=tolerance)
    for kind, (kernels, model) in (twins | peers).items():
        if kind in found["seconds"]:
            parts[kind] = parts_of(model, kernels, given)
    return left(left_out, found) | {"parts": parts, "predicted": predicted(parts, found["seconds"])}


def by_kernels(bench: Bench, ours: dict[str, torch.nn.Module]) -> tuple[dict, dict]:
    """Return the models by backend and form with the backend's name, and those left out with the reason."""
    twins, left_out = {}, {}
    for (form, model), kernels in itertools.product(ours.items(), bench.kernels):
        layer = model.rnn
        if fits(f"ours, {kernels}", layer.weight_hh_l0.dtype, layer.hidden_size, streams=not layer.reset_after):
            # Timing trains the weights, so each copy has its own.
            twins[f"ours, {kernels}{form}"] = kernels, copy.deepcopy(model)
        else:
            left_out[f"ours, {kernels}{form}"] = NOT_ON_CHIP
    return twins, left_out


def check_model(model: torch.nn.Module, kernels: str, given: list, tolerance: float) -> float:
    """Check logits and gradients against the reference; return the error of the logits."""
    exact = logits_and_gradients(by_reference(model), *given)
    found = by(kernels, lambda: logits_and_gradients(model, *given))()
    error = check("logits", found[0], exact[0], tolerance)
    check("gradients", found[1:], exact[1:], max(GRADIENTS, 10 * tolerance))
    return error


def parts_of(model: torch.nn.Module, kernels: str | None, given: list) -> dict[str, float]:
    """Return the seconds of each part; the synchronisation makes their sum larger than a step's time."""
    clock = Clock(model)
    step = by(kernels, training_step(model, clock, *given))
    for _ in range(STEPS + 1):
        step()
    return clock.medians()


def predicted(parts: dict[str, dict[str, float]], seconds: dict[str, float]) -> dict[str, list[float]]:
    """Return the step's time over that of the LSTM version, from the sum of the parts and as measured."""
    lstm = "torch LSTM, padded"
    if lstm not in parts:
        return {}
    whole = {kind: sum(found.values()) for kind, found in parts.items()}
    return {kind: [whole[kind] / whole[lstm], seconds[kind] / seconds[lstm]] for kind in parts if "ours" in kind}


def epochs(bench: Bench) -> list[Case]:
    """Time whole epochs on Emo-DB: the experiment ``time`` at the papers' sizes, on each backend."""
    if not bench.data and not bench.rehearse:
        return [Case("Emo-DB", lambda: {"state": "not run", "error": "--data names no folder of Emo-DB"})]
    return [Case(f"time, {kernels}", functools.partial(epochs_case, bench, kernels)) for kernels in bench.kernels]


def epochs_case(bench: Bench, kernels: str) -> dict:
    """Run the experiment ``time`` on one backend."""
    allow("tf32")
    if not bench.rehearse:
        backends.use(kernels)
    with tempfile.TemporaryDirectory() as out:
        result = experiments.run("time", Settings(out=Path(out), **_given(bench)))
    numbers = result.numbers
    return {"backend": kernels, "epochs": numbers["seconds"], "ratios": numbers["ratios"], "notes": result.notes}


def _given(bench: Bench) -> dict:
    """Return the data and the scale of the experiments."""
    data = {"data": f"emodb:{bench.data}"} if bench.data else {}
    return data | {"scale": "tiny" if bench.rehearse else "full"}


def papers(bench: Bench) -> list[Case]:
    """Run the papers' experiments at full scale, on the backend of SER_FAST_BACKEND.

    Finished runs are stored in ``papers.tar.gz`` without weights; the next call resumes from there.
    """
    if not bench.data and not bench.rehearse:
        return [Case("Emo-DB", lambda: {"state": "not run", "error": "--data names no folder of Emo-DB"})]
    archive, folder = bench.out / "papers.tar.gz", Path(tempfile.mkdtemp(prefix="ser_fast-")) / "papers"
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    if archive.is_file():
        with tarfile.open(archive) as file:
            file.extractall(folder.parent, filter="data")
    names = ("lstm",) if bench.rehearse else EXPERIMENTS
    return [Case(name, functools.partial(papers_case, bench, name, folder, archive)) for name in names]


def papers_case(bench: Bench, name: str, folder: Path, archive: Path) -> dict:
    """Run one experiment in its own process, until time runs out, and archive all runs."""
    settings = {"out": str(folder), **_given(bench)} | ({} if bench.rehearse else {"folds": {"jobs": JOBS}})
    code, output = call([sys.executable, "-c", RUN, name, json.dumps(settings)], bench, bench.out)
    whole = archive.with_suffix(".new")
    with tarfile.open(whole, "w:gz") as file:
        file.add(folder, "papers", filter=lambda member: None if member.name.endswith(".safetensors") else member)
    whole.replace(archive)
    about = {"backend": os.environ.get("SER_FAST_BACKEND", "auto")}
    if code is None:
        return about | {"state": "not run", "error": "time ran out; finished runs are in papers.tar.gz"}
    if code:
        return about | {"state": "failed", "error": output}
    return about | {"table": (folder / f"{name}.md").read_text(encoding="utf-8")}
