"""Report of an evaluation."""

import json

import soundfile
import torch

from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.models import CGRU
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint

TINY = {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}


def test_report_of_an_evaluation(tmp_path, capsys):
    for emotion in ("anger", "sadness"):
        for speaker in range(2):
            folder = tmp_path / "voices" / emotion / f"0{speaker}"
            folder.mkdir(parents=True)
            for take in range(3):
                soundfile.write(folder / f"{take}.wav", synthesize(emotion, speaker, take, 8000).numpy(), 8000)
    torch.manual_seed(0)
    classes = ["anger", "joy", "sadness", "unused"]
    model = CGRU(4, **TINY)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -100.0]))  # never predicted
    save_checkpoint(tmp_path / "m.safetensors", Checkpoint("cgru", TINY, classes, model.state_dict()))
    (tmp_path / "map.yaml").write_text("anger: joy\n")
    options = [f"--data=folders:{tmp_path / 'voices'}", f"--out={tmp_path / 'out'}"]
    assert main(["evaluate", str(tmp_path / "m.safetensors"), *options, f"--labels={tmp_path / 'map.yaml'}"]) == 0
    page, printed = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock", "config.json", "predictions.csv", "summary.json", "report.html", "figures",
    }  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for text in (summary["protocol"], "mean of the speakers, t interval", "bootstrap over speakers, 2000 draws"):
        assert text in page and text in printed
    assert page.count("data:image/png;base64,") == 1 and "<td>00</td><td>6</td>" in page
    assert [len(row) for row in summary["metrics"]["confusion"]] == [4] * 4
    assert main(["evaluate", str(tmp_path / "m.safetensors"), *options]) == 1
    assert "contains a run with different labels; it must be a new folder" in capsys.readouterr().err
