"""The command line ``ser-fast``, also ``python -m ser_fast``.

Each command builds its own parser and imports what it needs, so that ``--help`` and ``info`` start fast.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import ser_fast
from ser_fast import recipes
from ser_fast.data.files import printable
from ser_fast.training import distributed


class Command(NamedTuple):
    """A command: its help, function, options and unit of resuming. The top-level help shows its help up to ``;``."""

    about: str
    run: Callable
    add_options: Callable = lambda parser: None
    resumes: str = ""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after ``ser-fast``; those of the process by default.

    Returns:
        The exit status: 0 on success, 1 after an error, 2 for wrong options, 130 after an interrupt.
    """
    argv = sys.argv[1:] if argv is None else argv
    again = _again(argv)
    with contextlib.ExitStack() as stack:  # left after the message: torchrun's other processes end then
        try:
            stack.enter_context(_streams())
            # Processes of predict may end hours apart.
            stack.enter_context(distributed.joined(timedelta(days=7) if argv[:1] == ["predict"] else None))
            status = _run(argv)
            sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            return _complain(f"interrupted{again}", 130)
        except distributed.LostError as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun may send it before the message is written
            return _complain(f"{error}{again}", 1)
        except BrokenPipeError:  # the reader of a pipe has gone; that is no error of the command
            return 0
        except ImportError as error:
            needed = "this command needs the training extra: type `pip install 'ser_fast[train]'`"
            return _complain(str(error) if "pip install" in str(error) else f"{needed} ({error})", 1)
        except argparse.ArgumentError as error:
            found = " ".join(str(error).split())
            return _complain(f"{found}; `ser-fast --help` and `ser-fast COMMAND --help` list the options", 2)
        except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
            if os.environ.get("SER_FAST_TRACEBACK"):
                raise
            return _complain(_sentence(error), 1)


def _again(argv: list[str]) -> str:
    """Return what a message about an interruption adds."""
    unit = COMMANDS[argv[0]].resumes if argv and argv[0] in COMMANDS else ""
    if unit == "part" and not any(word.startswith("--out") for word in argv):  # predictions that were printed
        unit = ""
    return f"; the same command resumes after the last whole {unit}" if unit else ""


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Let standard output and error take any text while the context lasts, even when they are closed (None)."""
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            stream = getattr(sys, name)
            if stream is None:
                stack.enter_context(redirect(nowhere))
            elif hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # for letters that its encoding lacks
        try:
            yield
        finally:
            try:
                sys.stdout.flush()
            except OSError:  # already reported; Python would fail again at exit
                with contextlib.suppress(OSError):
                    os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or "out of memory"  # a MemoryError has no text


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    if name not in COMMANDS:
        return _without_command(argv)
    if distributed.world() > 1 and name not in ("train", "predict"):
        distributed.refuse(ValueError(f"{name} runs in one process; it must be started without torchrun"))
    if name in ("info", "tune"):  # need torch alone, without jsonargparse
        return COMMANDS[name].run(argv[1:])
    with distributed.agreed():
        options = _parse(name, argv[1:])
    return COMMANDS[name].run(options)


def _without_command(argv: list[str]) -> int:
    """Print the help or the version.

    Raises:
        argparse.ArgumentError: the command is missing or unknown.
    """
    parser = argparse.ArgumentParser(
        "ser-fast", description="Speech emotion recognition on fused kernels.", exit_on_error=False
    )
    parser.add_argument("--version", action="version", version=f"ser_fast {ser_fast.__version__}")
    commands = parser.add_subparsers(
        title="commands", description="`ser-fast COMMAND --help` lists the options of a command.", metavar="COMMAND"
    )
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.about.partition(";")[0], add_help=False)
    _, rest = parser.parse_known_args(argv)
    found = f"unrecognized arguments: {' '.join(rest)}" if rest else f"expected a command: {', '.join(COMMANDS)}"
    raise argparse.ArgumentError(None, found)


def _complain(sentence: str, code: int) -> int:
    _warn(sentence)
    return code


def _warn(sentence: str) -> None:
    # A file name in the sentence may contain control characters that a terminal would execute.
    safe = "\n".join(map(printable, sentence.split("\n")))
    where = f"rank {distributed.rank()} of {distributed.world()}: " if distributed.rank() else ""
    with contextlib.suppress(OSError):  # the reader of standard error may have gone
        print(f"ser-fast: {where}{safe}", file=sys.stderr, flush=True)


def _parse(name: str, argv: list[str]):
    """Return the options of a command.

    Raises:
        ValueError: an option of a model that is not the chosen one is set.
    """
    import yaml
    from jsonargparse import ArgumentParser, set_loader

    command = COMMANDS[name]
    set_loader("checked_yaml", _checked_yaml, (yaml.YAMLError,))
    described = f"{command.about[0].upper()}{command.about[1:]}."
    parser = ArgumentParser(
        prog=f"ser-fast {name}", description=described, exit_on_error=False, parser_mode="checked_yaml"
    )
    command.add_options(parser)
    options = parser.parse_args(_with_recipe(argv))
    if name in ("train", "cv", "evaluate"):
        defaults = parser.get_defaults()
        _refuse_null(options, defaults)
        if name != "evaluate":
            _refuse_other_models(options, defaults)
    return options


def _checked_yaml(text: str):
    from jsonargparse import get_loader

    recipes.check(text)
    return get_loader("yaml")(text)


def _refuse_null(options, defaults) -> None:
    """Raise ``ValueError`` for ``null`` in YAML, which jsonargparse takes for any option."""
    for name, value in defaults.items():
        if value is not None and options.get(name) is None:
            raise ValueError(f"{name} is null; it must have a value, or be omitted")


def _refuse_other_models(options, defaults) -> None:
    from ser_fast.models import MODELS

    for name in set(MODELS) - {options.model}:
        for key, value in options[name].items():
            if value != defaults[name][key]:
                raise ValueError(f"{name}.{key} is {value}, but model is {options.model}; omit it")


def _with_recipe(argv: list[str]) -> list[str]:
    """Replace ``NAME`` in ``--config NAME`` by the path of the recipe of that name, unless a file has that name."""
    found = []
    for word in argv:
        option = "--config=" if word.startswith("--config=") else ""
        named = option or found[-1:] == ["--config"]
        path = recipes.find(word.removeprefix(option)) if named else None
        found.append(word if path is None else f"{option}{path}")
    return found


def _add_data(parser) -> None:
    from ser_fast.training.config import TrainConfig

    described = "the corpus, as train's --data names it: a folder, a table, or KIND:PATH"
    parser.add_argument("data", type=str, help=described)
    shown = {"columns", "labels", "test_data", "targets"}
    others = {field.name for field in dataclasses.fields(TrainConfig)} - shown
    parser.add_class_arguments(TrainConfig, skip=others)
    described = "picture of the counts and durations, a .png; by default runs/data.png, and none with --json or ''"
    parser.add_argument("--out", type=str, help=described)
    described = "read headers alone, not the audio: no search for silence, clipping, damage and copies"
    parser.add_argument("--headers_only", action="store_true", help=described)
    parser.add_argument("--json", action="store_true", help="print one JSON object, not tables")


def _add_demo(parser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the three runs and the report")
    parser.add_argument("--epochs", type=int, default=25, help="passes over the training voices")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights, batch order and dropout")


def _add_train(parser, skip: tuple[str, ...] = ()) -> None:
    from ser_fast.models import MODELS
    from ser_fast.training.config import TrainConfig

    known = ", ".join(recipes.names())
    described = f"options in a YAML or JSON file, or one of the recipes {known}; later options override it"
    parser.add_argument("--config", action="config", help=described)
    parser.add_class_arguments(TrainConfig, skip={"skip_bad", *skip})
    parser.add_argument("--skip_bad", action="store_true", help="skip and count unreadable files instead of stopping")
    for name, model in MODELS.items():
        parser.add_class_arguments(model, name, skip={"num_classes"})


def _add_cv(parser) -> None:
    from ser_fast.training.folds import HELD_OUT, Folds

    _add_train(parser, HELD_OUT)
    parser.add_class_arguments(Folds)


def _add_experiment(parser) -> None:
    from ser_fast import experiments

    parser.add_argument("name", help=f"one of {', '.join(experiments.EXPERIMENTS)}")
    experiments.settings.add_options(parser)


def _add_convert(parser) -> None:
    parser.add_argument("corpus", choices=["iemocap", "ch_sims", "mosi"], help="corpus whose labels are read")
    parser.add_argument("path", type=Path, help="its folder as released")
    parser.add_argument("--out", type=Path, required=True, help="the manifest, a .csv that does not exist yet")
    parser.add_argument("--excited_as_happy", action="store_true", help="IEMOCAP: count excitement as happiness")
    parser.add_argument("--improvised_only", action="store_true", help="IEMOCAP: leave out the scripted dialogs")
    parser.add_argument(
        "--all_turns", action="store_true", help="IEMOCAP: keep the turns of all emotions, not of four"
    )


def _add_evaluate(parser) -> None:
    from ser_fast.training.evaluation import EvaluateConfig

    flags = {"only_known": "decide only among the classes that occur, for a corpus that lacks some of the model's",
             "skip_bad": "skip and count unreadable files instead of stopping"}  # fmt: skip
    # Not the argument of the class, which would be an option.
    parser.add_argument("checkpoint", type=str, help="a .safetensors file, or a run folder for its best epoch")
    parser.add_class_arguments(EvaluateConfig, skip={"checkpoint", *flags})
    for name, described in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=described)


def _add_predict(parser) -> None:
    from ser_fast import pretrained
    from ser_fast.data.flags import FLAGS
    from ser_fast.prediction.config import PredictConfig

    meanings = "; ".join(f"{name}, {meaning}" for name, meaning in FLAGS.items())
    parser.epilog = (
        f"Without a checkpoint the model {pretrained.DEFAULT} predicts, which comes with ser_fast and was trained on "
        f"acted German speech; its card is {pretrained.card()}. "
        f"The column `flag` names what makes a prediction doubtful: {meanings}. A file that cannot be predicted has "
        "a row that says why, and the exit status is then 1."
    )
    # Not Path, which jsonargparse parses as YAML: that fails for a name that is not UTF-8.
    described = (
        "audio files, folders, lists (.txt, .csv, .tsv, .jsonl, .parquet) of files, or - for a list on standard "
        "input; the first may be the checkpoint instead"
    )
    parser.add_argument("files", type=str, nargs="+", help=described)
    described = "a .safetensors file, or a run folder for its best epoch; by default the model that comes along"
    parser.add_argument("--checkpoint", type=str, default="", help=described)
    parser.add_class_arguments(PredictConfig, skip={"checkpoint", "files", "json", "embeddings"})
    parser.add_argument("--json", action="store_true", help="without --out: one JSON object a line, not a table")
    described = "also give the input of the model's last layer, in a .parquet, .jsonl or with --json"
    parser.add_argument("--embeddings", action="store_true", help=described)


def _add_listen(parser) -> None:
    from ser_fast.reports.listen import ListenConfig

    described = "a .safetensors file, or a run folder for its best epoch; by default the model that comes along"
    parser.add_argument("checkpoint", type=str, nargs="?", default="", help=described)
    parser.add_class_arguments(ListenConfig)


def _data(options) -> int:
    from ser_fast.reports.data import describe
    from ser_fast.training.config import TrainConfig

    values = options.as_dict()
    out, headers_only, as_json = (values.pop(name) for name in ("out", "headers_only", "json"))
    if out is None and not as_json:
        out = "runs/data.png"
    describe(TrainConfig(**values), Path(out) if out else None, headers_only, as_json)
    return 0


def _demo(options) -> int:
    from ser_fast.reports.runs import demo

    demo(options.out, options.epochs, options.seed)
    return 0


def _train(options) -> int:
    with distributed.agreed():
        from ser_fast.reports.runs import train

        config, model, _ = _trained(options)
    train(config, model)
    return 0


def _cv(options) -> int:
    from ser_fast.reports.runs import cross_validate
    from ser_fast.training.folds import Folds

    config, model, rest = _trained(options)
    cross_validate(config, model, Folds(**rest))
    return 0


def _trained(options):
    """Return the options of the run, those of the chosen model, and the others."""
    from ser_fast.models import MODELS
    from ser_fast.training.config import TrainConfig

    values = options.as_dict()
    models = {name: values.pop(name) for name in MODELS}
    values.pop("config")
    own = {field.name for field in dataclasses.fields(TrainConfig)} & values.keys()
    config = TrainConfig(**{name: values.pop(name) for name in own})
    return config, models[config.model], values


def _experiment(options) -> int:
    from ser_fast import experiments

    values = options.as_dict()
    experiments.run(values.pop("name"), experiments.settings.from_options(values))
    return 0


def _convert(options) -> int:
    from ser_fast.data.corpora.convert import convert
    from ser_fast.reports.terminal import print_table, say

    found = convert(**options.as_dict())
    print_table(found.title, found.header, found.rows)
    for note in found.notes:
        say(note)
    return 0


def _evaluate(options) -> int:
    from ser_fast.reports.evaluation import evaluate
    from ser_fast.training.evaluation import EvaluateConfig

    evaluate(EvaluateConfig(**options.as_dict()))
    return 0


def _predict(options) -> int:
    with distributed.agreed():
        from ser_fast.prediction.config import PredictConfig
        from ser_fast.prediction.shipped import checkpoint_and_files
        from ser_fast.reports.prediction import predict

        values = options.as_dict()
        if not values["checkpoint"]:
            values["checkpoint"], values["files"] = checkpoint_and_files(values["files"])
        config = PredictConfig(**values)
    summary = predict(config, (lambda line: None) if distributed.rank() else _warn)
    if not summary.failed:
        return 0
    if distributed.rank():  # rank 0 names them
        return 1
    found = f"{summary.failed} of {summary.files} files could not be predicted; their rows say why:"
    lines = summary.errors.by_reason() if config.out is None else summary.errors.lines()
    return _complain("\n  ".join([found, *lines]), 1)


def _listen(options) -> int:
    from ser_fast.reports.listen import ListenConfig, listen

    values = options.as_dict()
    listen(values.pop("checkpoint"), ListenConfig(**values))
    return 0


def _info(argv: list[str]) -> int:
    from ser_fast.backends import info

    about = COMMANDS["info"].about
    parser = argparse.ArgumentParser("ser-fast info", description=f"{about[0].upper()}{about[1:]}.")
    described = "frames, rows, directions and units of a GRU: print how the CUDA kernels would run it"
    parser.add_argument("--shape", type=int, nargs=4, metavar=("T", "B", "D", "H"), help=described)
    shape = parser.parse_args(argv).shape
    print(info.plans(tuple(shape)) if shape else info.text(), flush=True)
    return 0


def _tune(argv: list[str]) -> int:
    from ser_fast.tuning import command

    return command.main(argv, COMMANDS["tune"].about)


COMMANDS = {
    "demo": Command(
        "train CGRU and its LSTM versions on synthetic voices and compare them; takes minutes and needs no data",
        _demo, _add_demo, resumes="epoch",
    ),
    "data": Command(
        "show what is read of a corpus and what looks wrong in it; classes, speakers, durations, rates, copies",
        _data, _add_data,
    ),
    "train": Command(
        "train a model on a corpus; the same command resumes an interrupted run", _train, _add_train, resumes="epoch"
    ),
    "cv": Command(
        "cross-validate a model; the same command resumes at the first fold that is not finished", _cv, _add_cv,
        resumes="epoch",
    ),
    "experiment": Command(
        "repeat an experiment of the two papers; the same command resumes an interrupted one",
        _experiment, _add_experiment, resumes="epoch",
    ),
    "convert": Command(
        "write IEMOCAP, CH-SIMS or MOSI as a manifest; reads the files as their owners release them",
        _convert, _add_convert,
    ),
    "evaluate": Command(
        "measure a trained model on any corpus; per class and speaker, with confidence intervals",
        _evaluate, _add_evaluate,
    ),
    "predict": Command(
        "predict audio files by a checkpoint; with --out the same command resumes an interrupted run",
        _predict, _add_predict, resumes="part",
    ),
    "listen": Command(
        "predict a file or the microphone on a local web page; needs the extra app, and stores nothing",
        _listen, _add_listen,
    ),
    "info": Command("print what was built, what was loaded and which backend runs", _info),
    "tune": Command(
        "prove the kernels on this machine's GPU and choose the fastest; takes two minutes at most", _tune
    ),
}  # fmt: skip
