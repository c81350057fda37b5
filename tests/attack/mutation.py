"""Random changes of bytes and values, for the attacks on files."""

from random import Random

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
# What a number, a name or a list of an option may be instead.
VALUES = (0, 1, -1, 2, 1.5, 1e308, float("inf"), float("nan"), 2**28, 2**31, 2**63, 10**30, 8192, 10**6, True, None, "", "x",
          "\0", "\ud800", "=1+1", [], [1], [0, 0], [10**6, 10**6], {}, {"a": 1})  # fmt: skip


def mutated(random: Random, data: bytes, changes: int = 4) -> tuple[bytes, str]:
    """Return the bytes after a few random changes, most of them near the beginning, and what was changed."""
    found, said = bytearray(data), []
    for _ in range(random.randint(1, changes)):
        if not found:
            break
        place = random.randrange(min(len(found), random.choice((16, 64, 256, len(found)))))
        size = random.choice((1, 2, 4, 8))
        kind = random.choice(("flip", "field", "field", "cut", "delete", "insert", "repeat"))
        if kind == "flip":
            found[place] ^= 1 << random.randrange(8)
        elif kind == "field":
            value = random.choice((*EXTREMES, random.getrandbits(8 * size))) % 256**size
            found[place : place + size] = value.to_bytes(size, random.choice(("little", "big")))
        elif kind == "cut":
            place = random.choice((place, random.randrange(len(found))))
            del found[place:]
        elif kind == "delete":
            del found[place : place + random.choice((1, 4, 100))]
        elif kind == "insert":
            found[place:place] = random.randbytes(random.choice((1, 4, 1000)))
        else:
            found[place:place] = found[place : place + random.choice((8, 100, 10**4))] * random.randint(1, 9)
        said.append(f"{kind} at {place}")
    return bytes(found), ", ".join(said)
