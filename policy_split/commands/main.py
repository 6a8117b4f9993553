"""The command line.

policy-split train                              Countdown with a small model from scratch, on the CPU
policy-split train --model NAME --dataset DATA --reward FILE.py:FUNCTION
policy-split train --resume RUN                 go on with a run as it was started
policy-split eval RUN_OR_MODEL [--against OTHER]  pass@k, diversity and KL of both modes, and a comparison
policy-split sample RUN --prompt TEXT           what both modes answer, side by side, entropies as color
policy-split report RUN [RUN ...]               runs as one HTML file: curves, tables, samples
policy-split export RUN [--merge]               a run's model or checkpoint as a folder of its own, LoRA merged in
policy-split study                              algorithms compared over several seeds, on the built-in task
policy-split countdown                          how many different problems the built-in task's sizes hold
policy-split plot RUN                           a run's curves as a picture
policy-split doctor                             what is installed, what is missing and what that costs
"""

import importlib
import os
import sys
from collections.abc import Callable

# A command is a module with the function run(arguments) -> int, imported when it is asked for: doctor has to run where
# what the others need is broken.
COMMANDS = {
    "train": "train",
    "eval": "evaluate",
    "sample": "sample",
    "report": "report",
    "export": "export",
    "study": "study",
    "countdown": "countdown",
    "plot": "plot",
    "doctor": "doctor",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, 2 for arguments or data that are wrong, said in one line, or 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:  # OpenMP reads it as PyTorch is loaded
        os.environ.setdefault(
            "GOMP_SPINCOUNT", "2000"
        )  # threads that spin for long take the time of those they wait for
    if not arguments or arguments[0] not in COMMANDS:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(__doc__.strip(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        return find_command(arguments[0])(arguments[1:])
    except (ValueError, TypeError, LookupError, ImportError, OSError) as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"policy-split {arguments[0]}: error: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"policy-split {arguments[0]}: {str(stopped) or 'stopped at once'}", file=sys.stderr)
        return 130


def find_command(name: str) -> Callable[[list[str]], int]:
    run: Callable[[list[str]], int] = importlib.import_module(f"policy_split.commands.{COMMANDS[name]}").run
    return run
