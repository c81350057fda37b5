"""The command ``ser-fast tune``: its options."""

import argparse
import functools
import re

from ser_fast.tuning.cases import Shape


def main(argv: list[str], about: str) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser("ser-fast tune", description=f"{about[0].upper()}{about[1:]}.")
    parser.add_argument("--device", default="cuda:0", help="cpu, cuda or cuda:NUMBER (default: cuda:0)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--all", action="store_true", help="time long inputs and large batches too")
    described = "frames, rows, directions and units of the GRUs to tune for, instead of the usual ones"
    sizes.add_argument("--shapes", type=_shape, nargs="+", metavar="T,B,D,H", help=described)
    parser.add_argument("--dry_run", action="store_true", help="print the schedule and do nothing")
    options = parser.parse_args(argv)
    if options.device == "cpu":
        given = "--all" if options.all else options.shapes and "--shapes"
        if given:
            raise ValueError(f"{given} is for a GPU; omit it with --device cpu")
        from ser_fast.tuning import cpu

        return cpu.tune(dry_run=options.dry_run)
    if not re.fullmatch(r"cuda(:[0-9]{1,3})?", options.device):
        raise ValueError(f"--device is {options.device}; it must be cpu, cuda or cuda:NUMBER")
    from ser_fast.tuning import cuda

    say = functools.partial(print, flush=True)
    device = "cuda:0" if options.device == "cuda" else options.device
    cuda.tune(device, options.shapes, everything=options.all, dry_run=options.dry_run, say=say)
    return 0


def _shape(text: str) -> Shape:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be T,B,D,H, four integers") from None
