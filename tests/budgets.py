"""Compile every Triton kernel for every architecture and check its use of registers and memory. No GPU is needed.

``python tests/budgets.py [--op gru] [--arch 90]`` prints registers, local memory and shared memory of each kernel. It
fails on a spill inside a loop, or on more shared memory than a block of the smallest target may have. ``--built``
checks the CUDA C++ kernels in the installed object instead, and fails on any local memory and on more instructions in
a loop than budgets.json allows. ``--built --record`` writes the present counts there and into the results' table.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import instructions

os.environ["TRITON_INTERPRET"] = "0"  # they are compiled, not interpreted
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ser_fast import backends

OPS = ("gru", "attention_pool", "power_spectrogram")
ARCHS = (80, 86, 89, 90, 100, 120)
SHARED_LIMIT = 99 * 1024  # bytes of one block on 8.6, 8.9 and 12.0
BUDGETS = Path(__file__).with_name("budgets.json")
TABLE = Path(__file__).parents[1] / "benchmarks/results/instructions.md"
BUDGETED = ("80", "90a", "120")  # architectures whose instructions are counted
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def configurations(op: str) -> list[dict]:
    return list(importlib.import_module(f"ser_fast.kernels.{op}").configurations())


def cuobjdump(*arguments: str) -> str:
    return subprocess.run([CUOBJDUMP, *arguments], capture_output=True, text=True, check=True).stdout


def spills_in_loops(sass: str) -> int:
    """Count loads and stores of local memory between a backward branch and its target; others are allowed."""
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", sass)]
    jumps = [(at, int(found[1], 16)) for at, text in code if (found := re.search(r"\bBRA\S* .*?0x([0-9a-f]+)", text))]
    loops = [(target, at) for at, target in jumps if target < at]
    local = [at for at, text in code if re.search(r"\b(LDL|STL)\b", text)]
    return sum(any(begin <= at <= end for begin, end in loops) for at in local)


def measure(op: str, index: int, arch: int) -> dict:
    """Return registers and bytes of one kernel, specialised for multiples of 16 as at a launch."""
    wanted = configurations(op)[index]
    kernel, signature = wanted["kernel"], wanted["signature"]
    divisible = {name for name, kind in signature.items() if kind.startswith("*")} | set(wanted["aligned"])
    attributes = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if name in divisible
    }
    source = ASTSource(kernel, signature, wanted["constexprs"], attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=wanted["options"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", cuobjdump("-res-usage", file.name)))
        local = int(usage["STACK"]) + int(usage["LOCAL"])
        spills = spills_in_loops(cuobjdump("-sass", file.name)) if local else 0
    shown = " ".join(f"{name}={value}" for name, value in wanted["constexprs"].items())
    types = " ".join(dict.fromkeys(kind[1:] for kind in signature.values() if kind.startswith("*")))
    return {
        "kernel": f"{kernel.__module__.split('.')[-1]}.{kernel.__name__}",
        "case": f"{types} {shown} warps={wanted['options']['num_warps']}{'' if wanted['aligned'] else ' unaligned'}",
        "arch": arch,
        "registers": int(usage["REG"]),
        "local": local,
        "spills": spills,
        "shared": compiled.metadata.shared,
    }


def counted(arch: str) -> dict:
    """Return the instructions of the main loops of each kernel in the installed object."""
    return instructions.count(
        cuobjdump("-sass", "-arch", f"sm_{arch}", importlib.util.find_spec("ser_fast._C").origin)
    )


def check_instructions(archs: set[str], record: bool) -> int:
    """Return how many budgets are exceeded or missing; write the present counts as budgets if they are recorded."""
    archs = [arch for arch in BUDGETED if arch in archs]
    if record and len(archs) < len(BUDGETED):
        print("--record needs an object that is built for 8.0, 9.0a and 12.0")
        return 1
    if not archs:
        print("no instructions are counted: the object is built for none of 8.0, 9.0a and 12.0")
        return 0
    with ProcessPoolExecutor() as pool:
        found = dict(zip(archs, pool.map(counted, archs)))
    names = sorted(set().union(*found.values()))
    kernels = {name: {arch: found[arch][name] for arch in archs if name in found[arch]} for name in names}
    if record:
        lines = (f"{json.dumps(kernel)}: {json.dumps(counts)}" for kernel, counts in kernels.items())
        BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        TABLE.write_text(instructions.table(kernels))
    wrong = instructions.excess(kernels, json.loads(BUDGETS.read_text()))
    print(
        f"{len(kernels)} kernels, instructions counted for {', '.join(archs)}; {len(wrong)} over budget",
        *wrong,
        sep="\n",
    )
    return len(wrong)


def built(record: bool) -> int:
    """Return 1 if a kernel of ser_fast._C uses local memory, has too many instructions or lacks an architecture.

    Shared memory is not checked: it is chosen at run time, by the plans.
    """
    info = backends.build_info()
    listing = cuobjdump("-res-usage", importlib.util.find_spec("ser_fast._C").origin)
    failed, kernels = 0, {}
    for part in listing.split("arch = sm_")[1:]:
        arch = part.split()[0]
        found = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part)
        kernels.setdefault(arch, []).extend(found)
    for arch, found in sorted(kernels.items()):
        spilled = [name for name, _, stack, local in found if int(stack) or int(local)]
        failed += len(spilled)
        registers = max(int(registers) for _, registers, *_ in found)
        print(
            f"sm_{arch}: {len(found)} kernels, at most {registers} registers, {len(spilled)} with local memory",
            *spilled,
        )
    wanted = {arch.removesuffix("+PTX").replace(".", "") for arch in info["cuda_archs"]}
    if not wanted or wanted != set(kernels):
        print(f"built for {sorted(wanted)}, but kernels were found for {sorted(kernels)}")
        failed += 1
    if len({len(found) for found in kernels.values()}) > 1:
        print("architectures differ in their kernels")
        failed += 1
    return failed + check_instructions(set(kernels), record) > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=OPS, action="append")
    parser.add_argument("--arch", type=int, choices=ARCHS, action="append")
    parser.add_argument("--built", action="store_true", help="the CUDA C++ kernels of the installed object")
    parser.add_argument("--record", action="store_true", help="with --built: record the instructions as budgets")
    options = parser.parse_args()
    if options.record and not options.built:
        parser.error("--record needs --built")
    if options.built:
        return built(options.record)
    jobs = [
        (op, index, arch)
        for op in options.op or OPS
        for index, arch in itertools.product(range(len(configurations(op))), options.arch or ARCHS)
    ]
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(measure, *zip(*jobs), chunksize=4))
    failed = 0
    for (kernel, case), group in itertools.groupby(found, key=lambda one: (one["kernel"], one["case"])):
        print(f"{kernel} {case}")
        for one in group:
            bad = one["spills"] > 0 or one["shared"] > SHARED_LIMIT
            failed += bad
            print(
                f"  sm_{one['arch']:<4} {one['registers']:>4} registers {one['local']:>4} B local "
                f"{one['spills']:>3} spills in loops {one['shared']:>7} B shared{'  OVER BUDGET' * bad}"
            )
    print(f"{len(found)} kernels, {failed} over budget")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
