"""LoRA by settings: what trains, what is saved, what it goes on from, and what is merged."""

import json
from pathlib import Path

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policy_split import extras
from policy_split.commands import main as cli
from policy_split.config import PolicySplitConfig
from policy_split.models.policy import load_model, load_tokenizer
from policy_split.training.trainer import PolicySplitTrainer

IDS = torch.tensor([[5, 6, 7]])
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"], "num_generations": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model that adapters are made for."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def trainer(folder, model, **options):
    tokenizer = None if isinstance(model, str) else tiny.tokenizer()
    settings = {"learning_rate": 0.3, **LORA, **options}
    return PolicySplitTrainer(model, tokenizer, tiny.reward, tiny.QUESTIONS, tiny.config(folder, **settings))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    made = trainer(folder, base, max_steps=4, save_steps=2)
    made.train()
    return folder, logits(made.policy.bare)


def test_the_adapter_trains_and_the_model_does_not(base, tmp_path):
    made = trainer(tmp_path / "run", base)
    before = {name: value.clone() for name, value in made.policy.bare.named_parameters()}
    names = {name for name, value in made.policy.bare.named_parameters() if value.requires_grad}
    assert len(names) == 2 * 7 * 2  # A and B of each of seven matrices in two layers
    assert all("lora_" in name for name in names)
    made.train()
    changed = {name for name, value in made.policy.bare.named_parameters() if not torch.equal(value, before[name])}
    assert changed == names


def test_the_first_adapter_is_a_function_of_the_seed(base, tmp_path):
    def first(seed):
        torch.manual_seed(seed + 100)  # the global generator has no part in it
        made = trainer(tmp_path / "run", base, seed=seed)
        return {name: value for name, value in made.policy.bare.named_parameters() if "lora_A" in name}

    one, again, other = first(1), first(1), first(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # peft's own call of transformers
def test_a_checkpoint_and_the_final_model_hold_the_adapter_alone(run, base):
    folder, expected = run
    for path in (folder, folder / "checkpoints/checkpoint-4"):
        assert not list(path.glob("model*.safetensors"))
        assert not (path / "config.json").exists()
        assert all("lora_" in name for name in load_file(path / "adapter_model.safetensors"))
        settings = json.loads((path / "adapter_config.json").read_text())
        assert (settings["base_model_name_or_path"], settings["r"], settings["inference_mode"]) == (base, 4, True)
        by_peft = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path)
        assert torch.equal(logits(by_peft), expected)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path)), expected)
        ours = load_model(str(path), tiny.config("run"))
        assert torch.equal(logits(ours), expected)
        assert load_tokenizer(None, str(path)).get_vocab() == tiny.tokenizer().get_vocab()
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-2)
    assert "peft" in (folder / "README.md").read_text()  # our card


def test_a_run_goes_on_bit_for_bit(base, tmp_path):
    options = {"save_steps": 2, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path / "whole", base, max_steps=4, **options)
    whole.train()
    trainer(tmp_path / "run", base, max_steps=2, **options).train()
    resumed = trainer(tmp_path / "run", base, max_steps=4, **options)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(logits(resumed.policy.bare), logits(whole.policy.bare))


def test_dropout_is_of_the_adapter_alone_and_drawn_from_the_seed(base, tmp_path):
    options = {"lora_dropout": 0.5, "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path / "whole", base, max_steps=3, **options)
    whole.train()
    trainer(tmp_path / "run", base, max_steps=2, **options).train()
    resumed = trainer(tmp_path / "run", base, max_steps=3, **options)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(logits(resumed.policy.bare), logits(whole.policy.bare))
    without = trainer(tmp_path / "without", base, max_steps=3, lr_scheduler_type="constant")
    without.train()
    assert not torch.equal(logits(without.policy.bare), logits(whole.policy.bare))
    active = [name for name, module in whole.policy.bare.named_modules() if module.training and "dropout" in name]
    assert all("lora_dropout" in name for name in active)


def test_dropout_of_the_adapter_lives_with_gradient_checkpointing(base, tmp_path):
    made = trainer(tmp_path / "run", base, lora_dropout=0.5, gradient_checkpointing=True, max_steps=1)
    made.train()
    rates = {m.p for name, m in made.policy.bare.named_modules() if isinstance(m, torch.nn.Dropout) if "lora" in name}
    assert rates == {0.5}


def test_the_reference_is_the_model_without_its_adapter(base, tmp_path):
    made = trainer(tmp_path / "run", base, beta=0.1, max_steps=2)
    assert made.reference is made.policy
    parameters = sum(each.numel() for each in made.policy.bare.parameters() if not each.requires_grad)
    assert parameters == sum(each.numel() for each in tiny.model().parameters())
    made.train()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)  # the adapter adds nothing yet
    assert rows[1]["kl"] > 1e-4
    assert all(each.requires_grad for name, each in made.policy.bare.named_parameters() if "lora_" in name)
    copied = PolicySplitTrainer(
        base, None, tiny.reward, tiny.QUESTIONS, made.config, ref_model=base
    )  # a reference of its own gives the same
    copied.config.output_dir, copied.output_dir = str(tmp_path / "copied"), tmp_path / "copied"
    assert copied.reference is not copied.policy
    copied.train()
    again = [json.loads(line)["kl"] for line in (tmp_path / "copied/metrics.jsonl").read_text().splitlines()]
    assert again == pytest.approx([row["kl"] for row in rows], abs=1e-5)


def test_merged_at_the_end(base, tmp_path):
    made = trainer(tmp_path / "run", base, merge_adapter=True, max_steps=2, save_steps=2)
    made.train()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert not any("lora" in name for name, _ in whole.named_parameters())
    assert torch.allclose(logits(whole), logits(made.policy.bare), atol=1e-4)
    assert not list((tmp_path / "run").glob("adapter*"))
    assert (tmp_path / "run/checkpoints/checkpoint-2/adapter_config.json").is_file()
    more = trainer(tmp_path / "run", base, merge_adapter=True, max_steps=3)
    more.train(resume_from_checkpoint=True)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "run")), logits(whole), atol=1e-3)


def test_an_adapter_is_trained_on(run, tmp_path):
    """`--model FOLDER` of an adapter: its own weights move, the base's do not, and an adapter comes out."""
    folder, expected = run
    settings = {"use_peft": False, "lora_r": 16, "lora_target_modules": None}
    made = trainer(tmp_path / "more", str(folder), max_steps=1, **settings)
    assert torch.equal(logits(made.policy.bare), expected)
    made.train()
    assert (tmp_path / "more/adapter_config.json").is_file()
    after = logits(load_model(str(tmp_path / "more"), made.config))
    assert torch.equal(after, logits(made.policy.bare))
    assert not torch.equal(after, expected)


def test_what_overwrites_an_adapter_leaves_nothing_of_it(base, tmp_path):
    trainer(tmp_path, base, max_steps=1).train()
    full = {"use_peft": False, "lora_r": 16, "lora_target_modules": None, "learning_rate": 1e-2}
    made = trainer(tmp_path, base, max_steps=1, overwrite_output_dir=True, **full)
    made.train()
    assert not list(tmp_path.glob("adapter*"))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(made.policy.bare))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lora_target_modules": ["q_proj", "v_porj"]}, "lora_target_modules: .* 'v_porj'; did you mean v_proj"),
        ({"lora_target_modules": ["zzz"]}, "no module 'zzz'; there are .*q_proj"),
        ({"lora_modules_to_save": ["head"]}, "lora_modules_to_save: .* 'head'; did you mean lm_head"),
        ({"lora_target_modules": [r".*\.no_such"]}, "use_peft=True: Target modules .* not found"),
    ],
)  # fmt: skip
def test_modules_that_are_not_there_are_named(base, tmp_path, options, expected):
    with pytest.raises(ValueError, match=expected):
        trainer(tmp_path, base, **options)


@pytest.mark.parametrize(
    ("names", "count"), [(None, 8), (["q_proj"], 4), (["q_proj", "k_proj"], 8), ([r".*layers\.1\.mlp\..*_proj"], 6)]
)
def test_target_modules(base, tmp_path, names, count):
    made = trainer(tmp_path, base, lora_target_modules=names)
    assert sum("lora_" in name for name, _ in made.policy.bare.named_parameters()) == count


def test_whole_modules_train_and_come_back(base, tmp_path):
    options = {"lora_modules_to_save": ["lm_head"], "use_rslora": True, "save_steps": 1, "learning_rate": 0.01}
    made = trainer(tmp_path, base, max_steps=1, **options)
    made.train()
    state = load_file(tmp_path / "checkpoints/checkpoint-1/adapter_model.safetensors")
    assert [name for name in state if "lora_" not in name] == ["base_model.model.lm_head.weight"]
    again = load_model(str(tmp_path), made.config)
    assert torch.equal(logits(again), logits(made.policy.bare))
    trainer(tmp_path, base, max_steps=2, **options).train(resume_from_checkpoint=True)


def test_an_adapter_of_another_rank_does_not_fit(base, tmp_path):
    trainer(tmp_path, base, max_steps=1, save_steps=1).train()
    with pytest.raises(ValueError, match="lora_r: 4 -> 8"):
        trainer(tmp_path, base, lora_r=8).train(resume_from_checkpoint=True)
    with (
        pytest.warns(UserWarning, match="goes on with"),
        pytest.raises(ValueError, match=r"weights are not those of this model.*lora_A.*\(4, 16\) -> \(8, 16\)"),
    ):
        trainer(tmp_path, base, lora_r=8).train(resume_from_checkpoint=True, resume_anyway=True)


def test_settings_of_an_adapter_that_is_not_there():
    with pytest.raises(ValueError, match="lora_r=8, use_dora=True is of an adapter that use_peft=True makes"):
        PolicySplitConfig(lora_r=8, use_dora=True)
    with pytest.raises(ValueError, match=r"lora_dropout=1\.0 must be at least 0 and below 1"):
        PolicySplitConfig(use_peft=True, lora_dropout=1.0)
    with pytest.raises(ValueError, match=r"lora_target_modules=.* must be a list of names that is not empty"):
        PolicySplitConfig(use_peft=True, lora_target_modules=[])


def test_what_cannot_be_adapted_is_said(base, run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="use_peft=True adds an adapter to a model that has one"):
        trainer(tmp_path, str(run[0]))
    with pytest.raises(ValueError, match="merge_adapter=True needs a model with an adapter"):
        trainer(tmp_path, base, use_peft=False, lora_r=16, lora_target_modules=None, merge_adapter=True)
    plain = {"use_peft": False, "lora_r": 16, "lora_target_modules": None}
    with pytest.raises(ValueError, match="the model has an adapter that transformers has put in"):
        trainer(tmp_path, AutoModelForCausalLM.from_pretrained(run[0]), **plain)
    thawed = load_model(str(run[0]), tiny.config("run"))
    thawed.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 parameters train that an adapter does not hold, such as .*lm_head"):
        trainer(tmp_path, thawed, **plain)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"use_peft=True needs the package peft: pip install policy-split\[peft\]"):
        trainer(tmp_path, base)


def test_an_adapter_whose_base_is_gone_is_named(base, run, tmp_path):
    lost = tmp_path / "lost"
    lost.mkdir()
    for file in Path(run[0]).glob("adapter_*"):
        (lost / file.name).write_bytes(file.read_bytes())
    settings = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/no/such/base"}))
    with pytest.raises(FileNotFoundError, match=r"lost: a LoRA adapter whose base cannot be loaded: /no/such"):
        load_model(str(lost), tiny.config("run"))
    (lost / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say which model it is for"):
        load_model(str(lost), tiny.config("run"))


def test_by_flags_and_evaluated(base, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text('{"prompt": "1 2"}\n{"prompt": "3"}\n')
    (tmp_path / "r.py").write_text("def reward(completions, **columns): return [float(len(c)) for c in completions]\n")
    task = ["--dataset", f"{tmp_path}/q.jsonl", "--reward", f"{tmp_path}/r.py:reward", "--use_cpu", "true"]
    task += ["--max_completion_length", "4", "--high_entropy_prompt", "explore", "--disable_tqdm", "true"]
    lora = ["--use_peft", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0.1"]
    lora += ["--lora_target_modules", "q_proj", "v_proj"]
    options = ["--model", base, "--output_dir", f"{tmp_path}/run", "--max_steps", "1", "--num_generations", "2"]
    assert cli.main(["train", *options, *lora, *task]) == 0
    settings = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0.1)
    assert sorted(settings["target_modules"]) == ["q_proj", "v_proj"]
    assert cli.main(["eval", f"{tmp_path}/run", *task, "--num-samples", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out
