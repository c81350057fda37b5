"""The command line: ``ser-fast demo | train | predict | info``, also ``python -m ser_fast``."""

import json
import os
import sys
from pathlib import Path

from ser_fast import info

EXTRA = "this command needs the training extra: type `pip install 'ser_fast[train]'`"


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 if it did all it was asked for, 1 after a message if not, 2 for wrong options."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["info"]:
        print(info.text())
        return 0
    try:
        import jsonargparse  # noqa: F401, every other command needs the extra, and this says so early

        from ser_fast import checkpoint, runs  # noqa: F401
    except ImportError as error:
        print(f"ser-fast: {EXTRA} ({error})", file=sys.stderr)
        return 1
    options = _parser().parse_args(argv)
    try:
        return _COMMANDS[options.command](options[options.command])
    except KeyboardInterrupt:
        print("\nser-fast: interrupted; the same command goes on from the last whole epoch", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away, which ends the printing and nothing else.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("SER_FAST_TRACEBACK"):
            raise
        print(f"ser-fast: {error}", file=sys.stderr)
        return 1


def _parser():
    from jsonargparse import ArgumentParser

    from ser_fast.models import MODELS
    from ser_fast.training import TrainConfig

    demo = ArgumentParser(
        description="Train CGRU and its LSTM version on synthetic voices, in minutes, without data."
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the two runs and the report")
    demo.add_argument("--epochs", type=int, default=25, help="passes over the training voices")
    demo.add_argument("--seed", type=int, default=0)

    train = ArgumentParser(description="Train a model on a corpus; the same command resumes an interrupted run.")
    train.add_argument("--config", action="config", help="options in a YAML or JSON file; the line overrides it")
    train.add_class_arguments(TrainConfig)
    for name, model in MODELS.items():
        train.add_class_arguments(model, name, skip={"num_classes"})

    predict = ArgumentParser(description="Print the class probabilities of audio files.")
    predict.add_argument("checkpoint", type=Path, help="a .safetensors file, or a run folder for its best epoch")
    predict.add_argument("files", type=Path, nargs="+", help="audio files, or folders that hold some")
    predict.add_argument("--json", type=bool, default=False, help="true: one JSON object a line")
    predict.add_argument("--batch_size", type=int, default=32)

    parser = ArgumentParser(prog="ser-fast", description="Speech emotion recognition on fused kernels.")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("demo", demo)
    commands.add_subcommand("train", train)
    commands.add_subcommand("predict", predict)
    commands.add_subcommand("info", ArgumentParser(description="What was built, what loaded, which backend runs."))
    return parser


def _demo(options) -> int:
    from ser_fast.runs import demo

    demo(options.out, options.epochs, options.seed)
    return 0


def _train(options) -> int:
    from ser_fast.models import MODELS
    from ser_fast.runs import train
    from ser_fast.training import TrainConfig

    values = options.as_dict()
    models = {name: values.pop(name) for name in MODELS}
    values.pop("config")
    config = TrainConfig(**values)
    train(config, models[config.model])
    return 0


def _predict(options) -> int:
    from ser_fast.display import print_table
    from ser_fast.prediction import Predictor

    predictor = Predictor(options.checkpoint, options.batch_size)
    rows, failed = [], 0
    for file, result in predictor.files(options.files):
        if isinstance(result, Exception):
            failed += 1
            print(f"ser-fast: {result}", file=sys.stderr)
        elif options.json:
            best = max(result, key=result.get)
            print(json.dumps({"file": str(file), "label": best, "probabilities": result}), flush=True)
        else:
            rows.append([str(file), max(result, key=result.get), *(f"{value:.3f}" for value in result.values())])
    if rows:
        print_table("", ["file", "label", *predictor.classes], rows)
    return 1 if failed else 0


def _info(options) -> int:
    print(info.text())
    return 0


_COMMANDS = {"demo": _demo, "train": _train, "predict": _predict, "info": _info}
