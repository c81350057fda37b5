"""The command ``ser-fast tune``: its options and what it prints."""

import argparse


def main(argv: list[str], about: str) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser("ser-fast tune", description=f"{about[0].upper()}{about[1:]}.")
    parser.add_argument("--device", default="cuda", metavar="DEVICE", help="cuda (the default) or cuda:NUMBER")
    options = parser.parse_args(argv)
    if options.device == "cpu":
        from ser_fast.tuning import cpu

        return cpu.tune()
    raise ValueError(f"--device is {options.device}; it must be cuda")
