"""Recipes: YAML files of training options, as ``ser-fast train --config`` reads them, and their lookup."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the recipes, sorted.

    Example:
        >>> names()
        ['own', 'paper1', 'paper2_emodb', 'paper2_iemocap']
    """
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def find(name: str) -> Path | None:
    """Return the file of a recipe: the path ``name`` if it is a file, else the recipe of that name, else None.

    Example:
        >>> find("paper1").name
        'paper1.yaml'
    """
    return next((path for path in (Path(name), _FOLDER / f"{name}.yaml") if path.is_file()), None)
