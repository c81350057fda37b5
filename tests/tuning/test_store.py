"""The store of tuned choices: keys, damaged and foreign files, several writers, a read-only folder."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ser_fast.backends import state, tuned
from ser_fast.tuning import store

CHOICES = {"gru": {"tf32": {"64": ["cuda", "torch"]}}, "attention_pool": {"float32": ["torch", "triton"]}}


@pytest.fixture
def file(tmp_path, monkeypatch, fresh_state):
    """The file of the tuned choices, in a folder that does not exist yet."""
    path = tmp_path / "cache" / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    tuned._warn_once.cache_clear()
    return path


def test_path_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(tuned.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuned.path() == tmp_path / "ser_fast/tuned.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuned.path() == tmp_path / ".cache/ser_fast/tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, "0")
    assert tuned.path() is None and tuned.read("cpu") == (None, "SER_FAST_TUNED is 0")
    with pytest.raises(ValueError, match="SER_FAST_TUNED is 0, so choices are not read; unset it"):
        store.write({"device": "cpu"})


def test_written_entry_is_read_under_its_key(file):
    assert tuned.read("cpu") == (None, f"there is no {file}")
    here = tuned.key("cpu")
    assert (
        store.write(here, choices=CHOICES, rules={"frames_per_task": 3}, banned={"gru by triton": "it hangs"}) == file
    )
    entry, why = tuned.read("cpu")
    assert why is None and (entry["choices"], entry["key"]) == (CHOICES, here)
    said = tuned.described("cpu")
    assert said.startswith(
        f"on {entry['date']}; gru tf32: cuda for H=64; attention_pool float32: torch; frames_per_task: 3"
    )
    assert said.endswith("gru by triton: banned, it hangs")
    assert sorted(path.name for path in file.parent.iterdir()) == ["tuned.json", "tuned.json.lock"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"threads": 999}, "threads was 999, is "),
        ({"torch": "1.0", "kernels": "old"}, "torch was 1.0, is "),
        ({"device": "cuda"}, "no device of type cpu was tuned"),
    ],
)
def test_foreign_key_names_the_differing_fields(file, changed, sentence):
    store.write(tuned.key("cpu") | {"name": "another", "threads": 1000, "torch": "0"} | changed)
    store.write(tuned.key("cpu") | changed)
    entry, why = tuned.read("cpu")
    assert entry is None and why.startswith(sentence) and "name was" not in why
    assert tuned.described("cpu") == f"no: {why}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "Expecting property name"),
        ("[]", "the file is a list; it must be an object"),
        ('{"a": 1}', "entry a is a int; it must be an object"),
        ('{"a": {"key": 1}}', "key of entry a is 1; it must be an object"),
        ('{"DIGEST": {"key": KEY, "date": 3}}', "date of entry DIGEST is a int; it must be a str"),
        ('{"DIGEST": {"key": KEY, "date": "", "choices": {"lstm": {}}, "rules": {}, "banned": {}}}', "is 'lstm'"),
        ('{"DIGEST": {"key": KEY, "date": "", "choices": {}, "rules": {"frames_per_task": NaN}, "banned": {}}}', "is nan"),
        ("[" * 100_000, "maximum recursion depth"),
        (b"\xff\xff", "codec can't decode"),
    ],
)  # fmt: skip
def test_damaged_file_warns_once_and_is_replaced(file, text, sentence):
    file.parent.mkdir()
    here = tuned.key("cpu")
    if isinstance(text, str):
        text = text.replace("DIGEST", tuned.digest(here)).replace("KEY", json.dumps(here)).encode()
    sentence = sentence.replace("DIGEST", tuned.digest(here))
    file.write_bytes(text)
    with pytest.warns(UserWarning) as warned:
        assert tuned.read("cpu")[0] is None and tuned.read("cpu")[0] is None
    (warning,) = warned
    assert f"{file} is damaged" in str(warning.message) and sentence in str(warning.message)
    store.write(tuned.key("cpu"), choices=CHOICES)
    assert tuned.read("cpu")[0]["choices"] == CHOICES


def test_key_is_read_only_if_a_device_of_the_type_was_tuned(file, monkeypatch):
    """The key of the CPU would hash the kernels in every import."""
    store.write({"device": "cuda", "name": "NVIDIA H100"}, choices=CHOICES)
    monkeypatch.setattr(tuned, "key", None)
    assert tuned.read("cpu") == (None, "no device of type cpu was tuned")


def test_entries_of_other_versions_are_ignored_and_kept(file, recwarn):
    """Another version may know other ops, rules and parts; a renamed entry has another key than its digest says."""
    other = {"key": {"device": "cuda"}, "date": 3, "choices": {"lstm": {}}, "rules": {"speed": 1}}
    file.parent.mkdir()
    file.write_text(json.dumps({"a": other, tuned.digest(tuned.key("cpu")): other}))
    assert tuned.read("cpu") == (None, "no device of type cpu was tuned")
    store.write(tuned.key("cpu"), choices=CHOICES)
    assert tuned.read("cpu")[0]["choices"] == CHOICES and tuned.load(file)["a"] == other
    assert not recwarn


def test_unreadable_file_warns_only_if_the_user_names_it(file, monkeypatch, tmp_path, recwarn):
    tmp_path.joinpath("home/.cache/ser_fast/tuned.json").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(tuned.VARIABLE)
    assert tuned.read("cpu")[1].endswith("tuned.json cannot be read (Is a directory)") and not recwarn
    monkeypatch.setenv("HOME", os.devnull)
    assert tuned.read("cpu")[1].startswith("there is no /dev/null/.cache") and not recwarn
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path))
    with pytest.warns(UserWarning, match=r"cannot be read \(Is a directory\)"):
        assert tuned.read("cpu")[0] is None


@pytest.mark.parametrize("name", ["/dev/null", "."])
def test_only_a_regular_file_is_replaced(file, monkeypatch, name):
    monkeypatch.setenv(tuned.VARIABLE, name)
    with pytest.raises(ValueError, match=f"SER_FAST_TUNED is {name}; it must be the path of a regular file"):
        store.write({"device": "cpu"})


def test_unknown_home_is_refused(file, monkeypatch):
    """Instead of a folder named ~ in the working directory."""
    monkeypatch.setenv(tuned.VARIABLE, "~/tuned.json")
    with pytest.raises(ValueError, match=r"~/tuned\.json has no known home folder; set SER_FAST_TUNED to"):
        store.write({"device": "cpu"})


def test_choices_that_differ_between_processes_are_ignored(file):
    store.write(tuned.key("cpu"))
    state.current.packaged = True
    assert tuned.read("cpu") == (None, tuned.DIFFER)


def test_writers_keep_each_others_entries(file):
    script = """
import sys
from ser_fast.tuning import store
for number in range(5):
    store.write({"device": "cuda", "name": f"{sys.argv[1]} {number}"})
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    names = {entry["key"]["name"] for entry in tuned.load(file).values()}
    assert names == {f"{name} {number}" for name in "ab" for number in range(5)}


def test_interrupted_write_keeps_the_old_file(file, monkeypatch):
    store.write(tuned.key("cpu"), choices=CHOICES)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        store.write(tuned.key("cpu"))
    assert raised.value.filename == str(file) and file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["tuned.json", "tuned.json.lock"]


def test_second_tuning_of_a_device_is_refused(file):
    with store.alone("cuda-0"):
        with store.alone("cuda-1"):
            pass
        with pytest.raises(RuntimeError, match="another `ser-fast tune` is running on cuda-0"), store.alone("cuda-0"):
            pass
    with store.alone("cuda-0"):
        pass


def test_key_of_a_gpu_queries_that_gpu_alone(monkeypatch, fresh_state):
    queried = []

    class Properties:
        name, multi_processor_count, major, minor = "NVIDIA H100", 132, 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: queried.append(device) or Properties)
    monkeypatch.setattr(tuned.build, "driver_version", lambda: 13000)
    found = tuned.key("cuda:3")
    assert queried == [torch.device("cuda:3")]
    wanted = {"device": "cuda", "name": "NVIDIA H100", "multiprocessors": 132, "capability": "9.0"}
    assert found["driver"].endswith(", CUDA 13000")
    assert found.items() >= wanted.items() and {"cudnn", "triton", "torch", "kernels"} <= found.keys()
