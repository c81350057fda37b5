"""Trained models that come with ser_fast: a checkpoint ``NAME.safetensors`` and its card ``NAME.md`` each.

``python -m benchmarks.card`` writes both. This package finds the files and imports nothing of ser_fast.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent
DEFAULT = "emodb"  # predicts where no checkpoint is given
LARGEST = 3 * 10**6  # bytes of a checkpoint


def names() -> list[str]:
    """Return the names of the models, sorted.

    Example:
        >>> names()
        ['emodb']
    """
    return sorted(file.stem for file in _FOLDER.glob("*.safetensors"))


def path(name: str = DEFAULT) -> Path:
    """Return the checkpoint of a model, to be given wherever a checkpoint is taken.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no model of that name.

    Example:
        >>> path("emodb").name
        'emodb.safetensors'
    """
    if name not in names():
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(names())}")
    return _FOLDER / f"{name}.safetensors"


def card(name: str = DEFAULT) -> Path:
    """Return the card of a model, Markdown: its corpus, protocol and results, and what it cannot do.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no model of that name.

    Example:
        >>> card("emodb").read_text(encoding="utf-8").splitlines()[0]
        '# Model card: emodb'
    """
    return path(name).with_suffix(".md")


def name_of(file: Path | str) -> str | None:
    """Return the name of the model whose checkpoint a file is, None for any other file.

    Example:
        >>> name_of(path("emodb")), name_of("best.safetensors")
        ('emodb', None)
    """
    return next((name for name in names() if path(name) == Path(file)), None)
