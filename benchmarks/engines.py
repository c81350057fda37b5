"""The same computations by other engines, with torch's number of threads and, for a GRU, with constant weights.

An engine that is not installed is left out, and named by :func:`missing`.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

MODULES = {
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
    "JAX": "jax",
    "Flax": "flax",
    "pyFFTW": "pyfftw",
    "SciPy": "scipy",
    "librosa": "librosa",
}


class Engine(NamedTuple):
    """A computation: ``call`` is timed, ``read`` turns what it returns into a tensor in our layout."""

    call: Callable[[], object]
    read: Callable[[object], Tensor]


def missing(names: list[str]) -> dict[str, str]:
    """Return the reason for each of these engines that is not installed."""
    absent = [name for name in names if importlib.util.find_spec(MODULES[name]) is None]
    return {name: f"{MODULES[name]} is not installed" for name in absent}


def grus(layer: nn.GRU, x: Tensor, lengths: Tensor | None = None) -> dict[str, Engine]:
    """Return the engines that run a one-layer GRU ``[B, T, I]`` to ``[B, T, D * H]``, each in its fastest layout."""
    absent = missing(list(GRUS))
    return {name: make(layer, x, lengths) for name, make in GRUS.items() if name not in absent}


def spectrograms(wave: Tensor, window: Tensor, n_fft: int, hop: int, bins: int) -> dict[str, Engine]:
    """Return the engines that compute the centred power spectrogram ``[B, T, bins]``."""
    absent = missing(list(SPECTROGRAMS))
    return {name: make(wave, window, n_fft, hop, bins) for name, make in SPECTROGRAMS.items() if name not in absent}


def _weights(layer: nn.GRU) -> list[list[np.ndarray]]:
    """Return w_ih, w_hh, b_ih and b_hh of each direction."""
    return [[weight.detach().numpy() for weight in group] for group in layer.all_weights]


def _model(layer: nn.GRU, x: Tensor, lengths: Tensor | None) -> bytes:
    """Return an ONNX model of the layer over time-major frames."""
    from onnx import TensorProto, checker, helper, numpy_helper

    directions = 2 if layer.bidirectional else 1
    hidden, batch = layer.hidden_size, len(x)

    def in_order(weight: np.ndarray) -> np.ndarray:
        r, z, n = np.split(weight, 3)
        return np.concatenate([z, r, n])

    parts = [[in_order(weight) for weight in group] for group in _weights(layer)]
    constants = {
        "W": np.stack([w_ih for w_ih, *_ in parts]),
        "R": np.stack([w_hh for _, w_hh, *_ in parts]),
        "B": np.stack([np.concatenate([b_ih, b_hh]) for *_, b_ih, b_hh in parts]),
    }
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [x.shape[1], batch, x.shape[2]])]
    if lengths is not None:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [batch]))
    node = helper.make_node(
        "GRU", ["x", "W", "R", "B", "lengths" if lengths is not None else ""], ["y"], hidden_size=hidden,
        linear_before_reset=1, direction="bidirectional" if directions == 2 else "forward",
    )  # fmt: skip
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[1], directions, batch, hidden])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "gru", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    checker.check_model(model)
    return model.SerializeToString()


def _time_major(x: Tensor, lengths: Tensor | None) -> dict[str, np.ndarray]:
    given = {"x": x.detach().transpose(0, 1).contiguous().numpy()}
    return given if lengths is None else given | {"lengths": lengths.int().numpy()}


def _batch_first(y: np.ndarray) -> Tensor:
    """Return ``[T, D, B, H]`` as ``[B, T, D * H]``."""
    return torch.from_numpy(np.array(y)).permute(2, 0, 1, 3).flatten(2)


def _onnxruntime(layer: nn.GRU, x: Tensor, lengths: Tensor | None) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(_model(layer, x, lengths), options, providers=["CPUExecutionProvider"])
    given = _time_major(x, lengths)
    return Engine(lambda: session.run(None, given)[0], _batch_first)


def _openvino(layer: nn.GRU, x: Tensor, lengths: Tensor | None) -> Engine:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(core.read_model(_model(layer, x, lengths), b""), "CPU", options)
    given = _time_major(x, lengths)
    return Engine(lambda: model(given, share_inputs=True, share_outputs=True)[0], _batch_first)


def _import_jax():
    if torch.get_num_threads() == 1:  # read when JAX starts; its threads are otherwise as many as the cores
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    return jax


def _jax(layer: nn.GRU, x: Tensor, lengths: Tensor | None) -> Engine:
    jax = _import_jax()
    weights = _weights(layer)
    sizes = None if lengths is None else lengths.numpy()

    def direction(frames, valid, w_ih, w_hh, b_ih, b_hh, reverse):
        def step(h, inputs):
            gx, on = inputs
            (gr, gz, gn), (hr, hz, hn) = jax.numpy.split(gx, 3, 1), jax.numpy.split(h @ w_hh.T + b_hh, 3, 1)
            r, z = jax.nn.sigmoid(gr + hr), jax.nn.sigmoid(gz + hz)
            n = jax.numpy.tanh(gn + r * hn)
            new = n + z * (h - n)
            return (new, new) if on is None else (jax.numpy.where(on, new, h), jax.numpy.where(on, new, 0))

        start = jax.numpy.zeros((len(x), layer.hidden_size))
        return jax.lax.scan(step, start, (frames @ w_ih.T + b_ih, valid), reverse=reverse)[1]

    @jax.jit
    def run(frames):
        valid = None if sizes is None else (np.arange(x.shape[1])[:, None] < sizes)[..., None]
        return jax.numpy.stack([direction(frames, valid, *group, d == 1) for d, group in enumerate(weights)], 1)

    given = jax.numpy.asarray(_time_major(x, None)["x"])
    return Engine(lambda: run(given).block_until_ready(), _batch_first)


def _flax(layer: nn.GRU, x: Tensor, lengths: Tensor | None) -> Engine:
    jax = _import_jax()
    from flax import linen

    def parameters(w_ih, w_hh, b_ih, b_hh) -> dict:
        found = {}
        for gate, w_x, w_h, b_x, b_h in zip("rzn", *(np.split(part, 3) for part in (w_ih, w_hh, b_ih, b_hh))):
            last = gate == "n"
            found[f"i{gate}"] = {"kernel": w_x.T, "bias": b_x if last else b_x + b_h}
            found[f"h{gate}"] = {"kernel": w_h.T} | ({"bias": b_h} if last else {})
        return found

    groups = [parameters(*group) for group in _weights(layer)]
    rnns = [linen.RNN(linen.GRUCell(layer.hidden_size)) for _ in groups]
    network = linen.Bidirectional(*rnns) if layer.bidirectional else rnns[0]
    cells = [{"cell": group} for group in groups]
    directions = ("forward_rnn", "backward_rnn")
    variables = {"params": dict(zip(directions, cells)) if layer.bidirectional else cells[0]}
    sizes = None if lengths is None else lengths.numpy()
    run = jax.jit(lambda frames: network.apply(variables, frames, seq_lengths=sizes))
    given = jax.numpy.asarray(x.detach().numpy())

    def read(y) -> Tensor:
        found = torch.from_numpy(np.array(y))
        if lengths is not None:  # Flax leaves states past the length
            found[torch.arange(x.shape[1]) >= lengths[:, None]] = 0
        return found

    return Engine(lambda: run(given).block_until_ready(), read)


def _centred(window: Tensor, n_fft: int) -> np.ndarray:
    """Return the window in the middle of n_fft weights."""
    before = (n_fft - len(window)) // 2
    return np.pad(window.numpy(), (before, n_fft - len(window) - before))


def _frames(samples: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Return a view ``[B, T, n_fft]`` of reflected waves."""
    padded = np.pad(samples, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=1)[:, ::hop]


def _power(spectrum: np.ndarray) -> np.ndarray:
    return spectrum.real**2 + spectrum.imag**2


def _pyfftw(wave: Tensor, window: Tensor, n_fft: int, hop: int, bins: int) -> Engine:
    import pyfftw

    weights, samples = _centred(window, n_fft), wave.numpy()
    shape = _frames(samples, n_fft, hop).shape
    given = pyfftw.empty_aligned(shape, "float32")
    found = pyfftw.empty_aligned((*shape[:2], n_fft // 2 + 1), "complex64")
    transform = pyfftw.FFTW(given, found, axes=(2,), flags=("FFTW_MEASURE",), threads=torch.get_num_threads())

    def call() -> np.ndarray:
        np.multiply(_frames(samples, n_fft, hop), weights, out=given)
        return _power(transform()[..., :bins])

    return Engine(call, torch.from_numpy)


def _scipy(wave: Tensor, window: Tensor, n_fft: int, hop: int, bins: int) -> Engine:
    import scipy.fft

    weights, samples = _centred(window, n_fft), wave.numpy()

    def call() -> np.ndarray:
        frames = _frames(samples, n_fft, hop) * weights
        return _power(scipy.fft.rfft(frames, workers=torch.get_num_threads())[..., :bins])

    return Engine(call, torch.from_numpy)


def _librosa(wave: Tensor, window: Tensor, n_fft: int, hop: int, bins: int) -> Engine:
    import librosa

    samples = wave.numpy()
    options = {"n_fft": n_fft, "hop_length": hop, "win_length": len(window), "window": window.numpy()}
    return Engine(
        lambda: np.abs(librosa.stft(samples, pad_mode="reflect", **options)[:, :bins]) ** 2,
        lambda power: torch.from_numpy(power).transpose(1, 2),
    )


GRUS = {"ONNX Runtime": _onnxruntime, "OpenVINO": _openvino, "JAX": _jax, "Flax": _flax}
SPECTROGRAMS = {"pyFFTW": _pyfftw, "SciPy": _scipy, "librosa": _librosa}
