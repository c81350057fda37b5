"""Options of a prediction run."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ser_fast._require import require
from ser_fast.prediction.listing import STDIN
from ser_fast.training import distributed

SUFFIXES = (".parquet", ".jsonl", ".csv")


@dataclass
class PredictConfig:
    """Options of a prediction run.

    Args:
        checkpoint: a .safetensors file, or a run folder for its best epoch; "" is the model that comes with ser_fast.
        files: audio files, folders of audio files, lists of names (.txt, .csv, .tsv, .jsonl or .parquet), or "-" for
            names on standard input, one a line.
        out: table to write, .parquet, .jsonl or .csv; the same command resumes an interrupted run. Without it the
            results are printed.
        device: "auto", "cpu" or "cuda"; under torchrun each process takes its own GPU.
        batch_size: files, or segments, that go through the model together.
        workers: processes that read files beside the model; 0 reads in the process of the model. By default one less
            than the cores, shared by the processes of torchrun.
        segment: seconds of the segments that are predicted; by default a file is predicted as a whole.
        hop: seconds from the start of a segment to that of the next; by default the segment's length.
        embeddings: also give the input of the model's last layer, in the column embedding of a .parquet or .jsonl.
        engine: "local", or "ray" for Ray Data, which needs the extra "scale".
        actors: copies of the model in engine "ray"; by default one for each GPU, or half the cores of the cluster.
        json: without out, print one JSON object a line instead of a table.
        features: features of the files for a model that takes such in place of a spectrogram, as in training: an .npz
            or .parquet, or the local folder of the encoder.

    Raises:
        ValueError: a value is out of range or two options contradict each other.
    """

    checkpoint: str
    files: list[str]
    out: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 32
    workers: int | None = None
    segment: float | None = None
    hop: float | None = None
    embeddings: bool = False
    engine: Literal["local", "ray"] = "local"
    actors: int | None = None
    json: bool = False
    features: str = ""

    def __post_init__(self):
        require(bool(self.files), "files is empty", "one name at least")
        require(self.files.count(STDIN) <= 1, "files has '-' twice", "there once")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}", "at least 1")
        require(self.workers is None or self.workers >= 0, f"workers is {self.workers}", "at least 0")
        good = self.segment is None or 0 < self.segment < math.inf
        require(good, f"segment is {self.segment}", "a number of seconds above 0")
        if self.hop is not None:
            require(self.segment is not None, f"hop is {self.hop} without segment", "left out, or segment given")
            require(
                0 < self.hop <= self.segment, f"hop is {self.hop}", f"above 0 and at most segment, {self.segment}"
            )
        good = self.actors is None or (self.engine == "ray" and self.actors >= 1)
        require(good, f"actors is {self.actors} in engine {self.engine}", "at least 1, in engine ray")
        good = not self.features or self.engine == "local"
        require(good, f"features is {self.features} in engine {self.engine}", "omitted, or engine must be local")
        suffix = "" if self.out is None else self.out.suffix.lower()
        require(
            self.out is None or suffix in SUFFIXES, f"out is {self.out}", f"a name ending in {', '.join(SUFFIXES)}"
        )
        if self.embeddings:
            printed = self.out is None and not self.json
            where = "a table printed" if printed else f"out={self.out}"
            good = not printed and suffix != ".csv"
            require(good, f"embeddings is true with {where}", "with --json, or with out a .parquet or .jsonl")
        if self.out is None:
            require(self.engine == "local", f"engine is {self.engine} without out", "local, or out given")
            require(distributed.world() == 1, "out is missing under torchrun", "given")
        else:
            require(not self.json, f"json is true with out={self.out}", "false: the suffix of out decides")
        if distributed.world() > 1:
            require(self.engine == "local", f"engine is {self.engine} under torchrun", "local; Ray starts processes")
            require(STDIN not in self.files, "files has '-' under torchrun", "a list in a .txt")

    @property
    def threads(self) -> int:
        """Return this process's share of the cores, also the number of batches on a model on the CPU at a time."""
        several = distributed.world() > 1
        return max(1, cores() // (int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several else 1))

    @property
    def reading_processes(self) -> int:
        """Return ``workers``, or its default on this machine."""
        return max(1, self.threads - 1) if self.workers is None else self.workers


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
