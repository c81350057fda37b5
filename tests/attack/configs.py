"""Damaged configurations and manifests: one clear message, fast, or options and a corpus.

Configurations go through ``ser-fast train --config`` up to the corpus, which does not exist; manifests through
``load_corpus``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mutation import VALUES, mutated
from run import assert_clear, command

from ser_fast import recipes
from ser_fast.data.corpora import Corpus, load_corpus

YAML = ("*a", "&a [*a]", "!!python/object/apply:os.system [exit]", "!!binary x", "[" * 3000, "{" * 3000, "'", '"\\ud800"',
        "9" * 5000, "1e999", ".nan", "-.inf", "2026-01-01", "0x7fffffffffffffff", "null", "~", "\0", "\u2028", "\ufeff",
        "\t", "- a", "{a: b}", "<<: *a", "? x", "%YAML 9.9", "---", "...", "no", "1_000", "١٢")  # fmt: skip
BOMB = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi"))])  # fmt: skip
CELLS = ("", " ", "\0", "nan", "-1", "1e400", "9" * 5000, "=1+1", "a,b", '"', '""', "\n", "\r", "\t", ";", "../x", "/dev/zero",
         "\u2028", "\u202e", "\x1b[31m", "train", "valid", "x" * 10**5)  # fmt: skip
ROWS = [{"file": f"{n}.wav", "speaker": f"s{n % 3}", "label": "ab"[n % 2], "start": 0.5, "end": 1.5, "part": "train"}
        for n in range(6)]  # fmt: skip


@dataclass
class Case:
    path: Path
    changed: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.changed}"


def case(random: Random, folder: Path) -> Case:
    make = random.choice((config, config, csv, jsonl))
    suffix, text, changed = make(random)
    data = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.4:
        data, more = mutated(random, data)
        changed += f", {more}"
    elif random.random() < 0.1:
        data, changed = text.encode("utf-16", "surrogatepass"), f"{changed}, UTF-16"
    path = folder / f"case{suffix}"
    path.write_bytes(data)
    return Case(path, changed)


def config(random: Random) -> tuple[str, str, str]:
    """Return a recipe with a few lines changed."""
    name = random.choice(recipes.names())
    lines = recipes.find(name).read_text().splitlines()
    said = [name]
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(lines))
        key = lines[place].partition(":")[0]
        value = random.choice((*YAML, *map(str, VALUES)))
        kind = random.choice(("value", "value", "value", "key", "again", "below", "bomb"))
        if kind == "value":
            lines[place] = f"{key}: {value}"
        elif kind == "key":
            lines[place] = f"{value}: 1"
        elif kind == "bomb":
            lines.insert(0, BOMB)
            lines[-1] = f"{lines[-1].partition(':')[0]}: *i"
        else:
            lines.insert(place, lines[place] if kind == "again" else f"  {key}: {value}")
        said.append(f"{kind} of {key} {value[:20]!r}")
    return ".yaml", "\n".join(lines) + "\n", ", ".join(said)


def rows(random: Random) -> tuple[list[dict], str]:
    found, said = [dict(row) for row in ROWS], []
    for _ in range(random.randint(1, 2)):
        row, name = random.choice(found), random.choice(list(ROWS[0]))
        row[name] = random.choice((*CELLS, *VALUES))
        said.append(f"{name} {str(row[name])[:20]!r}")
    return found, ", ".join(said)


def csv(random: Random) -> tuple[str, str, str]:
    found, changed = rows(random)
    mark, end = random.choice((",", ",", ";", "\t")), random.choice(("\n", "\r\n", "\r"))
    header = random.choice((list(ROWS[0]), [name.upper() for name in ROWS[0]], list(ROWS[0])[1:], [*ROWS[0], "file"]))
    lines = [mark.join(header), *(mark.join(map(str, row.values())) for row in found)]
    return (
        ".csv" if mark != "\t" else random.choice((".csv", ".tsv")),
        end.join(lines),
        f"{changed}, {mark!r}, {header}",
    )


def jsonl(random: Random) -> tuple[str, str, str]:
    found, changed = rows(random)
    lines = [json.dumps(row) for row in found]
    for _ in range(random.randint(0, 1)):
        lines[random.randrange(len(lines))] = random.choice(
            (
                "[" * 10**5,
                '{"file":' * 10**4,
                "9" * 5000,
                '{"start": ' + "9" * 5000 + "}",
                "null",
                "NaN",
                '"x"',
                "{}",
                "\0",
                "{",
            )
        )
        changed += ", a line"
    return random.choice((".jsonl", ".jsonl", ".json")), "\n".join(lines), changed


def check(case: Case) -> None:
    if case.path.suffix == ".yaml":
        code, _, errors = command("train", f"--config={case.path}", "--data=/nonexistent")
        assert_clear(code, errors, allowed=(1, 2))
        return
    try:
        corpus = load_corpus(str(case.path))
    except (ValueError, OSError) as error:
        said = str(error)
        assert case.path.name in said and len(said) < 1000, f"unclear error: {said[:1000]!r}"
        return
    assert isinstance(corpus, Corpus) and corpus.utterances
    for utterance in corpus.utterances:
        assert utterance.speaker and (utterance.label or utterance.value is not None), utterance
        assert "\0" not in str(utterance.path), f"a NUL byte in {utterance.path}"
