"""PolicySplitConfig: what is wrong is named, and the command line reaches every field."""

import math
from dataclasses import fields

import pytest
from transformers import HfArgumentParser

from policy_split.config import PolicySplitConfig
from policy_split.config.rules import RULES


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("kappa", 0, "kappa=0 must be above 0"),
        ("kappa", -1.0, "kappa=-1.0 must be above 0"),
        ("epsilon", -0.1, "epsilon=-0.1 must be between 0 and 1"),
        ("epsilon", 1.5, "epsilon=1.5"),
        ("epsilon_high", -0.1, "epsilon_high=-0.1"),
        ("delta", 1.1, r"delta=1.1 must be above 1 \+ epsilon_high = 1.2"),
        ("loss_type", "ppo", "loss_type='ppo' must be one of 'grpo', 'dapo', 'dr_grpo', 'bnpo'"),
        ("num_generations", 0, "num_generations=0 must be an integer of at least 1"),
        ("num_generations", 2.5, "num_generations=2.5"),
        ("num_generations", True, "num_generations=True"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size=0"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps=0 .* or None"),
        ("prompts_per_step", "8", "prompts_per_step='8'"),
        ("temperature", 0, "temperature=0 must be a finite number above 0"),
        ("temperature", math.nan, "temperature=nan"),
        ("alpha", 1.1, "alpha=1.1 must be between 0 and 1"),
        ("eta", -0.1, "eta=-0.1"),
        ("clamp", "hard", "clamp='hard' must be one of 'paper', 'code'"),
        ("share_correction", "full", "share_correction='full'"),
        ("bonus_estimator", "mean", "bonus_estimator='mean' must be one of 'sampled', 'entropy', 'exact'"),
        ("regularizer", "both", "regularizer='both' must be one of 'advantage', 'loss'"),
        ("log_exact_kl", "yes", "log_exact_kl='yes' must be True or False"),
        ("fused_lm_head", 1, "fused_lm_head=1 must be True or False"),
        ("packed_batches", 1, "packed_batches=1 must be True or False, or None"),
        ("lm_head_chunk_bytes", 0, "lm_head_chunk_bytes=0 must be an integer of at least 1, or None"),
        ("lm_head_chunk_bytes", 1e9, "lm_head_chunk_bytes=1000000000.0"),
        ("lowest_entropy_mask_ratio", 1.0, "lowest_entropy_mask_ratio=1.0"),
        ("learning_rate", None, "learning_rate=None"),
        ("lr_scheduler_type", "staircase", "lr_scheduler_type='staircase'"),
        ("max_steps", 0, "max_steps=0"),
        ("output_dir", "", "output_dir=''"),
        ("high_entropy_prompt", " ", "high_entropy_prompt=' '"),
        ("reward_weights", [1.0, math.inf], "reward_weights"),
        ("chat_template_kwargs", "{oops", "chat_template_kwargs='{oops' must be a JSON object"),
        ("chat_template_kwargs", "[1]", "JSON object, got list"),
    ],
)
def test_bad_value_is_named(name, value, expected):
    with pytest.raises(ValueError, match=expected):
        PolicySplitConfig(**{name: value})


def test_settings_that_exclude_each_other():
    with pytest.raises(ValueError, match="bf16=True and fp16=True"):
        PolicySplitConfig(bf16=True, fp16=True)
    with pytest.raises(ValueError, match="must differ"):
        PolicySplitConfig(normal_prompt="x", high_entropy_prompt="x")


def test_rules_name_fields_and_fields_have_help():
    assert RULES.keys() <= {setting.name for setting in fields(PolicySplitConfig)}
    assert all(len(setting.metadata["help"]) > 4 for setting in fields(PolicySplitConfig))


def test_every_field_says_what_a_resumed_run_may_do_to_it():
    assert set(PolicySplitConfig.resumption()) == {setting.name for setting in fields(PolicySplitConfig)}
    assert set(PolicySplitConfig.resumption().values()) == {"free", "fixed", "product"}
    free = {name for name, may in PolicySplitConfig.resumption().items() if may == "free"}
    assert free >= {
        "max_steps",
        "num_train_epochs",
        "learning_rate",
        "weight_decay",
        "lr_scheduler_type",
        "warmup_steps",
    }
    assert free >= {"output_dir", "save_steps", "logging_steps", "eval_steps", "report_to", "use_cpu", "disable_tqdm"}
    assert not free & {"seed", "model_dtype", "algorithm", "eta", "temperature", "num_generations", "prompts_per_step"}
    assert not free & {"high_entropy_prompt", "normal_prompt", "chat_template_kwargs", "max_completion_length", "beta"}


def test_command_line():
    line = [
        "--output_dir",
        "x",
        "--num_generations",
        "3",
        "--kappa",
        "inf",
        "--epsilon_high",
        "0.28",
        "--bf16",
        "--reward_weights",
        "1",
        "0.5",
    ]
    line += ["--chat_template_kwargs", '{"enable_thinking": false}', "--report_to", "wandb, trackio"]
    (config,) = HfArgumentParser(PolicySplitConfig).parse_args_into_dataclasses(line)
    assert (config.num_generations, config.kappa, config.clip_high, config.bf16) == (3, None, 0.28, True)
    assert config.reward_weights == [1.0, 0.5]
    assert config.chat_template_kwargs == {"enable_thinking": False}
    assert config.trackers == ["wandb", "trackio"]


def test_defaults_are_the_papers():
    config = PolicySplitConfig()
    options = {"alpha": 0.5, "eta": 0.03, "eta_normal": 0.0, "kappa": 2.0, "clamp": "paper", "share_correction": "none"}
    assert options.items() <= config.bonus_options.items()
    assert config.clip_high == config.epsilon == 0.2
    assert config.trackers == []


def test_exact_kl_is_computed_where_it_is_needed_or_asked_for():
    asked = ({"log_exact_kl": True}, {"bonus_estimator": "exact"}, {"regularizer": "loss"})
    assert all(PolicySplitConfig(**options).exact_kl for options in asked)
    assert not any(PolicySplitConfig(bonus_estimator=name).exact_kl for name in ("sampled", "entropy"))
    assert PolicySplitConfig(regularizer="loss", eta=0.3, eta_normal=0.1).bonus_options["eta_normal"] == 0
