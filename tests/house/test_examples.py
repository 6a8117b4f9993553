"""The examples run as they stand, are short, and print what they promise."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTED = {  # what each prints, of numbers that have to be right
    "drop_in_loss": r"update 2: loss -\d",
    "own_token_loss": r"gradient of the LM head: 0\.\d*[1-9]",
    "own_reward": r"normal/entropy: [1-9]",
    "kl_between_prompts": r"'\*' +0\.0\d*[1-9]\d* +0\.0\d*[1-9]",
    "trl_grpo": r"policy_split/kl_high_normal: 0\.0\d*[1-9]",
    "transformers_trainer": r"loss of each step:( [+-]\d\.\d{4}){4}",
    "compile_and_export": r"largest difference of gradients \d\.\de-0[6-9]\nexported, another batch size: True",
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PRINTED)
def test_example(name, monkeypatch, capsys, tmp_path):
    path = EXAMPLES / f"{name}.py"
    text = path.read_text()
    assert len(text.splitlines()) < 60
    if "integrations.trl" in text:
        pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
    monkeypatch.setattr(sys, "argv", [str(path), *([str(tmp_path)] if "OUTPUT_DIR" in text else [])])
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(PRINTED[name], capsys.readouterr().out)
