"""Folders with hostile names and links: ``predict`` and ``train`` end with their results or one clear message."""

import csv
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from run import TINY, assert_clear, command, removed, trained, voices

NAMES = (
    b"\xc4\xe3\xba\xc3", b"\xff\xfe", "恒定".encode(), b"=1+1", b"@SUM(A1)", b"+1", b"-x", b"--help", b"a\nb", b"a\rb", b"\x1b[31m",
    b"a\tb", b"a,b", b'"', b"'", b"%s", b"{0}", b"$(exit)", b"`exit`", b"*", b"[a]", b"?", b"~", b".hidden", b" ", b"x" * 240,
    b"\xe2\x80\xae", b"\xf0\x9f\x98\x80", b"nan", b"CON", b"<b>", b"&amp;", b"\xed\xa0\x80", b"[bold]", b"\\",
)  # fmt: skip


@dataclass
class Case:
    folder: Path
    train: bool
    changed: str

    def __str__(self) -> str:
        return f"{'train' if self.train else 'predict'}: {self.changed}"


def case(random: Random, folder: Path) -> Case:
    """Make a corpus whose files, speakers or classes have such names, with links and special files in it."""
    root = folder / "box/hostile"  # in a folder of its own, for links to ..
    removed(root)
    shutil.copytree(voices(folder), root)
    kinds = random.choices((renamed, link, special), (3, 1, 1), k=random.randint(1, 3))
    said = [kind(random, root) for kind in sorted(kinds, key=(renamed, link, special).index)]
    return Case(folder, random.random() < 0.3, ", ".join(said))


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def places(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_symlink())


def renamed(random: Random, root: Path) -> str:
    path, name = random.choice(places(root)), random.choice(NAMES)
    target = os.fsencode(path.parent) + b"/" + name + os.fsencode(path.suffix)
    if not os.path.lexists(target):
        os.rename(os.fsencode(path), target)
    return f"{path.relative_to(root)!s:.40} becomes {name[:20]!r}"


def link(random: Random, root: Path) -> str:
    folder = random.choice([path for path in places(root) if path.is_dir()])
    target = random.choice((".", "..", "/", "loop", "/dev/zero", "/nonexistent", str(root)))
    name = folder / random.choice(("loop", "loop.wav"))
    if not os.path.lexists(name) and target != "/":
        name.symlink_to(target)
    return f"a link to {target if target != str(root) else 'the root'}"


def special(random: Random, root: Path) -> str:
    folder = random.choice([path for path in places(root) if path.is_dir()])
    kind = random.choice(("fifo", "folder", "empty", "unreadable", "git-lfs", "zeros"))
    path = folder / "special.wav"
    if os.path.lexists(path):
        return "nothing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        texts = {"git-lfs": b"version https://git-lfs.github.com/spec/v1\n", "zeros": bytes(4000)}
        path.write_bytes(texts.get(kind, b""))
        path.chmod(0 if kind == "unreadable" else 0o600)
    return f"{kind} special.wav"


def check(case: Case) -> None:
    root = case.folder / "box/hostile"
    if not case.train:
        files = [path.relative_to(root) for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        files = [path for path in files if not any(part.startswith(".") for part in path.parts)]
        code, out, errors = command("predict", str(trained(case.folder)), str(root), "--json")
        assert_clear(code, errors, 30, allowed=(0, 1))
        rows = [row for row in map(json.loads, out.splitlines()) if "error" not in row]
        voices = sum(path.name != "special.wav" for path in files)
        assert voices <= len(rows) <= len(files), f"{len(rows)} predictions of {voices} voices: {errors[:300]}"
        return
    out = case.folder / "out"
    removed(out)
    code, _, errors = command("train", f"--data=folders:{root}", f"--out={out}", "--epochs=1", "--skip_bad", *TINY)
    assert_clear(code, errors, allowed=(0, 1))
    if code == 0:
        with open(out / "predictions.csv", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        formulas = [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not is_number(cell)]
        assert not formulas, f"predictions.csv has formulas: {formulas}"
        assert all(cell.isprintable() for cell in cells), "predictions.csv has control characters"
