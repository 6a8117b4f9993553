"""A setting's field: its default, its help, and what a resumed run may do to it."""

from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


class Help(str):
    """A field's help, which the command line and the documentation show, and what a resumed run may do to the field.

    It is a text because HfArgumentParser hands all metadata on to argparse, which knows the help alone.
    """

    resume: str


def free(default: T, text: str) -> T:
    """A resumed run may change it: it takes effect."""
    return _option(default, text, "free")


def fixed(default: T, text: str) -> T:
    """Of the method, the model or the questions: with another value it would be another run."""
    return _option(default, text, "fixed")


def product(default: T, text: str) -> T:
    """Only the product of these is fixed, or that one of them is None."""
    return _option(default, text, "product")


def _option(default: T, text: str, resume: str) -> T:
    described = Help(text)
    described.resume = resume
    return field(default=default, metadata={"help": described})
