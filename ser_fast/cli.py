"""The command line: ``ser-fast demo | train | predict | info``, also ``python -m ser_fast``."""

import argparse
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import ser_fast
from ser_fast import distributed, info


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 if it did all it was asked for, 1 after a message if not, 2 for wrong options."""
    argv = sys.argv[1:] if argv is None else argv
    again = "; the same command goes on from the last whole epoch" if argv[:1] in (["demo"], ["train"]) else ""
    with contextlib.ExitStack() as stack:  # left after the last sentence, for then torchrun's other processes end
        try:
            stack.enter_context(distributed.joined())
            return _run(argv)
        except KeyboardInterrupt:
            return _complain(f"interrupted{again}", 130)
        except distributed.LostError as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which torchrun may send before the sentence is out
            return _complain(f"{error}{again}", 1)
        except BrokenPipeError:
            # The reader of a pipe went away, which ends the printing and nothing else.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except ImportError as error:
            needed = "this command needs the training extra: type `pip install 'ser_fast[train]'`"
            return _complain(f"{needed} ({error})", 1)
        except argparse.ArgumentError as error:
            return _complain(f"{error}; `ser-fast --help` and `ser-fast COMMAND --help` list the options", 2)
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            if os.environ.get("SER_FAST_TRACEBACK"):
                raise
            return _complain(str(error), 1)


def _run(argv: list[str]) -> int:
    command = argv[0] if argv else ""
    if distributed.world() > 1 and command in ("info", "demo", "predict"):
        distributed.refuse(ValueError(f"{command} runs in one process; it must be started without torchrun"))
    if command == "info":  # the one command that needs torch alone
        return _info(argv[1:])
    with distributed.agreed():
        import jsonargparse  # noqa: F401, every other command needs the extra, and this says so early

        from ser_fast import checkpoint, runs  # noqa: F401

        options = _parse(argv)
    return _COMMANDS[options.command](options[options.command])


def _complain(sentence: str, code: int) -> int:
    # A file name in it may hold what a terminal would obey.
    safe = "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}"
                   for letter in sentence)  # fmt: skip
    where = f"rank {distributed.rank()} of {distributed.world()}: " if distributed.rank() else ""
    print(f"ser-fast: {where}{safe}", file=sys.stderr)
    return code


def _parse(argv: list[str]):
    """The options, of which those of a model that is not the chosen one must be left alone."""
    from ser_fast.models import MODELS

    parser, train = _parsers()
    options = parser.parse_args(argv)
    if options.command == "train":
        chosen, defaults = options.train.model, train.get_defaults()
        for name in set(MODELS) - {chosen}:
            for key, value in options.train[name].items():
                if value != defaults[name][key]:
                    raise ValueError(f"{name}.{key} is {value}, but model is {chosen}; it must be left out")
    return options


def _parsers():
    from jsonargparse import ArgumentParser

    from ser_fast.models import MODELS
    from ser_fast.training import TrainConfig

    def command(description: str) -> ArgumentParser:
        return ArgumentParser(description=description, exit_on_error=False)

    demo = command("Train CGRU and its LSTM version on synthetic voices, in minutes, without data.")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the two runs and the report")
    demo.add_argument("--epochs", type=int, default=25, help="passes over the training voices")
    demo.add_argument("--seed", type=int, default=0, help="of the initial weights, the batch order and the dropout")

    train = command("Train a model on a corpus; the same command resumes an interrupted run.")
    train.add_argument("--config", action="config", help="options in a YAML or JSON file; the line overrides it")
    train.add_class_arguments(TrainConfig, skip={"skip_bad"})
    train.add_argument("--skip_bad", action="store_true", help="skip and count unreadable files instead of stopping")
    for name, model in MODELS.items():
        train.add_class_arguments(model, name, skip={"num_classes"})

    predict = command("Print the class probabilities of audio files.")
    predict.add_argument("checkpoint", type=Path, help="a .safetensors file, or a run folder for its best epoch")
    predict.add_argument("files", type=Path, nargs="+", help="audio files, or folders that hold some")
    predict.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    predict.add_argument("--batch_size", type=int, default=32, help="files that go through the model together")

    parser = ArgumentParser(
        prog="ser-fast", description="Speech emotion recognition on fused kernels.", exit_on_error=False,
        version=f"ser_fast {ser_fast.__version__}",
    )  # fmt: skip
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("demo", demo, help="train two small models on synthetic voices and compare them")
    commands.add_subcommand("train", train, help="train a model on a corpus, or go on with a run")
    commands.add_subcommand("predict", predict, help="print the class probabilities of audio files")
    information = command("What was built, what loaded, which backend runs.")
    commands.add_subcommand("info", information, help="what was built, what loaded, which backend runs")
    return parser, train


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
    with distributed.agreed():
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
            _complain(str(result), 1)
        elif options.json:
            best = max(result, key=result.get)
            print(json.dumps({"file": str(file), "label": best, "probabilities": result}), flush=True)
        else:
            rows.append([str(file), max(result, key=result.get), *(f"{value:.3f}" for value in result.values())])
    if rows:
        print_table("", ["file", "label", *predictor.classes], rows)
    return 1 if failed else 0


def _info(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("ser-fast info", description="What was built, what loaded, which backend runs.")
    described = "frames, rows, directions and units of a GRU: how the CUDA kernels would run it"
    parser.add_argument("--shape", type=int, nargs=4, metavar=("T", "B", "D", "H"), help=described)
    shape = parser.parse_args(argv).shape
    print(info.plans(tuple(shape)) if shape else info.text(), flush=True)
    return 0


_COMMANDS = {"demo": _demo, "train": _train, "predict": _predict}
