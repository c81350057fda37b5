"""A worker of ``ser-fast tune`` whose GPU is the host: ``python played.py LIBRARY [FAULT]``.

The CUDA kernels are those of ``host_gpu.py``, Triton's run in its interpreter; their times mean nothing.
"""

import contextlib
import io
import json
import os
import sys
import time
import types
import warnings

os.environ["TRITON_INTERPRET"] = "1"

import torch

from ser_fast.backends import build, dispatch, measured, registry
from ser_fast.ops import attention_pool, gru, power_spectrogram
from ser_fast.tuning import proof, timing, worker

KERNELS = {
    "gru": (gru.reference, gru.on_triton, gru.on_cuda, lambda gx, *_: gx.shape[-1] // 3),
    "gru_backward": (
        gru.reference_backward, gru.backward_on_triton, gru.backward_on_cuda, lambda grad_y, *_: grad_y.shape[-1],
    ),
    "attention_pool": (attention_pool.reference, attention_pool.on_triton, attention_pool.on_cuda),
    "attention_pool_backward": (
        attention_pool.reference_backward, attention_pool.backward_on_triton, attention_pool.backward_on_cuda,
    ),
    "power_spectrogram": (power_spectrogram.reference, power_spectrogram.on_triton, power_spectrogram.on_cuda),
}  # fmt: skip


def rounds(calls, alone, seconds):
    """Replacement of the timing: each call runs once, ours takes half of torch's time."""
    for call in calls.values():
        call()
    return {name: [1.0 if name == "torch" else 0.5] * timing.ROUNDS for name in calls}


def captured(call):
    """Replacement of a CUDA graph: the replay calls again and writes into the same outputs."""
    outputs = call()

    def replay():
        for tensor, new in zip(outputs, call()):
            tensor.copy_(new)

    return outputs, replay


def play(library: str) -> None:
    """Let CPU tensors run on the kernels for CUDA tensors, and torch.cuda describe a GPU."""
    warnings.filterwarnings("ignore", "Warning only once for all operators")  # of the kernels that are replaced
    torch.ops.load_library(library)
    for name, (reference, triton, cuda, *hidden_size) in KERNELS.items():
        op = name.removesuffix("_backward")
        call = registry.on_cuda_tensors(op, reference, triton, cuda, *hidden_size)
        registry.library.impl(name, call, "CPU", allow_override=True)
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    played = types.SimpleNamespace(name="emulated on the host", multi_processor_count=132, major=9, minor=0)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": lambda: None,
        "set_device": lambda device: None,
        "Stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "get_device_properties": lambda device=None: played,
        "utilization": lambda device=None: 0,
    }.items():
        setattr(torch.cuda, name, value)
    timing.captured, timing.rounds = captured, rounds
    build.capability, build.missing, build.refused = lambda gpu: "9.0", lambda name: None, lambda name, gpu: None
    build.driver_version = lambda: 13000
    dispatch.gru_limits = lambda gpu: torch.ops.ser_fast_cuda.gru_limits(torch.empty(0))
    # Triton's interpreter computes bfloat16 products wrongly, and the CPU's ops widen float16.
    measured.PRECISIONS = {op: found[:1] for op, found in measured.PRECISIONS.items()}
    proof.SHORT, proof.ROWS, proof.REPEATS = 3, 3, 1


def scaled(kernel):
    """Return a kernel whose first output is wrong by a hundredth."""

    def call(*args):
        first, *rest = kernel(*args)
        return first * 1.01, *rest

    return call


FAULTS = {
    "wrong": lambda: KERNELS.update(gru=(gru.reference, gru.on_triton, scaled(gru.on_cuda), KERNELS["gru"][3])),
    "hang": lambda: KERNELS.update(gru=(gru.reference, lambda *_: time.sleep(600), *KERNELS["gru"][2:])),
    "crash": lambda: KERNELS.update(attention_pool=(attention_pool.reference, lambda *_: os.abort(), attention_pool.on_cuda)),
}  # fmt: skip


def main(library: str, *faults: str) -> None:
    """Play the GPU with these faults and run the worker."""
    job = json.load(sys.stdin)
    if job["job"] != "machine":
        job["device"] = "cpu"
    for fault in faults:
        FAULTS[fault]()
    play(library)
    sys.stdin = io.StringIO(json.dumps(job))
    worker.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
