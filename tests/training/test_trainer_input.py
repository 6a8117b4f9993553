"""What a trainer refuses before anything is written, each error with a name."""

import math

import pytest
import tiny
from trained import lines, trainer

from policy_split import extras
from policy_split.models.policy import load_model


def nan_reward(completions):
    return [math.nan] * len(completions)


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"dataset": []}, ValueError, "train_dataset has no rows"),
        ({"dataset": [{"q": "1"}]}, ValueError, "train_dataset has no column 'prompt'; its columns are q"),
        ({"dataset": "nothing.jsonl"}, FileNotFoundError, r"nothing\.jsonl: there is no such file"),
        ({"max_prompt_length": 4}, ValueError, "train_dataset, row 3: the high_entropy prompt has 5 tokens"),
        ({"dataset": [{"prompt": [{"role": "user", "content": "1"}]}]}, ValueError, "row 0: .*no chat template"),
        ({"max_completion_length": 60}, ValueError, r"\(5 tokens\) and max_completion_length=60 .* 64 positions"),
        ({"model": 3}, TypeError, "model must be a PreTrainedModel or a name or path, got int"),
        (
            {"model": lambda: tiny.model(vocab_size=20)},
            ValueError,
            "the tokenizer has 26 tokens, the model 20 embeddings",
        ),
        ({"reward": lambda completions, answer: []}, ValueError, "needs answer; it can have completion_ids"),
        ({"reward_weights": [1.0, 2.0]}, ValueError, "one weight for each of the 1 reward functions"),
        ({"eval_steps": 1}, ValueError, "eval_steps=1 needs an eval_dataset"),
        ({"eval_dataset": []}, ValueError, "eval_dataset has no rows"),
        ({"report_to": "paper"}, ValueError, "unknown tracker 'paper'; expected tensorboard, wandb, trackio"),
        ({"reward": nan_reward}, ValueError, r"nan_reward, sample 0 \(.*\): returned nan"),
        ({"reward": lambda completions: [1.0]}, ValueError, "returned 1 rewards for 24 completions"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, options, error, expected):
    options = options | ({"model": options["model"]()} if callable(options.get("model")) else {})
    with pytest.raises(error, match=expected):
        trainer(tmp_path / "run", **options).train()
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package wandb: pip install policy-split\[trackers\]"):
        trainer(tmp_path, report_to="wandb")
    with pytest.raises(ImportError, match=r"pip install policy-split\[flash-attn\]"):
        load_model("some/model", tiny.config(tmp_path, attn_implementation="flash_attention_2"))


def test_a_folder_with_a_run_is_not_overwritten_by_chance(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(FileExistsError, match=r"already holds a run \(metrics\.jsonl, samples\.jsonl\)"):
        trainer(tmp_path, max_steps=1).train()
    trainer(tmp_path, overwrite_output_dir=True).train()
    assert len(lines(tmp_path)) == 2
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        trainer(tmp_path / "file").train()
