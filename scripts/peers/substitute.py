"""A pytest plugin, for a peer's tests: our functions stand in for theirs, and every outcome is kept in a file."""

import json
import math
import os
from pathlib import Path

import pytest

from . import cross_entropy, cuda_on_cpu, liger
from .suites import SUITES

SUITE = SUITES[os.environ["PEER"]]
STAND_INS = {
    "liger-kernel": liger.stand_in,
    "cut-cross-entropy": cross_entropy.stand_in_for_apple,
    "quack-kernels": cross_entropy.stand_in_for_quack,
}
SIZES = ("B", "T", "V", "M", "N")
_outcomes: dict[str, str] = {}
_left_out: list[str] = []


def pytest_configure():
    STAND_INS[SUITE.package]()
    if SUITE.gpu:
        cuda_on_cpu.pretend_to_have_a_gpu()


def size(item) -> int:
    """Elements of a case's logits, as its parameters name them."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return math.prod(given[name] for name in SIZES if isinstance(given.get(name), int))


def pytest_collection_modifyitems(items, config):
    kept = []
    for item in items:
        liger.stand_in_of_module(item.module)
        if item.function.__name__ not in SUITE.tests[str(item.path.relative_to(config.rootpath))]:
            continue
        # a compiled graph is compiled for minutes here, and our own tests compile each function once
        compiled = getattr(item, "callspec", None) is not None and item.callspec.params.get("use_compile") is True
        if compiled or size(item) > SUITE.largest or any(piece in item.name for piece in SUITE.left_out):
            _left_out.append(item.nodeid)
        else:
            kept.append(item)
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish():
    result = {"outcomes": _outcomes, "left_out": _left_out}
    Path(os.environ["PEER_OUTCOMES"]).write_text(json.dumps(result))
