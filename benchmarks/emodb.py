"""Both models on Emo-DB with two speakers held out: ``python benchmarks/emodb.py PATH [--out results.json]``.

Each is a whole ``ser-fast train``; the run folders, with their reports, are left under ``--runs``.
"""

import argparse
import json
from pathlib import Path

from harness import machine

from ser_fast import runs
from ser_fast.run_folder import write_atomically
from ser_fast.training import TrainConfig

BATCH_SIZES = {"cgru": 16, "bigru_mha": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="Emo-DB's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/emodb"), help="where the run folders go")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    result = {"machine": machine(), "runs": {}}
    for name, batch_size in BATCH_SIZES.items():
        config = TrainConfig(
            data=f"emodb:{options.data}", out=options.runs / name, model=name, test_speakers="03,08",
            epochs=options.epochs, batch_size=batch_size,
        )  # fmt: skip
        summary = runs.train(config, {})
        rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
        command = f"ser-fast train --data=emodb:PATH --model={name} --test_speakers=03,08 --epochs={options.epochs}"
        result["runs"][name] = {
            "command": f"{command} --batch_size={batch_size}",
            "summary": summary,
            "losses": [row["loss"] for row in rows],
        }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
