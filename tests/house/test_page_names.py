"""Files and names that pages speak of are there: a page is as old as the last thing that was renamed."""

import re

import pytest
from page_blocks import PAGES, ROOT

from policy_split.run_folder.model_folder import SPLIT

FOLDERS = "policy_split|kernels|benchmarks|tests|scripts|examples|docs"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./*-]*)`")
NAME = re.compile(r"(?<![\w./])(policy_split(?:_kernels)?(?:\.[A-Za-z_]\w*)+)(?!\w*::)")
PACKAGES = {"policy_split": ROOT / "policy_split", "policy_split_kernels": ROOT / "kernels" / "policy_split_kernels"}
METRICS = ("policy_split/kl_high_normal", "policy_split/eta")  # named like files of ours
MADE_BY_A_RUN = ("benchmarks/results/",)  # files of machines that were not here


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or stands in the text of the module that its beginning is."""
    package, *parts = name.split(".")
    place = PACKAGES[package]
    while parts and ((place / parts[0]).is_dir() or (place / f"{parts[0]}.py").is_file()):
        place = place / parts.pop(0)
    module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return not parts or re.search(rf"\b{parts[0]}\b", module.read_text()) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_are_there(page):
    text = page.read_text()
    for file in FILE.findall(text):
        assert file.startswith(MADE_BY_A_RUN) or file in METRICS or list(ROOT.glob(file.rstrip("/"))), file
    for name in NAME.findall(text):
        assert name == SPLIT or is_there(name), name


def test_what_is_gone_is_seen():
    assert is_there("policy_split.dual_mode_loss")
    assert is_there("policy_split.training.trainer.PolicySplitTrainer")
    assert is_there("policy_split_kernels.memory.free_memory")
    assert not is_there("policy_split.cli")
    assert not is_there("policy_split.rollouts.gone")
    assert not is_there("policy_split.training.trainer.Gone")
