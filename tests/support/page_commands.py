"""Whether a command that a page shows would be understood: by the parser of what it starts, which then stops."""

import argparse
import importlib
import re
import runpy
import sys
from contextlib import ExitStack
from unittest import mock

import pytest
from page_blocks import ROOT

from policy_split.commands.main import COMMANDS, main

# what each command of ours calls when its arguments are understood
AFTER_PARSING = {
    "train": ("train", "train_countdown", "train_model"),
    "eval": ("evaluate", "_output"),
    "sample": ("sample", "check_source"),
    "export": ("export", "check_source"),
    "report": ("report", "report"),
    "study": ("study", "check_source", "run_study"),
    "countdown": ("countdown", "markdown"),
    "plot": ("plot", "plot_run"),
    "doctor": ("doctor", "examine"),
}


class Understood(Exception):
    """Raised in the place of the work."""


def check(command: list[str]) -> None:
    """AssertionError, or what the parser raises, if it is none."""
    while "=" in command[0]:
        command = command[1:]
    CHECKS[command[0]](command[1:])


def policy_split(arguments: list[str]) -> None:
    if len(arguments) == 1:  # the name of a command
        assert arguments[0] in COMMANDS
        return
    if arguments[-1] == "--help":
        with pytest.raises(SystemExit, match=r"^0$"):
            sys.exit(main(arguments))
        return
    module, *functions = AFTER_PARSING[arguments[0]]
    module = importlib.import_module(f"policy_split.commands.{module}")
    with ExitStack() as patched:
        for name in functions:
            patched.enter_context(mock.patch.object(module, name, side_effect=Understood))
        if "--resume" in arguments or "--config" in arguments:  # what is in a folder or a file that is none of ours
            from policy_split.commands import train_arguments

            empty = {"return_value": {}}
            patched.enter_context(mock.patch.object(train_arguments, "_of_run", **empty))
            patched.enter_context(mock.patch.object(train_arguments, "read_settings_file", **empty))
        with pytest.raises(Understood):
            module.run(arguments[1:])


def make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        assert re.search(rf"\$\({name}\)" if is_variable else rf"^{name}:", text, re.MULTILINE), f"make {argument}"


def python(arguments: list[str]) -> None:
    if arguments[0] == "-m" and arguments[1].startswith("benchmarks"):
        parse = argparse.ArgumentParser.parse_args

        def parse_and_stop(parser, given=None, namespace=None):
            raise Understood(parse(parser, given, namespace))

        sys.modules.pop(arguments[1], None)  # of a test that has imported it: runpy would warn
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
            mock.patch.object(sys, "argv", arguments[1:]),
            pytest.raises(Understood),
        ):
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[:2] == ["-m", "pytest"]:
        files = [argument for argument in arguments[2:] if "/" in argument]
        assert files
        assert all((ROOT / file).is_file() for file in files), arguments
    elif arguments[:2] == ["-m", "policy_split"]:
        policy_split(arguments[2:])
    else:
        assert (ROOT / arguments[0]).is_file(), f"python {arguments[0]}"


def pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    text = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"(?:policy-split|^\.)\[([\w-]+)\]", " ".join(arguments[1:])):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), f"there is no extra {extra!r}"


def accelerate(arguments: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch"
    parsed = launch_command_parser().parse_args(arguments[1:])
    assert parsed.config_file is None or (ROOT / parsed.config_file).is_file(), parsed.config_file
    if parsed.module:
        python(["-m", parsed.training_script, *parsed.training_script_args])


def bash(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).is_file(), f"bash {arguments[0]}"


CHECKS = {
    "policy-split": policy_split, "make": make, "python": python, "pip": pip, "accelerate": accelerate, "bash": bash,
}  # fmt: skip
