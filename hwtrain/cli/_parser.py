"""The parser of the command line: every command and its options.

It imports nothing slow, so that --help is fast. Each command is implemented by the
function `main` in the module of its name.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwtrain._version import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any


# Repeated here, because their modules load JAX; a test compares both.
_METHODS = ("max", "moving_std", "moving_quantile", "cache_quantile")
TARGETS = ("aihwkit", "crosssim", "fusion-csv", "nir", "npz")
"""The built-in targets, for the help and the completion."""

_SHELLS = ("bash", "zsh")

SOURCES = ("aihwkit", "lightning", "rockpool")
"""The packages whose models are read, for the help and the completion."""

TECHNOLOGIES = ("hermes", "hermes_core", "isaac")
"""The built-in technologies, for the help and the completion."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser; it stores the command's name as `command`."""
    parser = argparse.ArgumentParser(
        prog="hwtrain", description="Hardware-aware training for analog chips."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    every = (
        _train,
        _sweep,
        _compare,
        _config,
        _evaluate,
        _calibrate,
        _export,
        _advise,
        _inspect,
        _report,
        _verify,
    )
    for add in (*every, _convert, _fit, _new, _doctor, _completion):
        add(commands)
    return parser


def _train(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a plain and a hardware-aware model, export, compare on chips",
        description="Trains the plain and the hardware-aware model of a configuration, "
        "exports the hardware-ready checkpoint, reads it back, and compares both "
        "models on one population of chips; for the plain model, input ranges are "
        "calibrated from the training data.",
    )
    _add_config(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the run's folder (default: runs/NAME, after the configuration's name)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue the run that lies in the folder"
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that lies in the folder",
    )


def _sweep(commands: Commands) -> None:
    parser = commands.add_parser(
        "sweep",
        help="train with all combinations of values, and compare",
        description="Trains a configuration with other values of its entries: all "
        "combinations of a grid, or values that a search proposes. Each run is one of "
        "`hwtrain train`. In the end, there is one table and one plot of all of them.",
    )
    _add_config(parser)
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="values of an entry, such as hardware.forward.out_bits=4,6,8; given "
        "again, all combinations",
    )
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=RANGE",
        help="range of an entry, such as training.learning_rate=1e-4:1e-1:log or "
        "hardware.forward.out_bits=4:8, or values; Optuna searches for the best",
    )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of runs of a search"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="training seeds 0 to N-1 in each run, instead of training.seeds",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="number of runs at the same time, each in a process (default: 1)",
    )
    parser.add_argument(
        "--required",
        type=float,
        metavar="VALUE",
        help="show the yield: the share of chips that are at least as good",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the sweep's folder (default: sweeps/NAME, as the configuration's name)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the sweep that lies in the folder",
    )


def _compare(commands: Commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare the results of two runs, chip by chip",
        description="Compares a model of two runs on their chips: the difference on "
        "each chip, its mean with a 95 % confidence interval, and the share of chips "
        "on which the second run is better.",
    )
    for name in ("run_a", "run_b"):
        parser.add_argument(
            name, metavar=name.upper(), type=Path, help="the folder of a run"
        )
    parser.add_argument(
        "--models",
        nargs=2,
        metavar=("MODEL_A", "MODEL_B"),
        help="which model of each run (default: hardware-aware, or the last one)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every value to this file"
    )


def _config(commands: Commands) -> None:
    parser = commands.add_parser(
        "config",
        help="check a configuration, or show it with every default",
        description="Checks a configuration as `hwtrain train` does, without training; "
        "or shows it with its presets, rules and defaults written out; or prints the "
        "JSON schema of all configurations, for an editor.",
    )
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    texts = {
        "check": "load model and data, and try all by tracing",
        "show": "print the whole configuration as TOML",
    }
    for name, text in texts.items():
        _add_config(kinds.add_parser(name, help=text, description=text))
    text = "print the JSON schema of configurations"
    kinds.add_parser("schema", help=text, description=text)


def _add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the argument for a configuration, and the option that changes it."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an entry, the value as TOML writes it; may be repeated",
    )


def _evaluate(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a model on a population of chips, over time",
        description="Evaluates a run's hardware-aware model or a hardware-ready "
        "checkpoint on the run's test set, on chips with their own frozen draws.",
    )
    _add_model(parser)
    _add_run(parser)
    _add_chips(parser, what="evaluate on")
    _add_times(parser)
    parser.add_argument(
        "--plain",
        action="store_true",
        help="evaluate the run's plain model instead, with input ranges calibrated "
        "from the training data",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="which metric (default: the main one)"
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="evaluate on other hardware too: the values of an entry of [hardware], in "
        "all layers, such as forward.out_bits=4,6,8 or "
        "drift_compensation=none,global; given again, all combinations",
    )
    parser.add_argument(
        "--required",
        type=float,
        metavar="VALUE",
        help="show the yield: the share of chips that are at least as good",
    )
    parser.add_argument(
        "--until",
        type=float,
        metavar="WIDTH",
        help="take no more chips once the 95 %% interval of the mean is the mean ± "
        "WIDTH; --chips is then the most",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="evaluate with one layer after the other as on a chip, and with all but "
        "one, at one time at most",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every value to this file"
    )
    parser.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        help="draw accuracy over time, over what varies, or by layer, to this file",
    )


def _seconds(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected seconds, such as 0 3600 or 0,3600, got {text!r}"
        ) from None


class _Joined(argparse.Action):
    """Stores several lists as one list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ):
        setattr(namespace, self.dest, [x for found in values for x in found])


def _calibrate(commands: Commands) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="set the input ranges of a model from data and write its checkpoint",
        description="Sets the input range of every tile from the run's training data, "
        "and writes the hardware-ready checkpoint. The run is not changed.",
    )
    _add_model(parser)
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the new checkpoint; must not exist"
    )
    parser.add_argument("--method", choices=_METHODS, default="max")
    parser.add_argument(
        "--batches", type=int, metavar="N", help="only the first N batches of the data"
    )
    _add_run(parser)
    _add_chips(parser, what="draw and store")


def _export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write the hardware-ready checkpoint of a run",
        description="Writes the hardware-ready checkpoint of a run's newest "
        "hardware-aware model, or a checkpoint's model again, with other chips.",
    )
    _add_model(parser)
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the new directory; must not exist"
    )
    _add_chips(parser, what="draw and store")


def _advise(commands: Commands) -> None:
    parser = commands.add_parser(
        "advise",
        help="which layers to keep digital, or to give two pairs of devices",
        description="Looks for a better mapping of a run's trained model within a "
        "budget: one layer after the other is kept digital, or gets two pairs of "
        "devices for each weight, as long as the gain on the chips is more than "
        "chance. Prints the rules for its configuration.",
    )
    _add_model(parser)
    parser.add_argument(
        "--digital",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the analog weights that may become digital (default: 0)",
    )
    parser.add_argument(
        "--devices",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="how many times as many devices there may be, up to 2 (default: 1)",
    )
    _add_chips(parser, what="evaluate on")
    _add_times(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every value to this file"
    )


def _inspect(commands: Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what each layer of a model does, and its conductances",
        description="Shows what each layer of a run's model or of a hardware-ready "
        "checkpoint really does, and a histogram of its conductances.",
    )
    _add_model(parser, needed=False)
    parser.add_argument(
        "--stages",
        action="store_true",
        help="show the order of the stages around a tile instead, also without a model",
    )
    parser.add_argument(
        "--chip",
        type=int,
        metavar="SEED",
        help="conductances of this chip of a checkpoint, instead of the targets",
    )
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="draw the histograms to this file"
    )
    parser.add_argument(
        "--active",
        action="store_true",
        help="run the model on test data and prove that every configured effect acts; "
        "the exit status is 1 if one does not",
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="show energy, latency and area of each layer instead, by the constants of "
        "the run's table [cost]",
    )
    parser.add_argument(
        "--technology",
        metavar="NAME",
        help="with --cost, constants of this technology instead: "
        f"{', '.join(TECHNOLOGIES)}, or a function of your own, FILE.py:FUNCTION",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="with --cost, write every number to this file",
    )
    _add_run(parser)


def _report(commands: Commands) -> None:
    parser = commands.add_parser(
        "report",
        help="write one HTML page about a run",
        description="Writes all that is known of a run into one HTML file, which opens "
        "without a network: results, accuracy over time, sensitivity of layers, "
        "hardware, conductances, ranges during training, cost and configuration.",
    )
    _add_model(parser)
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the new HTML file; must not exist"
    )
    _add_chips(parser, what="evaluate on")
    _add_times(parser)


def _verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a hardware-ready checkpoint and print its certificate",
        description="Compares every hash, checks every range, computes every "
        "conductance and chip once more, and prints the certificate as JSON. The exit "
        "status is 1 if the checkpoint cannot be trusted.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    _add_parts(parser)


def _convert(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint for another program, or read another's model",
        description="With --to, writes a hardware-ready checkpoint in the format of a "
        "simulator or of a chip's programmer. With --from, reads a trained model of "
        "another package, and writes a folder with the parameters of a Flax model and "
        "the hardware, for training to go on from. docs/deployment.md describes both.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT|FILE",
        type=Path,
        help="with --to, a hardware-ready checkpoint; with --from, the other's file",
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--to", metavar="FORMAT", help=f"{', '.join(TARGETS)}, or one of your own"
    )
    way.add_argument(
        "--from",
        dest="source",
        metavar="PACKAGE",
        help=f"what wrote the file: {', '.join(SOURCES)}",
    )
    parser.add_argument(
        "--chip",
        type=int,
        metavar="SEED",
        help="with --to, a frozen chip of the checkpoint (default: the nominal model)",
    )
    parser.add_argument(
        "--model",
        metavar="FILE.py:FUNCTION",
        help="with --from, the Flax model that gets the parameters",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE",
        help="with --from, the shape of an input of a Linen model, such as 1,28,28,1 "
        "or 1,16:int32; again for each further input",
    )
    parser.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="with --from, a TOML file whose table [names] says which module of the "
        "file is which one of the model (default: by order and shape)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the new file or folder (default with --to: CHECKPOINT.FORMAT, beside it)",
    )
    _add_parts(parser)


def _fit(commands: Commands) -> None:
    parser = commands.add_parser(
        "fit",
        help="fit a noise model to measurements of devices",
        description="Fits the coefficients of a noise model of any family to a CSV "
        "file of g_target_us,t_s,g_us,repeat, and prints each with its confidence "
        "interval.",
    )
    parser.add_argument("measurements", metavar="CSV", type=Path)
    parser.add_argument(
        "family", metavar="FAMILY", help="a noise model, such as pcm_like"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="fields",
        metavar="FIELD=VALUE",
        help="a field that stays, such as g_max=20.0, or the start of one that is "
        "fitted; may be repeated",
    )
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="FIELD",
        help="the fields to fit (default: all curves of the family)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="of the intervals (default: 0.95)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="a new TOML file with the fitted [hardware.noise_model]",
    )
    _add_parts(parser)


def _new(commands: Commands) -> None:
    parser = commands.add_parser(
        "new",
        help="start a project of your own in a new folder",
        description="Writes a model, its data, a configuration and a test into a new "
        "folder. It trains as it is; replace the model and the data by your own.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument(
        "--nnx", action="store_true", help="a model of NNX instead of Linen"
    )


def _doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this installation",
        description="Prints the versions of all packages, the devices that JAX "
        "computes on, and the extras; then trains, proves, exports and verifies a "
        "small model in both frameworks. The exit status is 1 if anything is wrong.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave the small model out"
    )


def _completion(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands in a shell",
        description="Prints a script by which a shell completes hwtrain's commands, "
        "options and file names at the press of a key.",
    )
    parser.add_argument("shell", choices=_SHELLS)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    """Adds the option for users' own parts, which a checkpoint may need."""
    parser.add_argument(
        "--parts",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="a file or module that registers parts of your own; may be given again",
    )


def _add_model(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    """Adds the argument for a model, and the option that selects a run's seed."""
    parser.add_argument(
        "model",
        metavar="RUN|CHECKPOINT",
        type=Path,
        nargs=None if needed else "?",
        help="the folder of a run, or a hardware-ready checkpoint",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="SEED",
        help="which training seed of a run (default: its first)",
    )
    _add_parts(parser)


def _add_times(parser: argparse.ArgumentParser) -> None:
    """Adds the option for times."""
    parser.add_argument(
        "--times",
        type=_seconds,
        action=_Joined,
        nargs="+",
        metavar="SECONDS",
        help="times since programming, such as 0 3600 or 0,3600, for hardware with a "
        "noise model",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the run that a checkpoint belongs to."""
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        help="the run that has a checkpoint's model and data (default: the one that "
        "the checkpoint lies in)",
    )


def _add_chips(parser: argparse.ArgumentParser, *, what: str) -> None:
    """Adds the options that select chips."""
    chips = parser.add_mutually_exclusive_group()
    chips.add_argument("--chips", type=int, metavar="N", help=f"{what} chips 0 to N-1")
    chips.add_argument(
        "--chip",
        type=int,
        action="append",
        metavar="SEED",
        help=f"{what} the chip of this seed; may be repeated",
    )
