"""Models in folders and on the Hugging Face Hub, which no test reaches."""

import contextlib
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
import yaml

from ser_fast import pretrained
from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize, synthetic
from ser_fast.data.dataset import load_dataset
from ser_fast.models import MODELS
from ser_fast.prediction.card import inline
from ser_fast.prediction.predictor import Predictor
from ser_fast.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.evaluation import EvaluateConfig, evaluate
from ser_fast.training.speakers import by_speaker
from ser_fast.training.task import task_of
from ser_fast.training.trainer import Trainer

huggingface_hub = pytest.importorskip("huggingface_hub")

from ser_fast.prediction import hub  # noqa: E402
from ser_fast.prediction.hub import SERModel  # noqa: E402

OLD_RUNS = Path(__file__).parents[1] / "training" / "old_runs"
PAPERS = Path(__file__).parents[2] / "benchmarks" / "results" / "papers"
NAMES = ["x|y", "`z`\n# title", "<b>--- !"]  # would break a table, a heading, a page
OPTIONS = {"channels": [2, 2], "hidden_size": 4}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that has tested its best epoch on two speakers held out."""
    root = tmp_path_factory.mktemp("runs")
    for utterance in synthetic(4, 1).utterances:
        file = root / "voices" / utterance.label / utterance.speaker / f"{utterance.name}.wav"
        file.parent.mkdir(parents=True)
        soundfile.write(file, utterance.samples.numpy(), 16000)
    config = TrainConfig(
        data=f"folders:{root / 'voices'}", out=root / "run", model="cgru", epochs=1, batch_size=64,
        test_speakers="s02,s03", validation="none", device="cpu",
    )  # fmt: skip
    dataset = load_dataset(config.data, 16000)
    with run_folder(config.out, run_options(config, OPTIONS)) as folder:
        Trainer(config, OPTIONS, dataset, dataset.split(**config.held_out), folder).run()
    return config.out


@pytest.fixture
def named(tmp_path) -> SERModel:
    """A model with hostile names, of a corpus with one."""
    weights = MODELS["cgru"](3, **OPTIONS).state_dict()
    return SERModel(Checkpoint("cgru", OPTIONS, NAMES, weights, {"data": "a\n---\nb: |*c*"}))


@pytest.fixture
def fake_hub(monkeypatch) -> dict:
    """A Hub that keeps what is uploaded."""
    kept = {"made": [], "files": {}}

    def upload_folder(*, repo_id, folder_path, **options):
        kept["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        kept["options"] = options
        return f"hub/{repo_id}/commit"

    def create_repo(repo_id, **options):
        kept["made"].append((repo_id, options["private"]))
        return SimpleNamespace(repo_id=repo_id)

    api = SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", lambda token=None: api)
    return kept


def waves() -> tuple[torch.Tensor, torch.Tensor]:
    voices = [synthesize(emotion, 0, 0)[:12000] for emotion in ("anger", "sadness")]
    return torch.stack(voices), torch.tensor([12000, 9000])


def card_of(folder: Path) -> tuple[dict, str]:
    """Return the front matter and the rest of a card."""
    _, front, rest = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), rest


@pytest.mark.parametrize(("name", "classes"), [*((name, ["a", "b", "c"]) for name in MODELS), ("cgru", [])])
def test_saved_model_gives_equal_logits(name, classes, tmp_path):
    targets = [] if classes else ["arousal", "valence"]
    bare = MODELS[name](len(classes or targets))
    for parameter in bare.parameters():  # also those that start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    model = SERModel(Checkpoint(name, {}, classes, bare.state_dict(), targets=targets))
    model.save_pretrained(tmp_path / "model")
    loaded = SERModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = bare.eval()(*waves())
        assert torch.equal(loaded(*waves()), expected) and expected.std() > 0
        assert torch.equal(Predictor(tmp_path / "model").model(*waves()), expected)
    assert type(loaded.model) is MODELS[name] and not loaded.training
    assert (loaded.classes, loaded.names) == (classes, classes or targets)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_model_loads_from_run_and_checkpoint(run, tmp_path):
    for source in (run, run / "best.safetensors", run / "last.safetensors"):
        assert torch.equal(SERModel.from_pretrained(source)(*waves()), SERModel.from_pretrained(run)(*waves()))
    SERModel.from_pretrained(run / "last.safetensors").save_pretrained(tmp_path / "last")
    saved = load_checkpoint(tmp_path / "last" / "model.safetensors")
    assert not saved.optimizer and "tested" not in saved.progress


def test_card_has_the_results_of_the_run(run, tmp_path):
    SERModel.from_pretrained(run).save_pretrained(tmp_path / "a", model_card_kwargs={"license": "mit"})
    SERModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    summary = json.loads((run / "summary.json").read_text())
    for folder, license in (("a", "mit"), ("b", None)):
        front, text = card_of(tmp_path / folder)
        assert (front["library_name"], front.get("license")) == ("ser_fast", license)
        assert front["pipeline_tag"] == "audio-classification" and "speech-emotion-recognition" in front["tags"]
        for measure in ("recall", "accuracy"):
            low, high = (summary["intervals"][measure]["pooled"][end] for end in ("low", "high"))
            assert f"| {100 * summary['best'][measure]:.1f} % | {100 * low:.1f} % to {100 * high:.1f} % |" in text
        for words in (
            "# cgru on voices\n", "speakers s02, s03 held out", "12 predictions of 2 speakers", "16000 Hz",
            f"{summary['parameters']:,} parameters", "6 classes: anger, fear", "SERModel.from_pretrained", "Not for",
        ):  # fmt: skip
            assert words in text
        assert "Speakers of the test are in the training" not in text


def test_card_takes_results_of_another_folder(run, tmp_path):
    result = tmp_path / "evaluated"
    evaluate(EvaluateConfig(str(run), part="test", out=result, device="cpu"))
    shutil.copy(run / "best.safetensors", tmp_path / "best.safetensors")
    model = SERModel.from_pretrained(tmp_path / "best.safetensors")
    assert "No test is recorded" in str(model.generate_model_card())
    model = SERModel.from_pretrained(tmp_path / "best.safetensors", results=result)
    text = str(model.generate_model_card())
    assert "Of this model, on another corpus or part. Corpus voices, 12 predictions of 2 speakers" in text
    with pytest.raises(ValueError, match=r"results is .*, of the classes .*; it must be of .'a'"):
        other = MODELS["cgru"](2, **OPTIONS).state_dict()
        save_checkpoint(tmp_path / "other.safetensors", Checkpoint("cgru", OPTIONS, ["a", "b"], other))
        SERModel.from_pretrained(tmp_path / "other.safetensors", results=result)
    with pytest.raises(ValueError, match=r"results is .*summary.json cannot be read"):
        SERModel.from_pretrained(run, results=tmp_path)


def test_card_takes_results_of_a_cross_validation(tmp_path):
    shutil.copy(PAPERS / "own_gru_loso.json", tmp_path / "summary.json")
    text = str(SERModel.from_pretrained(results=tmp_path).generate_model_card())
    assert "| UA, the mean recall of the classes | 84.2 % | 77.8 % to 89.3 % |" in text
    assert "not of this one" in text and "leave one speaker out" in text and "| recipe | own\\_gru |" in text
    assert "Audio without voiced speech gets no label" in text
    for config, good in (({"descriptor_gru": {"members": 1}}, False), ({"cgru": {}}, True), ([], True)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with contextlib.nullcontext() if good else pytest.raises(ValueError, match=r"of the options .'members': 1"):
            SERModel.from_pretrained(results=tmp_path)


def test_card_has_every_target(tmp_path):
    targets, rows = ["arousal", "val|ence"], [(1.0, 2.0), (2.0, 3.0), (3.0, 1.0), (0.0, 5.0)]
    result = by_speaker(task_of([], "auto", targets=targets), ["a", "a", "b", "b"], rows, rows)
    summary = {"protocol": "all", "data": "d", "targets": targets} | result
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    weights = MODELS["cgru"](2, **OPTIONS).state_dict()
    save_checkpoint(tmp_path / "best.safetensors", Checkpoint("cgru", OPTIONS, [], weights, targets=targets))
    text = str(SERModel.from_pretrained(tmp_path, results=tmp_path).generate_model_card())
    for target in ("arousal", r"val\|ence"):
        assert f"| {target}: CCC, the concordance correlation | 1.000 | 1.000 to 1.000 |" in text
    assert r"Predicts from speech 2 values: arousal, val\|ence." in text
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"targets": ["x", "y"]}))
    with pytest.raises(ValueError, match=r"of the targets \['x', 'y'\]; it must be of \['arousal'"):
        SERModel.from_pretrained(tmp_path, results=tmp_path)
    for broken in (
        b"{",
        b"[]",
        b'{"best": 3}',
        b'{"best": {"recall": "x"}, "protocol": "", "data": ""}',
        b"{}",
        b'{"best": "\xff"}',
        b'{"best": ["recall"], "protocol": "", "data": ""}',
        b'{"best": {"recall": 1%s}}' % (b"0" * 400),
    ):
        (tmp_path / "summary.json").write_bytes(broken)
        with pytest.raises(
            ValueError, match=r"summary.json is no summary of a run, a cv or an evaluation with a test: "
        ):
            SERModel.from_pretrained(tmp_path, results=tmp_path)


def test_card_of_a_run_of_values(tmp_path):
    """A run of an older version, whose summary.json has no intervals."""
    SERModel.from_pretrained(OLD_RUNS / "values").save_pretrained(tmp_path)
    front, text = card_of(tmp_path)
    assert "pipeline_tag" not in front and "Predicts from speech a value: value." in text
    assert "| MAE, the mean absolute error | 0.557 | unknown |" in text
    assert "Speakers of the test are in the training" in text


def test_card_of_another_epoch_has_no_results(run, tmp_path):
    """The summary is that of a run that went on since."""
    copy = shutil.copytree(run, tmp_path / "copy")
    checkpoint = load_checkpoint(copy / "best.safetensors")
    checkpoint.progress["epoch"] = 7
    save_checkpoint(copy / "best.safetensors", checkpoint)
    assert "No test is recorded" in str(SERModel.from_pretrained(copy).generate_model_card())


def test_card_says_that_training_utterances_were_tested(run, tmp_path):
    evaluate(EvaluateConfig(str(run), part="all", out=tmp_path, device="cpu"))
    notice = json.loads((tmp_path / "summary.json").read_text())["notice"]
    assert "training" in notice
    assert inline(notice) in str(SERModel.from_pretrained(run, results=tmp_path).generate_model_card())


def test_card_refuses_results_of_another_run(run, tmp_path):
    """It would call them those of this model."""
    shutil.copy(run / "best.safetensors", tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"corpus": "another"}))
    assert SERModel.from_pretrained(tmp_path / "best.safetensors", results=run)
    with pytest.raises(
        ValueError, match=r"results is .*, of another corpus or epoch; it must be the run of the model"
    ):
        SERModel.from_pretrained(tmp_path, results=tmp_path)


def test_card_of_changed_weights_has_no_results(run, tmp_path):
    model = SERModel.from_pretrained(run)
    model.save_pretrained(tmp_path)
    assert " % to " in card_of(tmp_path)[1]
    torch.nn.init.zeros_(model.model.classifier.bias)
    for _ in range(2):  # it stays changed
        model.save_pretrained(tmp_path)
        assert " % to " not in card_of(tmp_path)[1] and "weights were changed" in card_of(tmp_path)[1]
        model = SERModel.from_pretrained(tmp_path)
        assert not model.model.classifier.bias.any()


@pytest.mark.parametrize(
    "tested",
    [3, {"kind": "best"}, ["best", "", "", 0, 0, [["", "recall", float("inf"), None, None]]],
     ["best", "p", "d", 0, 0, [["", "recall", 10**400, None, None]]], ["best", "p", "d", -1, 0, []], ["other", "p", "d", 0, 0, []], ["best", "p", "d", 0, 0, [["", "x", 1, 0, 1]]]],
)  # fmt: skip
def test_card_ignores_malformed_results(named, tested):
    """The header of a checkpoint, from any origin, says anything."""
    keys = ("kind", "protocol", "data", "predictions", "speakers", "measures")
    checkpoint = named.checkpoint()
    checkpoint.progress["tested"] = dict(zip(keys, tested)) if isinstance(tested, list) else tested
    assert "No test is recorded" in str(SERModel(checkpoint).generate_model_card())


def test_card_escapes_names(named, tmp_path):
    license, language = "a: b\n---\n# c", ["de", "x: [y"]
    named.save_pretrained(tmp_path, model_card_kwargs={"license": license, "language": language, "repo_id": 'a"\\b'})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    card = huggingface_hub.ModelCard(text)
    assert (card.data.license, card.data.language) == (license, language)
    lines = card.text.splitlines()
    assert [line for line in lines if line.startswith("# ")] == [r"# cgru on a\\n---\\nb: \|\*c\*"]
    (classes,) = (line for line in lines if line.startswith("Predicts"))
    assert classes.startswith(r"Predicts from speech one of 3 classes: x\|y, \`z\`\\n\# title, \<b\>--- \!.")
    assert 'model = SERModel.from_pretrained("a\\"\\\\b")' in lines
    assert named.names == SERModel.from_pretrained(tmp_path).names == NAMES
    assert inline("own_gru 3.0") == r"own\_gru 3.0"


def test_card_of_the_model_that_comes_along(tmp_path):
    model = SERModel.from_pretrained()
    model.save_pretrained(tmp_path)
    assert pretrained.card().read_text(encoding="utf-8") in card_of(tmp_path)[1]
    with torch.no_grad():
        assert torch.equal(SERModel.from_pretrained(tmp_path)(*waves()), Predictor().model(*waves()))


def test_own_card_stays_and_ours_is_renewed(named, tmp_path):
    named.save_pretrained(tmp_path)
    named.save_pretrained(tmp_path, model_card_kwargs={"license": "mit"})
    assert card_of(tmp_path)[0]["license"] == "mit"
    (tmp_path / "README.md").write_text("mine")
    named.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_save_refuses_a_run_folder_and_a_file(named, run, tmp_path):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"save_directory is .*, a run folder; it must be another one"):
        named.save_pretrained(run)
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"save_directory is .*, a file; it must be a folder"):
        named.save_pretrained(tmp_path / "file")


def test_save_refuses_what_cannot_be_loaded(named, fake_hub, tmp_path):
    named.model.classifier = torch.nn.Linear(named.model.classifier.in_features, 5)
    for save in (named.save_pretrained, named.push_to_hub):
        with pytest.raises(
            CheckpointError, match=r"the model does not fit cgru: classifier.bias is .*\[5\]; it must"
        ):
            save("me/voices" if save == named.push_to_hub else tmp_path / "new")
    assert not (tmp_path / "new").exists() and not fake_hub["made"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_save_refuses_a_quantised_model(named, tmp_path):
    """Its state dict has values that are no tensors."""
    torch.ao.quantization.quantize_dynamic(named, {torch.nn.Linear}, inplace=True)
    with pytest.raises(
        CheckpointError, match=r"the model does not fit cgru: classifier._packed_params.+ is a \w+; it"
    ):
        named.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("given", ["runs/mine", Path("runs/mine"), None])
def test_model_refuses_what_is_no_checkpoint(given):
    with pytest.raises(TypeError, match=r"checkpoint is .+; it must be a Checkpoint; SERModel.from_pretrained takes"):
        SERModel(given)


def test_push_uploads_what_save_writes(named, fake_hub, tmp_path):
    address = named.push_to_hub("me/voices", private=True, model_card_kwargs={"license": "mit"}, branch="dev")
    assert address == "hub/me/voices/commit" and fake_hub["made"] == [("me/voices", True)]
    assert fake_hub["options"]["revision"] == "dev"
    kwargs = {"license": "mit", "repo_id": "me/voices"}
    named.save_pretrained(tmp_path / "same", model_card_kwargs=kwargs)
    uploaded = fake_hub["files"]
    for name in ("README.md", "config.json"):
        assert uploaded[name] == (tmp_path / "same" / name).read_bytes()
    (tmp_path / "a.safetensors").write_bytes(uploaded["model.safetensors"])
    assert len(uploaded) == 3
    assert torch.equal(SERModel.from_pretrained(tmp_path / "a.safetensors")(*waves()), named(*waves()))
    assert b'SERModel.from_pretrained("me/voices")' in fake_hub["files"]["README.md"]
    saved = named.save_pretrained(tmp_path / "both", push_to_hub=True, repo_id="me/again")
    assert saved == "hub/me/again/commit" and fake_hub["made"][-1] == ("me/again", None)
    with pytest.raises(ValueError, match="Repo id must be in the form"):
        named.push_to_hub("a/b/c")
    with pytest.raises(TypeError, match="licence"):
        named.push_to_hub("me/voices", model_card_kwargs={"licence": "mit"})
    assert len(fake_hub["made"]) == 2


def test_model_loads_from_the_cache_of_the_hub(named, tmp_path):
    repo = tmp_path / "cache" / "models--me--voices"
    named.save_pretrained(repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    loaded = SERModel.from_pretrained("me/voices", cache_dir=tmp_path / "cache")
    assert torch.equal(loaded(*waves()), named(*waves()))
    (repo / "snapshots" / ("0" * 40) / "config.json").unlink()  # is not needed
    assert SERModel.from_pretrained("me/voices", cache_dir=tmp_path / "cache").classes == NAMES


def test_missing_model_is_looked_up_once(monkeypatch):
    """Without a network every file takes half a minute of retries."""
    names = []

    def download(name, file, **_):
        names.append(file)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match="runs/typo is no file or folder, and not in the cache"):
        SERModel.from_pretrained("runs/typo")
    assert names == ["model.safetensors"]


def test_from_pretrained_says_what_is_wrong(tmp_path, monkeypatch):
    errors = huggingface_hub.errors
    for name, found in {
        "../no/folder": "../no/folder is no file or folder, and no id of a model on the Hugging Face Hub, such as",
        "runs/typo": "runs/typo is no file or folder, and not in the cache of the Hugging Face Hub, which was not",
        str(tmp_path): f"{tmp_path / 'best.safetensors'} does not exist",
    }.items():
        with pytest.raises(CheckpointError) as error:
            SERModel.from_pretrained(name, cache_dir=tmp_path / "cache")
        assert str(error.value).startswith(found) and "\n" not in str(error.value)
    response = SimpleNamespace(headers={}, request=None)
    for kind, found in (
        (
            errors.RepositoryNotFoundError,
            "me/voices is no file or folder, and the Hugging Face Hub has no such model",
        ),
        (errors.RevisionNotFoundError, "me/voices on the Hugging Face Hub has no revision v9"),
        (errors.HfHubHTTPError, "me/voices cannot be read from the Hugging Face Hub: first"),
        (
            errors.EntryNotFoundError,
            "me/voices on the Hugging Face Hub has no model.safetensors; it must be saved by",
        ),
        (ConnectionError, "me/voices cannot be read from the Hugging Face Hub: first"),
    ):
        of_http = issubclass(kind, errors.HfHubHTTPError)
        raised = kind("first\nsecond", response=response) if of_http else kind("first\nsecond")

        def download(*_, raised=raised, **__):
            raise raised

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        with pytest.raises(CheckpointError) as error:
            SERModel.from_pretrained("me/voices", revision="v9")
        assert str(error.value).startswith(found) and "\n" not in str(error.value)


def test_foreign_safetensors_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[not json")  # nothing reads it
    with pytest.raises(
        CheckpointError, match=r"model.safetensors has format None; it must be 'ser_fast checkpoint 1'"
    ):
        SERModel.from_pretrained(tmp_path)


def test_commands_take_a_saved_folder(run, tmp_path, folder, capsys):
    saved = tmp_path / "saved"
    model = SERModel.from_pretrained(run)
    model.save_pretrained(saved)
    (saved / "config.json").unlink()
    for names in ([str(saved), str(folder)], [f"--checkpoint={saved}", str(folder)]):
        assert main(["predict", *names, "--json"]) == 0
        rows = {row["file"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
        assert len(rows) == 5
        for file, scores in model.predict([folder]).items():
            assert rows[str(file)]["probabilities"] == pytest.approx(scores, abs=1e-6)
    model.save_pretrained(saved)
    data = f"folders:{run.parent / 'voices'}"
    result = evaluate(EvaluateConfig(str(saved), data=data, out=tmp_path / "evaluated", device="cpu"))
    assert (result["utterances"], result["model"]) == (24, "cgru") and "training" in result["notice"]


def test_predictor_has_the_present_weights(named, folder):
    (file,) = [path for path in folder.iterdir() if path.name == "1.wav"]
    torch.nn.init.zeros_(named.model.classifier.weight)
    with torch.no_grad():
        named.model.classifier.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    assert named.predict([file])[file][NAMES[1]] == pytest.approx(1)


def test_hub_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError) as error:
        runpy.run_path(hub.__file__)
    expected = "ser_fast.prediction.hub needs huggingface_hub: pip install 'ser_fast[hub]'"
    assert str(error.value) == expected


def test_page_runs(run, fake_hub, folder, tmp_path, monkeypatch):
    """The Python of docs/sharing.md, with one epoch instead of 40."""
    page = (Path(__file__).parents[2] / "docs/sharing.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "runs/mine")
    evaluate(EvaluateConfig("runs/mine", out=Path("runs/mine_cv"), device="cpu"))
    folder.rename("recordings")
    shutil.copytree(run.parent / "voices", "voices")
    shutil.copy("recordings/3.wav", "some.wav")
    names = dict(zip(("wave", "lengths"), waves()))
    for block in blocks:
        exec(block.replace("epochs=40", "epochs=1").replace("128", "4"), names)
    assert len(blocks) == 5 and names["logits"].shape == (2, 6) and Path("another/README.md").is_file()
    assert fake_hub["made"] == [("NAME/MODEL", True)]
