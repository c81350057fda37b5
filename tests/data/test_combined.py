"""Corpora with other labels, or with a test part from another corpus."""

import pytest

from ser_fast.data.corpora import Corpus, Utterance
from ser_fast.data.corpora.combined import joined, relabelled
from ser_fast.data.dataset import split_corpus


def corpus(name: str, labels: str, *, speakers: str = "xyz", **more) -> Corpus:
    """Two utterances of every label, named by a letter, and speaker."""
    utterances = [
        Utterance(f"{name}{label}{speaker}{take}", speaker, label, **more)
        for label in labels
        for speaker in speakers
        for take in range(2)
    ]
    return Corpus(name, utterances, sorted(set(labels)))


def test_relabelled_merges_and_drops():
    found = relabelled(corpus("m", "abcd"), {"b": "a", "d": None})
    assert found.classes == ["a", "c"] and len(found.utterances) == 18
    assert [utterance.label for utterance in found.utterances] == ["a"] * 12 + ["c"] * 6
    assert found.notes == ("counted b as a; left out d (6)",) and found.notes[0] in found.summary()
    swapped = relabelled(corpus("m", "ab"), {"a": "b", "b": "a"})
    assert [one.label for one in swapped.utterances] == ["b"] * 6 + ["a"] * 6 and swapped.classes == ["b", "a"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"z": "a"}, "labels maps 'z'; it must be a label of the corpus: a, b"),
        ({"a": None, "b": None}, "labels leaves 0 utterances of m; it must be a map that leaves some"),
    ],
)
def test_relabelled_refuses_bad_maps(given, message):
    with pytest.raises(ValueError, match=message):
        relabelled(corpus("m", "ab"), given)


def test_relabelled_refuses_values():
    values = Corpus("v", [Utterance("u", "s", "", value=1.0)], [])
    with pytest.raises(ValueError, match="labels is given, but data, v, has values, not classes; omit it"):
        relabelled(values, {"a": "b"})


def test_joined_tests_on_all_of_another_corpus():
    found = joined(corpus("m", "ab", group="g"), corpus("n", "Ab", speakers="zw"), {"A": "a"})
    split = split_corpus(found, valid_fraction=0.3)
    assert split.protocol == "trained on m, tested on n; best epoch chosen on 30% of the training speakers"
    assert {found.utterances[i].name[0] for i in split.test} == {"n"} and len(split.test) == 8
    assert {found.utterances[i].name[0] for i in split.train + split.valid} == {"m"}
    # Both corpora have a speaker z.
    assert {found.utterances[i].speaker for i in split.test} == {"n/z", "w"}
    assert {found.utterances[i].label for i in split.test} == {"a", "b"} and found.classes == ["a", "b"]
    assert (found.name, found.test_data) == ("m", "n")
    assert found.notes == ("test part: 8 utterances of n, 2 speakers", "n: counted A as a")


def test_joined_validates_by_groups():
    trained = corpus("m", "ab")
    named = [Utterance(u.name, u.speaker, u.label, group=f"g{u.speaker == 'x'}") for u in trained.utterances]
    found = joined(Corpus("m", named, ["a", "b"]), corpus("n", "ab", group="h"), {})
    split = split_corpus(found, validation="groups")
    groups = [{found.utterances[i].group for i in index} for index in (split.train, split.valid, split.test)]
    assert groups[2] == {"n"} and {*groups[0], *groups[1]} == {"gTrue", "gFalse"} and not groups[0] & groups[1]
    assert {u.group for u in joined(trained, corpus("n", "ab", group="h"), {}).utterances} == {None}


def test_joined_keeps_the_parts_of_both():
    trained, tested = corpus("m", "ab"), corpus("n", "ab")
    parts = ("train", "valid", "test")
    both = [
        Corpus(one.name, [Utterance(u.name, u.speaker, u.label, part=parts["xyz".index(u.speaker)])
                          for u in one.utterances], one.classes)
        for one in (trained, tested)
    ]  # fmt: skip
    found = joined(*both, {})
    split = split_corpus(found)
    names = [{found.utterances[i].name[0] + found.utterances[i].name[2] for i in index}
             for index in (split.train, split.valid, split.test)]  # fmt: skip
    assert names == [{"mx"}, {"my"}, {"nz"}]
    assert split.protocol == "trained on m, tested on n; best epoch chosen on its validation part"
    assert "left out 4 utterances of the test part of m" in found.notes


def test_joined_names_a_class_without_test_utterance():
    found = joined(corpus("m", "abc"), corpus("n", "ab"), {})
    assert split_corpus(found, validation="none").protocol.endswith("; no test utterance of c")


@pytest.mark.parametrize(
    ("test", "given", "message"),
    [
        (corpus("n", "ax"), {}, "test_data has the labels a, x, but the corpus m has the classes a, b; --labels must"),
        (corpus("n", "ax"), {"x": "q"}, "labels maps 'x' to 'q'; it must be a class of the corpus m, a, b, or null"),
        (Corpus("n", [Utterance("u", "s", "", value=1.0)], []), {},
         "test_data is n, which has values; it must have classes, as data, m, has"),
        (corpus("n", "ab", part="train"), {}, "test_data leaves 0 utterances; it must be a corpus, or a part of one"),
    ],
)  # fmt: skip
def test_joined_refuses_corpora_that_do_not_fit(test, given, message):
    with pytest.raises(ValueError, match=message):
        joined(corpus("m", "ab"), test, given)


def test_joined_refuses_shared_files(tmp_path):
    (tmp_path / "u.wav").touch()
    one, other = (Corpus(name, [Utterance(name, "s", "a", tmp_path / "u.wav")], ["a"]) for name in "mn")
    with pytest.raises(ValueError, match="test_data is n, which does not fit data, m: corpus 'm' lists n and m"):
        joined(one, other, {})


def test_joined_refuses_another_scale():
    one, other = (
        Corpus(name, [Utterance(name, "s", "", value=0.5)], [], sentiment_scale=scale)
        for name, scale in (("m", 1), ("n", 3))
    )
    with pytest.raises(ValueError, match="test_data is n, of the sentiment_scale 3; it must be of that of data, m"):
        joined(one, other, {})


def test_joined_refuses_other_targets():
    one, other = (
        Corpus(name, [Utterance(name, "s", "", values={target: 0.5})], [], targets=[target])
        for name, target in (("m", "valence"), ("n", "arousal"))
    )
    with pytest.raises(
        ValueError, match="test_data is n, of the targets arousal; it must be of those of data, m: val"
    ):
        joined(one, other, {})
