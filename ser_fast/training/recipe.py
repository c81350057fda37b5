"""Options of a recipe."""

import re

import yaml

from ser_fast import recipes
from ser_fast.training.config import TrainConfig


def load_recipe(name: str) -> dict:
    """Return a recipe's options, as ``ser-fast train --config`` reads them.

    Raises:
        ValueError: if ``name`` is neither a recipe of ser_fast nor a file, or the file is no YAML of options.
    """
    path = recipes.find(name)
    if path is None:
        raise ValueError(f"recipe is {name!r}; it must be one of {', '.join(recipes.names())}, or a YAML file")
    text = path.read_text(encoding="utf-8")
    try:
        recipes.check(text)
        found = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {found!r}; it must hold options and their values")
    return {"model": TrainConfig.model} | found


class _Loader(yaml.SafeLoader):
    """``yaml.SafeLoader`` that reads 1e-3 as a number, like YAML 1.2 and ``--config``."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
