"""The scripts that run tests elsewhere: peers' cases are judged by a list, the oldest versions are pyproject's."""

import re

import pytest

pytest.importorskip("tomllib")
pytest.importorskip("triton")

from scripts import test_pythons as pythons
from scripts.peers import suites
from scripts.peers.__main__ import judged

SUITE = suites.LIGER._replace(differences={"luspo": "there is none", r"clip\[0": "refused"})


def test_a_listed_difference_is_counted_by_its_reason():
    outcomes = {"a.py::test[luspo-1]": "failed", "a.py::test[luspo-2]": "failed", "a.py::test_clip[0.5]": "failed"}
    assert judged(SUITE, outcomes | {"a.py::test[sapo]": "passed"}) == ({"there is none": 2, "refused": 1}, [])


def test_a_failure_that_is_not_listed_is_wrong():
    assert judged(SUITE, {"a.py::test[sapo]": "failed"}) == (
        {}, ["a.py::test[sapo] failed, which is no listed difference"]
    )  # fmt: skip


def test_a_listed_difference_that_passes_is_wrong():
    _, wrong = judged(SUITE, {"a.py::test[luspo-1]": "passed"})
    assert wrong == ["a.py::test[luspo-1] passed, which is listed as a difference: there is none"]


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=lambda suite: suite.package)
def test_every_suite_has_tests_and_reasons(suite):
    assert all(suite.tests.values())
    assert all(len(why.split()) > 3 and re.compile(pattern) for pattern, why in suite.differences.items())


def test_the_oldest_are_what_pyproject_names():
    bounds = pythons.lower_bounds()
    assert {"torch", "triton", "transformers", "accelerate", "numpy"} <= set(bounds)
    assert pythons.requirements("3.12-oldest") == [f"{name}=={bounds[name]}" for name in pythons.PACKAGES]
    assert len(pythons.requirements("3.10-oldest")) == len(bounds)
    assert pythons.requirements("3.13-newest") == []


@pytest.mark.parametrize("name", pythons.TESTS)
def test_what_is_run_on_each_python_is_there(name):
    assert (pythons.ROOT / "tests" / name).exists()
