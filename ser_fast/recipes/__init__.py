"""Recipes that come with ser_fast: options in YAML, as ``ser-fast train --config`` reads them."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def find(name: str) -> Path | None:
    """The file that ``name`` means: one of the user's of that name, else the recipe's."""
    return next((path for path in (Path(name), _FOLDER / f"{name}.yaml") if path.is_file()), None)
