"""What the README and the site show runs: Python is executed, commands are understood by what they start."""

import os
from dataclasses import replace
from pathlib import Path

import page_commands
import page_names
import pytest
import tiny
from accelerate.state import AcceleratorState
from page_blocks import PAGES, ROOT, block_commands, blocks, inline_commands, words

from policy_split.commands.main import main
from policy_split.countdown.sizes import SIZES

SHOWN = ("text", "json", "jsonl", "yaml", "dot")  # neither Python nor commands; `make docs` draws the last
# Python that is not executed here, by how it begins: whole files of examples/, which test_examples.py runs
ELSEWHERE = "--8<--\nexamples/"
TUTORIAL = ROOT / "docs" / "start.md"  # run as a whole, its commands too, in the order in which a reader does
# what its commands are given in the end: a run of seconds
LESS = {
    "train": (
        "--max_steps 2 --save_steps 1 --max_completion_length 4 --prompts_per_step 2 --num_generations 2 --use_cpu true"
    ),
    "eval": "--num-questions 4 --use_cpu true",
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture
def somewhere(tmp_path, monkeypatch, model_folder):
    """An empty folder, in which the model that pages name is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    (tmp_path / "tiny-model").symlink_to(model_folder)
    for name in ("settings.json", "FILE"):  # of a study's own variants
        (tmp_path / name).write_text('{"half_eta": {"eta": 0.15}}')


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_checked(page):
    assert {block.language for block in blocks(page)} <= {"python", "console", *SHOWN}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=lambda page: page.name)
def test_python(page, somewhere):
    names = page_names.names()
    for block in blocks(page):
        if "integrations.trl" in block.source:
            pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
        if block.language == "python" and not block.source.startswith(ELSEWHERE):
            block._replace(source=page_names.smaller(block.source)).run(page, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, somewhere):
    Path("docs").symlink_to(Path(__file__).parents[2] / "docs")  # as from the repository
    for command in [*block_commands(page), *inline_commands(page)]:
        page_commands.check(command)


def test_the_tutorial(somewhere, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    less = {"train_questions": 60, "held_out_questions": 8, "warm_start_examples": 8, "warm_start_steps": 2}
    monkeypatch.setitem(SIZES, "minute", replace(SIZES["minute"], **less))
    names: dict = {}
    for block in blocks(TUTORIAL):
        AcceleratorState._reset_state(reset_partial_state=True)  # as if each block were a process of its own
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        shown = block._replace(source=page_names.smaller(block.source))
        if block.title is not None:
            Path(block.title).write_text(block.source)
        elif block.language == "python":
            shown.run(TUTORIAL, names)
        elif block.language == "console":
            for program, *arguments in words(shown.source):
                if program == "policy-split":
                    assert main([*arguments, *LESS.get(arguments[0], "").split()]) == 0, capsys.readouterr().err
    for name in ("first-run/table.md", "grpo-run/evaluation.json", "report.html", "my-report.html", "python-run"):
        assert Path(name).exists(), name
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "results.json"):
        assert (Path("first-run") / name).exists(), f"the tutorial says that a run writes {name}"
