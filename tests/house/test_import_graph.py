"""The committed picture of the imports has today's arrows; what it leaves out can be reached all the same."""

import re
from graphlib import CycleError
from html import unescape

import pytest

from scripts.import_graph import PICTURE, folder_imports, reduced


def drawn() -> set[tuple[str, ...]]:
    """The edges of the picture, by their titles."""
    titles = (unescape(title) for title in re.findall(r"<title>([^<]*)</title>", PICTURE.read_text()))
    return {tuple(title.split("->")) for title in titles if "->" in title}


def test_the_picture_is_of_today():
    imports = reduced(folder_imports())
    assert drawn() == {(name, other) for name in imports for other in imports[name]}, "make import-graph draws it again"
    assert ("policy_split.losses", "policy_split_kernels") in drawn()
    assert ("policy_split_kernels.ops", "policy_split_kernels.backends") in drawn()


def test_what_others_imply_is_left_out():
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert reduced({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}}) == {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}


def test_a_circle_is_an_error():
    with pytest.raises(CycleError):
        reduced({"a": {"b"}, "b": {"a"}})
