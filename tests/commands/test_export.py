"""`policy-split export`: the model of a run or a checkpoint in a folder of its own, an adapter merged on request."""

import pytest
import saved_task
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy_split.commands import main as cli
from policy_split.config import PolicySplitConfig
from policy_split.models.policy import load_model

IDS = torch.tensor([[5, 6, 7]])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    task = saved_task.save(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--max_steps", "2", "--save_steps", "1", "--learning_rate", "0.3", "--num_generations", "6"]
        lora = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear"]
        assert cli.main(["train", *task, *options, *lora, "--output_dir", "lora"]) == 0
        assert cli.main(["train", *task, *options, "--learning_rate", "0.01", "--output_dir", "full"]) == 0
    return folder


def test_an_adapter_is_merged(runs, capsys):
    assert cli.main(["export", str(runs / "lora"), "--merge"]) == 0
    assert f"model: {runs}/lora/merged" in capsys.readouterr().out
    whole = AutoModelForCausalLM.from_pretrained(runs / "lora/merged")
    adapted = load_model(str(runs / "lora"), PolicySplitConfig())
    assert torch.allclose(logits(whole), logits(adapted), atol=1e-4)
    assert not torch.allclose(logits(whole), logits(AutoModelForCausalLM.from_pretrained(runs / "model")), atol=1e-2)
    assert not any("lora" in name for name, _ in whole.named_parameters())
    assert len(AutoTokenizer.from_pretrained(runs / "lora/merged")) == 26
    assert cli.main(["export", str(runs / "lora"), "--merge"]) == 2
    assert "there is a model already; choose another folder, or --overwrite" in capsys.readouterr().err
    assert cli.main(["export", str(runs / "lora"), "--merge", "--overwrite"]) == 0


def test_a_checkpoint_of_an_adapter_is_merged_in_another_dtype(runs, tmp_path):
    checkpoint = str(runs / "lora/checkpoints/checkpoint-1")
    options = ["--merge", "--output", str(tmp_path / "out"), "--model_dtype", "bfloat16"]
    assert cli.main(["export", checkpoint, *options]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize("source", ["full", "full/checkpoints/checkpoint-2", "lora", "lora/checkpoints/checkpoint-2"])
def test_without_merging_what_is_there_is_copied(runs, tmp_path, source):
    output = tmp_path / "a/b"
    assert cli.main(["export", str(runs / source), "--output", str(output)]) == 0
    expected = load_model(str(runs / source), PolicySplitConfig())
    assert torch.equal(logits(load_model(str(output), PolicySplitConfig())), logits(expected))
    assert (output / "adapter_config.json").is_file() == source.startswith("lora")
    names = {path.name for path in output.iterdir()}
    assert not names & {"optimizer.safetensors", "manifest.json", "metrics.jsonl", "README.md"}


def test_an_export_takes_the_place_of_another_kind_and_leaves_other_files(runs, tmp_path):
    assert cli.main(["export", str(runs / "lora"), "--output", str(tmp_path)]) == 0
    (tmp_path / "README.md").write_text("mine")
    assert cli.main(["export", str(runs / "full"), "--output", str(tmp_path), "--overwrite"]) == 0
    assert not list(tmp_path.glob("adapter*"))
    assert (tmp_path / "README.md").read_text() == "mine"
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)),
        logits(AutoModelForCausalLM.from_pretrained(runs / "full")),
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["full", "--merge"], "full: a whole model already, there is no LoRA adapter to merge"),
        (["nowhere/at/all"], "nowhere/at/all: there is no such folder"),
        (["full", "--output", "/proc/no/model"], "cannot be written"),
        (["full", "--model_dtype", "float7", "--output", "x"], "model_dtype='float7' must be one of"),
    ],
)
def test_what_cannot_be_exported_is_said(runs, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(runs)
    assert cli.main(["export", *arguments]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("policy-split export: error: ")
    assert said in captured
