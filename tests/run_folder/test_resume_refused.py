"""A run that goes on with what may not change: every difference is listed with both values, and how to go on."""

import shutil
from dataclasses import fields, replace

import pytest
import tiny
import yaml
from two_steps import FIRST, rates, trainer

from policy_split.config import PolicySplitConfig
from policy_split.run_folder.record import described
from policy_split.run_folder.resume import fixed_differences
from policy_split.training.trainer import PolicySplitTrainer


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    trainer(folder).train()
    return folder


@pytest.fixture
def run(first, tmp_path):
    """A copy of a run of two steps, which ended with a checkpoint."""
    return shutil.copytree(first, tmp_path / "run")


OTHERS = {
    "seed": 7,
    "model_dtype": "bfloat16",
    "prompts_per_step": 1,
    "num_generations": 5,
    "num_iterations": 2,
    "max_completion_length": 3,
    "temperature": 0.9,
    "chat_template_kwargs": {"a": 1},
    "algorithm": "grpo",
    "algorithm_settings": {"a": 1},
    "high_entropy_prompt": "other",
    "normal_prompt": "plain",
    "high_entropy_place": "user",
    "lora_target_modules": ["q_proj"],
    "lora_modules_to_save": ["lm_head"],
    "kappa": 3.0,
    "clamp": "code",
    "share_correction": "truncated",
    "normalize": "mean",
    "correctness_mask": "all_same",
    "bonus_estimator": "exact",
    "regularizer": "loss",
    "loss_type": "grpo",
    "epsilon_high": 0.5,
    "delta": 3.0,
    "target_kl": 0.2,
    "reward_weights": [2.0],
}


def another(name, value):
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    assert isinstance(value, float), f"{name}={value!r}: name another value in OTHERS"
    return value + 0.25


@pytest.mark.parametrize("name", [setting.name for setting in fields(PolicySplitConfig)])
def test_each_setting_is_free_or_named_with_both_values(name, tmp_path):
    """Every field is walked: one that is added has to say what it is, and is refused if it is fixed."""
    config = tiny.config(tmp_path)
    before = yaml.safe_load(yaml.safe_dump(described(config, {})))
    kind, value = PolicySplitConfig.resumption()[name], before[name]
    new = another(name, value) if kind == "fixed" else None
    found = fixed_differences(before, described(config, {}) | {name: new})
    if kind == "fixed":
        assert found == {name: (value, new)}
    else:
        assert found == {}


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ((8, 4), (4, 8), None),
        ((8, None), (4, None), None),
        ((8, 4), (4, 4), (32, 16)),
        ((8, None), (8, 2), (None, 16)),
        ((8, 2), (8, None), (16, None)),
    ],
)
def test_batches_may_be_cut_otherwise_but_an_optimizer_step_has_its_rows(then, now, expected):
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    found = fixed_differences(dict(zip(names, then, strict=True)), dict(zip(names, now, strict=True)))
    assert list(found.values()) == ([] if expected is None else [expected])


def refused(trainer, *said):
    """The message, which names each difference; nothing has been sampled or written."""
    trainer.step = lambda: pytest.fail("sampled")
    with pytest.raises(ValueError, match="cannot go on with what is not as it was") as caught:
        trainer.train(resume_from_checkpoint=True)
    message = str(caught.value)
    for words in said:
        assert words in message
    assert "go on regardless with --resume_anyway" in message
    return message


def test_every_difference_is_listed_at_once(run):
    other = trainer(run, temperature=1.0, eta=0.5, seed=1, high_entropy_prompt="i explore", reward=named)
    message = refused(
        other,
        "temperature: 0.7 -> 1.0", "eta: 0.03 -> 0.5", "seed: 42 -> 1", "high_entropy_prompt: 'explore' -> 'i explore'",
        "rewards: ['reward'] -> ['named']",
    )  # fmt: skip
    assert message.count(" -> ") == 5


def named(completions):
    return tiny.reward(completions)


CHANGED = [dict(row) for row in tiny.QUESTIONS]
CHANGED[3]["wanted"] = "b"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiny.QUESTIONS[:-1], ("questions: rows: 6 -> 5", "questions: content: 'that of then' -> 'another'")),
        (tiny.QUESTIONS[::-1], ("questions: content",)),
        (CHANGED, ("questions: content",)),
    ],
    ids=["fewer", "another order", "an answer"],
)
def test_other_questions(run, data, said):
    refused(trainer(run, data=data), *said)


def test_another_tokenizer(run):
    other = tiny.tokenizer()
    other.add_tokens(["z"])
    refused(
        trainer(run, tokenizer=other, model=tiny.model(vocab_size=32)),
        "tokenizer: tokens: 26 -> 27", "tokenizer: vocabulary: 'that of then' -> ", "model: vocab_size: 26 -> 32",
    )  # fmt: skip


def test_another_chat_template(run):
    refused(trainer(run, tokenizer=tiny.tokenizer(chat=True)), "tokenizer: chat template: None -> ")


def test_another_model(run):
    said = ("model: num_hidden_layers: 2 -> 1", "model: hidden_size: 16 -> 24")
    other = tiny.model(num_hidden_layers=1, hidden_size=24)
    refused(trainer(run, model=other), *said)
    refused(trainer(run, model=tiny.model("llama")), "model: model_type: 'qwen3' -> 'llama'")
    # regardless, but not with what no weights fit
    with (
        pytest.warns(UserWarning, match="goes on with what is not as it was: .*num_hidden_layers: 2 -> 1"),
        pytest.raises(ValueError, match=r"the checkpoint's weights are not those of this model, .* differ: "),
    ):
        trainer(run, model=other).train(resume_from_checkpoint=True, resume_anyway=True)


def test_a_model_of_the_same_kind_by_another_name(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        tiny.model(seed=seed).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)

    def by_name(name):
        config = tiny.config(tmp_path / "run", **FIRST)
        return PolicySplitTrainer(str(tmp_path / name), None, tiny.reward, tiny.QUESTIONS, config)

    by_name("one").train()
    refused(by_name("two"), f"model: '{tmp_path}/one' -> '{tmp_path}/two'")


def test_another_reference_where_there_is_one(tmp_path):
    trainer(tmp_path, beta=0.1, max_steps=1, save_steps=1).train()
    refused(trainer(tmp_path, beta=0.1, model=tiny.model(seed=3)), "frozen weights: 'those of then' -> 'others'")
    trainer(tmp_path, beta=0.1).train(resume_from_checkpoint=True)


def test_initial_weights_do_not_matter_where_the_checkpoint_has_them_all(run):
    trainer(run, max_steps=3, model=tiny.model(seed=3)).train(resume_from_checkpoint=True)
    assert len(rates(run)) == 3


def test_regardless_what_is_new_takes_effect_and_is_kept(run):
    resumed = trainer(run, max_steps=3, temperature=1.0, data=CHANGED)
    with pytest.warns(UserWarning, match=r"goes on with .*temperature: 0\.7 -> 1\.0; questions: content"):
        resumed.train(resume_from_checkpoint=True, resume_anyway=True)
    assert yaml.safe_load((run / "config.yaml").read_text())["temperature"] == 1.0
    again = trainer(run, max_steps=4, temperature=1.0, data=CHANGED)  # as the folder says now
    again.train(resume_from_checkpoint=run / "checkpoints/checkpoint-2")


def test_a_run_of_an_earlier_version_goes_on_with_a_warning(run):
    (run / "fingerprint.json").unlink()
    with pytest.warns(UserWarning, match="has no fingerprint of its questions, tokenizer and model"):
        trainer(run, max_steps=3, data=CHANGED).train(resume_from_checkpoint=True)
    assert (run / "fingerprint.json").is_file()
    (run / "fingerprint.json").unlink()
    (run / "config.yaml").unlink()
    with pytest.warns(UserWarning, match="has no fingerprint"):
        trainer(run, max_steps=4, temperature=0.9).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("name", "text"), [("config.yaml", "a: [\n"), ("fingerprint.json", "{"), ("config.yaml", "- 1\n")]
)
def test_a_record_that_cannot_be_read_is_named(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=rf"run/{name}: (cannot be read|expected)") as caught:
        trainer(run, max_steps=3).train(resume_from_checkpoint=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_folder_is_compared_with_its_own_run(run, tmp_path):
    other = trainer(tmp_path / "elsewhere", temperature=1.0)
    with pytest.raises(ValueError, match=r"run cannot go on .*temperature: 0\.7 -> 1\.0"):
        other.train(resume_from_checkpoint=run / "checkpoints/checkpoint-2")
    trainer(tmp_path / "elsewhere", max_steps=3).train(resume_from_checkpoint=run / "checkpoints/checkpoint-2")


def test_settings_of_another_version_are_left_aside(tmp_path):
    config = replace(tiny.config(tmp_path), temperature=0.5)
    before = described(config, {})
    del before["eta"]
    before["of_long_ago"] = 1
    assert fixed_differences(before, described(tiny.config(tmp_path), {})) == {"temperature": (0.5, 1.0)}
