"""Estimators by the conventions of scikit-learn."""

import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthetic
from ser_fast.data.wav import AudioError
from ser_fast.prediction import estimator
from ser_fast.prediction.estimator import SERClassifier, SERRegressor
from ser_fast.prediction.predictor import Predictor
from ser_fast.training.checkpoint import load_checkpoint, save_checkpoint

TINY = {"options": {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}, "epochs": 1, "device": "cpu"}
SMALL = {"convolution": False, "hidden_size": 16, "hop_length": 640, "dropout": 0.0}
# Learns the synthetic voices.
FAST = {"options": SMALL, "learning_rate": 0.02, "epochs": 12, "batch_size": 12, "device": "cpu"}
# Checks of scikit-learn that do not hold, by the reason. All others do.
_LENGTH = "waves have any length, so there is no number of features"
_INTEGERS = "integers other than int16 have no agreed full scale, so they are refused"
_NUMBERS = "asks for accuracy on rows of two or ten numbers, which are no audio"
EXCLUDED = {
    "check_n_features_in": _LENGTH,
    "check_n_features_in_after_fitting": _LENGTH,
    "check_estimators_dtypes": _INTEGERS,
}
OF_CLASSIFIERS = {"check_classifier_data_not_an_array": _INTEGERS, "check_classifiers_train": _NUMBERS}
OF_REGRESSORS = {"check_regressors_train": _NUMBERS}


@pytest.fixture(scope="module")
def voices() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Waves at 16 kHz, their emotions and speakers."""
    found = [one for one in synthetic(6, 2).utterances if one.label in ("anger", "neutral", "sadness")]
    waves = [one.samples.numpy() for one in found]
    return waves, np.array([one.label for one in found]), np.array([one.speaker for one in found])


@pytest.fixture(scope="module")
def files(voices, tmp_path_factory) -> list[str]:
    """The voices as files of 24 bits, which lose nothing that matters here."""
    folder = tmp_path_factory.mktemp("files")
    for number, wave in enumerate(voices[0]):
        soundfile.write(folder / f"{number:02}.wav", wave, 16000, "FLOAT")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def fitted(voices) -> SERClassifier:
    return SERClassifier("cgru", **FAST).fit(*voices[:2])


@pytest.mark.parametrize(
    ("kind", "excluded"),
    [
        (SERClassifier, OF_CLASSIFIERS),
        pytest.param(SERRegressor, OF_REGRESSORS, marks=pytest.mark.thorough),
    ],
)
def test_estimator_passes_the_checks_of_scikit_learn(kind, excluded):
    """On rows of numbers as waves; the checks that are left out must fail, or the list is out of date."""
    pytest.importorskip("sklearn", "1.6")
    small = kind("cgru", batch_size=512, **TINY)
    results = check_estimator(small, expected_failed_checks=EXCLUDED | excluded, on_skip=None)
    assert {one["check_name"] for one in results if one["status"] == "xfail"} == {*EXCLUDED, *excluded}
    assert sum(one["status"] == "passed" for one in results) > 40


def test_classifier_cross_validates_in_a_pipeline(voices, files):
    """Files by their names in a folder, with every speaker in one fold."""
    _, labels, speakers = voices
    folder = Path(files[0]).parent
    reader = FunctionTransformer(lambda names: [folder / name for name in names])
    pipeline = make_pipeline(reader, SERClassifier("cgru", **FAST))
    names = np.array([Path(file).name for file in files])
    scores = cross_val_score(pipeline, names, labels, groups=speakers, cv=GroupKFold(3))
    assert scores.shape == (3,) and scores.mean() > 0.6  # chance is 1/3


def test_classifier_learns_files_as_waves(voices, files, fitted):
    waves, labels, _ = voices
    assert fitted.classes_.tolist() == ["anger", "neutral", "sadness"]
    assert fitted.score(waves, labels) > 0.9 and fitted.n_iter_ == 12
    expected = fitted.predict_proba(waves)
    assert expected.shape == (len(waves), 3) and np.abs(expected.sum(1) - 1).max() < 1e-12
    assert (fitted.predict(waves) == fitted.classes_[expected.argmax(1)]).all()
    own = SERClassifier("cgru", **FAST).fit([Path(file) for file in files], list(labels))
    for given in (files, np.array(files), np.array(files, dtype=object)[:, None], tuple(files), waves):
        np.testing.assert_allclose(own.predict_proba(given), expected, atol=1e-5)
    pandas = pytest.importorskip("pandas")
    for given in (pandas.Series(files, index=range(5, 5 + len(files))), pandas.DataFrame({"file": files})):
        np.testing.assert_allclose(own.predict_proba(given), expected, atol=1e-5)


def test_classifier_takes_waves_of_every_kind(voices, fitted):
    wave = (voices[0][0] * 32767).astype(np.int16)
    expected = fitted.predict_proba([wave / 32768])
    tensor = torch.from_numpy(wave)
    locked = wave.copy()
    locked.flags.writeable = False
    kinds = ([wave], [tensor], [tensor.double() / 32768], wave[None], tensor[None], [(wave / 32768).tolist()])
    for given in (*kinds, [locked], [wave[::-1].copy()[::-1]]):
        np.testing.assert_allclose(fitted.predict_proba(given), expected, atol=1e-6)
    # Twice the rate, every sample doubled, is nearly the same sound.
    slow = clone(fitted).set_params(sample_rate=32000, epochs=1)
    slow.fit([one.repeat(2) for one in voices[0]], voices[1])
    slow.checkpoint_ = fitted.checkpoint_
    np.testing.assert_allclose(slow.predict_proba([wave.repeat(2)]), expected, atol=0.1)


def test_classifier_is_cloned_pickled_and_repeated(voices, fitted):
    waves, labels, _ = voices
    expected = fitted.predict_proba(waves)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(waves)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = copy.fit(waves, labels).predict_proba(waves)
    np.testing.assert_array_equal(again, expected)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(waves), expected)
    other = copy.set_params(random_state=np.random.RandomState(0)).fit(waves, labels)
    assert not np.array_equal(other.predict_proba(waves), expected)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, 1] * 4, np.array([1, 3])),
        ([True, False] * 4, np.array([False, True])),
        (["b|", "a\n"] * 4, ["a\n", "b|"]),
    ],
)
def test_classifier_keeps_the_labels(voices, labels, expected, tmp_path):
    small = SERClassifier("cgru", **TINY).fit(voices[0][:8], labels)
    assert small.classes_.tolist() == list(expected) and set(small.predict(voices[0])) <= set(expected)
    save_checkpoint(tmp_path / "a.safetensors", small.checkpoint_)
    assert Predictor(tmp_path / "a.safetensors").names == [str(name) for name in expected]


def test_classifier_validates_by_groups(voices, tmp_path, capsys):
    waves, labels, speakers = voices
    parameters = TINY | {"epochs": 3, "valid_fraction": 0.3, "patience": 1, "out": tmp_path / "run", "verbose": True}
    small = SERClassifier("cgru", **parameters).fit(waves, labels, groups=speakers)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == small.n_iter_ and lines[0].startswith("epoch 1: loss ") and ", score " in lines[0]
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert "of the training groups" in summary and '"valid": 12' in summary  # 2 of 6 speakers
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(best.weights[name], weight) for name, weight in small.checkpoint_.weights.items())
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "none.wav")]) == 1  # the run is one of ours
    with pytest.raises(ValueError, match=r"out is .*, which contains a run with different"):
        SERClassifier("cgru", **parameters | {"batch_size": 4}).fit(waves, labels, groups=speakers)
    with pytest.raises(ValueError, match="data is X, whose corpus differs from the one that the run in"):
        SERClassifier("cgru", **parameters).fit(waves[:30], labels[:30], groups=speakers[:30])
    with pytest.raises(ValueError, match="none can be left out without a class"):
        SERClassifier("cgru", **TINY, valid_fraction=0.3).fit(waves, labels, groups=[1] * len(waves))


def test_classifier_has_the_options_of_a_recipe(voices):
    own = SERClassifier.from_recipe("own", epochs=2, device="cpu")
    assert (own.model, own.optimizer, own.epochs, own.options) == ("functionals", "adamw", 2, {"dropout": 0.5})
    assert own.augment["speeds"][0] == 0.85 and own.valid_fraction == 0
    assert own.fit(voices[0][:12], voices[1][:12]).n_iter_ == 2
    assert SERClassifier.from_recipe("own", model="cgru").options is None  # those of the recipe are another model's
    with pytest.raises(ValueError, match="recipe is 'none_such'; it must be one of own"):
        SERClassifier.from_recipe("none_such")


def test_recipe_with_other_options_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: cgru\nvalidation: random\nepochs: 3\n")
    assert SERClassifier.from_recipe(str(tmp_path / "mine.yaml")).valid_fraction == 0.1
    (tmp_path / "mine.yaml").write_text("model: cgru\ndata: emodb\n")
    with pytest.raises(ValueError, match=r"recipe .* has data; it must be among augment, balance"):
        SERClassifier.from_recipe(str(tmp_path / "mine.yaml"))


def test_grid_search_takes_numbers_of_numpy(voices):
    waves, labels, _ = voices
    grid = {"epochs": np.arange(1, 3), "learning_rate": np.array([0.001, 0.01])}
    search = GridSearchCV(SERClassifier("cgru", **TINY), grid, cv=2).fit(waves, labels)
    assert search.best_estimator_.n_iter_ == search.best_params_["epochs"]


def test_classifier_trains_on_repeated_files(files, voices):
    """As a bootstrap draws them."""
    small = SERClassifier("cgru", **TINY).fit([*files, *files[:5]], [*voices[1], *voices[1][:5]])
    assert small.predict(files).shape == (len(files),)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"model": "lstm"}, "model is 'lstm'; it must be one of cgru"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"epochs": "3"}, "epochs is '3'; it must be of type int"),
        ({"epochs": True}, "epochs is True; it must be of type int"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be of type float"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it must be one of adam"),
        ({"schedule": "step"}, "schedule is 'step'; it must be one of constant"),
        ({"device": "tpu"}, "device is 'tpu'; it must be one of auto"),
        ({"valid_fraction": 1}, "valid_fraction is 1; it must be in 0..1, 1 excluded"),
        ({"valid_fraction": "a"}, "valid_fraction is 'a'; it must be of type float"),
        ({"patience": 2}, "patience is 2; it must be 0 if validation is none"),
        ({"options": ["x"]}, "options is ['x']; it must be a dict, or None"),
        ({"augment": True}, "augment is True; it must be a dict, or None"),
        ({"options": {"hidden_size": 10**9}}, "hidden_size is 1000000000; it must be at most"),
        ({"loss": "ccc"}, "loss is ccc, but data has classes"),
        ({"random_state": -1}, "seed is -1; it must be at least 0"),
        ({"sample_rate": 3}, "3"),
    ],
)
def test_classifier_refuses_parameters(voices, parameters, error):
    with pytest.raises((ValueError, TypeError)) as found:
        SERClassifier(**{"model": "cgru", "device": "cpu"} | parameters).fit(voices[0][:6], ["a", "b"] * 3)
    assert error in str(found.value)


@pytest.mark.parametrize(
    ("X", "error"),
    [
        ("some.wav", "X is 'some.wav'; it must be a list of file names or waves"),
        ([], "X is empty"),
        ([np.zeros(100), np.zeros(0)], "X[1] is torch.float64 [0]; it must be a file name, or a wave [N]"),
        ([np.zeros(100), np.full(100, np.nan)], "X[1] has NaN or infinity"),
        ([np.zeros(100), np.zeros((2, 100))], "X[1] is torch.float64 [2, 100]"),
        ([np.zeros(100), np.zeros(100, np.int32)], "X[1] is torch.int32 [100]"),
        ([np.zeros(100), None], "X[1] is None; it must be a file name or a wave"),
        ([np.zeros(100), b"a.wav"], "X[1] is "),
        ([np.zeros(100), np.zeros(2000, ">f4")], "X[1] is >f4 [2000]; it must be a file name or a wave [N]"),
        (np.zeros(100), "X is float64 [100]; it must be [n, N], a wave in each row. Reshape"),
        (np.zeros((2, 3), int), "X is of int64; it must be floats, or int16"),
        ([np.zeros(100)] * 3, "y has 2 entries; it must be as many as X, 3"),
    ],
)  # fmt: skip
def test_classifier_refuses_other_audio(X, error):
    with pytest.raises((ValueError, TypeError)) as found:
        SERClassifier("cgru", **TINY).fit(X, ["a", "b"])
    assert error in str(found.value) and "\n" not in str(found.value)


def test_classifier_names_files_that_it_cannot_read(files, fitted, tmp_path):
    missing = tmp_path / "none.wav"
    with pytest.raises(AudioError, match=r"none\.wav"):
        SERClassifier("cgru", **TINY).fit([files[0], missing], ["a", "b"])
    with pytest.raises(AudioError, match=r"none\.wav"):
        fitted.predict([files[0], missing])


def test_classifier_refuses_labels(voices):
    small, waves = SERClassifier("cgru", **TINY), voices[0][:4]
    for labels, groups, error in (
        (["a"] * 4, None, "y has 1 class; it must be two classes or more"),
        ([0.5, 1.5, 2.5, 3.1], None, "continuous"),
        (["a", "b"] * 2, [1, 2], "groups has 2 entries; it must be as many as X, 4"),
    ):
        with pytest.raises(ValueError, match=error):
            small.fit(waves, labels, groups=groups)


def test_regressor_predicts_values_in_their_unit(voices):
    waves, labels, speakers = voices
    loud = np.where(labels == "anger", 70.0, np.where(labels == "neutral", 50.0, 30.0))
    regressor = SERRegressor("cgru", **FAST)
    assert regressor.fit(waves, loud).score(waves, loud) > 0.7
    both = np.stack([loud, -loud / 10], 1)
    predicted = regressor.fit(waves, both).predict(waves)
    assert predicted.shape == both.shape and np.corrcoef(predicted[:, 1], both[:, 1])[0, 1] > 0.8
    assert regressor.checkpoint_.names == ["value_1", "value_2"]
    crossed = cross_val_predict(SERRegressor("cgru", **TINY), waves, loud, groups=speakers, cv=GroupKFold(2))
    assert crossed.shape == loud.shape
    with pytest.raises(ValueError, match="NaN"):
        regressor.fit(waves, loud * np.nan)


def test_checkpoint_of_a_classifier_is_shared(fitted, voices, tmp_path):
    pytest.importorskip("huggingface_hub")
    from ser_fast.prediction.hub import SERModel

    SERModel(fitted.checkpoint_).save_pretrained(tmp_path)
    outputs = SERModel.from_pretrained(tmp_path).predictor().predict(voices[0])
    expected = fitted.predict_proba(voices[0])
    np.testing.assert_allclose([output.values for output in outputs], expected, atol=1e-6)


def test_estimator_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(
        ImportError, match=r"ser_fast.prediction.estimator needs sklearn: pip install 'ser_fast\[train\]'"
    ):
        runpy.run_path(estimator.__file__)
