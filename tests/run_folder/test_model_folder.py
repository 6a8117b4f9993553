"""A checkpoint is a model's folder too, and no folder is ever one of two models."""

import json
import os
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from policy_split.commands.main import main
from policy_split.run_folder import model_folder
from policy_split.run_folder.model_folder import replace_model
from policy_split.storage.whole_folder import damage
from policy_split.training.trainer import PolicySplitTrainer

IDS = torch.tensor([[5, 6, 7]])


def gpt2():
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tiny.WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64, **ids)
    )


def mixtral():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = MixtralConfig(vocab_size=len(tiny.WORDS), num_hidden_layers=1, num_local_experts=3, **sizes, **ids)
    return MixtralForCausalLM(config)


def trained(folder, model=None, tokenizer=None, **options):
    settings = {"max_steps": 2, "save_steps": 1} | options
    config = tiny.config(folder, num_generations=2, **settings)
    trainer = PolicySplitTrainer(
        model or tiny.model(), tokenizer or tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config
    )
    trainer.train()
    return trainer


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize(
    "make",
    [tiny.model, lambda: tiny.model(tie_word_embeddings=True), gpt2, mixtral],
    ids=["qwen3", "tied", "gpt2", "moe"],
)
def test_transformers_load_a_checkpoint_as_a_model(tmp_path, make):
    trainer = trained(tmp_path, make(), tiny.tokenizer(chat=True))
    checkpoint = tmp_path / "checkpoints/checkpoint-2"
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(model), logits(trainer.policy.bare))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.get_vocab() == trainer.tokenizer.get_vocab()
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert model.generation_config.eos_token_id == 2
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "float32"
    assert damage(checkpoint) is None


def test_weights_are_there_once(tmp_path):
    trainer = trained(tmp_path, max_steps=1)
    size = sum(tensor.numel() * 4 for tensor in trainer.policy.bare.state_dict().values())
    weights = [
        path.name
        for path in (tmp_path / "checkpoints/checkpoint-1").glob("*.safetensors")
        if sum(tensor.numel() * 4 for tensor in load_file(path).values()) >= size
    ]
    assert sorted(weights) == ["model.safetensors", "optimizer.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "questions.jsonl").write_text('{"prompt": "1 2"}\n{"prompt": "3"}\n')
    (folder / "rewards.py").write_text("def reward(completions, **columns): return [1.0] * len(completions)\n")
    trained(folder)
    return folder


def task(run):
    given = ["--dataset", str(run / "questions.jsonl"), "--reward", f"{run}/rewards.py:reward", "--use_cpu", "true"]
    return [*given, "--max_completion_length", "4", "--disable_tqdm", "true", "--high_entropy_prompt", "explore"]


def test_eval_and_train_take_a_checkpoint(run, tmp_path, capsys):
    checkpoint = str(run / "checkpoints/checkpoint-1")
    output = tmp_path / "evaluation.json"
    assert main(["eval", checkpoint, *task(run), "--num-samples", "2", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["model"] == checkpoint
    more = ["--model", checkpoint, "--output_dir", str(tmp_path / "more"), "--max_steps", "1"]
    assert main(["train", *more, *task(run)]) == 0
    assert (tmp_path / "more/config.json").is_file()


def test_a_checkpoint_of_an_earlier_version_is_resumed(run, tmp_path):
    old = shutil.copytree(run, tmp_path / "old")
    checkpoint = old / "checkpoints/checkpoint-1"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
        del manifest["files"][name]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    trainer = PolicySplitTrainer(
        tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, tiny.config(old, num_generations=2)
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    again = load_file(old / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in load_file(run / "model.safetensors").items())


def test_what_a_tokenizer_writes_in_folders_is_part_of_the_checkpoint(tmp_path):
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = {"default": tiny.CHAT_TEMPLATE, "other": "{{ messages }}"}
    trained(tmp_path, tokenizer=tokenizer, max_steps=1)
    checkpoint = tmp_path / "checkpoints/checkpoint-1"
    (inner,) = [path for path in checkpoint.rglob("*.jinja") if path.parent != checkpoint]
    assert damage(checkpoint) is None
    inner.write_text("changed")
    assert str(inner) in damage(checkpoint)


def test_a_model_takes_the_place_of_another_kind(tmp_path):
    """Shards, an adapter and another tokenizer are gone: they would be read in place of the new ones."""
    folder = tmp_path / "run"
    tiny.model(seed=1).save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    for name in ("adapter_config.json", "adapter_model.safetensors", "merges.txt", "vocab.json", "notes.txt"):
        (folder / name).write_text("{}")
    trainer = trained(folder, max_steps=1, overwrite_output_dir=True)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(trainer.policy.bare))
    left = {path.name for path in folder.iterdir()}
    assert not left & {"adapter_config.json", "adapter_model.safetensors", "merges.txt", "vocab.json"}
    assert not list(folder.glob("model-*"))
    assert "notes.txt" in left


def test_shards_take_the_place_of_a_whole_file(tmp_path):
    folder = tmp_path / "run"
    tiny.model(seed=1).save_pretrained(folder)
    new = tiny.model(seed=2)
    new.save_pretrained(tmp_path / "new", max_shard_size="2KB")
    replace_model(tmp_path / "new", folder)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(new))


def test_killed_on_the_way_a_folder_holds_no_model_or_a_whole_one(tmp_path, monkeypatch):
    """At every file operation: what is left loads as one of the two models, or says that there is none."""
    old, new = tiny.model(seed=1), tiny.model(seed=2)
    expected = [logits(old), logits(new)]

    class Killed(BaseException):
        pass

    def after(count):
        done = []

        def counted(function):
            def call(*arguments, **options):
                done.append(function)
                if len(done) > count:
                    raise Killed
                return function(*arguments, **options)

            return call

        monkeypatch.setattr(model_folder.os, "replace", counted(os.replace))
        monkeypatch.setattr(model_folder.Path, "unlink", counted(type(tmp_path).unlink))

    seen = set()
    for count in range(20):
        folder = tmp_path / str(count)
        old.save_pretrained(folder / "run", max_shard_size="2KB")
        new.save_pretrained(folder / "new")
        after(count)
        try:
            replace_model(folder / "new", folder / "run")
            ended = True
        except Killed:
            ended = False
        monkeypatch.undo()
        if (folder / "run/config.json").is_file():
            got = logits(AutoModelForCausalLM.from_pretrained(folder / "run"))
            seen.add("old" if torch.equal(got, expected[0]) else "new" if torch.equal(got, expected[1]) else "mixed")
        else:
            seen.add("none")
        if ended:
            break
    assert ended
    assert seen == {"old", "none", "new"}
