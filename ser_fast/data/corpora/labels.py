"""Names of classes: their spelling, their map to other classes, and names that are speakers or parts instead."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ser_fast import recipes
from ser_fast._require import require
from ser_fast.data.utterance import Utterance

# Letters only, in lower case; English, German, Chinese and Pinyin words, and common abbreviations.
_EMOTION_WORDS = """
    afraid amused amusement ang anger angry anxiety anxious bored boredom calm confused contempt desire dis
    disappointed disgust disgusted elated exc excited excitement fea fear fearful fru frustrated frustration hap
    happiness happy joy joyful negative neu neutral normal pleasantsurprise pleasantsurprised positive sad sadness
    scared sorrow sur surprise surprised tender tenderness worried
    aengstlich aerger angst ekel freude freudig froehlich fröhlich gelangweilt glück glücklich langeweile ruhig trauer
    traurig traurigkeit ueberraschung verachtung wuetend wut wütend zorn ängstlich ärger überrascht überraschung
    中性 中立 乐 伤心 兴奋 厌恶 发怒 吃惊 哀 喜 喜悦 害怕 平静 开心 快乐 怒 恐惧 悲 悲伤 惊 惊奇 惊讶 惧 愤怒 无聊
    无情绪 正常 焦虑 生气 讨厌 难过 高兴 厭惡 快樂 恐懼 悲傷 憤怒 無聊 生氣 難過 驚奇 驚訝 高興
    beishang fennu gaoxing haipa jingya kongju kuaile nanguo shengqi yanwu zhongxing
"""
_EMOTIONS = set(_EMOTION_WORDS.split())
_PARTS = {
    "train": "train", "valid": "valid", "test": "test", "training": "train", "dev": "valid", "val": "valid",
    "validation": "valid", "testing": "test", "eval": "test",
}  # fmt: skip
PART_NAMES = ", ".join(_PARTS)  # for messages
_SPEAKER = re.compile(
    r"(actor|actress|female|id|male|participant|person|s|ses|session|speaker|spk|spkr|sp|subj|subject|sub|talker|user"
    r"|f|m|p)[ _.-]*\d+[a-z]?|\d{2,}|sprecher(in)?[ _.-]*\d+|说话人?\d+"
)
# What may stand beside an emotion in the name of a class.
_MANNER_WORDS = """
    adult boy child f female girl high intense low m male man medium men mild normal old song speech strong very weak
    woman women young
"""
_MANNERS = set(_MANNER_WORDS.split())


def is_emotion(name: str) -> bool:
    """Return whether a name is a word for an emotion, or "neutral", beside numbers and punctuation."""
    return "".join(filter(str.isalpha, spelling(name))) in _EMOTIONS


def is_speaker(name: str) -> bool:
    """Return whether a name looks like the number of a speaker: ``Actor_01``, ``spk3``, ``S01``, ``001``."""
    return _SPEAKER.fullmatch(spelling(name)) is not None


def is_part(name: str) -> bool:
    """Return whether a name is that of a part for training, validation or test."""
    return part_of(name) is not None


def part_of(name: str) -> str | None:
    """Return "train", "valid" or "test" for a name of that part, such as "dev" or "Training"; None for others."""
    return _PARTS.get(spelling(name))


def mostly(names: Iterable, kind: Callable[..., bool]) -> bool:
    """Return whether more than half of the names are of a kind."""
    found = [kind(name) for name in names]
    return 2 * sum(found) > len(found)


def speakers_in_classes(classes: Iterable[str]) -> list[str]:
    """Return the speakers in classes that are products of speaker and emotion, such as ``OAF_angry``.

    Every such speaker has two emotions or more, and there are two speakers or more.
    """
    emotions = defaultdict(set)
    classes = list(classes)
    for name in classes:
        words = re.split(r"[\s_.\-]+", spelling(name))
        for count in range(1, len(words)):
            for emotion, rest in ((words[count:], words[:count]), (words[:count], words[count:])):
                if is_emotion("".join(emotion)) and not set(rest) <= _MANNERS:
                    emotions["_".join(rest)].add("".join(emotion))
    found = sorted(rest for rest, words in emotions.items() if len(words) > 1)
    return found if len(found) > 1 and 2 * sum(len(emotions[rest]) for rest in found) > len(classes) else []


def merge_spellings(utterances: list[Utterance]) -> tuple[list[Utterance], tuple[str, ...]]:
    """Give classes that differ in case, blanks or Unicode form only the most frequent of the spellings.

    Returns:
        The utterances, and a note for each class that was merged.
    """
    spellings = defaultdict(Counter)
    for utterance in utterances:
        spellings[spelling(utterance.label)][utterance.label] += 1
    chosen, notes = {}, []
    for key, counts in spellings.items():
        most = min(counts, key=lambda name: (-counts[name], name))
        chosen[key] = " ".join(unicodedata.normalize("NFC", most).split())
        if len(counts) > 1:
            others = ", ".join(f"{name!r} ({counts[name]})" for name in sorted(counts) if name != most)
            notes.append(f"class {chosen[key]!r} ({counts.total()} utterances) includes the spellings {others}")
    return [replace(one, label=chosen[spelling(one.label)]) for one in utterances], tuple(notes)


def read_map(path: Path) -> dict[str, str | None]:
    """Return the map of labels that a YAML file holds; ``null`` is None, every other scalar its text.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML map of labels to classes.

    Example::

        angry: anger  # label of the corpus: class of the model
        calm: neutral
        surprised: null  # left out
    """
    import yaml

    text = recipes.read(path)
    try:
        recipes.check(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML of options: {' '.join(str(error).split())}") from error
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    flat = pairs and all(isinstance(node, yaml.ScalarNode) for pair in pairs for node in pair)
    require(flat, f"{path} is {'empty' if root is None else 'nested or no map'}", "lines such as `angry: anger`")
    # The text of a scalar, not its value: a class may be named no, on or 1.
    return {label.value: None if name.tag.endswith(":null") else name.value for label, name in pairs}


def map_labels(
    labels: Iterable[str],
    classes: Sequence[str],
    given: Mapping[str, str | None] | None = None,
    *,
    option: str = "data",
    other: str = "the model",
) -> dict[str, str | None]:
    """Return the class of each label of a corpus among other classes; None leaves its utterances out.

    Args:
        labels: the labels.
        classes: the other classes, such as those of a model.
        given: the classes of labels, or None, as :func:`read_map` returns them; other labels keep their names.
        option: option that names the corpus, for messages.
        other: what has the classes, for messages.

    Raises:
        ValueError: ``given`` has a label that the corpus lacks or an unknown class, or a label has no class.

    Example:
        >>> map_labels(["angry", "calm", "sad"], ["anger", "sad"], {"angry": "anger", "calm": None})
        {'angry': 'anger', 'calm': None, 'sad': 'sad'}
    """
    found, known, given = sorted(set(labels)), ", ".join(classes), given or {}
    for label, name in given.items():
        require(label in found, f"labels maps {label!r}", f"a label of the corpus: {', '.join(found)}")
        allowed = f"a class of {other}, {known}, or null"
        require(name in (None, *classes), f"labels maps {label!r} to {name!r}", allowed)
    mapped = {label: given.get(label, label) for label in found}
    lost = [label for label, name in mapped.items() if name not in (None, *classes)]
    if lost:
        found = f"{option} has the labels {', '.join(found)}, but {other} has the classes {known}"
        fix = f"such as `{lost[0]}: {classes[0]}`, or `{lost[0]}: null` to leave it out"
        raise ValueError(f"{found}; --labels must name a YAML file that maps {', '.join(lost)}, {fix}")
    return mapped


def spelling(name: str) -> str:
    """Return a name without differences of case, blanks and Unicode form."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).split())
