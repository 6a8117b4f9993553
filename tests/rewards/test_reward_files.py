"""Reward files and modules as people write them: what they import, pickle and start finds its way back to them."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny

from policy_split.rewards.loading import load_reward

SCRIPT = Path(tiny.__file__).with_name("reward_file_process.py")
COUNTS = "def reward(completions, **columns):\n    return [float(len(text)) for text in completions]\n"


@pytest.fixture(autouse=True)
def _path_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(modules):
        if name.startswith("policy_split_reward_") or name.startswith("beside_"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return f"{path}:reward"

    return write


def call(spec):
    return load_reward(spec)(completions=["x", "yy"])


def processes(*specs, folder=None):
    """What rewards return in a process that was started as a script in another folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", SCRIPT, *specs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_dataclass_with_postponed_annotations(write):
    spec = write(
        "dc.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field
        from typing import NamedTuple

        @dataclass
        class Score:
            value: float = 1.0
            parts: list[float] = field(default_factory=list)

        class Pair(NamedTuple):
            a: Score

        def reward(completions, **columns):
            return [Pair(Score()).a.value for _ in completions]
        """,
    )
    assert call(spec) == [1.0, 1.0]


def test_its_own_classes_and_functions_are_pickled(write):
    spec = write(
        "pk.py",
        """
        import pickle

        class A:
            pass

        def reward(completions, **columns):
            pickled = pickle.dumps((A(), reward))
            return [float(type(pickle.loads(pickled)[0]) is A) for _ in completions]
        """,
    )
    assert call(spec) == [1.0, 1.0]
    function = load_reward(spec)
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("name", ["json.py", "my-reward.v2.py", "12 tests.py", "räd.py"])
def test_a_file_of_any_name_has_a_module_of_its_own(write, name):
    before = dict(sys.modules)
    function = load_reward(write(name, "import json\n" + COUNTS + "WHO = json.dumps([__name__])\n"))
    assert function(completions=["x", "yy"]) == [1.0, 2.0]
    assert all(sys.modules[name] is module for name, module in before.items())
    module = sys.modules[function.__module__]
    assert Path(module.__file__).name == name
    assert [function.__module__] == json.loads(module.WHO)


def test_files_of_one_name_do_not_meet_and_one_file_is_one_module(write):
    one, two = write("a/r.py", "SEEN = []\n" + COUNTS), write("b/r.py", "SEEN = []\n" + COUNTS)
    functions = [load_reward(spec) for spec in (one, two, one)]
    assert functions[0].__module__ != functions[1].__module__
    assert functions[0] is functions[2]


def test_a_file_that_was_changed_is_read_again(write):
    assert call(write("r.py", COUNTS)) == [1.0, 2.0]
    assert call(write("r.py", COUNTS.replace("float(len(text))", "0.5"))) == [0.5, 0.5]


def test_a_file_that_fails_leaves_nothing(write):
    before = set(sys.modules), list(sys.path)
    with pytest.raises(ZeroDivisionError):
        load_reward(write("bad.py", "1 / 0\n"))
    assert not [name for name in set(sys.modules) - before[0] if name.startswith("policy_split_reward_")]
    with pytest.raises(SyntaxError):
        load_reward(write("worse.py", "def reward(:\n"))


@pytest.mark.parametrize("where", ["at the top", "when it is called"])
def test_a_module_beside_the_file_is_found(write, where):
    name = f"beside_{where.split()[0]}"
    write(f"sub/{name}/__init__.py", "from .inner import V\n")
    write(f"sub/{name}/inner.py", "V = 1.5\n")
    body = f"    from {name} import V\n" if where == "when it is called" else ""
    top = f"from {name} import V\n" if where == "at the top" else ""
    spec = write("sub/r2.py", f"{top}def reward(completions, **columns):\n{body}    return [V] * len(completions)\n")
    assert call(spec) == [1.5, 1.5]
    assert sys.path[0] != str(Path(spec).parent)  # it hides nothing of others


def test_a_module_beside_it_whose_name_is_taken_is_an_error(write, tmp_path):
    for folder in "ab":
        write(f"{folder}/beside_both.py", f"V = '{folder}'\n")
    imports = "import os, beside_both\ndef reward(completions):\n    return [beside_both.V]\n"
    assert call(write("a/r.py", imports)) == ["a"]
    expected = rf"b/beside_both\.py cannot be imported as 'beside_both', which is {tmp_path}/a/beside_both\.py"
    with pytest.raises(ValueError, match=expected):
        load_reward(write("b/r.py", imports))
    write("b/yaml.py", "V = 1\n")  # imported by this package
    with pytest.raises(ValueError, match=r"its module .*/b/yaml\.py cannot be imported as 'yaml'"):
        load_reward(write("b/q.py", "from yaml import V\n" + COUNTS))
    assert call(write("b/p.py", COUNTS)) == [1.0, 2.0]  # which imports none of them


POOLS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from beside_pool import half

class Text:
    def __init__(self, text):
        self.text = text

def grade(text):
    return half * len(text.text)

def reward(completions, **columns):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("{method}")) as pool:
        return list(pool.map(grade, map(Text, completions)))
"""


def test_worker_processes_import_it_whatever_starts_them(write):
    """Functions and classes of the file go to the workers and come back; its name is one of the standard library's."""
    write("beside_pool.py", "half = 0.5\n")
    methods = ("fork", "spawn", "forkserver")
    specs = [write(f"{method}/code.py", POOLS.format(method=method)) for method in methods]
    for method in methods:
        write(f"{method}/beside_pool.py", "half = 0.5\n")
    said = [processes(spec) for spec in specs]
    assert said == [[[0.5, 1.0]]] * 3


def test_a_module_of_the_working_directory_is_found_as_by_python_m(write, tmp_path):
    write("r.py", COUNTS)
    write("package/__init__.py", "")
    write(
        "package/inner.py",
        "from beside_package import V\ndef reward(completions):\n    return [V] * len(completions)\n",
    )
    write("beside_package.py", "V = 1.5\n")
    assert processes("r:reward", "package.inner:reward", "r.py:reward", folder=tmp_path) == [
        [1.0, 2.0],
        [1.5, 1.5],
        [1.0, 2.0],
    ]


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec, error, expected in (
        ("nothing_here:reward", ModuleNotFoundError, "there is no module 'nothing_here'"),
        ("sub/r.py:reward", FileNotFoundError, r"there is no file sub/r\.py"),
    ):
        with pytest.raises(error, match=expected):
            load_reward(spec)
