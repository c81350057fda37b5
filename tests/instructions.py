"""Count the instructions in the loops of machine code that ``cuobjdump -sass`` prints, and compare with budgets.

A loop is a natural loop: a branch back to a block that dominates it, and the blocks from which the branch is reached
without passing that block. Counts are static: a branch that is not taken counts as well.
"""

import itertools
import re
import subprocess
from typing import NamedTuple

CLASSES = ("HMMA", "MUFU", "FP", "shared", "global", "other")
SHARED = {"LDS", "LDSM", "STS", "STSM", "ATOMS", "SHFL", "STAS", "SYNCS", "REDAS"}
GLOBAL = {"LDG", "STG", "LDGSTS", "LD", "ST", "ATOMG", "RED", "UBLKCP"}
CLOCK = 1.98e9  # Hz, an H100's highest
SCHEDULERS = 4  # of a multiprocessor
MULTIPROCESSORS = 132


class Instruction(NamedTuple):
    at: int
    opcode: str
    conditional: bool  # may fall through
    target: int | None
    barrier: str | None  # of BSSY, which names where its threads meet, and BSYNC, which goes there


class Loop(NamedTuple):
    begin: int  # address of its first block
    counts: tuple[int, ...]  # by class, without the loops inside it
    whole: tuple[int, ...]  # with them
    innermost: bool


def classify(opcode: str) -> str:
    """Return the class of an opcode: tensor product, special function, floating point, memory or other."""
    stem = opcode.split(".")[0]
    if stem in ("HMMA", "MUFU"):
        return stem
    if stem in SHARED:
        return "shared"
    if stem in GLOBAL:
        return "global"
    return "FP" if stem[0] in "FH" and stem not in ("FENCE", "FLO") else "other"


def functions(sass: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function by its mangled name."""
    found = {}
    for part in re.split(r"^\s*Function : ", sass, flags=re.M)[1:]:
        code = []
        for at, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;", part, re.M):
            guard, opcode, operands = re.match(r"(@!?U?P\w+\s+)?(\S+)\s*(.*)", text).groups()
            to = re.search(r"0x([0-9a-f]+)", operands) if opcode.split(".")[0] in ("BRA", "BSSY", "CALL") else None
            conditional = bool(guard) or "," in operands  # "BRA P1, 0x40", "BRA.DIV UR4, 0x40"
            meeting = re.search(r"\bB\d+", operands) if opcode.split(".")[0] in ("BSSY", "BSYNC") else None
            code.append(Instruction(int(at, 16), opcode, conditional, to and int(to[1], 16), meeting and meeting[0]))
        found[part.split(None, 1)[0]] = code
    return found


def edges(code: list[Instruction]) -> dict[int, list[int]]:
    """Return the addresses of the blocks of a function, each with those of its successors; calls return."""
    stems = [one.opcode.split(".")[0] for one in code]
    ends = ("BRA", "EXIT", "RET", "BSYNC", "BRX", "BRXU")
    starts = {code[0].at, *(one.target for one in code if one.target is not None)}
    starts |= {after.at for (_, after), stem in zip(itertools.pairwise(code), stems) if stem in ends}
    meetings = [one for one, stem in zip(code, stems) if stem == "BSSY"]
    found, indirect, block = {}, set(), None
    for place, (one, stem) in enumerate(zip(code, stems)):
        after = code[place + 1].at if place + 1 < len(code) else None
        if one.at in starts:
            block = one.at
        if after is not None and after not in starts:
            continue
        to = []
        if stem in ("BRX", "BRXU"):
            indirect.add(block)
        if stem == "BRA":
            to.append(one.target)
        elif stem == "BSYNC":
            mine = [other for other in meetings if other.barrier == one.barrier]
            if all(other.target != after for other in mine):  # a part of its region that is placed elsewhere
                to += [other.target for other in mine if other.at < one.at][-1:]
        if stem not in ends or one.conditional or (stem == "BSYNC" and not to):
            to += [after] if after is not None else []
        found[block] = to
    # The targets of an indirect branch are not in the text: they are the blocks after it that nothing else leads to.
    reached = {to for targets in found.values() for to in targets} | {code[0].at}
    reached |= {one.target for one, stem in zip(code, stems) if stem == "CALL"}
    reached |= {one.at for one in code if one.target == one.at}  # the trap after the last EXIT
    owner = None
    for block in found:
        if owner is not None and block not in reached:
            found[owner].append(block)
        owner = block if block in indirect else owner
    return found


def dominators(graph: dict[int, list[int]], first: int) -> dict[int, set[int]]:
    """Return the blocks that every path from the first block to each reachable block passes."""
    order, stack, seen = [], [(first, iter(graph[first]))], {first}
    while stack:
        block, rest = stack[-1]
        following = next((to for to in rest if to not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(graph[following])))
    order.reverse()
    before = {block: [] for block in order}
    for block in order:
        for to in graph[block]:
            before[to].append(block)
    found = {first: {first}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(found[one] for one in before[block] if one in found)) | {block}
            changed |= found.get(block) != new
            found[block] = new
    return found


def loops(code: list[Instruction]) -> list[Loop]:
    """Return the loops of a function in the order of their addresses."""
    graph = edges(code)
    above = dominators(graph, code[0].at)
    before = {block: [one for one in above if block in graph[one]] for block in above}
    bodies: dict[int, set[int]] = {}
    for block in above:
        for header in set(graph[block]) & above[block]:
            body, waiting = bodies.setdefault(header, {header}), [block]
            while waiting:
                if (one := waiting.pop()) not in body:
                    body.add(one)
                    waiting += before[one]
    inside = {}
    block = None
    for one in code:
        block = one.at if one.at in graph else block
        inside.setdefault(block, []).append(classify(one.opcode))

    def counted(blocks: set[int]) -> tuple[int, ...]:
        kinds = [kind for block in blocks for kind in inside[block]]
        return tuple(kinds.count(kind) for kind in CLASSES)

    found = []
    for header, body in sorted(bodies.items()):
        inner = [other for other in bodies.values() if other < body]
        found.append(Loop(header, counted(body.difference(*inner)), counted(body), not inner))
    return found


def main_loops(found: list[Loop]) -> list[tuple[int, ...]]:
    """Return the counts to be budgeted: the loops with the most tensor products, or all loops if there are none.

    A loop with tensor products counts with the loops inside it, which wait or run once; the leanest comes first.
    """
    most = max((loop.counts[0] for loop in found), default=0)
    if most == 0:
        return [loop.counts for loop in found]
    return sorted((loop.whole for loop in found if loop.counts[0] == most), key=sum)


def label(name: str) -> str:
    """Return a kernel's demangled name without namespaces: ``PoolForward: forward<float, 4, true>``."""
    name = re.sub(r"\w+::|\(anonymous namespace\)::|^void ", "", name).replace(" >", ">")
    found = re.fullmatch(r"(\w+)<(.*)>\((\w+?)(?:Gpu)?(?:<.*>)?\)", name)
    if not found:
        return name
    kernel, given, arguments = found.groups()
    return f"{arguments}: {kernel}<{re.sub(rf', {arguments}Gpu<.*?>$', '', given)}>"


def demangle(names: list[str]) -> list[str]:
    """Return the names as C++ writes them, by binutils' c++filt."""
    return subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()


def count(sass: str) -> dict[str, list[tuple[int, ...]]]:
    """Return the counts by class of each kernel's main loops by its label."""
    found = functions(sass)
    return {label(name): main_loops(loops(code)) for name, code in zip(demangle(list(found)), found.values())}


def excess(counted: dict, budgets: dict) -> list[str]:
    """Return a sentence for each kernel and architecture that exceeds its budget or has none, and for each stale budget.

    Both map a kernel and an architecture to the counts of its loops.
    """
    found = [f"{kernel} has a budget but is not built" for kernel in budgets if kernel not in counted]
    for kernel, archs in counted.items():
        for arch, rows in archs.items():
            allowed = budgets.get(kernel, {}).get(arch)
            if allowed is None:
                found.append(f"{kernel} on {arch} has no budget")
            elif len(allowed) != len(rows):
                found.append(f"{kernel} on {arch} has {len(rows)} loops; its budget is for {len(allowed)}")
            else:
                found += [
                    f"{kernel} on {arch}, loop {place}: {have} {kind}; the budget is {most}"
                    for place, (row, budget) in enumerate(zip(rows, allowed))
                    for kind, have, most in zip((*CLASSES, "instructions"), (*row, sum(row)), (*budget, sum(budget)))
                    if have > most
                ]
    return found


def work(kernel: str, rows: list) -> tuple[str, int, int] | None:
    """Return a kernel's unit of work, its warp-instructions, and the schedulers of an H100 that share it.

    None for kernels whose time does not depend on instructions.
    """
    totals = [sum(row) for row in rows]
    if kernel.startswith("Gru") and ": run<" in kernel and rows:
        # A block of 8 warps at most, or 12 at H=192, has one step at a time; a product is one of 16 rows.
        width, split = (int(size) for size in re.search(r"\{(\d+), (\d+)", kernel).groups())
        return "step", totals[0] * min(width // 16 * split, 12 if width == 192 else 8), SCHEDULERS
    if re.match(r"Pool\w+: (forward|backward)<", kernel):
        # One warp takes one frame in each turn of the loop with the most floating point, for D up to 1024.
        return "frame", totals[busiest(rows)], SCHEDULERS * MULTIPROCESSORS
    if found := re.search(r"spectrogram_by_warps<.*WarpSize<\d+, (\d+)", kernel):
        # A warp takes as many frames in each turn as its 32 lanes hold.
        return "frame", totals[busiest(rows)] * int(found[1]) // 32, SCHEDULERS * MULTIPROCESSORS
    return None


def busiest(rows: list) -> int:
    """Return the place of the loop with the most floating point."""
    return max(range(len(rows)), key=lambda place: rows[place][2])


def readable(kernel: str) -> str:
    """Return a GRU kernel's label in words, other labels as they are."""
    pattern = r"Gru\w+: run<GruCase<(\w+), GruSize\{(\d+), \d, (\d+), (\d), .*?\}, \(GruPass\)(\d), (\w+)>, (\w+)>"
    if not (found := re.fullmatch(pattern, kernel)):
        return f"`{kernel}`"
    dtype, width, rows, parts, number, alone, reset_after = found.groups()
    kind = {"Half": "float16", "Bfloat": "bfloat16", "float": "tf32" if parts == "1" else "float32"}[dtype]
    step = ("inference", "training", "backward")[int(number)]
    where = "one block" if alone == "true" else "cluster"
    return f"GRU {step}, {kind}, H={width}, {rows} rows, {where}, reset_after={reset_after.capitalize()}"


def table(budgets: dict) -> str:
    """Return the recorded counts as a Markdown table, with the time that issuing them takes at least."""
    lines = [
        "# Instructions of the CUDA kernels, as counted",
        "",
        "Written by `python tests/budgets.py --built --record` from the machine code; do not edit. Counts are of one turn of the",
        "main loop by one warp, on compute capability 9.0: the loop with the tensor products, or the one with the most floating",
        "point. They are static, so branches that are not taken count as well. `shared` and `global` are memory accesses.",
        "",
        f"The bound is the time to issue a unit's instructions at one a clock and scheduler, {CLOCK / 1e9} GHz: a GRU's step on one",
        f"multiprocessor, a frame on all {MULTIPROCESSORS} of an H100. **The times themselves are not measured.**",
        "",
        f"| kernel | {' | '.join(CLASSES)} | all | on 8.0 | on 12.0 | unit | issue bound | time |",
        "|---|" + "--:|" * (len(CLASSES) + 3) + "---|--:|---|",
    ]
    for kernel, archs in sorted(budgets.items(), key=lambda item: readable(item[0])):
        main = {arch: rows[0] if rows[0][0] else rows[busiest(rows)] for arch, rows in archs.items() if rows}
        if "90a" not in main:
            continue
        totals = [str(sum(main[arch])) if arch in main else "–" for arch in ("90a", "80", "120")]
        unit, bound = "–", "–"
        if (found := work(kernel, archs["90a"])) is not None:
            unit, instructions, schedulers = found
            time = instructions / schedulers / CLOCK
            bound = f"{time * 1e6:.2f} µs" if time > 1e-7 else f"{time * 1e9:.2f} ns"
        shown = " | ".join(map(str, main["90a"]))
        lines.append(f"| {readable(kernel)} | {shown} | {' | '.join(totals)} | {unit} | {bound} | not measured |")
    return "\n".join(lines) + "\n"
