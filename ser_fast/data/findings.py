"""Signs that a corpus was read in another way than it is meant, or that its audio is damaged."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ser_fast.data.corpora import labels
from ser_fast.data.failures import Tally
from ser_fast.data.flags import FLAGS, NO_SPEECH
from ser_fast.data.survey import Properties
from ser_fast.data.utterance import UNKNOWN, Corpus, Utterance
from ser_fast.data.wav import AudioError

SHORT, LONG = 0.2, 30.0  # seconds
_IMBALANCE = 10  # utterances of the largest class for each one of the smallest
_ALIKE = 0.6  # share of the shorter of two words for one emotion with which both begin
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """Something about a corpus that its user should know.

    Args:
        code: short name of its kind.
        sentence: what was found, with its number and up to three examples.
        names: all classes, speakers or utterances that it is about; copies of one utterance are one tuple.
    """

    code: str
    sentence: str
    names: tuple[str | tuple[str, ...], ...]


def of_names(corpus: Corpus) -> list[Finding]:
    """Return what the names and counts of classes and speakers show; no audio is read.

    Example:
        >>> from ser_fast.data.corpora import Utterance
        >>> both = [Utterance("a.wav", "eve", "angry"), Utterance("b.wav", "bob", "Angry")]
        >>> of_names(Corpus("x", both, ["Angry", "angry"]))[0].sentence
        "classes that differ in case, blanks or Unicode form only (2 of 2): 'Angry', 'angry'"
    """
    return [*_spellings(corpus), *_exchanged(corpus), *_speakers(corpus), *_classes(corpus), *_parts(corpus)]


def corpus_lines(corpus: Corpus) -> list[str]:
    """Return the lines of ``corpus.summary()`` and a warning for each finding of :func:`of_names`."""
    return [*corpus.summary(), *(f"warning: {one.sentence}" for one in of_names(corpus))]


def of_audio(corpus: Corpus, properties: Sequence[Properties | AudioError]) -> list[Finding]:
    """Return what the audio shows.

    Args:
        corpus: the corpus.
        properties: what :func:`ser_fast.data.survey.survey` returns for its utterances.
    """
    total = len(properties)
    errors = [str(one) for one in properties if isinstance(one, AudioError)]
    lost = [one.name for one, found in zip(corpus.utterances, properties) if isinstance(found, AudioError)]
    known = [(one, found) for one, found in zip(corpus.utterances, properties) if isinstance(found, Properties)]
    reasons = f"by reason: {', '.join(Tally(errors).by_reason())}; " if len(errors) > _SHOWN else ""
    leave = f"{reasons}--skip_bad leaves them out"
    found = _finding("unreadable", "utterances that cannot be read", lost, total, leave, errors)
    for flag, meaning in FLAGS.items():
        names = [utterance.name for utterance, one in known if flag in one.flags]
        phrase = "utterances without speech" if flag == NO_SPEECH else f"{flag} utterances"
        found += _finding(flag, phrase, names, total, meaning.partition(" (not predicted")[0])
    found += _copies(known)
    for code, phrase, names in (
        ("very_short", f"utterances below {SHORT:g} s", [u.name for u, one in known if one.seconds < SHORT]),
        ("very_long", f"utterances above {LONG:g} s", [u.name for u, one in known if one.seconds > LONG]),
    ):
        found += _finding(code, phrase, names, total)
    return [*found, *_rates(known)]


def _finding(
    code: str, phrase: str, names: Sequence[str | tuple[str, ...]], total: int, after: str = "",
    shown: Sequence[str] = (), count: int = 0,
) -> list[Finding]:  # fmt: skip
    """Return a finding with the count of its names, or another one; none without a name.

    ``shown`` takes the place of the quoted names in the sentence.
    """
    if not names:
        return []
    sentence = f"{phrase} ({count or len(names)} of {total}): {_few(shown or list(map(repr, names[: _SHOWN + 1])))}"
    return [Finding(code, sentence + (after and f"; {after}"), tuple(names))]


def _few(names: Sequence[str], between: str = ", ") -> str:
    return between.join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])


def _spellings(corpus: Corpus) -> Iterator[Finding]:
    classes, speakers, differ = corpus.classes, corpus.speakers, "that differ in case, blanks or Unicode form only"
    yield from _finding("class_spelling", f"classes {differ}", _same(classes), len(classes))
    after = "they are taken for different speakers"
    yield from _finding("speaker_spelling", f"speakers {differ}", _same(speakers), len(speakers), after)
    words = defaultdict(list)  # few: is_emotion knows a list
    for name in filter(labels.is_emotion, classes):
        words["".join(filter(str.isalpha, labels.spelling(name)))].append(name)
    pairs = [pair for pair in combinations(words, 2) if _alike(*pair)]
    names = [name for word in dict.fromkeys(word for pair in pairs for word in pair) for name in words[word]]
    yield from _finding("class_synonym", "classes that may be one emotion", names, len(classes))


def _same(names: Sequence[str]) -> list[str]:
    """Return the names that have the spelling of another one."""
    counts = Counter(map(labels.spelling, names))
    return sorted((name for name in names if counts[labels.spelling(name)] > 1), key=lambda name: name.casefold())


def _alike(one: str, other: str) -> bool:
    """Return whether two words of letters are forms of one: anger and angry, sad and sadness."""
    shorter = min(len(one), len(other))
    same = next((at for at, letters in enumerate(zip(one, other)) if letters[0] != letters[1]), shorter)
    return same > 1 and same >= _ALIKE * shorter


def _exchanged(corpus: Corpus) -> Iterator[Finding]:
    """Yield classes that are named like speakers or parts, and speakers like classes or parts."""
    classes, speakers = corpus.classes, corpus.speakers
    like = [name for name in classes if labels.is_speaker(name)]
    yield from _finding("class_is_speaker", "classes named like speakers", like, len(classes))
    both = labels.speakers_in_classes(classes)
    if both:
        said = f"the names of the classes contain speakers: {_few([repr(name) for name in both])}"
        yield Finding("class_has_speaker", said, tuple(both))
    like = [name for name in speakers if labels.is_emotion(name)]
    same = set(map(labels.spelling, classes))
    # One alone may be a person's name, such as Joy.
    like = like if len(like) > 1 else [name for name in speakers if labels.spelling(name) in same]
    yield from _finding("speaker_is_class", "speakers named like classes", like, len(speakers))
    for noun, names in (("class", classes), ("speaker", speakers)):
        like = [name for name in names if labels.is_part(name)]
        plural = "classes" if noun == "class" else "speakers"
        yield from _finding(f"{noun}_is_part", f"{plural} named like parts of a corpus", like, len(names))


def _speakers(corpus: Corpus) -> Iterator[Finding]:
    names, total = corpus.speakers, len(corpus.utterances)
    impossible = "a test on other speakers than those of the training, such as --protocol=loso, is impossible"
    if names == [UNKNOWN]:
        yield Finding("no_speakers", f"no speaker is known; {impossible}", ())
    elif len(names) == 1:
        yield Finding("one_speaker", f"the only speaker is {names[0]!r}; {impossible}", tuple(names))
    elif UNKNOWN in names:
        lost = [one.name for one in corpus.utterances if one.speaker == UNKNOWN]
        after = "they are taken for one speaker"
        yield from _finding("unknown_speakers", "utterances without a speaker", lost, total, after)
    if len(names) == total > 2:
        said = f"each of the {total} utterances has a speaker of its own, as if speakers were names of files"
        yield Finding("speaker_per_utterance", said, tuple(names))


def _classes(corpus: Corpus) -> Iterator[Finding]:
    classes, speakers = corpus.classes, corpus.speakers
    counts = Counter(one.label for one in corpus.utterances)
    if len(classes) == 1:
        yield Finding(
            "one_class", f"the only class is {classes[0]!r}; there is nothing to tell apart", tuple(classes)
        )
    if len(classes) < 2:
        return
    most, least = max(classes, key=counts.__getitem__), min(classes, key=counts.__getitem__)
    if counts[most] >= _IMBALANCE * counts[least]:
        said = f"class {most!r} has {counts[most]} utterances and {least!r} has {counts[least]}"
        yield Finding("imbalance", f"{said}; --balance=true repeats those of small classes", (most, least))
    if len(speakers) < 2 or len(speakers) == len(corpus.utterances):
        return
    pairs = {(one.label, one.speaker) for one in corpus.utterances}
    learn = "a model can learn the speakers instead"
    if len(pairs) == len(speakers):
        said = f"each of the {len(speakers)} speakers has one class only, so {learn}"
        yield Finding("speaker_of_one_class", said, tuple(speakers))
        return
    of_class, of_speaker = defaultdict(list), defaultdict(set)
    for label, speaker in sorted(pairs):
        of_class[label].append(speaker)
        of_speaker[speaker].add(label)
    alone = [name for name in classes if len(of_class[name]) == 1]
    shown = [f"{name} (speaker {of_class[name][0]})" for name in alone[: _SHOWN + 1]]
    yield from _finding("class_of_one_speaker", "classes of one speaker alone", alone, len(classes), learn, shown)
    lacking = [speaker for speaker in speakers if len(of_speaker[speaker]) < len(classes)]
    lost = ([name for name in classes if name not in of_speaker[speaker]] for speaker in lacking[: _SHOWN + 1])
    shown = [f"{speaker} ({_few(names)})" for speaker, names in zip(lacking, lost)]
    yield from _finding("speaker_lacks_class", "speakers without some classes", lacking, len(speakers), "", shown)


def _parts(corpus: Corpus) -> Iterator[Finding]:
    """Yield what is wrong with the corpus's own division."""
    tested = [one for one in corpus.utterances if one.part == "test"]
    trained = [one for one in corpus.utterances if one.part in ("train", "valid")]
    if not tested or not trained:
        return
    shared = {one.speaker for one in trained} & {one.speaker for one in tested} - {UNKNOWN}
    phrase = "speakers both in the test part and in another one"
    yield from _finding("shared_speakers", phrase, sorted(shared), len(corpus.speakers))
    known = {one.label for one in corpus.utterances if one.part == "train"}
    lost = sorted({one.label for one in tested} - known)
    yield from _finding("untrained_class", "classes of the test part that no training utterance has", lost,
                        len(corpus.classes))  # fmt: skip


def _copies(known: Sequence[tuple[Utterance, Properties]]) -> Iterator[Finding]:
    """Yield utterances with the same samples; those without content are alike anyway."""
    alike = defaultdict(list)
    for utterance, one in known:
        if one.digest and not {"silent", "constant"} & set(one.flags):
            alike[one.digest].append(utterance)
    copies = defaultdict(list)
    for group in alike.values():
        if len(group) > 1:
            labelled = {(one.label, one.value, *sorted(one.values.items())) for one in group}
            kinds = (len(labelled) > 1, len({one.speaker for one in group}) > 1)
            copies["_label" if kinds[0] else "_speaker" if kinds[1] else ""].append(group)
    after = "copies may be in the training and the test part"
    for kind, phrase in (
        ("_label", "utterances with the same audio and different labels"),
        ("_speaker", "utterances with the same audio and different speakers"),
        ("", "utterances with the same audio"),
    ):
        groups = copies[kind]
        shown = [_few([_described(one, kind) for one in group], " = ") for group in groups[: _SHOWN + 1]]
        names = [tuple(one.name for one in group) for group in groups]
        yield from _finding(f"same_audio{kind}", phrase, names, len(known), after, shown, sum(map(len, groups)))


def _described(utterance: Utterance, kind: str) -> str:
    shown = utterance.speaker if kind == "_speaker" else utterance.label if kind else ""
    return utterance.name + (f" ({shown})" if shown else "")


def _rates(known: Sequence[tuple[Utterance, Properties]]) -> Iterator[Finding]:
    counts = Counter(one.sample_rate for _, one in known)
    if len(counts) < 2:
        return
    found = ", ".join(f"{rate} Hz ({count})" for rate, count in counts.most_common())
    of_class = defaultdict(set)
    for utterance, one in known:
        of_class[utterance.label].add(one.sample_rate)
    uneven = any(rates != set(counts) for rates in of_class.values())
    after = "; not all classes have all of them, so a model can learn the rates instead" if uneven else ""
    yield Finding("sample_rates", f"utterances of {len(counts)} sample rates: {found}{after}", ())
