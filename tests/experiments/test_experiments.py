"""The papers' experiments: what each leaves, what it takes up again, and that the papers' numbers are the papers'."""

import copy
import csv
import json
from pathlib import Path

import pytest
import soundfile
import torch

from ser_fast import experiments
from ser_fast.data.corpora import Utterance
from ser_fast.data.corpora.synthetic import synthesize, synthetic_sentiment
from ser_fast.experiments import EXPERIMENTS, Settings, published, settings, timing
from ser_fast.experiments.claims import compare, speaker_uas
from ser_fast.experiments.paper1 import four_emotions
from ser_fast.experiments.settings import Runner, from_options
from ser_fast.experiments.tables import over_speakers
from ser_fast.models import CGRU, MODELS, BiGRUMHA
from ser_fast.models.systems import PAPER_2, PAPER_2_HEADS, SYSTEMS, System
from ser_fast.training import cross_validation

EMOTIONS = ("anger", "fear", "happiness", "sadness")
# A number of the paper's that the experiment's table shows.
SHOWN = {
    "attention": "+8.0", "lstm": "not given", "time": "60", "optimizers": "best", "spectrograms": "not given",
    "heads": "94.93", "comparison": "89.79", "emotions": "71.50", "sentiment": "0.642", "anova": "10.0243",
    "protocols": "94.93", "claims": "+5.71",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Voices of two speakers with emotions, and of four with values and parts."""
    root = tmp_path_factory.mktemp("voices")
    classes, values = ["file,speaker,label"], ["file,speaker,value,part"]
    for speaker in range(2):
        for emotion in EMOTIONS:
            for take in range(2):
                name = f"{speaker}_{emotion}_{take}.wav"
                soundfile.write(root / name, synthesize(emotion, speaker, take, 8000).numpy(), 8000)
                classes.append(f"{name},s{speaker},{emotion}")
    for part, utterance in zip(("train", "train", "valid", "test") * 2, synthetic_sentiment(4, 2, 8000).utterances):
        soundfile.write(root / f"{utterance.name}.wav", utterance.samples.numpy(), 8000)
        values.append(f"{utterance.name}.wav,{utterance.speaker},{utterance.value},{part}")
    for name, lines in (("classes", classes), ("values", values)):
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return {name: str(root / f"{name}.csv") for name in ("classes", "values")}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """One folder for all, as a user has it: experiments find each other's runs in it."""
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_writes_table_numbers_and_figure(name, data, out):
    corpus = data["values" if name == "sentiment" else "classes"]
    result = experiments.run(name, Settings(corpus, out, "tiny"))
    rows = list(csv.reader((out / f"{name}.csv").read_text().splitlines()))
    assert rows == [result.table.header, *result.table.rows]
    assert len({len(row) for row in rows}) == 1
    text = (out / f"{name}.md").read_text()
    assert any(SHOWN[name] in cell for row in rows for cell in row)
    assert all(f"| {' | '.join(row)} |" in text for row in rows)
    assert result.protocol in text and "Scale tiny" in text and "(recipe: " in text
    assert all(sentence in text for sentence in EXPERIMENTS[name].inconsistencies + EXPERIMENTS[name].papers)
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((out / f"{name}.json").read_text())
    assert numbers["scale"] == "tiny" and numbers["protocol"] == result.protocol


def test_experiment_trains_no_system_twice(data, tmp_path, monkeypatch):
    trained = []
    run = cross_validation.Trainer.run
    monkeypatch.setattr(cross_validation.Trainer, "run", lambda self: trained.append(self.config.out) or run(self))
    asked = Settings(data["classes"], tmp_path, "tiny")

    def interrupt(self):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(self.config.out)
        return run(self)

    with monkeypatch.context() as patch:
        patch.setattr(cross_validation.Trainer, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            experiments.run("heads", asked)
    experiments.run("heads", asked)
    assert len(trained) == len(set(trained)) == 2 * 5  # five systems, two folds, none of them twice
    first = (tmp_path / "heads.csv").read_bytes()
    experiments.run("heads", asked)
    experiments.run("emotions", asked)  # its one system, with 8 heads, is among them
    assert len(trained) == 10
    assert (tmp_path / "heads.csv").read_bytes() == first


def test_experiment_keeps_corpora_apart(data, tmp_path):
    other = tmp_path / "classes.csv"
    folder = Path(data["classes"]).parent
    lines = Path(data["classes"]).read_text().splitlines()[:-1]
    other.write_text("\n".join([lines[0], *(f"{folder}/{line}" for line in lines[1:])]) + "\n")
    runners = [Runner(Settings(corpus, tmp_path, "tiny"), "paper1") for corpus in (data["classes"], str(other))]
    assert runners[0].folder("CGRU") != runners[1].folder("CGRU")


def test_experiment_options_override_the_scale(data, tmp_path):
    config, options = Runner(Settings(data["classes"], tmp_path, "full"), "paper2_emodb").configure(SYSTEMS["CNN"])
    assert (config.learning_rate, config.batch_size, config.epochs, config.loss) == (1e-4, 32, 80, "l1")
    assert options == {"attention_dropout": 0.2, "dropout": 0.2, "log": False, "encoder": "cnn"}
    runner = Runner(from_options({"data": data["classes"], "scale": "quick", "options": {"log": False}, "epochs": 3,
                            "learning_rate": None, "folds": 4, "protocol": "random"}), "paper1")  # fmt: skip
    config, options = runner.configure(SYSTEMS["DCNN-LSTM"], optimizer="sgd")
    assert (config.epochs, config.learning_rate, config.optimizer) == (3, 1e-3, "sgd")
    assert options["channels"] == (8, 16) and options["cell"] == "lstm" and "log" not in options
    assert runner.configure(SYSTEMS["CNN"])[1]["log"] is False
    assert (runner.folds.protocol, runner.folds.folds) == ("random", 4)
    lasting = Runner(Settings(data["classes"], tmp_path, "long"), "paper1")
    assert [lasting.configure(SYSTEMS[name])[0].epochs for name in ("CGRU", "Bi-GRU")] == [100, 80]
    # Attention over heads is only possible where they divide what they attend to, at every scale.
    for scale in settings.SCALES:
        for system in SYSTEMS.values():
            config, options = Runner(Settings(data["classes"], tmp_path, scale), "paper1").configure(system)
            MODELS[config.model](2, **options)


def test_claims_give_each_paper_its_recipe(data, tmp_path):
    runner = Runner(Settings(data["classes"], tmp_path, "full"), "paper2_iemocap")
    assert runner.configure(SYSTEMS["CGRU"])[0].learning_rate == 0.005
    assert runner.configure(SYSTEMS["CNN"])[0].learning_rate == 1e-5


def test_experiment_marks_synthetic_voices(tmp_path):
    experiments.run("sentiment", Settings(out=tmp_path, scale="tiny"))
    assert (
        "embedded synthetic voices: shows that it runs, says nothing about speech"
        in (tmp_path / "sentiment.md").read_text()
    )


def summary(values: dict[tuple[int, str], float]) -> dict:
    return {"runs": [{"seed": seed, "fold": fold, "metrics": {"recall": value}}
                     for (seed, fold), value in values.items()]}  # fmt: skip


@pytest.mark.parametrize(
    "differences,said",
    [((0.05, 0.06, 0.07), "confirmed"), ((-0.05, -0.06, -0.07), "contradicted"), ((0.2, -0.1, 0.0), "not confirmed")],
)
def test_compare_decides_by_the_interval(differences, said):
    hard = {"a": 0.3, "b": 0.6, "c": 0.9}  # folds differ far more than systems do
    worse = summary({(seed, fold): value for seed in range(2) for fold, value in hard.items()})
    better = summary({
        # The seeds go apart by as much to either side, which their mean must not see.
        (seed, fold): value + difference + (0.2 if seed else -0.2)
        for seed in range(2)
        for (fold, value), difference in zip(hard.items(), differences)
    })  # fmt: skip
    found = compare(better, worse)
    assert found["verdict"] == said
    assert found["mean"] == pytest.approx(sum(differences) / 3)


def test_compare_needs_paired_folds():
    one, other = summary({(0, "a"): 0.5, (0, "b"): 0.6}), summary({(0, "a"): 0.5, (0, "c"): 0.6})
    with pytest.raises(ValueError, match="must be those of the other system"):
        compare(one, other)
    assert compare(summary({(0, "a"): 0.9}), summary({(0, "a"): 0.1}))["verdict"] == "not tested"


def test_speaker_uas_count_all_predictions(tmp_path):
    for fold, lines in (("fold01", ["u,a,x,x", "v,a,y,x"]), ("fold02", ["w,a,y,y", "z,b,x,y"])):
        (tmp_path / "seed0" / fold).mkdir(parents=True)
        text = "\n".join(["name,speaker,truth,predicted", *lines]) + "\n"
        (tmp_path / "seed0" / fold / "predictions.csv").write_text(text)
    assert speaker_uas(tmp_path, ["x", "y"]) == {"a": 0.75, "b": 0.0}


def test_timing_ratios_separate_cell_and_kernels():
    medians = {timing.OURS: 2.0, timing.OURS_AFTER: 1.0, "torch GRU, padded": 4.0, "torch GRU, packed": 6.0,
               "torch LSTM, padded": 9.0, "torch LSTM, packed": 8.0}  # fmt: skip
    assert timing.ratios(medians) == {
        "torch GRU / torch LSTM": 0.5,
        f"{timing.OURS} / torch GRU": 0.5, f"{timing.OURS} / torch LSTM": 0.25,
        f"{timing.OURS_AFTER} / torch GRU": 0.25, f"{timing.OURS_AFTER} / torch LSTM": 0.125,
    }  # fmt: skip


def test_timing_refuses_wrong_results(monkeypatch):
    model = CGRU(3, channels=(2, 2), hidden_size=8)
    wave, lengths = torch.randn(3, 8000), torch.tensor([8000, 5000, 3001])
    assert timing.check("CGRU", model, wave, lengths) < timing.TOLERANCE["cpu"]
    monkeypatch.setattr(timing.ReferenceRecurrence, "forward", lambda self, x, lengths: (x[..., :8] * 0, None))
    with pytest.raises(RuntimeError, match=r"CGRU differs from the reference by .* not timed"):
        timing.check("CGRU", model, wave, lengths)


def test_timing_peers_have_as_many_layers():
    model = BiGRUMHA(3, num_layers=2, hidden_size=8, num_heads=2, hop_length=320).eval()
    wave, lengths = torch.randn(3, 8000), torch.tensor([8000, 5000, 3001])
    assert timing.check("BiGRU-MHA", model, wave, lengths) < timing.TOLERANCE["cpu"]
    twins = timing.with_torch(model)
    assert list(twins) == ["torch GRU, padded", "torch GRU, packed", "torch LSTM, padded", "torch LSTM, packed"]
    # torch's GRU with our weights, in its own form, gives what ours gives.
    after = BiGRUMHA(3, num_layers=2, hidden_size=8, num_heads=2, hop_length=320, reset_after=True).eval()
    twin = timing.with_torch(after)["torch GRU, packed"].eval()
    twin.rnn.rnn.load_state_dict(after.rnn.state_dict())
    torch.testing.assert_close(twin(wave, lengths), after(wave, lengths))
    copied = copy.deepcopy(timing.with_torch(CGRU(3, channels=(2, 2), hidden_size=8))["torch LSTM, padded"])
    copied.rnn = None  # a copy's recurrence is its own
    with pytest.raises(TypeError):
        copied(wave, lengths)


def test_timing_peers_are_laid_out_for_cudnn(monkeypatch):
    """After they were copied: a copy's weights lie apart, and cuDNN gathers such weights in every call."""
    laid_out = []
    monkeypatch.setattr(torch.nn.RNNBase, "flatten_parameters", lambda layer: laid_out.append(layer))
    for twin in timing.with_torch(CGRU(3, channels=(2, 2), hidden_size=8)).values():
        assert any(layer is twin.rnn.rnn for layer in laid_out)


def test_four_emotions_takes_one_sentence():
    emodb = [Utterance(f"03a0{sentence}{letter}a", "03", label)
             for sentence, letters in ((1, "WF"), (2, "WFTN"))
             for letter, label in zip(letters, ("anger", "happiness", "sadness", "neutral"))]  # fmt: skip
    chosen, said = four_emotions(emodb)
    assert [utterance.name for utterance in chosen] == ["03a02Wa", "03a02Fa", "03a02Na", "03a02Ta"]
    assert said == "Speaker 03; sentence a02."
    chosen, said = four_emotions([Utterance(label, "x", label) for label in EMOTIONS])
    assert {utterance.label for utterance in chosen} == set(EMOTIONS) and "may differ" in said


@pytest.mark.parametrize(
    "name,changes,sentence",
    [
        ("head", {}, r"experiment is 'head'; it must be one of attention, lstm, time, .*claims"),
        ("heads", {"recipe": "paper3"}, r"recipe is 'paper3'; it must be one of .*paper1, .*or a YAML file"),
        ("sentiment", {}, "a corpus of classes; it must be synthetic-sentiment or a manifest with values"),
        ("heads", {"data": "values"}, "a corpus of values; heads needs one of classes"),
    ],
)
def test_experiment_refuses_what_cannot_run(name, changes, sentence, data, tmp_path):
    asked = {"data": "classes", "out": tmp_path / "out", "scale": "tiny"} | changes
    asked["data"] = data[asked["data"]]
    with pytest.raises(ValueError, match=sentence):
        experiments.run(name, Settings(**asked))
    assert not (tmp_path / "out").exists()


def test_experiment_refuses_unknown_scales():
    with pytest.raises(ValueError, match="scale is 'small'; it must be one of full, quick, long, tiny"):
        Settings(scale="small")


def test_published_numbers_are_the_papers():
    """Table by table, transcribed a second time: rows as printed, IEMOCAP then Emo-DB."""
    table3 = {0: (77.01, 89.22), 4: (80.47, 90.66), 8: (89.89, 94.93), 16: (81.04, 92.81), 32: (79.32, 91.03)}
    table4 = {"precision": (89.33, 80.57), "accuracy": (81.04, 94.93), "recall": (76.20, 86.20)}
    table6 = {
        "CNN": (75.80, 76.58), "LSTM (paper 2)": (76.10, 83.73), "RNN": (76.22, 85.91), "CNN+LSTM": (78.17, 89.79),
        "Bi-GRU": (77.01, 89.22), "Self-Attention": (77.87, 88.91), "Bi-GRU + Self-Attention": (79.21, 90.58),
        "Multi-head Attention": (78.13, 89.37), "Bi-GRU + MHA": (81.04, 94.93),
    }  # fmt: skip
    for found, table in ((published.HEADS, table3), (published.OVERALL, table4), (published.COMPARISON, table6)):
        assert {key: (found["IEMOCAP"][key], found["Emo-DB"][key]) for key in found["Emo-DB"]} == table
        assert found["IEMOCAP"].keys() == table.keys()
    assert list(published.COMPARISON["Emo-DB"]) == list(PAPER_2) and len(PAPER_2_HEADS) == len(table3)
    assert list(published.EMOTIONS["IEMOCAP"].values()) == [85.25, 97.11, 79.75, 88.21, 95.74, 92.34, 95.55]
    assert list(published.EMOTIONS["Emo-DB"].values()) == [92.64, 71.50, 61.05, 94.64]
    table7 = {"acc2": (88.43, 86.29), "f1": (87.97, 86.31), "mae": (0.642, 0.968), "corr": (0.578, 0.657),
              "acc5": (76.19, 72.12)}  # fmt: skip
    assert {
        key: tuple(published.SENTIMENT[corpus][key] for corpus in ("CH-SIMS", "MOSI")) for key in table7
    } == table7
    assert published.ANOVA == {"IEMOCAP": (8.4174, (1, 198)), "Emo-DB": (10.0243, (1, 698))}
    assert published.ATTENTION_GAIN == {"fear": 8} and published.TIME_OF_LSTM == 60
    assert published.BEST_OPTIMIZER == ("adam", 0.005)


def test_experiment_keeps_names_of_shared_systems(data, tmp_path):
    runner = Runner(Settings(data["classes"], tmp_path, "tiny"), "paper2_emodb")
    assert runner.folder("Bi-GRU + MHA, 8 heads") == runner.folder("Bi-GRU + MHA")
    assert runner.folder("Bi-GRU + MHA, 4 heads") != runner.folder("Bi-GRU + MHA")
    assert runner.system("paper2_emodb") == System("bigru_mha", {"num_heads": 8, "attention_dropout": 0.2,
                                                              "dropout": 0.2, "log": False})  # fmt: skip


def test_tables_give_intervals_over_speakers(data, out):
    """The tables that print a UA; with one fold for each speaker it is the interval over the folds."""
    both = {"low": 0.25, "high": 0.5}
    assert over_speakers({"intervals": {"recall": {"speakers": both}}}) == "25.0 to 50.0"
    assert over_speakers({"intervals": {"recall": {"speakers": {"low": None, "high": None}}}}) == "one speaker"
    assert over_speakers({"intervals": {}}, "precision") == "none"
    header, rows = experiments.run("heads", Settings(data["classes"], out, "tiny")).table
    places = header.index("95 % interval"), header.index("over speakers")
    assert all(row[places[0]] == row[places[1]] and " to " in row[places[0]] for row in rows)
