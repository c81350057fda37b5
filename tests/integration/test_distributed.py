"""Several processes train as one: the same results, one voice, one writer, and an end for all."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import ser_fast
from ser_fast import cli
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.data.dataset import Dataset
from ser_fast.training import distributed
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.trainer import Trainer

EMOTIONS = ("anger", "neutral", "sadness")
VOICES = [(emotion, speaker, take) for emotion in EMOTIONS for speaker in range(3) for take in range(6)]
PLAIN = {
    "cgru": {"channels": (4, 4), "hidden_size": 8, "dropout": 0.0},
    "bigru_mha": {"hidden_size": 8, "num_heads": 2, "attention_dropout": 0.0, "dropout": 0.0},
}


def two_ranks(folder: Path, *works) -> None:
    """Each ``work(folder)`` in two processes, which form a group for it."""
    multiprocessing.spawn(_work, (folder, works), nprocs=2)


def _work(rank: int, folder: Path, works) -> None:
    import torch._dynamo  # as distributed.joined() does

    torch.set_num_threads(1)
    for work in works:
        store = f"file://{folder}/{work.__name__}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        try:
            work(folder)
        except SystemExit as error:
            raise RuntimeError("a process left") from error
        finally:
            dist.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are started here, which share the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def voices() -> Dataset:
    emotions, speakers, _ = zip(*VOICES)
    labels = [EMOTIONS.index(emotion) for emotion in emotions]
    waves, names = [synthesize(*voice) for voice in VOICES], [str(voice) for voice in VOICES]
    return Dataset("voices", waves, labels, [f"s{speaker}" for speaker in speakers], names, list(EMOTIONS), [])


def train(model: str, out: Path, dataset: Dataset, **changes) -> dict:
    """The summary of three epochs in float64, of batches of 9, 9, 9 and 1 utterances."""
    settings = {
        "model": model,
        "epochs": 3,
        "batch_size": 9,
        "test_speakers": "s2",
        "valid_fraction": 0.2,
        "validation": "random",
    }
    config = TrainConfig(out=out, device="cpu", **(settings | changes))
    folder = run_folder(out, run_options(config, PLAIN[model]))
    with folder if distributed.rank() == 0 else contextlib.nullcontext():
        split = dataset.split(**config.held_out)
        trainer = Trainer(config, PLAIN[model], dataset, split, folder)
        assert [len(group) for group in trainer.batches["train"].groups] == [9, 9, 9, 1]
        trainer.model.double()
        for batches in trainer.batches.values():
            batches.waves = [wave.double() for wave in batches.waves]
        return trainer.run()


# Adam is blind to the gradient's scale, unless weight decay stands beside it; the clip of the other is always active.
RUNS = {"cgru": {"weight_decay": 0.1, "loss": "l1", "clip": float("inf")}, "bigru_mha": {"clip": 0.05}}


def train_both(folder: Path) -> None:
    dataset = voices()
    for model, changes in RUNS.items():
        tested = train(model, folder / model, dataset, **changes)["best"]
        assert distributed.gather(tested) == [tested] * distributed.world()
    # The last epoch's dropout would have gone on with these.
    assert len(set(distributed.gather(torch.rand(1).item()))) == distributed.world()
    distributed.finish()


def test_two_processes_train_like_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    train_both(one)
    two_ranks(two, train_both)
    for model in RUNS:
        for name in ("last", "best"):
            weights, others = (load_file(path / model / f"{name}.safetensors") for path in (one, two))
            assert weights.keys() == others.keys()
            for key, weight in weights.items():
                # Statistics are float32 of sums in float64. A gradient of 1e-15, all rounding, moves Adam by
                # lr 1e-15 / (1e-15 + eps) = 1e-10 in each of 12 steps.
                statistics = key.startswith("model.spectrogram.")
                close = {"rtol": 2**-23, "atol": 0.0} if statistics else {"rtol": 0.0, "atol": 1e-8}
                assert torch.allclose(weight, others[key], **close), (model, name, key)
        for row, other in zip(metrics(one / model), metrics(two / model), strict=True):
            assert row | {"seconds": 0} == pytest.approx(other | {"seconds": 0}, rel=0, abs=1e-8)
        summary, other = (json.loads((path / model / "summary.json").read_text()) for path in (one, two))
        for name in ("best", "last"):
            assert summary[name].pop("loss") == pytest.approx(other[name].pop("loss"), rel=0, abs=1e-8)
            assert summary[name] == other[name]
    assert float(load_file(two / "bigru_mha" / "last.safetensors")["model.spectrogram.mean"].abs().max()) > 0


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


MODULES = {
    "cgru": lambda: ser_fast.CGRU(3, **PLAIN["cgru"]),
    "bigru_mha": lambda: ser_fast.BiGRUMHA(3, **PLAIN["bigru_mha"]),
    "gru": lambda: ser_fast.GRU(5, 7, batch_first=True, bidirectional=True),
}


def loss(name: str, model: nn.Module, rows: slice) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([9000, 641, 7213, 4000, 5000, 8111])[rows]
    if name == "gru":
        x = torch.randn(6, 9, 5, dtype=torch.float64, generator=generator)[rows]
        output, h_n = model(x, lengths=lengths // 1000)
        return output.square().sum((1, 2)).mean() + h_n.sum((0, 2)).mean()
    wave = torch.randn(6, 9000, dtype=torch.float64, generator=generator)[rows]
    return nn.functional.cross_entropy(model(wave, lengths), torch.arange(6)[rows] % 3)


def follow(name: str, model: nn.Module, rows: slice) -> list[Tensor]:
    """The weights after two steps; from the second on, torch's wrapper has its buckets in another order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(name, model, rows).backward()
        optimizer.step()
    return [weight.detach() for weight in model.parameters()]


def wrap(_) -> None:
    for name, build in MODULES.items():
        torch.manual_seed(0)
        alone = follow(name, build().double(), slice(None))
        torch.manual_seed(0)
        together = follow(name, DistributedDataParallel(build().double()), slice(distributed.rank(), None, 2))
        for one, other in zip(alone, together, strict=True):
            # Some thousand roundings of 1.1e-16 each.
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-12), name
    distributed.finish()


@pytest.mark.thorough
def test_modules_in_ddp_train_like_one_process(tmp_path):
    two_ranks(tmp_path, wrap)


def fail_alone(_) -> None:
    first = distributed.rank() == 0
    expected = pytest.raises(RuntimeError, match="rank 1 of 2: no disk") if first else pytest.raises(SystemExit)
    with expected, distributed.agreed():
        if not first:
            raise OSError("no disk")


def read_another_corpus(folder: Path) -> None:
    dataset = voices()
    if distributed.rank() == 0:
        expected = pytest.raises(ValueError, match="data is synthetic, where rank 1 of 2 finds another corpus")
    else:
        expected = pytest.raises(SystemExit)
        dataset.waves[0] = dataset.waves[0][:-1]
    with expected:
        train("cgru", folder / "run", dataset)
    assert not (folder / "run" / "config.json").exists()


def refuse_an_option(_) -> None:
    first, said = distributed.rank() == 0, io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.nullcontext() if first else pytest.raises(SystemExit):
        assert cli.main(["train", "--epochs=0"]) == 1
    assert said.getvalue() == ("ser-fast: epochs is 0; it must be at least 1\n" if first else "")


@pytest.mark.thorough
def test_errors_are_shown_by_rank_0_alone(tmp_path):
    two_ranks(tmp_path, fail_alone, read_another_corpus, refuse_an_option)


@pytest.mark.parametrize("command", ["demo", "cv", "info"])
def test_other_commands_refuse_torchrun(command, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    assert cli.main([command]) == 1
    assert capsys.readouterr() == (
        "", f"ser-fast: {command} runs in one process; it must be started without torchrun\n"
    )  # fmt: skip


def test_every_process_takes_its_own_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert distributed.device("auto") == torch.device("cuda", 1) and chosen == [1]
    assert distributed.device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device is auto; it must be cpu, or --nproc-per-node at most 1"):
        TrainConfig()
    assert TrainConfig(device="cpu").device == "cpu"


def torchrun(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=environment)


def options(corpus: Path, out: Path) -> list[str]:
    """A run with dropout."""
    return ["train", f"--data=folders:{corpus}", f"--out={out}", "--model=cgru", "--test_speakers=s2", "--epochs=3",
            "--batch_size=9", "--validation=random", "--valid_fraction=0.2", "--cgru.channels=[4,4]", "--cgru.hidden_size=8"]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("voices")
    for emotion, speaker, take in VOICES:
        folder = root / emotion / f"s{speaker}"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{take}.wav", synthesize(emotion, speaker, take).numpy(), 16000)
    return root


# Rank 1 can write no file but the cache of the corpus, and is killed in the second epoch if KILLED is set.
SCRIPT = """
import os, signal, sys
from ser_fast import cli
from ser_fast.training import trainer

def step(trainer, batch, whole=trainer.Trainer._step):
    if "KILLED" in os.environ and trainer.progress.epoch == 1 and batch.size == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(trainer, batch)

def replace(source, target, whole=os.replace):
    assert os.environ["XDG_CACHE_HOME"] in str(target), target
    whole(source, target)

if os.environ["RANK"] == "1":
    os.replace = replace
    trainer.Trainer._step = step
sys.exit(cli.main())
"""


@pytest.mark.thorough
def test_killed_process_ends_all_and_run_resumes(corpus, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    script = tmp_path / "ser_fast_script.py"
    script.write_text(SCRIPT)
    done = torchrun(script, *options(corpus, whole))
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("on disk in", "one copy for 2 processes", "cgru epoch   1/3", "cgru epoch   3/3", "report: "):
        assert done.stdout.count(line) == 1, done.stdout
    killed = torchrun(script, *options(corpus, parts), KILLED="1")
    # torchrun's own signal may come first.
    ended = (
        r"ser-fast: (another of the 2 processes no longer answers|interrupted); the same command resumes after the"
    )
    assert killed.returncode != 0 and len(re.findall(ended, killed.stderr)) == 1, killed.stderr
    assert killed.stderr.count("ser-fast: ") == 1 and "Signal 9" in killed.stderr
    assert len(metrics(parts)) == 1 and not (parts / "summary.json").exists()
    shutil.copytree(parts, tmp_path / "alone")
    resumed = torchrun("-m", "ser_fast", *options(corpus, parts))
    assert resumed.returncode == 0 and resumed.stdout.count(f"resuming after epoch 1 of {parts}") == 1
    assert_same_run(whole, parts)
    assert cli.main(options(corpus, tmp_path / "alone")) == 0
    assert len(metrics(tmp_path / "alone")) == 3


def assert_same_run(one: Path, other: Path) -> None:
    """To the bit: the sum of two numbers does not depend on their order."""
    for row, peer in zip(metrics(one), metrics(other), strict=True):
        assert row | {"seconds": 0} == peer | {"seconds": 0}
    for name in ("best.safetensors", "last.safetensors"):
        tensors, others = load_file(one / name), load_file(other / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()), name


@pytest.mark.thorough
def test_refusal_is_shown_once_and_ends_all(corpus, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    refused = torchrun("-m", "ser_fast", *options(corpus, tmp_path))
    assert refused.returncode != 0 and refused.stdout == ""
    sentence = f"ser-fast: out is {tmp_path}, which holds other files; it must be a new folder\n"
    assert refused.stderr.count(sentence) == refused.stderr.count("ser-fast: ") == 1, refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.thorough
def test_torchrun_refuses_batch_normalization(corpus, tmp_path):
    out = tmp_path / "out"
    refused = torchrun("-m", "ser_fast", "train", f"--data=folders:{corpus}", f"--out={out}", "--model=functionals")
    sentence = (
        "ser-fast: model is functionals, which normalises over batches; in 2 processes it must be one that does not"
    )
    assert refused.returncode != 0 and refused.stderr.count(sentence) == 1, refused.stderr
    assert not out.exists()


@pytest.mark.thorough
def test_torchrun_refuses_the_loss_of_whole_batches(corpus, tmp_path):
    files = sorted(Path(corpus).rglob("*.wav"))
    lines = [f"{file},{file.parent.name},{number % 5}" for number, file in enumerate(files)]
    (tmp_path / "rated.csv").write_text("\n".join(["file,speaker,arousal", *lines]) + "\n")
    given = [f"--data={tmp_path / 'rated.csv'}", "--targets=arousal", "--loss=ccc", f"--out={tmp_path / 'out'}"]
    refused = torchrun("-m", "ser_fast", "train", *given, "--model=cgru", "--test_fraction=0.3", "--validation=none")
    sentence = "ser-fast: loss is ccc in 2 processes, which share each batch; it must be l1 or mse"
    assert refused.returncode != 0 and refused.stderr.count(sentence) == 1, refused.stderr
    assert not (tmp_path / "out").exists()
