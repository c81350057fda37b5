"""Recipes: YAML files of training options, as ``ser-fast train --config`` reads them, lookup and checks."""

from pathlib import Path

_FOLDER = Path(__file__).parent
LARGEST, DEEPEST = 1 << 18, 20  # bytes of a file, and collections within each other


def names() -> list[str]:
    """Return the names of the recipes, sorted.

    Example:
        >>> names()
        ['own', 'own_both', 'own_gru', 'paper1', 'paper2_emodb', 'paper2_iemocap']
    """
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def find(name: str) -> Path | None:
    """Return the file of a recipe: the path ``name`` if it is a file, else the recipe of that name, else None.

    Raises:
        ValueError: the file is too large for one of options, or no UTF-8.

    Example:
        >>> find("paper1").name
        'paper1.yaml'
    """
    found = next((path for path in (Path(name), _FOLDER / f"{name}.yaml") if path.is_file()), None)
    if found is not None:
        read(found)
    return found


def read(path: Path) -> str:
    """Return the text of a file of options.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large for one of options, or no UTF-8.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a file of options must have at most {LARGEST}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} has the byte {error.object[error.start]:#x} at {error.start}; it must be UTF-8"
        ) from error


def check(text: str) -> None:
    """Check that YAML has no aliases, which may stand for billions of values, no key twice and no deep nesting.

    Raises:
        yaml.YAMLError: it has, or it is malformed.

    Example:
        >>> check("epochs: 3\\naugment: {snr: [10, 20]}")
    """
    import yaml

    def refuse(event, found: str, allowed: str) -> None:
        raise yaml.YAMLError(f"line {event.start_mark.line + 1}: {found}; it must {allowed}")

    within = []  # for each open collection, a list is None, a mapping its keys so far and whether a key comes next
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if getattr(event, "anchor", None):
            refuse(event, f"there is an anchor or alias {event.anchor!r}", "be written out")
        if isinstance(event, yaml.CollectionEndEvent):
            within.pop()
        if not isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            continue
        if within and within[-1]:
            keys, is_key = within[-1]
            if is_key and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    refuse(event, f"the key {event.value!r} is there twice", "be there once")
                keys.add(event.value)
            within[-1] = keys, not is_key
        if isinstance(event, yaml.CollectionStartEvent):
            within.append((set(), True) if isinstance(event, yaml.MappingStartEvent) else None)
            if len(within) > DEEPEST:
                refuse(event, f"values are nested more than {DEEPEST} deep", "be less")
