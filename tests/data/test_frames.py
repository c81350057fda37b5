"""Files of features of frames: shapes, keys, damage, and the places where they are kept."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ser_fast.data.frame_files import NpzFile, found_keys, open_file
from ser_fast.data.frames import digest, keep
from ser_fast.data.storage import Storage
from ser_fast.data.utterance import Utterance


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "f.npz", **arrays)
    return tmp_path / "f.npz"


def frames(count=5, width=3, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(dtype)


def parquet(tmp_path, table: dict):
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pyarrow.table(table), tmp_path / "f.parquet")
    return tmp_path / "f.parquet"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_file_reads_any_float(tmp_path, dtype):
    given = {"a/1.wav": frames(4, dtype=dtype), "2": frames(2, dtype=dtype, seed=1)}
    file = open_file(saved(tmp_path, **given))
    assert file.shapes == {"a/1.wav": (4, 3), "2": (2, 3)} and file.width == 3
    for key, values in given.items():
        assert file.read(key).dtype == np.float32 and np.array_equal(file.read(key), values.astype(np.float32))


def test_npz_file_reads_compressed_and_fortran_order(tmp_path):
    values = frames(7, 4)
    np.savez_compressed(tmp_path / "f.npz", a=np.asfortranarray(values))
    assert np.array_equal(NpzFile(tmp_path / "f.npz").read("a"), values)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((1, 5, 3), np.float32), r"'b' has the shape \[1, 5, 3\]; it must be \[T, D\]"),
        (np.zeros(3, np.float32), r"'b' has the shape \[3\]; it must be \[T, D\]"),
        (np.zeros((0, 3), np.float32), r"'b' has the shape \[0, 3\]"),
        (np.zeros((5, 3), np.int64), "'b' is int64; it must be float16, float32 or float64"),
        (np.zeros((5, 2), np.float32), "'b' has 2 features in a frame; it must be 3, as 'a'"),
        (np.array([{}, {}]), "'b' is object; it must be float"),
    ],
)
def test_npz_file_refuses_other_arrays(tmp_path, array, said):
    with pytest.raises(ValueError, match=rf"features is .*f.npz, where {said}"):
        open_file(saved(tmp_path, a=frames(), b=array))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_npz_file_refuses_values_that_are_not_finite(tmp_path, value):
    bad = frames()
    bad[2, 1] = value
    file = open_file(saved(tmp_path, good=frames(), bad=bad))
    file.read("good")
    with pytest.raises(ValueError, match=rf"where 'bad' has {value} in frame 2; it must be finite"):
        file.read("bad")


def test_npz_file_refuses_what_float32_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="where 'a' has inf in frame 0; it must be finite"):
        open_file(saved(tmp_path, a=np.full((1, 2), 1e300))).read("a")


def test_npz_file_refuses_damage(tmp_path):
    path = saved(tmp_path, a=frames(400))
    content = bytearray(path.read_bytes())
    content[3000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"where 'a' cannot be read .*CRC"):
        open_file(path).read("a")
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"f.npz, which is not readable as .npz"):
        open_file(path)


def test_npz_file_refuses_damaged_headers_and_compression(tmp_path):
    path = saved(tmp_path, a=frames())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'shape': (5, 3), }", b"'shape': (5, 3,  {"))  # the CRC is checked at the end
    with pytest.raises(ValueError, match=r"where 'a' cannot be read .*; it must be an array of .npy"):
        open_file(path)
    path.write_bytes(content.replace(b"'shape': (5, 3), }", b"'shape': (5, 3)},("))
    with pytest.raises(ValueError, match=r"where 'a' cannot be read "):
        open_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", b"x" * 1000)
    content = path.read_bytes()
    start = content.index(b"a.npy") + len("a.npy") + 9  # after the properties of LZMA
    path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
    with pytest.raises(ValueError, match=r"where 'a' cannot be read .Corrupt"):
        open_file(path)


def test_file_refuses_two_names_of_one_path(tmp_path):
    with pytest.raises(ValueError, match=r"where './01/a.wav' is there twice; it must be there once"):
        open_file(saved(tmp_path, **{"01/a.wav": frames(), "./01/a.wav": frames(2)}))


def test_open_file_refuses_other_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"features is .*nothing.npz; it must be a file .npz or .parquet, or the folder"
    ):
        open_file(tmp_path / "nothing.npz")
    (tmp_path / "f.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"features is .*f.pt; it must be"):
        open_file(tmp_path / "f.pt")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match=r"empty.npz, which has no arrays"):
        open_file(tmp_path / "empty.npz")


@pytest.mark.parametrize("kind", ["nested", "fixed", "flat"])
def test_parquet_file_equals_npz(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    given = {"a/1.wav": frames(4), "2": frames(2, seed=1)}
    lists = [values.tolist() for values in given.values()]
    number = pyarrow.float32()
    table = {
        "nested": {"file": list(given), "features": pyarrow.array(lists, pyarrow.list_(pyarrow.list_(number)))},
        "fixed": {"path": list(given), "features": pyarrow.array(lists, pyarrow.list_(pyarrow.list_(number, 3)))},
        "flat": {"name": list(given), "features": [values.ravel() for values in given.values()],
                 "shape": [values.shape for values in given.values()]},
    }[kind]  # fmt: skip
    file, other = open_file(parquet(tmp_path, table)), open_file(saved(tmp_path, **given))
    assert file.shapes == other.shapes
    assert all(np.array_equal(file.read(key), other.read(key)) for key in given)


@pytest.mark.parametrize(
    ("features", "shape", "said"),
    [
        ([[1.0, 2.0], [3.0], [1.0, 2.0, 3.0]], None, r"where 'a' has the shape \[6\]"),
        ([[1.0, None]], None, "where 'a' has nan in frame 0"),
        ([1.0, 2.0, 3.0], [2, 2], r"where 'a' has the shape \[3\]"),
        ([1.0, 2.0], [1.0, 2.0], r"where 'a' has the shape \[2\]"),
        ([1.0, 2.0], ["1", "2"], r"where 'a' has the shape \[2\]"),
        ([1.0, 2.0], "1x2", r"where 'a' has the shape \[2\]"),
        ([1.0, 2.0], None, "features of the type list<.*double>; it must be lists of lists"),
        ("x", None, "features of the type string"),
        ([[1, 2]], None, "features of the type list<.*int64>>"),
    ],
)
def test_parquet_file_refuses_other_columns(tmp_path, features, shape, said):
    table = {"file": ["a"], "features": [features], **({"shape": [shape]} if shape else {})}
    with pytest.raises(ValueError, match=said):
        open_file(parquet(tmp_path, table)).read("a")


def test_parquet_file_refuses_names_twice_and_no_table(tmp_path):
    with pytest.raises(ValueError, match="where 'a' is there twice"):
        open_file(parquet(tmp_path, {"file": ["a", "a"], "features": [[[1.0]], [[2.0]]]}))
    with pytest.raises(ValueError, match="has the columns file, x; it must be a table with 'file' and 'features'"):
        open_file(parquet(tmp_path, {"file": ["a"], "x": [1]}))
    (tmp_path / "f.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not readable as Parquet"):
        open_file(tmp_path / "f.parquet")


def utterance(path, name="", **more):
    return Utterance(name or path, "s", "anger", Path("/corpus", path), **more)


@pytest.mark.parametrize("key", ["01/a.wav", "01/a", "/corpus/01/a.wav", "a.wav", "a", "./01/a.wav", "a.flac"])
def test_file_finds_path_end_and_stem(tmp_path, key):
    file = open_file(saved(tmp_path, **{key: frames(), "b": frames(2)}))
    assert found_keys(file, [utterance("01/a.wav")]) == [key]


def test_file_prefers_the_longest_end(tmp_path):
    file = open_file(saved(tmp_path, **{"a": frames(), "01/a.wav": frames(), "02/a": frames()}))
    both = [utterance("01/a.wav"), utterance("02/a.wav")]
    assert found_keys(file, both) == ["01/a.wav", "02/a"]


@pytest.mark.parametrize("keys", [("a.flac", "a.ogg"), ("02/a.wav",), ("02/a",), ("/elsewhere/a.wav",)])
def test_file_refuses_an_ambiguous_stem_and_that_of_another_folder(tmp_path, keys):
    file = open_file(saved(tmp_path, **{key: frames() for key in keys}))
    with pytest.raises(ValueError, match=r"lacks 1 of 1 utterances: 01/a.wav; it must have each, named by"):
        found_keys(file, [utterance("01/a.wav")])


def test_file_refuses_a_key_for_two_utterances(tmp_path):
    file = open_file(saved(tmp_path, a=frames()))
    with pytest.raises(ValueError, match=r"where 'a' is for 01/a.wav and 02/a.wav; it must be for one"):
        found_keys(file, [utterance("01/a.wav"), utterance("02/a.wav")])


def test_file_names_a_part_of_audio_by_its_utterance_alone(tmp_path):
    part = utterance("a.wav", "a[0:1]", start=0.0, end=1.0)
    with pytest.raises(ValueError, match=r"lacks 1 of 1 utterances: a\[0:1\]"):
        found_keys(open_file(saved(tmp_path, a=frames())), [part])
    assert found_keys(open_file(saved(tmp_path, **{"a[0:1]": frames()})), [part]) == ["a[0:1]"]


def test_file_counts_and_names_what_is_missing(tmp_path):
    file = open_file(saved(tmp_path, u3=frames()))
    with pytest.raises(ValueError, match=r"lacks 5 of 6 utterances: u0.wav, u1.wav, u2.wav, \.\.\.; it must"):
        found_keys(file, [utterance(f"u{i}.wav") for i in range(6)])


@pytest.mark.parametrize("cache", ["memory", "disk", "none", "auto"])
def test_keep_holds_the_features_and_reads_them_once(tmp_path, cache):
    given = [frames(count, seed=count) for count in (4, 1, 6)]
    some = [Utterance(str(i), "s", "anger", samples=torch.full((8,), i / 9), sample_rate=8) for i in range(3)]
    read, said = [], []

    def reader(one):
        read.append(one.name)
        return given[int(one.name)]

    for _ in range(2):
        kept = keep(some, reader, 11, 3, "kind", Storage(cache, tmp_path), said.append)
        assert list(kept.lengths) == [4, 1, 6]
        assert all(torch.equal(kept[i], torch.from_numpy(given[i])) for i in range(3))
    assert len(read) == (3 if cache == "disk" else 6)
    assert said[0].startswith("features of 3 utterances: 11 frames of 3, 1 MB ")
    assert digest(kept) == digest(kept) != digest(kept[:2])
    assert keep(some, lambda one: given[0], 12, 3, "other", Storage(cache, tmp_path), said.append)[1].shape == (4, 3)
