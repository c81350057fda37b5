"""Models in folders and on the Hugging Face Hub, by the conventions of ``huggingface_hub``."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ser_fast import pretrained
from ser_fast._require import require
from ser_fast._version import __version__
from ser_fast.data.extras import import_extra
from ser_fast.data.files import write_atomically
from ser_fast.prediction import card
from ser_fast.prediction.predictor import Predictor, Result
from ser_fast.training.checkpoint import (
    SAVED,
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

huggingface_hub = import_extra("huggingface_hub", "ser_fast.prediction.hub", "hub")
_OF_RUNS = ("best.safetensors", "last.safetensors", "metrics.jsonl")
_OURS = "<!-- ser_fast writes this file anew when the model is saved here again; delete this line to keep it -->"
_TAGS = ("speech-emotion-recognition", "audio", "ser_fast")


class SERModel(nn.Module, huggingface_hub.ModelHubMixin, library_name="ser_fast", tags=list(_TAGS)):
    """A trained model that is saved to a folder or to the Hugging Face Hub, and loaded from there.

    ``save_pretrained`` writes ``model.safetensors``, a checkpoint as every command of ser_fast reads it;
    ``config.json``, which describes it and which nothing reads; and ``README.md``, its card. Nothing is unpickled.

    Args:
        checkpoint: the model, such as ``checkpoint_`` of :class:`ser_fast.prediction.estimator.SERClassifier`.

    Attributes:
        model: the bare model, one of ``ser_fast.models.MODELS``; ``forward`` is its own.
        classes: names of the classes; empty for a regression.
        names: names of the outputs: the classes, or the targets of a regression.
        sample_rate: sampling rate of the waves, in hertz.

    Raises:
        CheckpointError: options or weights of the checkpoint do not fit its model.
        TypeError: ``checkpoint`` is something else, such as a name.

    Example:
        >>> import tempfile
        >>> model = SERModel.from_pretrained()  # the model that comes with ser_fast
        >>> folder = tempfile.TemporaryDirectory()
        >>> model.save_pretrained(folder.name)
        >>> SERModel.from_pretrained(folder.name).classes == model.classes
        True
        >>> folder.cleanup()
    """

    _hub_mixin_config: dict = {}  # noqa: RUF012 (not None: the mixin then copies no argument of the constructor)

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        found, wanted = f"checkpoint is {checkpoint!r:.80}", "a Checkpoint; SERModel.from_pretrained takes files"
        require(isinstance(checkpoint, Checkpoint), found, wanted, TypeError)
        self.model = checkpoint.build()
        self.classes, self.names = checkpoint.classes, checkpoint.names
        self.sample_rate: int = self.model.spectrogram.sample_rate
        self._about = replace(checkpoint, weights={}, optimizer={}, standardised={})
        self._digest, self._card = _digest(self.model), ""
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = "",
        *,
        results: str | Path = "",
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> "SERModel":
        """Return a saved model in evaluation mode, on the CPU.

        Args:
            pretrained_model_name_or_path: a folder of ``save_pretrained``; a run folder, whose best epoch is taken; a
                checkpoint; if there is no such file or folder, the id of a model on the Hub, such as "NAME/MODEL";
                ``""`` is the model that comes with ser_fast.
            results: folder of a run, a cross-validation or an evaluation, whose ``summary.json`` gives the card its
                numbers; by default the folder of the run, if it has tested its best epoch.
            force_download, token, cache_dir, local_files_only, revision: of ``huggingface_hub.hf_hub_download``.

        Raises:
            CheckpointError: there is no such model, or it is no checkpoint of ser_fast; it is a :class:`ValueError`.
            ValueError: ``results`` has none, or those of another model.
        """
        name = str(pretrained_model_name_or_path) or str(pretrained.path())
        if Path(name).exists():
            path = find_checkpoint(name)
        else:
            path = _download(
                name, force_download=force_download, token=token, cache_dir=cache_dir,
                local_files_only=local_files_only, revision=revision,
            )  # fmt: skip
        checkpoint = load_checkpoint(path)
        checkpoint.progress |= _tested(path, checkpoint, Path(results) if results else None)
        model = cls(checkpoint)
        if (shipped := pretrained.name_of(path)) and not results:
            model._card = pretrained.card(shipped).read_text(encoding="utf-8")
        return model

    def forward(self, *args: Any, **options: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the bare model returns for waves ``[B, N]`` and lengths ``[B]``."""
        return self.model(*args, **options)

    def predictor(self, batch_size: int = 32, threads: int | None = None, features: str = "") -> Predictor:
        """Return a :class:`ser_fast.prediction.predictor.Predictor` with the present weights, on the same device."""
        device = next(self.model.parameters()).device.type
        return Predictor(self.checkpoint(), batch_size, device, threads, features)

    def predict(self, files: Iterable[Path | str], features: str = "") -> dict[Path, Result]:
        """Return the result of each file; see :meth:`ser_fast.prediction.predictor.Predictor.files`.

        Args:
            files: audio files, folders whose audio files are taken, or lists of files.
            features: the encoder, or the file of features, of a model that was trained on such.
        """
        return dict(self.predictor(features=features).files(files))

    def checkpoint(self) -> Checkpoint:
        """Return the model as a checkpoint, without results if its weights were changed after it was loaded."""
        about = dict(self._about.progress)
        if _digest(self.model) != self._digest:
            about.pop("tested", None)
            about["edited"] = True
        return replace(self._about, weights=self.model.state_dict(), progress=about)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Save the model to a folder, and push it to the Hub if ``push_to_hub`` is true.

        A ``README.md`` that is there already stays, unless it is one of ser_fast that nobody has taken over.

        Args:
            save_directory: the folder; not that of a run, whose ``config.json`` would be lost.
            options: those of ``huggingface_hub.ModelHubMixin.save_pretrained``; ``model_card_kwargs`` are those of
                :meth:`generate_model_card`.

        Raises:
            CheckpointError: the model was changed so that its checkpoint could not be loaded.
            ValueError: ``save_directory`` is the folder of a run, or a file.
        """
        folder = Path(save_directory)
        found = f"save_directory is {folder}"
        require(folder.is_dir() or not folder.exists(), f"{found}, a file", "a folder")
        require(not any((folder / name).exists() for name in _OF_RUNS), f"{found}, a run folder", "another one")
        self._check(options.get("model_card_kwargs"))
        return super().save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hub, and return the address of the commit.

        Args:
            repo_id: id of the model on the Hub, such as "NAME/MODEL"; it is made if it does not exist.
            options: those of ``huggingface_hub.ModelHubMixin.push_to_hub``, such as ``private`` and ``token``.

        Raises:
            CheckpointError: the model was changed so that its checkpoint could not be loaded.
        """
        options["model_card_kwargs"] = {"repo_id": repo_id} | (options.get("model_card_kwargs") or {})
        self._check(options["model_card_kwargs"])  # before anything is made on the Hub
        return super().push_to_hub(repo_id, **options)

    def generate_model_card(
        self, *, repo_id: str = "", license: str = "", language: str | list[str] = ""
    ) -> "huggingface_hub.ModelCard":
        """Return the card that ``save_pretrained`` writes.

        Args:
            repo_id: id of the model on the Hub, for the example of its use.
            license: licence of the weights, as the Hub names them, such as "mit"; ``""`` states none.
            language: language of the speech, such as "de", or several; ``""`` states none.
        """
        checkpoint = self.checkpoint()
        data = huggingface_hub.ModelCardData(
            library_name="ser_fast",
            tags=[*_TAGS, checkpoint.model],
            pipeline_tag="audio-classification" if self.classes else None,
            license=license or None,
            language=language or None,
        )
        if self._card and not checkpoint.progress.get("edited"):
            body = f"{self._card}\n## Use\n\n{card.use(repo_id)}"
        else:
            body = card.card(checkpoint, self.model, repo_id, license)
        return huggingface_hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n{_OURS}\n")

    def _check(self, card_options: dict | None) -> None:
        self.checkpoint().build("the model")
        self.generate_model_card(**card_options or {})

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint = self.checkpoint()
        save_checkpoint(save_directory / SAVED, checkpoint)
        described = {
            "library_name": "ser_fast",
            "ser_fast_version": __version__,
            "model": checkpoint.model,
            "options": checkpoint.options,
            "classes" if self.classes else "targets": self.names,
            "sample_rate": self.sample_rate,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "training": checkpoint.progress,
        }
        write_atomically(save_directory / "config.json", (json.dumps(described, indent=1) + "\n").encode())
        readme = save_directory / "README.md"
        if readme.is_file() and _OURS.encode() in readme.read_bytes():
            readme.unlink()  # the mixin writes a card where there is none


def _digest(model: nn.Module) -> str:
    """Return a SHA-256 of the weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # of a quantised layer; no checkpoint has it
            digest.update(name.encode())
            continue
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + content.numpy().tobytes())
    return digest.hexdigest()


def _tested(path: Path, checkpoint: Checkpoint, folder: Path | None) -> dict:
    """Return the results for ``progress``: those of a folder, or of the run that a checkpoint is the best epoch of.

    Raises:
        ValueError: the folder has none, or those of another model.
    """
    if folder is not None:
        try:
            found, summary = card.read_results(folder / "summary.json")
        except OSError as error:
            raise ValueError(f"results is {folder}, whose summary.json cannot be read ({error.strerror})") from error
        known = {"classes": list(summary[found.kind].get("per_class", {})), "targets": []} | summary
        for name in ("model", "classes", "targets"):
            wanted, given = getattr(checkpoint, name), known.get(name) or getattr(checkpoint, name)
            require(given == wanted, f"results is {folder}, of the {name} {given}", f"of {wanted}")
        good = found.kind != "best" or _is_of_run(summary, checkpoint)
        require(good, f"results is {folder}, of another corpus or epoch", "the run of the model")
        if found.kind == "pooled":  # of other models, which must be alike
            given = _options(folder / "config.json").get(checkpoint.model, checkpoint.options)
            require(
                given == checkpoint.options,
                f"results is {folder}, of the options {given}",
                f"of {checkpoint.options}",
            )
        return {"tested": asdict(found)}
    if path.name != "best.safetensors":
        return {}
    try:
        found, summary = card.read_results(path.with_name("summary.json"))
    except (OSError, ValueError):
        return {}
    return {"tested": asdict(found)} if found.kind == "best" and _is_of_run(summary, checkpoint) else {}


def _is_of_run(summary: dict, checkpoint: Checkpoint) -> bool:
    """Return whether the best epoch of a run is that of a checkpoint."""
    about = checkpoint.progress
    return (summary.get("corpus"), summary.get("best_epoch")) == (about.get("corpus"), about.get("epoch"))


def _options(path: Path) -> dict:
    """Return the options of a run; empty if they cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _download(name: str, **options: Any) -> Path:
    """Return the checkpoint of a model on the Hub, in the cache of ``huggingface_hub``.

    Raises:
        CheckpointError: there is none, or the Hub cannot be reached.
    """
    errors = import_extra("huggingface_hub.errors", "ser_fast.prediction.hub", "hub")
    here = f"{name} is no file or folder"
    try:
        path = Path(huggingface_hub.hf_hub_download(name, SAVED, **options))
        with contextlib.suppress(errors.EntryNotFoundError):  # the Hub counts downloads by this file
            huggingface_hub.hf_hub_download(name, "config.json", **options)
        return path
    except errors.HFValidationError as error:
        reason = f"{here}, and no id of a model on the Hugging Face Hub, such as NAME/MODEL"
        raise CheckpointError(reason) from error
    except errors.LocalEntryNotFoundError as error:
        reason = f"{here}, and not in the cache of the Hugging Face Hub, which was not reached"
        raise CheckpointError(reason) from error
    except errors.EntryNotFoundError as error:
        reason = f"{name} on the Hugging Face Hub has no {SAVED}; it must be saved by SERModel"
        raise CheckpointError(reason) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name} on the Hugging Face Hub has no revision {options['revision']}") from error
    except errors.RepositoryNotFoundError as error:
        reason = f"{here}, and the Hugging Face Hub has no such model, or one that your token may not read"
        raise CheckpointError(reason) from error
    except OSError as error:
        reason = f"{name} cannot be read from the Hugging Face Hub: {str(error).partition(chr(10))[0]}"
        raise CheckpointError(reason) from error
