"""Checks of YAML options."""

import re
import time

import pytest
import yaml

from ser_fast import recipes
from ser_fast.cli import main
from ser_fast.experiments.settings import load_recipe

BOMB = "\n".join([
    "a: &a [x, x, x, x, x, x, x, x, x]",
    *(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi")),
])  # fmt: skip
HOSTILE = {
    "bomb": (BOMB, "line 1: there is an anchor or alias 'a'; it must be written out"),
    "alias": ("seed: *x\n", "line 1: there is an anchor or alias 'x'"),
    "merge": ("augment: &a {mixup: 1}\ncgru:\n  <<: *a\n", "line 1: there is an anchor or alias 'a'"),
    "twice": (
        "epochs: 1\nmodel: cgru\nepochs: 2\n",
        "line 3: the key 'epochs' is there twice; it must be there once",
    ),
    "within": ("cgru:\n  dropout: 0\n  'dropout': 1\n", "line 3: the key 'dropout' is there twice"),
    "deep": (f"augment: {'[' * 30}{']' * 30}", "line 1: values are nested more than 20 deep; it must be less"),
    "deeper": (f"augment: {'[' * 100_000}", r"line 1: values are nested|exceeded maximum nesting depth"),
    "long": (f"# {'x' * 2**20}", "bytes; a file of options must have at most 262144"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_options_are_refused_at_once(name, tmp_path, capsys):
    text, sentence = HOSTILE[name]
    path = tmp_path / "options.yaml"
    path.write_text(text)
    start = time.perf_counter()
    assert main(["train", f"--config={path}", "--data=nowhere"]) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(sentence, error), error
    with pytest.raises(ValueError, match=sentence):
        load_recipe(str(path))
    assert time.perf_counter() - start < 20  # the bomb stands for 9^9 values


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"epochs: 1  # \xc4\xe3", "has the byte 0xc4 at 13; it must be UTF-8"),
        (b"batch_size: null", "batch_size is null; it must have a value, or be omitted"),
        (b"model: null", "model is null"),
        (b"cgru: {dropout: null}", "cgru.dropout is null"),
        (b"learning_rate: 1" + b"0" * 400, "too large"),
    ],
)
def test_options_that_are_no_values_are_refused(content, sentence, tmp_path, capsys):
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    assert main(["train", f"--config={path}", "--data=nowhere"]) in (1, 2)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_pass_their_checks(name):
    recipes.check(recipes.find(name).read_text())


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "a: {b: 1}\nc: {b: 2}", "- {a: 1}\n- {a: 1}", "? [1]\n: 2\n? [1, 2]\n: 3"]
)
def test_check_passes_keys_of_different_mappings(text):
    recipes.check(text)


def test_check_refuses_malformed_yaml():
    with pytest.raises(yaml.YAMLError):
        recipes.check("a: [")
