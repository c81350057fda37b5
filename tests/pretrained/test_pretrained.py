"""The trained models that come with ser_fast, as files."""

import json
import re

import pytest
from safetensors import safe_open

from ser_fast import pretrained, recipes
from ser_fast.data.corpora.emodb import LABELS
from ser_fast.training.checkpoint import load_checkpoint


@pytest.mark.parametrize("name", pretrained.names())
def test_pretrained_files_are_small_and_name_no_path(name):
    with safe_open(pretrained.path(name), framework="pt") as file:
        metadata = json.dumps(file.metadata())
        assert all(key.startswith("model.") for key in file.keys())  # noqa: SIM118, no state of the optimizer
    assert pretrained.path(name).stat().st_size <= pretrained.LARGEST
    assert not re.search(r"[/\\]\w", metadata.replace('\\\\"', "").replace('\\"', "")), metadata


def test_pretrained_model_says_how_it_was_trained():
    checkpoint = load_checkpoint(pretrained.path())
    about = checkpoint.progress
    assert checkpoint.classes == list(LABELS.values()) and checkpoint.build() is not None
    assert (about["data"], about["utterances"], about["needs_speech"]) == ("emodb", 535, True)
    assert about["recipe"] in recipes.names() and re.fullmatch("[0-9a-f]{64}", about["corpus"])


def test_pretrained_names_have_files():
    assert pretrained.DEFAULT in pretrained.names()
    for name in pretrained.names():
        assert pretrained.card(name).read_text(encoding="utf-8").startswith(f"# Model card: {name}\n")
        assert pretrained.name_of(str(pretrained.path(name))) == name
    assert pretrained.name_of("elsewhere/emodb.safetensors") is None


def test_pretrained_refuses_unknown_names():
    with pytest.raises(ValueError, match="name is 'iemocap'; it must be one of emodb"):
        pretrained.path("iemocap")
