"""Read what ``ser-fast tune`` chose on this machine: the file ``tuned.json`` in the user's cache.

It holds an entry for every device and software that was tuned, by the digest of its key::

    {"5f0c...": {"key": {"device": "cuda", "name": "NVIDIA H100 80GB HBM3", "torch": "2.13.0", ...},
                 "date": "2026-12-01",
                 "choices": {"gru": {"tf32": {"128": ["cuda", "torch"]}}},
                 "rules": {}, "banned": {"gru by triton": "float32 H=64: it did not end within 50 s"}}}

``choices`` has the form of :mod:`ser_fast.backends.measured`, ``rules`` are those of the CPU. An entry is used only
if its whole key is that of the device at hand. ``SER_FAST_TUNED=0`` ignores the file, ``SER_FAST_TUNED=PATH`` names
another one.
"""

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ser_fast._require import require
from ser_fast.backends import build, cpu_rules, measured, state

VARIABLE = "SER_FAST_TUNED"
DIFFER = "the choices of the processes differ"


def path() -> Path | None:
    """Return the file of the tuned choices; None if ``SER_FAST_TUNED=0`` turns them off."""
    given = os.environ.get(VARIABLE)
    if given:
        return None if given == "0" else Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expanduser(cache), "ser_fast", "tuned.json")


def key(device: str | torch.device) -> dict:
    """Return all that a choice depends on: the device, the software that it runs, and the hash of our kernels."""
    device = torch.device(device)
    software = {"torch": torch.__version__, "kernels": _kernels()}
    if device.type == "cpu":
        return {
            "device": "cpu",
            "name": processor(),
            "instruction set": state.current.instruction_set,
            "threads": torch.get_num_threads(),
            **software,
        }
    gpu = torch.cuda.get_device_properties(device)
    return {
        "device": "cuda",
        "name": gpu.name,
        "multiprocessors": gpu.multi_processor_count,
        "capability": f"{gpu.major}.{gpu.minor}",
        "driver": _driver(),
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version("triton"),
        **software,
    }


def processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _driver() -> str:
    """Return the driver's release where the system shows it, and the CUDA version that it supports."""
    shown = Path("/proc/driver/nvidia/version")
    release = re.search(r"\d+\.\d+(\.\d+)?", shown.read_text()) if shown.exists() else None
    return f"{release[0] if release else 'unknown'}, CUDA {build.driver_version()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def _kernels() -> str:
    """Return a hash of the compiled kernels and of the sources of Triton's."""
    found = hashlib.sha256()
    if state.current.loaded:
        found.update(Path(importlib.util.find_spec("ser_fast._C").origin).read_bytes())
    package = importlib.util.find_spec("ser_fast.kernels")  # None without an install
    for folder in package.submodule_search_locations if package else ():
        for file in sorted(Path(folder).glob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:16]


def described(device: str | torch.device) -> str:
    """Return whether a device is tuned, when and with what result, as a line of ``ser-fast info``."""
    entry, why = read(device)
    if entry is None:
        return f"no: {why}"
    chosen: dict[str, list[str]] = {}
    for op, precision, size, order in measured.orders(entry["choices"]):
        chosen.setdefault(f"{op} {precision}", []).append(f"{order[0]} for H={size}" if size else order[0])
    said = [f"{name}: {', '.join(paths)}" for name, paths in chosen.items()]
    said += [f"{name}: {value}" for name, value in entry["rules"].items()]
    said += [f"{name}: banned, {reason}" for name, reason in entry["banned"].items()]
    return "; ".join([f"on {entry['date']}", *said])


def digest(value: dict | list | None) -> str:
    """Return the digest of a key or of choices."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def load(file: Path) -> dict[str, dict]:
    """Return the entries of a file by the digests of their keys, {} if there is no file.

    The content of an entry is not checked: that of another version may have another form.

    Raises:
        ValueError: the file is not such a file; the message says where.
        OSError: the file cannot be read.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        require(isinstance(entries, dict), f"the file is a {type(entries).__name__}", "an object")
        for name, entry in entries.items():
            require(isinstance(entry, dict), f"entry {name} is a {type(entry).__name__}", "an object")
            require(isinstance(entry.get("key"), dict), f"key of entry {name} is {entry.get('key')!r}", "an object")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(_damaged(file, error)) from error
    return entries


def _damaged(file: Path, error: Exception) -> str:
    return f"{file} is damaged ({error}); remove it, and type `ser-fast tune` again"


def check(name: str, entry: dict) -> None:
    """Raise ValueError if this is not an entry of tuned choices; ``name`` is its digest."""
    for part, kind in (("key", dict), ("date", str), ("choices", dict), ("rules", dict), ("banned", dict)):
        found = type(entry.get(part)).__name__
        require(isinstance(entry.get(part), kind), f"{part} of entry {name} is a {found}", f"a {kind.__name__}")
    measured.check_choices(entry["choices"], name)
    cpu_rules.parse(entry["rules"])


def read(device: str | torch.device) -> tuple[dict | None, str | None]:
    """Return the entry of a device, or None and the reason. It is queried only if one of its type was tuned."""
    file = path()
    if file is None:
        return None, f"{VARIABLE} is 0"
    if state.current.packaged:
        return None, DIFFER
    try:
        entries = load(file)
        if not entries:
            return None, f"there is no {file}" if not file.exists() else f"{file} has no entry"
        kind = torch.device(device).type
        entries = {name: entry for name, entry in entries.items() if entry["key"].get("device") == kind}
        if not entries:  # a key takes time: it hashes the kernels
            return None, f"no device of type {kind} was tuned"
        here = key(device)
        name = digest(here)
        if entries.get(name, {}).get("key") != here:
            return None, _differing(here, entries)
    except ValueError as error:
        return None, _warn_once(str(error))
    except OSError as error:
        why = f"{file} cannot be read ({error.strerror})"
        return None, _warn_once(why) if os.environ.get(VARIABLE) else why  # a service may not see its user's cache
    try:
        check(name, entries[name])
    except ValueError as error:
        return None, _warn_once(_damaged(file, error))
    return entries[name], None


@functools.cache
def _warn_once(sentence: str) -> str:
    warnings.warn(f"ser_fast: {sentence}", stacklevel=4)
    return sentence


def _differing(here: dict, entries: dict[str, dict]) -> str:
    """Return which fields of the most similar of these keys are others here."""
    known = [entry["key"] for entry in entries.values()]
    fields = [[name for name in here if other.get(name) != here[name]] for other in known]
    nearest, other = min(zip(fields, known), key=lambda pair: len(pair[0]))
    return "; ".join(f"{name} was {other.get(name)}, is {here[name]}" for name in nearest)
