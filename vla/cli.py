# SPDX-License-Identifier: Apache-2.0
"""The command `vla`: one verb per act, each a frozen dataclass of options and a function that takes it.

This file maps a verb to its module and imports that module only, so that help is instant and `vla eval` works
where the training stack is not installed. Help, version and a mistyped verb need the standard library alone;
tyro reads a verb's options. Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted.
"""

import dataclasses
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import vla


@dataclasses.dataclass(frozen=True)
class Verb:
    """Where a verb lives, and what it is for in one line."""

    module: str
    config: str
    function: str
    help: str


# In the order in which a newcomer needs them.
VERBS: dict[str, Verb] = {
    "doctor": Verb("vla.doctor", "DoctorConfig", "doctor", "check this machine, and say how to mend it"),
    "demo": Verb("vla.demo", "DemoConfig", "demo", "record, train, evaluate and report, small, in one go"),
    "record": Verb("vla.data.record", "RecordConfig", "record", "record demonstrations as a LeRobot dataset"),
    "inspect": Verb("vla.data.inspect", "InspectConfig", "inspect", "describe a LeRobot dataset"),
    "train": Verb("vla.train.loop", "TrainConfig", "train", "train a policy on a LeRobot dataset"),
    "train-tokenizer": Verb(
        "vla.train.image_tokenizer", "TokenizerConfig", "train_tokenizer", "fit an image tokenizer to a dataset"
    ),
    "export": Verb("vla.train.export", "ExportConfig", "export", "strip a checkpoint of its training state"),
    "distill": Verb(
        "vla.train.distill", "DistillConfig", "distill", "teach a student to decide in one denoising step or two"
    ),
    "quantize": Verb("vla.train.quantize", "QuantizeConfig", "quantize", "make a checkpoint's weights small integers"),
    "convert": Verb(
        "vla.lerobot.convert", "ConvertConfig", "convert", "make a checkpoint one of LeRobot's, or the reverse"
    ),
    "eval": Verb("vla.eval.evaluate", "EvalConfig", "evaluate", "run a policy in simulation, with intervals"),
    "compare": Verb(
        "vla.eval.compare", "CompareConfig", "compare", "compare two evaluations on the same episodes, paired"
    ),
    "report": Verb("vla.eval.report", "ReportConfig", "report_and_say", "make one page of a run's figures and videos"),
    "serve": Verb("vla.serve.server", "ServeConfig", "serve", "offer a policy to robots over a websocket"),
    "reproduce": Verb(
        "vla.reproduce", "ReproduceConfig", "reproduce", "record, train and evaluate a recipe as its docstring says"
    ),
    "bench": Verb("vla.bench.run", "BenchConfig", "bench", "measure a claim and print a table and one line of JSON"),
}

# Which extra brings a package, for the message when it is missing. Import names, not distribution names.
EXTRA_OF_PACKAGE = {
    "tyro": "cli",
    "rich": "cli",
    "lerobot": "train",
    "accelerate": "train",
    "datasets": "train",
    "pandas": "train",
    "pyarrow": "train",
    "tensorboard": "train",
    "timm": "train",
    "transformers": "train",
    "vector_quantize_pytorch": "train",
    "av": "train",
    "gymnasium": "sim",
    "metaworld": "sim",
    "mujoco": "sim",
    "matplotlib": "eval",
    "scipy": "eval",
    "statsmodels": "eval",
    "msgpack": "serve",
    "websockets": "serve",
    "torchao": "speed",
}


def usage() -> str:
    """The page that `vla --help` prints."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {name:<{width}}{verb.help}" for name, verb in VERBS.items())
    return f"""vla {vla.__version__}: a discrete-diffusion vision-language-action model

usage: vla VERB [options]       vla VERB --help for a verb's options

verbs, in the order of use:
{verbs}

  --version, --help

A first look: vla doctor, then vla demo --out runs/demo.
Errors are one line; VLA_DEBUG=1 shows where they came from."""


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a sentence that suggests the nearest known word, or lists them all."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(known)}."


def complain(message: str) -> None:
    """One line on stderr, red if a person is looking."""
    line = "error: " + " ".join(message.split())
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        line = f"\033[31m{line}\033[0m"
    print(line, file=sys.stderr)


def run_verb(name: str, arguments: Sequence[str]) -> int:
    """Read the options of verb `name`, call its function, and return the exit code.

    A result with an attribute `exit_code` decides the code; any other result means 0.
    """
    verb = VERBS[name]
    debug = os.environ.get("VLA_DEBUG", "") not in ("", "0")
    config: Any = None
    try:
        import tyro

        module = importlib.import_module(verb.module)
        config_class, function = getattr(module, verb.config), getattr(module, verb.function)
        config = tyro.cli(config_class, prog=f"vla {name}", description=verb.help, args=list(arguments))
        return int(getattr(function(config), "exit_code", 0))
    except KeyboardInterrupt:
        saved = getattr(config, "out", None)
        complain("interrupted" + (f"; what is saved is in {saved}" if saved is not None else ""))
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if debug or package not in EXTRA_OF_PACKAGE:
            raise
        complain(
            f"vla {name} needs the package '{package}', which is not installed; "
            f"run: pip install 'lerobot_policy_lattice[{EXTRA_OF_PACKAGE[package]}]'"
        )
        return 2
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if debug:
            raise
        complain(str(error))
        return 1 if isinstance(error, OSError) and error.errno == errno.ENOSPC else 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; `arguments` default to those of the process. Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage(), flush=True)
            return 0 if arguments else 2
        if arguments[0] in ("-V", "--version"):
            print(f"vla {vla.__version__}")
            return 0
        if arguments[0] not in VERBS:
            kind, known = ("option", ["--help", "--version"]) if arguments[0].startswith("-") else ("verb", [*VERBS])
            complain(f"unknown {kind} '{arguments[0]}'; {nearest(arguments[0], known)} See vla --help.")
            return 2
        return run_verb(arguments[0], arguments[1:])
    except BrokenPipeError:
        # `vla ... | head`: the reader has gone. Keep the interpreter from complaining as it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
