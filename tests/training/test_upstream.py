"""Training, evaluation and prediction on features in a spectrogram's place."""

import csv
import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fast import PowerSpectrogram
from ser_fast.cli import main
from ser_fast.data.audio import read_audio
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.models import MODELS
from ser_fast.prediction.live import Live
from ser_fast.prediction.predictor import Predictor
from ser_fast.training.checkpoint import load_checkpoint
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.corpus import corpus_of
from ser_fast.training.cross_validation import Lines
from ser_fast.training.trainer import Trainer
from ser_fast.training.upstream import completed, open_source, read_inputs

CLASSES, WIDTH = ("anger", "sadness"), 5
TINY = (
    "--bigru_mha.hidden_size=8",
    "--bigru_mha.num_heads=2",
    "--batch_size=6",
    "--epochs=2",
    "--learning_rate=0.01",
)


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """Two classes of three speakers; anger has a larger first feature."""
    root, draw, arrays = tmp_path_factory.mktemp("voices"), np.random.default_rng(0), {}
    for emotion in CLASSES:
        for speaker in range(3):
            for take in range(3):
                path = root / "corpus" / emotion / f"0{speaker}" / f"{take}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                wave = synthesize(emotion, speaker, take, 16000).numpy()
                soundfile.write(path, wave, 16000)
                found = draw.normal(size=(len(wave) // 320, WIDTH)).astype(np.float32)
                found[:, 0] += 3 * (emotion == "anger")
                arrays[f"{emotion}/0{speaker}/{take}.wav"] = found
    np.savez(root / "f.npz", **arrays, extra=np.zeros((1, WIDTH), np.float32))
    return root


def arrays(voices: Path) -> dict[str, np.ndarray]:
    with np.load(voices / "f.npz") as file:
        return dict(file)


def command(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def train(voices: Path, out: Path, *more) -> int:
    return command(
        "train", f"--data={voices / 'corpus'}", f"--features={voices / 'f.npz'}", f"--out={out}", "--device=cpu",
        "--test_speakers=01", *TINY, *more,
    )  # fmt: skip


def fit(voices: Path, out: Path, features: Path | str, said: list[str] | None = None, **more) -> dict:
    """Train as the command does, without figures and a page; return the summary."""
    said, options = [] if said is None else said, {"hidden_size": 8, "num_heads": 2} | more.pop("options", {})
    given = {"batch_size": 6, "epochs": 2, "learning_rate": 0.01, "device": "cpu", "test_speakers": "01"} | more
    config = TrainConfig(str(voices / "corpus"), out, features=str(features), **given)
    source = open_source(config.features, config.features_layer)
    options = completed(config.model, options, source)
    with run_folder(out, run_options(config, options)) as folder:
        front = MODELS[config.model](2, **options).spectrogram
        corpus = corpus_of(config)
        _, dataset = read_inputs(source, front, corpus, False, said.append, config.storage())
        return Trainer(
            config, options, dataset, dataset.split(**config.held_out), folder, Lines(config, said.append)
        ).run()


@pytest.fixture(scope="module")
def run(voices, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    assert train(voices, out, "--epochs=8") == 0
    return out


def test_train_learns_from_features(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["accuracy"] == 1  # the waves alone could not be learnt in so few steps


def test_train_reports_times_of_audio(run, voices):
    """The page has audio, spectrograms and attention as for models of waves; durations are those of the audio."""
    page = (run / "report.html").read_text()
    assert "could not be drawn" not in page and "No spectrogram" not in page
    assert (run / "figures" / "attention.png").stat().st_size > 10_000
    files = (voices / "corpus").rglob("*.wav")
    shortest = min(soundfile.info(file).duration for file in files if "01" not in file.parts)
    kept = load_checkpoint(run / "best.safetensors").progress["shortest"]
    assert shortest - 0.02 <= kept <= shortest + 0.5  # of the training part, in whole frames


def test_checkpoint_names_its_features(run):
    for name in ("best", "last"):
        checkpoint = load_checkpoint(run / f"{name}.safetensors")
        about = checkpoint.progress["features"]
        assert about.pop("digest") and about == {"kind": "file", "name": "f.npz", "width": WIDTH}
        assert checkpoint.options["features"] == WIDTH
        assert checkpoint.build().spectrogram.normalize  # by the statistics of the training part


def test_statistics_are_those_of_the_training_features(run, voices):
    spectrogram = load_checkpoint(run / "best.safetensors").build().spectrogram
    everything = np.concatenate(list(arrays(voices).values()))
    assert torch.allclose(spectrogram.mean, torch.from_numpy(everything.mean(0)), atol=1.0)
    assert spectrogram.mean[0] > 0.5 and spectrogram.std[0] > 1.3 > spectrogram.std[1] > 0.8


def test_train_resumes_with_the_same_features_elsewhere(voices, tmp_path):
    out, moved, said = tmp_path / "run", tmp_path / "moved.npz", []
    fit(voices, out, voices / "f.npz")
    np.savez_compressed(moved, **arrays(voices))
    assert (
        fit(voices, out, moved, said, epochs=3)["epochs"] == 3 and f"{out}: resuming after epoch 2 of {out}" in said
    )
    changed = arrays(voices)
    changed["anger/00/0.wav"][3, 2] += 1
    np.savez(moved, **changed)
    with pytest.raises(
        ValueError, match=r"moved.npz, whose features differ from the one that the run in .* began with"
    ):
        fit(voices, out, moved, epochs=4)
    np.savez(moved, **{key: values[:, 1:] for key, values in arrays(voices).items()})
    with pytest.raises(ValueError, match="which contains a run with different bigru_mha"):
        fit(voices, out, moved, epochs=4)


def test_cache_tells_files_of_one_size_and_time_apart(voices, tmp_path):
    means, kept = [], {"cache": "disk", "cache_dir": tmp_path / "cache"}
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", **{key: values + number for key, values in arrays(voices).items()})
        os.utime(tmp_path / f"{number}.npz", (1e9, 1e9))
        fit(voices, tmp_path / f"run{number}", tmp_path / f"{number}.npz", **kept)
        means.append(load_checkpoint(tmp_path / f"run{number}" / "best.safetensors").build().spectrogram.mean)
    assert torch.allclose(means[1], means[0] + 1, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--augment.speeds=[0.9,1.1]"], "augment.speeds is [0.9, 1.1] with features, which are computed once"),
        (["--augment.snr=[5,10]"], "augment.snr is [5.0, 10.0] with features"),
        (["--augment.mixup=0.2"], "augment.mixup is 0.2 with features"),
        (["--model=cgru", "--bigru_mha.hidden_size=128", "--bigru_mha.num_heads=8"],
         "model is cgru, but features is given; it must be bigru_mha or baseline, or features omitted"),
        (["--features_layer=1"], "features_layer is 1, and features is"),
        (["--bigru_mha.features=7"], "bigru_mha.features is 7, but features has 5 in a frame"),
        (["--features=", "--bigru_mha.features=5"], "bigru_mha.features is 5, but features is not given"),
        (["--features=missing.npz"], "features is missing.npz; it must be a file .npz or .parquet, or the folder"),
    ],
)  # fmt: skip
def test_train_refuses_before_it_begins(voices, tmp_path, capsys, options, said):
    assert train(voices, tmp_path / "run", *options) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_train_counts_utterances_without_features(voices, tmp_path, capsys):
    some = arrays(voices)
    np.savez(tmp_path / "f.npz", **{key: some[key] for key in list(some)[5:]})
    assert train(voices, tmp_path / "run", f"--features={tmp_path / 'f.npz'}") == 1
    said = "f.npz, which lacks 5 of 18 utterances: anger/00/0.wav, anger/00/1.wav, anger/00/2.wav, ...; it must have"
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_train_refuses_nan_before_it_trains(voices, tmp_path, capsys):
    changed = arrays(voices)
    changed["sadness/02/1.wav"][4, 1] = np.nan
    np.savez(tmp_path / "f.npz", **changed)
    assert train(voices, tmp_path / "run", f"--features={tmp_path / 'f.npz'}") == 1
    found = capsys.readouterr()
    assert "f.npz, where 'sadness/02/1.wav' has nan in frame 4; it must be finite" in found.err
    assert "epoch" not in found.out


def test_train_masks_features_and_reports_another_frame_rate(voices, tmp_path):
    said, augment = [], {"time_masks": 2, "freq_masks": 1, "freq_mask": 0.5}
    fit(voices, tmp_path / "run", voices / "f.npz", said, augment=augment, options={"frame_rate": 100.0})
    assert any("frames in a second of audio, but the model's frame_rate is 100: masks over" in line for line in said)


def test_baseline_takes_features(voices, tmp_path):
    options = {"encoder": "cnn_lstm", "hidden_size": 4, "num_heads": 0}
    assert fit(voices, tmp_path / "run", voices / "f.npz", model="baseline", options=options)["best"]["accuracy"] >= 0


def test_features_of_the_spectrogram_train_as_the_waves(voices, tmp_path):
    """The same numbers by both ways: batches, statistics, training, masks of nothing, and the test."""
    spectrogram = PowerSpectrogram(n_fft=640, f_max=1000.0, log=True)
    files = {file.relative_to(voices / "corpus"): file for file in (voices / "corpus").rglob("*.wav")}
    found = {str(name): spectrogram(read_audio(file, 16000)[None])[0].numpy() for name, file in files.items()}
    np.savez(tmp_path / "f.npz", **found)
    same = {"batch_size": 32, "epochs": 3, "validation": "none"}
    own = {"dropout": 0.0, "attention_dropout": 0.0}
    waves = own | {"n_fft": 640, "f_max": 1000.0}
    ours = fit(voices, tmp_path / "a", tmp_path / "f.npz", options=own | {"frame_rate": 100.0}, **same)
    theirs = fit(voices, tmp_path / "b", "", options=waves, **same)
    assert ours["last"]["loss"] == pytest.approx(theirs["last"]["loss"], rel=1e-4)
    one, other = (load_checkpoint(tmp_path / name / "last.safetensors") for name in "ab")
    for name in ("spectrogram.mean", "spectrogram.std", "classifier.weight"):
        assert torch.allclose(one.weights[name], other.weights[name], atol=1e-4), name
    # Lengths in seconds: whole frames, and samples.
    shortest = [load_checkpoint(tmp_path / name / "best.safetensors").progress["shortest"] for name in "ab"]
    assert 0 <= shortest[1] - shortest[0] < 0.05


def test_cross_validation_shares_features(voices, tmp_path):
    out = tmp_path / "cv"
    made = command(
        "cv", f"--data={voices / 'corpus'}", f"--features={voices / 'f.npz'}", f"--out={out}", "--protocol=loso",
        *TINY, "--epochs=1",
    )  # fmt: skip
    assert made == 0
    folds = sorted(out.glob("seed0/fold*/best.safetensors"))
    assert len(folds) == 3
    means = [load_checkpoint(fold).build().spectrogram.mean for fold in folds]
    assert len({tuple(mean.tolist()) for mean in means}) > 1  # statistics of each fold's training part


def test_evaluate_takes_the_features_of_the_run(run, tmp_path):
    assert command("evaluate", run, "--part=test", f"--out={tmp_path / 'e'}") == 0
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    best = json.loads((run / "summary.json").read_text())["best"]
    assert summary["metrics"]["confusion"] == best["confusion"]
    assert summary["utterances"] == 6


def test_predict_equals_the_test_of_the_run(run, voices, capsys):
    assert command("predict", run, voices / "corpus", f"--features={voices / 'f.npz'}", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 18 and all(row["label"] in Path(row["file"]).parts for row in found)
    model = load_checkpoint(run / "best.safetensors").build()
    for row in found:
        key = "/".join(Path(row["file"]).parts[-3:])
        with torch.no_grad():
            alone = model(torch.from_numpy(arrays(voices)[key])[None]).softmax(1)[0]
        assert list(row["probabilities"].values()) == pytest.approx(alone.tolist(), abs=1e-4)


def test_predict_resumes_and_writes_tables(run, voices, tmp_path):
    out = tmp_path / "found.jsonl"
    options = (f"--features={voices / 'f.npz'}", f"--out={out}", "--embeddings", "--batch_size=4", "--workers=0")
    assert command("predict", run, voices / "corpus", *options) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 18 and len(rows[0]["embedding"]) == 16 and rows[0]["seconds"] > 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "features is not given, but {run}/best.safetensors was trained on features from the file f.npz, 5 in a"),
        (["--features={wide}"], "wide.npz, of 6 in a frame, but {run}/best.safetensors was trained on features from"),
        (["--features={f}", "--segment=1"], "segment is 1.0, but the features in a file are of whole files"),
        (["--features={f}", "--engine=ray", "--out=x.csv"], "in engine ray; it must be omitted, or engine must be local"),
    ],
)  # fmt: skip
def test_predict_refuses_what_does_not_fit(run, voices, tmp_path, capsys, options, said):
    np.savez(tmp_path / "wide.npz", a=np.zeros((2, 6), np.float32))
    given = [option.format(wide=tmp_path / "wide.npz", f=voices / "f.npz") for option in options]
    assert command("predict", run, voices / "corpus", *given) == 1
    assert said.format(run=run) in capsys.readouterr().err


def test_predict_gives_files_without_features_a_row(run, voices, tmp_path, capsys):
    some = arrays(voices)
    np.savez(tmp_path / "f.npz", **{key: some[key] for key in list(some)[:2]})
    files = [voices / "corpus" / "anger" / "00" / f"{take}.wav" for take in range(3)]
    assert command("predict", run, *files, f"--features={tmp_path / 'f.npz'}", "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("label") for row in rows] == ["anger", "anger", None]
    assert "2.wav: has no features in" in rows[2]["error"]


def test_predict_gives_a_stem_to_one_file(run, voices, tmp_path, capsys):
    some = arrays(voices)
    np.savez(tmp_path / "f.npz", **{"0": some["anger/00/0.wav"]})
    files = [voices / "corpus" / "anger" / speaker / "0.wav" for speaker in ("00", "01")]
    assert command("predict", run, *files, f"--features={tmp_path / 'f.npz'}", "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "label" in rows[0] and "'0', are those of" in rows[1]["error"]


def test_model_of_waves_refuses_features(voices, capsys):
    assert command("predict", voices / "corpus", f"--features={voices / 'f.npz'}") == 1
    assert "emodb.safetensors takes waves; it must be omitted" in capsys.readouterr().err


def test_live_refuses_features(run, voices):
    with pytest.raises(ValueError, match="predictor takes features in place of a spectrogram"):
        Live(Predictor(run, features=str(voices / "f.npz")), 16000)


def test_older_runs_have_no_features():
    config = TrainConfig()
    assert (config.features, config.features_layer) == ("", -1)
    assert open_source(config.features) is None and completed("cgru", {"cell": "gru"}, None) == {"cell": "gru"}
    with pytest.raises(ValueError, match="features_layer is 3 without features"):
        open_source("", 3)


@pytest.fixture(scope="module")
def transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("transformers")
        found.utils.logging.disable_progress_bar()
        return found


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """Save a tiny model of random weights in a folder."""

    def make(kind: str = "Wav2Vec2", normalize: bool | None = None, **options) -> Path:
        torch.manual_seed(0)
        small = {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
            "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
        }  # fmt: skip
        config = getattr(transformers, f"{kind}Config")(**small | options)
        path = tmp_path_factory.mktemp("encoders") / kind.lower()
        getattr(transformers, f"{kind}Model")(config).save_pretrained(path)
        if normalize is not None:
            given = {"do_normalize": normalize, "sampling_rate": 16000}
            (path / "preprocessor_config.json").write_text(json.dumps(given))
        return path

    return make


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM"])
@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_encoder_equals_transformers(transformers, folder, kind, layer):
    path, wave = folder(kind), torch.randn(5000)
    source = open_source(str(path), layer)
    model = transformers.AutoModel.from_pretrained(path).eval()
    with torch.no_grad():
        wanted = model(wave[None], output_hidden_states=True).hidden_states[layer][0]
    assert torch.allclose(source.encode(wave), wanted, atol=1e-6)
    assert source.options == {"features": 16, "frame_rate": 50.0, "sample_rate": 16000}
    assert source.about["layer"] == layer % 3 and source.about["name"] == kind.lower()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_encoder_normalises_as_the_preprocessor_says(transformers, folder, normalize, beside):
    path, wave = folder(normalize=normalize), 3 + 0.1 * torch.randn(4000)
    if beside:  # as a processor, with a tokenizer, is saved
        given = json.loads((path / "preprocessor_config.json").read_text())
        (path / "preprocessor_config.json").unlink()
        given = {"feature_extractor": given, "processor_class": "Wav2Vec2Processor"}
        (path / "processor_config.json").write_text(json.dumps(given))
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(path)
    given = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        wanted = transformers.AutoModel.from_pretrained(path).eval()(given).last_hidden_state[0]
    assert torch.allclose(open_source(str(path)).encode(wave), wanted, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720])
def test_encoder_takes_short_waves(folder, samples):
    found = open_source(str(folder(normalize=True))).encode(torch.randn(samples))
    assert found.shape == (2 if samples == 720 else 1, 16) and found.isfinite().all()


def test_encoder_refuses_a_wave_beyond_the_memory(folder, monkeypatch):
    source = open_source(str(folder()))
    monkeypatch.setattr("ser_fast.training.encoder.available_memory", lambda: 1e6)
    with pytest.raises(
        ValueError, match=r"long.wav has 10 s, for which the encoder takes up to 4 MB of memory; it must be at"
    ):
        source.encode(torch.zeros(160000), "long.wav")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "config.json").unlink(), "a folder without config.json"),
        (lambda path: (path / "model.safetensors").unlink(), "a folder without *.safetensors"),
        (lambda path: (path / "config.json").write_text("{}"), "which transformers cannot load: "),
        (lambda path: (path / "model.safetensors").write_bytes(b"x"), "which transformers cannot load: "),
        (
            lambda path: (path / "preprocessor_config.json").write_text("[]"),
            "whose preprocessor_config.json is no JSON",
        ),
        (
            lambda path: (path / "preprocessor_config.json").write_text('{"sampling_rate": 0}'),
            "sampling_rate 0; it must",
        ),
        (
            lambda path: (path / "processor_config.json").write_text('{"feature_extractor": []}'),
            "whose feature_extractor is []; it must be a JSON object",
        ),
        (lambda path: config(path, hidden_size="x"), "which transformers cannot load: Validation error for field"),
        (lambda path: config(path, num_attention_heads=0), "which transformers cannot load: "),
        (lambda path: config(path, dtype="nope"), "which transformers cannot load: "),
        (lambda path: (path / "config.json").write_text("5"), "which transformers cannot load: "),
        (lambda path: config(path, model_type="bert"), "whose weights lack "),
        (lambda path: config(path, num_hidden_layers=3), "whose weights lack "),
        (lambda path: config(path, auto_map={"AutoModel": "code.Model"}, model_type="own"), "cannot load: "),
    ],
)
def test_encoder_refuses_other_folders(folder, change, said):
    path = folder()
    change(path)
    with pytest.raises(ValueError) as error:
        open_source(str(path))
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_encoder_refuses_other_models_of_waves(transformers, folder, tmp_path):
    """SpeechT5 has a decoder; SEW has fewer frames in its layers than in its output."""
    sizes = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = transformers.SpeechT5Config(hidden_size=16, conv_dim=[8] * 7, num_conv_pos_embeddings=4,
                                         num_conv_pos_embedding_groups=2, **sizes)  # fmt: skip
    transformers.SpeechT5Model(config).save_pretrained(tmp_path)
    for kind, path in (("speecht5", tmp_path), ("sew", folder("SEW", conv_dim=[8] * 13))):
        with pytest.raises(
            ValueError, match=f"a model of type {kind}; it must be an encoder of waves with one frame"
        ):
            open_source(str(path))


def test_encoder_ignores_kernels_that_a_folder_names(folder):
    """They are code, which transformers would download."""
    path, wave = folder(), torch.randn(2000)
    known = open_source(str(path)).encode(wave)
    config(path, _attn_implementation="kernels-community/flash-attn")
    assert torch.equal(open_source(str(path)).encode(wave), known)


def config(path: Path, **changes) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_encoder_refuses_a_layer_that_is_not_there(folder):
    for layer in (3, -4):
        with pytest.raises(
            ValueError, match=rf"features_layer is {layer}; it must be in -3..2: the encoder has 2 layers"
        ):
            open_source(str(folder()), layer)


def test_encoder_trains_evaluates_and_predicts(folder, voices, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, out, said = folder(normalize=True), tmp_path / "run", []
    fit(voices, out, path, said, features_layer=1)
    assert any(line.startswith("features of 18 utterances: ") and " on disk " in line for line in said)
    about = load_checkpoint(out / "best.safetensors").progress["features"]
    assert (about["kind"], about["name"], about["layer"]) == ("encoder", "wav2vec2", 1)
    assert not any(
        "conv" in name for name in load_checkpoint(out / "best.safetensors").weights
    )  # none of the encoder

    # A resumed run computes no features.
    monkeypatch.setattr("ser_fast.training.encoder.Encoder.reader", lambda self, utterances: None)
    fit(voices, out, path, features_layer=1, epochs=3)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="which contains a run with different features_layer"):
        fit(voices, out, path, features_layer=2, epochs=3)

    assert command("evaluate", out, f"--out={tmp_path / 'e'}", f"--cache_dir={tmp_path / 'cache'}") == 0
    with open(tmp_path / "e" / "predictions.csv") as file:
        table = {row["name"]: float(row["p_anger"]) for row in csv.DictReader(file)}
    assert command("predict", out, voices / "corpus", f"--features={path}", "--json", "--batch_size=5") == 0
    found = capsys.readouterr()
    rows = [json.loads(line) for line in found.out.splitlines() if line.startswith("{")]
    assert len(rows) == 18 and found.err == ""
    for row in rows:
        name = "/".join(Path(row["file"]).parts[-3:])
        assert row["probabilities"]["anger"] == pytest.approx(table[name], abs=1e-5)

    torch.manual_seed(1)
    other = folder("Hubert")
    assert command("predict", out, voices / "corpus", f"--features={other}", "--segment=1", "--workers=0") == 0
    said = (
        "which is not the encoder of the training: "
        + f"{out}/best.safetensors was trained on features of the encoder"
    )
    assert f"{said} wav2vec2, layer 1, 16 in a frame" in capsys.readouterr().err
    assert command("predict", out, voices / "corpus", f"--features={folder(hidden_size=8)}") == 1
    assert "of 8 in a frame, but" in capsys.readouterr().err


def test_encoder_without_transformers_names_the_extra(folder, monkeypatch):
    path = folder()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r"an encoder as features needs transformers: pip install 'ser_fast\[upstream\]'"
    ):
        open_source(str(path))


def snippets() -> list[str]:
    page = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_page_saves_an_encoder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(snippets()[1].replace("facebook/wav2vec2-base", str(folder(normalize=True))), {})
    found = open_source("path/to/wav2vec2-base").about
    assert (found["kind"], found["name"], found["width"]) == ("encoder", "wav2vec2-base", 16)
    assert Path("path/to/wav2vec2-base/preprocessor_config.json").is_file()


def test_examples_of_the_page_run(voices, tmp_path, monkeypatch, capsys):
    make, _, predict, call = snippets()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(voices / "corpus", "corpus")
    names: dict = {}
    exec(make, names)
    fit(tmp_path, Path("runs/stored"), Path("features.npz"), epochs=1)
    exec(predict + call, names)
    assert len(capsys.readouterr().out.splitlines()) == 18 and names["logits"].shape == (2, 4)


def test_saved_model_of_features_predicts_as_its_run(voices, run, tmp_path):
    hub = pytest.importorskip("ser_fast.prediction.hub", exc_type=ImportError)
    hub.SERModel.from_pretrained(run).save_pretrained(tmp_path / "saved")
    model, given = hub.SERModel.from_pretrained(tmp_path / "saved"), str(voices / "f.npz")
    known = dict(Predictor(run, features=given).files([voices / "corpus"]))
    assert len(known) == 18 and model.predict([voices / "corpus"], features=given) == known
    assert f"features from the file f.npz, {WIDTH} in a frame" in (tmp_path / "saved" / "README.md").read_text()
    with pytest.raises(ValueError, match="features is not given, but the checkpoint was trained on features from"):
        model.predict([voices / "corpus"])


def test_estimator_takes_no_options_of_features(voices):
    SERClassifier = pytest.importorskip("ser_fast.prediction.estimator", exc_type=ImportError).SERClassifier
    files = sorted(map(str, (voices / "corpus").rglob("*.wav")))
    with pytest.raises(ValueError, match=r"bigru_mha\.features is 5, but features is not given"):
        SERClassifier(options={"features": 5}, epochs=1).fit(files, [Path(file).parts[-3] for file in files])
