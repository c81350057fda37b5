"""Training and prediction by the conventions of scikit-learn."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch

from ser_fast._require import require
from ser_fast.data.audio import read_corpus
from ser_fast.data.augmentation import Augmentation
from ser_fast.data.dataset import Dataset
from ser_fast.data.extras import import_extra
from ser_fast.data.storage import open_waves
from ser_fast.data.utterance import UNKNOWN, VALUE, Utterance
from ser_fast.prediction.predictor import PredictionError, Predictor
from ser_fast.training.checkpoint import blank, load_checkpoint
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.recipe import load_recipe
from ser_fast.training.reporter import Reporter
from ser_fast.training.task import task_of
from ser_fast.training.trainer import Trainer
from ser_fast.training.upstream import completed

_PURPOSE = "ser_fast.prediction.estimator"
base = import_extra("sklearn.base", _PURPOSE)
utils = import_extra("sklearn.utils", _PURPOSE)
check_classification_targets = import_extra("sklearn.utils.multiclass", _PURPOSE).check_classification_targets
validation = import_extra("sklearn.utils.validation", _PURPOSE)

_AT_ONCE = 512  # waves that are in memory while they are predicted
# Parameters of an estimator that a run does not have by that name.
_OWN = {"options", "augment", "valid_fraction", "sample_rate", "random_state", "out", "verbose"}
_SEEDS = 2**31


class _Epochs(Reporter):
    """Prints a line for every epoch."""

    def on_epoch(self, row: dict) -> None:
        score = f", score {row['score']:.3f}" if "score" in row else ""
        print(f"epoch {row['epoch']}: loss {row['loss']:.4f}{score}")


class _Estimator(base.BaseEstimator):
    """Parameters and training of the estimators."""

    def __init__(
        self,
        model: str = "bigru_mha",
        *,
        options: dict | None = None,
        epochs: int = 40,
        batch_size: int = 32,
        bucket: int = 0,
        balance: bool = False,
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        schedule: str = "constant",
        weight_decay: float = 0.0,
        loss: str = "auto",
        label_smoothing: float = 0.0,
        clip: float = 5.0,
        augment: dict | None = None,
        valid_fraction: float = 0.0,
        patience: int = 0,
        sample_rate: int = 16000,
        random_state: Any = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        out: str | Path = "",
        verbose: bool = False,
    ):
        self.model = model
        self.options = options
        self.epochs = epochs
        self.batch_size = batch_size
        self.bucket = bucket
        self.balance = balance
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.clip = clip
        self.augment = augment
        self.valid_fraction = valid_fraction
        self.patience = patience
        self.sample_rate = sample_rate
        self.random_state = random_state
        self.device = device
        self.out = out
        self.verbose = verbose

    @classmethod
    def from_recipe(cls, recipe: str, **parameters: Any) -> "SERClassifier | SERRegressor":
        """Return an estimator with the options of a recipe.

        Args:
            recipe: a recipe of ser_fast, such as "own", or a YAML file as ``ser-fast train --config`` reads it.
            parameters: parameters that differ from the recipe's.

        Raises:
            ValueError: there is no such recipe, or it has an option that is no parameter of the estimator.
        """
        given = load_recipe(recipe)
        options = given.pop(given["model"], None)
        if parameters.get("model", given["model"]) != given["model"]:
            options = None
        if given.pop("validation", "none") != "none":
            given.setdefault("valid_fraction", TrainConfig.valid_fraction)
        known = cls._get_param_names()
        unknown = sorted(set(given) - set(known))
        require(not unknown, f"recipe {recipe!r} has {', '.join(unknown)}", f"among {', '.join(known)}, validation")
        return cls(**{"options": options} | given | parameters)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.target_tags.required = True
        return tags

    def _train(self, X: Any, labels: list, groups: Any, classes: list[str], targets: list[str]) -> None:
        """Train on audio and its labels, as :class:`ser_fast.data.dataset.Dataset` has them."""
        require(isinstance(self.options, dict | None), f"options is {self.options!r}", "a dict, or None", TypeError)
        options = {name: _plain(value) for name, value in (self.options or {}).items()}
        utterances = _utterances(X, self.sample_rate)
        groups = [] if groups is None else [str(name) for name in groups]
        for name, found in (("y", labels), ("groups", groups)):
            good = len(found) == len(utterances) or (name, found) == ("groups", [])
            require(good, f"{name} has {len(found)} entries", f"as many as X, {len(utterances)}")
        with tempfile.TemporaryDirectory() as temporary:
            config = self._config(Path(self.out or temporary), bool(groups))
            rate = blank(config.model, 2, completed(config.model, options, None)).spectrogram.sample_rate
            task_of(classes, config.loss, config.label_smoothing, targets=targets)
            _, waves, _ = open_waves(utterances, rate, False, config.storage())
            names = [utterance.name for utterance in utterances]
            speakers = [UNKNOWN] * len(names)
            dataset = Dataset("", waves, labels, speakers, names, classes, [], groups=groups, targets=targets)
            split, reporter = dataset.split(**config.held_out), _Epochs() if self.verbose else None
            # The caller's random numbers stay as they are.
            with (
                torch.random.fork_rng(range(torch.cuda.device_count())),
                run_folder(config.out, run_options(config, options)) as folder,
            ):
                trainer = Trainer(config, options, dataset, split, folder, reporter)
                trainer.run()
                self.checkpoint_ = load_checkpoint(trainer.best)
        self.n_iter_ = trainer.progress.epoch

    def _config(self, out: Path, grouped: bool) -> TrainConfig:
        """Return the options of the run that trains.

        Raises:
            TypeError: a parameter is of another type.
            ValueError: a parameter is out of range.
        """
        good = isinstance(self.augment, dict | Augmentation | None)
        require(good, f"augment is {self.augment!r}", "a dict, or None", TypeError)
        _check_type("valid_fraction", self.valid_fraction)
        require(0 <= self.valid_fraction < 1, f"valid_fraction is {self.valid_fraction}", "in 0..1, 1 excluded")
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = utils.check_random_state(seed).randint(_SEEDS)
        given = {name: _plain(getattr(self, name)) for name in self._get_param_names() if name not in _OWN}
        for name, value in given.items():
            _check_type(name, value)
        held = {"validation": "groups" if grouped else "random", "valid_fraction": self.valid_fraction}
        return TrainConfig(
            data="X", out=out, test_fraction=0.0, seed=int(seed),
            augment=self.augment or {}, **given, **held if self.valid_fraction else {"validation": "none"},
        )  # fmt: skip

    def _outputs(self, X: Any) -> np.ndarray:
        """Return the probabilities, or values, as float64 ``[N, outputs]``."""
        validation.check_is_fitted(self)
        utterances, rows = _utterances(X, self.sample_rate), []
        predictor = Predictor(self.checkpoint_, self.batch_size, self.device)
        for start in range(0, len(utterances), _AT_ONCE):
            some = utterances[start : start + _AT_ONCE]
            _, waves, _ = read_corpus(some, predictor.sample_rate)
            for utterance, output in zip(some, predictor.predict(waves)):
                if isinstance(output, PredictionError):
                    raise PredictionError(f"{utterance.name}: {output}")
                rows.append(output.values)
        return np.array(rows, dtype=float)


class SERClassifier(base.ClassifierMixin, _Estimator):
    """Classifier of speech by the conventions of scikit-learn: audio files or waves in, classes out.

    ``X`` is a list or an array of file names, or of waves ``[N]`` each, float or int16 with full scale 2^15; the rows
    of an array ``[n, N]`` are waves. Training is that of ``ser-fast train``, without a test part.

    Args:
        model: a name in ``ser_fast.models.MODELS``.
        options: keyword arguments of the model.
        epochs, batch_size, bucket, balance, patience, device: as in :class:`ser_fast.training.config.TrainConfig`.
        optimizer, learning_rate, schedule, weight_decay, loss, label_smoothing, clip: as there.
        augment: arguments of :class:`ser_fast.data.augmentation.Augmentation`; none by default.
        valid_fraction: share of the utterances, or of the groups where ``fit`` has some, that choose the best epoch;
            0 takes the last epoch.
        sample_rate: sampling rate of waves in ``X``, in hertz. Files have their own, and all are resampled to the
            model's.
        random_state: seed, a ``numpy.random.RandomState``, or None for another seed in every call of ``fit``.
        out: run folder that is kept, with ``metrics.jsonl`` and checkpoints; "" keeps none. It takes one fit.
        verbose: whether ``fit`` prints a line for every epoch.

    Attributes:
        classes_: the labels, sorted.
        checkpoint_: the trained model, which :class:`ser_fast.prediction.predictor.Predictor` and
            :class:`ser_fast.prediction.hub.SERModel` take.
        n_iter_: number of epochs.

    Example:
        >>> from ser_fast.data.corpora.synthetic import synthesize
        >>> y = ["anger", "sadness"] * 4
        >>> X = [synthesize(emotion, speaker, 0) for speaker, emotion in enumerate(y)]
        >>> classifier = SERClassifier("functionals", epochs=3, device="cpu").fit(X, y)
        >>> classifier.predict_proba(X).shape
        (8, 2)
    """

    def fit(self, X: Any, y: Sequence, groups: Sequence | None = None) -> "SERClassifier":
        """Train, and return the estimator.

        Args:
            X: audio files or waves.
            y: label of each, of one type.
            groups: group of each, such as its speaker; ``valid_fraction`` then takes whole groups.

        Raises:
            ValueError: a parameter, a wave or a label is out of range, or there is a single class.
            AudioError: a file cannot be read.
        """
        require(y is not None, "SERClassifier requires y to be passed, but the target y is None", "labels")
        y = validation.column_or_1d(y, warn=True)
        utils.assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        require(len(classes) > 1, f"y has {len(classes)} class", "two classes or more")
        self._train(X, labels.tolist(), groups, [str(name) for name in classes.tolist()], [])
        self.classes_ = classes
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities ``[n, classes]`` in the order of ``classes_``.

        Raises:
            AudioError: a file cannot be read.
        """
        values = self._outputs(X)
        return values / values.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable labels ``[n]``; see :meth:`predict_proba`."""
        best = self._outputs(X).argmax(1)
        return self.classes_[best]


class SERRegressor(base.RegressorMixin, _Estimator):
    """Regressor of speech by the conventions of scikit-learn, such as of arousal and valence.

    Args and ``X`` are those of :class:`SERClassifier`; ``loss`` is "l1", which "auto" is too, "mse" or "ccc".

    Attributes:
        checkpoint_: as in :class:`SERClassifier`.
        n_iter_: number of epochs.

    Example:
        >>> from ser_fast.data.corpora.synthetic import synthesize
        >>> X = [synthesize(("anger", "sadness")[take % 2], 0, take) for take in range(8)]
        >>> regressor = SERRegressor("functionals", epochs=3, device="cpu").fit(X, [0.9, 0.1] * 4)
        >>> regressor.predict(X).shape
        (8,)
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Sequence, groups: Sequence | None = None) -> "SERRegressor":
        """Train, and return the estimator.

        Args:
            X: audio files or waves.
            y: values ``[n]``, or ``[n, targets]``.
            groups: as in :meth:`SERClassifier.fit`.

        Raises:
            ValueError: a parameter, a wave or a value is out of range.
            AudioError: a file cannot be read.
        """
        require(y is not None, "SERRegressor requires y to be passed, but the target y is None", "values")
        y = validation.check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        targets = [VALUE] if y.ndim == 1 else [f"{VALUE}_{number}" for number in range(1, y.shape[1] + 1)]
        self._train(X, [tuple(row) for row in y.reshape(len(y), -1).tolist()], groups, [], targets)
        self._single = y.ndim == 1
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the values ``[n]``, or ``[n, targets]``.

        Raises:
            AudioError: a file cannot be read.
        """
        values = self._outputs(X)
        return values[:, 0] if self._single else values


def _plain(value: Any) -> Any:
    """Return a number of NumPy, such as one of a grid of parameters, as Python's, which JSON has."""
    return value.item() if isinstance(value, np.generic) else value


def _check_type(name: str, value: Any) -> None:
    """Check the type of an option of :class:`ser_fast.training.config.TrainConfig`, which the command line checks."""
    hint, found = get_type_hints(TrainConfig)[name], f"{name} is {value!r}"
    if get_origin(hint) is Literal:
        require(value in get_args(hint), found, f"one of {', '.join(get_args(hint))}")
        return
    good = isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) <= (hint is bool)
    require(good, found, f"of type {hint.__name__}", TypeError)


def _utterances(X: Any, sample_rate: int) -> list[Utterance]:
    """Return the audio of ``X``, file names or waves.

    Raises:
        TypeError: it is a single name, or sparse.
        ValueError: it is empty, or has something else.
    """
    good = not isinstance(X, (str, bytes, os.PathLike))
    require(good, f"X is {X!r:.80}", "a list of file names or waves", TypeError)
    if not isinstance(X, (list, tuple)):
        array = X if hasattr(X, "toarray") else np.asarray(X)
        column = array.dtype.kind in "OUT" and array.ndim == 2 and array.shape[1] == 1
        X = array[:, 0] if column else array if array.ndim == 1 and array.dtype.kind in "OUT" else _rows(array)
    require(len(X) > 0, "X is empty", "a list of file names or waves")
    return [_utterance(number, item, sample_rate) for number, item in enumerate(X)]


def _rows(X: Any) -> np.ndarray:
    """Return waves of one length as an array ``[n, N]``."""
    found = f"X is {getattr(X, 'dtype', '')} {list(X.shape)}"
    require(X.ndim == 2, found, "[n, N], a wave in each row. Reshape your data by X[None] if it is one wave")
    X = validation.check_array(X, input_name="X")
    known = X.dtype.kind == "f" or X.dtype == np.int16
    require(known, f"X is of {X.dtype}", "floats, or int16 with full scale 2^15")
    return X


def _utterance(number: int, item: Any, sample_rate: int) -> Utterance:
    if isinstance(item, (str, os.PathLike)):
        return Utterance(os.fspath(item), UNKNOWN, "", path=Path(item))
    try:
        # np.require copies what is read-only or not contiguous, which torch does not take.
        wave = item if isinstance(item, torch.Tensor) else torch.from_numpy(np.require(item, requirements="CW"))
    except (TypeError, ValueError, RuntimeError) as error:
        shown = f"{item.dtype.str} {list(item.shape)}" if isinstance(item, np.ndarray) else f"{item!r:.80}"
        raise ValueError(f"X[{number}] is {shown}; it must be a file name or a wave [N]") from error
    good = wave.dim() == 1 and len(wave) > 0 and (wave.is_floating_point() or wave.dtype == torch.int16)
    allowed = "a file name, or a wave [N] of floats, or of int16 with full scale 2^15"
    require(good, f"X[{number}] is {wave.dtype} {list(wave.shape)}", allowed)
    samples = wave.float() * 2.0**-15 if wave.dtype == torch.int16 else wave.float()
    require(bool(samples.isfinite().all()), f"X[{number}] has NaN or infinity", allowed)
    return Utterance(f"X[{number}]", UNKNOWN, "", samples=samples, sample_rate=sample_rate)
