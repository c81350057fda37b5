"""Maps from labels of a corpus to other classes."""

import pytest

from ser_fast.data.corpora.labels import map_labels, read_map


def test_read_map_keeps_the_text_of_scalars(tmp_path):
    """YAML 1.1 reads no as false and 01 as 1; a quoted null is a class of that name."""
    path = tmp_path / "map.yaml"
    path.write_text("no: on\n01: 1.0\n'null': \"null\"\n中性: ~\ncalm:\nsad: null\n", encoding="utf-8")
    wanted = {"no": "on", "01": "1.0", "null": "null", "中性": None, "calm": None, "sad": None}
    assert read_map(path) == wanted


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty; it must be lines such as"),
        ("- anger\n", "is nested or no map; it must be lines"),
        ("anger: [a, b]\n", "is nested or no map"),
        ("? [a]\n: b\n", "is nested or no map"),
        ("anger: a\nanger: b\n", "the key 'anger' is there twice"),
        ("anger: &a b\nsad: *a\n", "there is an anchor or alias 'a'"),
        ("anger: {\n", "is not YAML of options"),
    ],
)
def test_read_map_refuses_other_yaml(text, fault, tmp_path):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ValueError, match=fault) as caught:
        read_map(tmp_path / "map.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/map.yaml") and "\n" not in str(caught.value)


def test_read_map_refuses_binary_and_large_files(tmp_path):
    (tmp_path / "map.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match="has the byte 0xff at 3; it must be UTF-8"):
        read_map(tmp_path / "map.yaml")
    (tmp_path / "map.yaml").write_bytes(b" " * (1 << 19))
    with pytest.raises(ValueError, match="has 524288 bytes; a file of options must have at most"):
        read_map(tmp_path / "map.yaml")


def test_map_labels_takes_equal_names_as_they_are():
    assert map_labels(["sad", "anger", "sad"], ["anger", "sad", "calm"]) == {"anger": "anger", "sad": "sad"}


def test_map_labels_may_merge_labels_and_leave_out():
    given = {"happy": "joy", "excited": "joy", "other": None}
    assert map_labels(["happy", "excited", "other"], ["joy", "sad"], given) == given
