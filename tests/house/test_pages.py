"""What the README and the site show runs: Python is executed, commands are understood by what they start."""

import page_commands
import page_names
import pytest
import tiny
from page_blocks import PAGES, ROOT, block_commands, blocks, inline_commands

SHOWN = ("text", "json", "jsonl", "yaml", "dot")  # neither Python nor commands; `make docs` draws the last
# Python that is not executed, and why
NOT_RUN: dict[str, str] = {}


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


def of(kinds):
    return [page for page in PAGES if any(block.language in kinds for block in blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_checked(page):
    assert {block.language for block in blocks(page)} <= {"python", "console", *SHOWN}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", of({"python"}), ids=lambda page: page.name)
def test_python(page, somewhere):
    names = page_names.names()
    for block in blocks(page):
        if "integrations.trl" in block.source:
            pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
        if block.language == "python" and block.title is None:
            block._replace(source=page_names.smaller(block.source)).run(page, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, somewhere):
    for command in [*block_commands(page), *inline_commands(page)]:
        page_commands.check(command)
