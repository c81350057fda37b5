"""A pretrained speech encoder of transformers as a source of features: frozen, and run once per utterance."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.data.audio import read_utterance
from ser_fast.data.budget import available_memory, size
from ser_fast.data.extras import import_extra
from ser_fast.data.files import printable
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import RATES

# Files of a feature extractor beside a tokenizer, and of one alone, in the order in which transformers reads them.
_PREPROCESSORS = ("processor_config.json", "preprocessor_config.json")
_EPSILON = 1e-7  # of the variance, as transformers adds it


@contextlib.contextmanager
def _quiet(logging) -> Iterator[None]:
    """Keep transformers from writing about what it loads; our errors say what is wrong."""
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


class EncoderError(ValueError):
    """Audio is too long for the encoder, or has no finite features."""


class Encoder:
    """A model of transformers that takes waves, such as wav2vec 2.0, HuBERT or WavLM, from a local folder.

    Nothing is downloaded, and no code of the folder runs. Each utterance goes through the model alone, so there is no
    padding, and its features do not depend on other utterances.

    Args:
        path: folder with ``config.json`` and the weights as ``.safetensors``; a ``preprocessor_config.json``, or the
            "feature_extractor" in ``processor_config.json``, says whether waves are normalised, and their sample
            rate, 16 kHz otherwise.
        layer: hidden states that are taken: 0 is the input of the first layer, -1 the model's output.
        device: device of the model.

    Attributes:
        about, options, identity: see :mod:`ser_fast.training.upstream`.
        sample_rate: of the waves, in hertz.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the folder has no such model, or no such layer.
    """

    def __init__(self, path: Path, layer: int = -1, device: torch.device | None = None):
        self._place = f"features is {printable(path)}"
        for name in ("config.json", "*.safetensors"):
            good = next(path.glob(name), None) is not None
            require(good, f"{self._place}, a folder without {name}", "the folder of a transformers model")
        self._device = torch.device("cpu") if device is None else device
        self._model = self._load(path)
        self._hop, self._field = self._geometry()
        self._normalize, self.sample_rate = self._preprocessing(path)
        count = self._model.config.num_hidden_layers
        found = f"features_layer is {layer}"
        require(-count - 1 <= layer <= count, found, f"in {-count - 1}..{count}: the encoder has {count} layers")
        self._layer = layer % (count + 1)
        self._last = self._layer == count
        self._lock = threading.Lock()
        width, rate = self.encode(torch.zeros(self._field)).shape[1], self.sample_rate
        digest = self._digest(path)
        self.about = {
            "kind": "encoder", "name": printable(path.resolve().name), "width": width, "layer": self._layer,
            "digest": digest,
        }  # fmt: skip
        self.options = {"features": width, "frame_rate": rate / self._hop, "sample_rate": rate}
        self.identity = f"{digest}:{self._layer}"

    def _geometry(self) -> tuple[int, int]:
        """Return the samples from one frame to the next, and those of the first frame."""
        config = self._model.config
        strides, kernels = (getattr(config, f"conv_{name}", None) for name in ("stride", "kernel"))
        good = self._model.main_input_name == "input_values" and bool(strides and kernels)
        # SEW pools frames in between, so its layers differ in their frame rates.
        good = good and not config.is_encoder_decoder and not hasattr(config, "squeeze_factor")
        found = f"{self._place}, a model of type {config.model_type}"
        require(good, found, "an encoder of waves with one frame rate, such as wav2vec2 or hubert")
        field = 1
        for kernel, stride in zip(reversed(kernels), reversed(strides)):
            field = (field - 1) * stride + kernel
        return math.prod(strides), field

    def _preprocessing(self, path: Path) -> tuple[bool, int]:
        """Return whether waves are normalised, and their sample rate; the defaults are those of transformers."""
        both, alone = (self._read_json(path / name) for name in _PREPROCESSORS)
        given = (both or {}).get("feature_extractor", alone)
        if given is None:
            return False, 16000
        require(isinstance(given, dict), f"{self._place}, whose feature_extractor is {given!r}", "a JSON object")
        normalize, rate = given.get("do_normalize", True), given.get("sampling_rate", 16000)
        good = isinstance(normalize, bool) and type(rate) is int and RATES[0] <= rate <= RATES[-1]
        found = f"{self._place}, whose preprocessor has do_normalize {normalize!r} and sampling_rate {rate!r}"
        require(good, found, f"a truth value and {RATES[0]}..{RATES[-1]}")
        return normalize, rate

    def _read_json(self, path: Path) -> dict | None:
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._place}, whose {path.name} is no JSON object ({error})") from error
        require(isinstance(found, dict), f"{self._place}, whose {path.name} is no JSON object", "one")
        return found

    def _load(self, path: Path) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that transformers imports
            transformers = import_extra("transformers", "an encoder as features", "upstream")
            local = {"local_files_only": True, "trust_remote_code": False}
            try:
                with _quiet(transformers.utils.logging):
                    config = transformers.AutoConfig.from_pretrained(path, **local)
                    config._attn_implementation = None  # one named there would be downloaded, as code
                    model, found = transformers.AutoModel.from_pretrained(
                        path, config=config, use_safetensors=True, output_loading_info=True, **local
                    )
            except Exception as error:  # a damaged folder raises errors of many types
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise ValueError(f"{self._place}, which transformers cannot load: {reason}") from error
        missing = sorted(name for name in found["missing_keys"] if not name.endswith("masked_spec_embed"))
        lacks = f"{self._place}, whose weights lack {len(missing)} of the model, such as {missing[:1]}"
        require(not missing, lacks, "a whole model")
        return model.float().requires_grad_(False).eval().to(self._device)

    def _digest(self, path: Path) -> str:
        """Return a SHA-256 of the configuration and the weights."""
        found = hashlib.sha256()
        names = ("config.json", *_PREPROCESSORS, "*.safetensors")
        for file in sorted(file for name in names for file in path.glob(name)):
            with open(file, "rb") as content:
                while block := content.read(1 << 20):
                    found.update(block)
        return found.hexdigest()

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Do nothing: an encoder has features of every utterance."""

    def frames(self, utterances: Sequence[Utterance], lengths: Sequence[int]) -> int:
        """Return about the number of frames of all utterances."""
        return sum(max(1, length // self._hop) for length in lengths)

    def reader(self, utterances: Sequence[Utterance]) -> Callable[[Utterance], np.ndarray]:
        """Return a function from one of the utterances to its features ``[T, D]``."""
        return lambda utterance: self.encode(read_utterance(utterance, self.sample_rate), utterance.name).numpy()

    @torch.inference_mode()
    def encode(self, wave: Tensor, name: str = "the audio") -> Tensor:
        """Return the features ``[T, D]`` of a wave, on the CPU.

        Args:
            wave: float32 ``[N]``; zeros follow one that is too short for a frame.
            name: name of the audio, for messages.

        Raises:
            EncoderError: it is too long for the memory, or features are not finite.
        """
        wave = wave.to(self._device)
        if self._normalize:
            wave = (wave - wave.mean()) / (wave.var(correction=0) + _EPSILON).sqrt()
        wave = nn.functional.pad(wave, (0, max(0, self._field - len(wave))))
        self._require_memory(len(wave), name)
        with self._lock:  # threads read ahead; the model uses all cores itself
            found = self._model(wave[None], output_hidden_states=not self._last)
        frames = (found.last_hidden_state if self._last else found.hidden_states[self._layer])[0].float().cpu()
        found = f"{self._place}, whose output for {name} is not finite"
        require(bool(frames.isfinite().all()), found, "finite", EncoderError)
        return frames

    def _require_memory(self, samples: int, name: str) -> None:
        """Refuse a wave whose attention does not fit in memory; its size grows with the square of the length."""
        heads, frames = getattr(self._model.config, "num_attention_heads", 1), samples // self._hop
        needed = 2 * 4 * heads * frames**2
        free = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else available_memory()
        seconds = samples / self.sample_rate
        found = f"{name} has {seconds:.0f} s, for which the encoder takes up to {size(needed)} of memory"
        allowed = f"at most {size(free)}, which are available; cut it into shorter parts"
        require(needed <= free, found, allowed, EncoderError)
