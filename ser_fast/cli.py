"""The command line, ``ser-fast demo | train | cv | experiment | convert | predict | info``; also ``python -m``."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import ser_fast
from ser_fast import recipes
from ser_fast.backends import info
from ser_fast.training import distributed

INFO = "what was built, what loaded, which backend runs"


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 if it did all it was asked for, 1 after a message if not, 2 for wrong options."""
    argv = sys.argv[1:] if argv is None else argv
    resumes = argv[:1] in (["demo"], ["train"], ["cv"], ["experiment"])
    again = "; the same command goes on from the last whole epoch" if resumes else ""
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
    if distributed.world() > 1 and command in ("info", "demo", "cv", "experiment", "convert", "predict"):
        distributed.refuse(ValueError(f"{command} runs in one process; it must be started without torchrun"))
    if command == "info":  # the one command that needs torch alone
        return _info(argv[1:])
    with distributed.agreed():
        import jsonargparse  # noqa: F401, every other command needs the extra, and this says so early

        from ser_fast.reports import runs  # noqa: F401
        from ser_fast.training import checkpoint  # noqa: F401

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

    parser, trains = _parsers()
    options = parser.parse_args(_with_recipe(argv))
    if options.command in trains:
        given, defaults = options[options.command], trains[options.command].get_defaults()
        for name in set(MODELS) - {given.model}:
            for key, value in given[name].items():
                if value != defaults[name][key]:
                    raise ValueError(f"{name}.{key} is {value}, but model is {given.model}; it must be left out")
    return options


def _with_recipe(argv: list[str]) -> list[str]:
    """``--config NAME`` means the recipe of that name that comes with ser_fast, unless there is such a file."""
    found = []
    for word in argv:
        option = "--config=" if word.startswith("--config=") else ""
        named = option or found[-1:] == ["--config"]
        path = recipes.find(word.removeprefix(option)) if named else None
        found.append(word if path is None else f"{option}{path}")
    return found


def _parsers():
    """The parser of everything, and by name those of the commands that train."""
    from jsonargparse import ArgumentParser

    from ser_fast.training.folds import HELD_OUT, Folds

    about = {
        "demo": "train CGRU and its LSTM version on synthetic voices and compare them; it takes minutes and no data",
        "train": "train a model on a corpus; the same command resumes an interrupted run",
        "cv": "cross-validate a model; the same command resumes at the fold it lost",
        "experiment": "repeat an experiment of the two papers; the same command goes on with an interrupted one",
        "convert": "write IEMOCAP, CH-SIMS or MOSI as a manifest; it reads the form in which their owners ship them",
        "predict": "print the class probabilities of audio files",
        "info": INFO,
    }
    parsers = {
        name: ArgumentParser(description=f"{words[0].upper()}{words[1:]}.", exit_on_error=False)
        for name, words in about.items()
    }
    _add_demo(parsers["demo"])
    _add_training(parsers["train"], set())
    _add_training(parsers["cv"], set(HELD_OUT))
    parsers["cv"].add_class_arguments(Folds)
    _add_experiment(parsers["experiment"])
    _add_convert(parsers["convert"])
    _add_predict(parsers["predict"])
    parser = ArgumentParser(
        prog="ser-fast", description="Speech emotion recognition on fused kernels.", exit_on_error=False,
        version=f"ser_fast {ser_fast.__version__}",
    )  # fmt: skip
    commands = parser.add_subcommands(dest="command")
    for name, words in about.items():
        commands.add_subcommand(name, parsers[name], help=words.partition(";")[0])  # the rest is for its own --help
    return parser, {name: parsers[name] for name in ("train", "cv")}


def _add_demo(parser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the two runs and the report")
    parser.add_argument("--epochs", type=int, default=25, help="passes over the training voices")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights, the batch order and the dropout")


def _add_training(parser, skip: set[str]) -> None:
    from ser_fast.models import MODELS
    from ser_fast.training.config import TrainConfig

    known = ", ".join(recipes.names())
    described = f"options in a YAML or JSON file, or one of the recipes {known}; the line overrides it"
    parser.add_argument("--config", action="config", help=described)
    parser.add_class_arguments(TrainConfig, skip={"skip_bad", *skip})
    parser.add_argument("--skip_bad", action="store_true", help="skip and count unreadable files, do not stop")
    for name, model in MODELS.items():
        parser.add_class_arguments(model, name, skip={"num_classes"})


def _add_experiment(parser) -> None:
    from ser_fast import experiments

    parser.add_argument("name", help=f"one of {', '.join(experiments.EXPERIMENTS)}")
    experiments.settings.add_options(parser)


def _add_convert(parser) -> None:
    parser.add_argument("corpus", choices=["iemocap", "ch_sims", "mosi"], help="whose labels to read")
    parser.add_argument("path", type=Path, help="its folder as its owners ship it")
    parser.add_argument("--out", type=Path, required=True, help="the manifest, a .csv that does not exist yet")
    parser.add_argument("--excited_as_happy", action="store_true", help="of IEMOCAP, count excitement as happiness")
    parser.add_argument("--improvised_only", action="store_true", help="of IEMOCAP, leave out the scripted dialogs")


def _add_predict(parser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file, or a run folder for its best epoch")
    parser.add_argument("files", type=Path, nargs="+", help="audio files, or folders that hold some")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    parser.add_argument("--batch_size", type=int, default=32, help="files that go through the model together")


def _demo(options) -> int:
    from ser_fast.reports.runs import demo

    demo(options.out, options.epochs, options.seed)
    return 0


def _train(options) -> int:
    from ser_fast.reports.runs import train

    with distributed.agreed():
        config, model, _ = _trained(options)
    train(config, model)
    return 0


def _cv(options) -> int:
    from ser_fast.reports.runs import cross_validate
    from ser_fast.training.folds import Folds

    config, model, rest = _trained(options)
    cross_validate(config, model, Folds(**rest))
    return 0


def _experiment(options) -> int:
    from ser_fast import experiments

    values = options.as_dict()
    experiments.run(values.pop("name"), experiments.settings.from_options(values))
    return 0


def _trained(options):
    """The run's options, the chosen model's, and what is left."""
    from ser_fast.models import MODELS
    from ser_fast.training.config import TrainConfig

    values = options.as_dict()
    models = {name: values.pop(name) for name in MODELS}
    values.pop("config")
    own = {field.name for field in dataclasses.fields(TrainConfig)} & values.keys()
    config = TrainConfig(**{name: values.pop(name) for name in own})
    return config, models[config.model], values


def _convert(options) -> int:
    from ser_fast.data.corpora.convert import convert
    from ser_fast.reports.terminal import print_table, say

    found = convert(**options.as_dict())
    print_table(found.title, found.header, found.rows)
    for note in found.notes:
        say(note)
    return 0


def _predict(options) -> int:
    from ser_fast.reports.terminal import print_table
    from ser_fast.training.predictor import Predictor

    predictor = Predictor(options.checkpoint, options.batch_size)
    rows, failed = [], 0
    for file, result in predictor.files(options.files):
        if isinstance(result, Exception):
            failed += 1
            _complain(str(result), 1)
        elif options.json:
            print(json.dumps({"file": str(file)} | _answer(predictor.classes, result)), flush=True)
        else:
            label = [max(result, key=result.get)] if predictor.classes else []
            rows.append([str(file), *label, *(f"{value:.3f}" for value in result.values())])
    if rows:
        print_table("", ["file", *(["label"] if predictor.classes else []), *predictor.names], rows)
    return 1 if failed else 0


def _answer(classes: list[str], result: dict[str, float]) -> dict:
    """A file's result as ``--json`` prints it."""
    return {"label": max(result, key=result.get), "probabilities": result} if classes else result


def _info(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("ser-fast info", description=f"{INFO.capitalize()}.")
    described = "frames, rows, directions and units of a GRU: how the CUDA kernels would run it"
    parser.add_argument("--shape", type=int, nargs=4, metavar=("T", "B", "D", "H"), help=described)
    shape = parser.parse_args(argv).shape
    print(info.plans(tuple(shape)) if shape else info.text(), flush=True)
    return 0


_COMMANDS = {
    "demo": _demo,
    "train": _train,
    "cv": _cv,
    "experiment": _experiment,
    "convert": _convert,
    "predict": _predict,
}
