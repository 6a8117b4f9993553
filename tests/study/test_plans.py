"""The plans: seeds of their own, tasks that cannot be learnt by heart, and the GPU's at a hundredth of its size."""

import json
from dataclasses import replace

import pytest

from policy_split.commands import study as command
from policy_split.commands.main import main
from policy_split.config.presets import RECOMMENDED
from policy_split.countdown.pool import pool_of
from policy_split.countdown.sizes import CountdownSize
from policy_split.study.plan import MAIN_SEEDS, PLANS, QUICK_SEEDS, SEEDS, SPLIT_SEEDS, TARGET_SEEDS, WORDS_SEEDS

CHOSEN_WITH = range(100)  # seeds that settings were chosen with


def test_no_seed_is_of_two_plans_or_of_the_choice_of_settings():
    seeds = [*SEEDS, *SPLIT_SEEDS, *MAIN_SEEDS, *TARGET_SEEDS, *QUICK_SEEDS, *WORDS_SEEDS]
    assert len(seeds) == len(set(seeds))
    assert not set(seeds) & set(CHOSEN_WITH)


def test_the_main_study_is_long_enough_and_of_new_problems():
    plan = PLANS["main"]
    settings = plan.run_spec(plan.variants[0], plan.seeds[0])["settings"]
    assert len(plan.seeds) >= 5
    assert settings["max_steps"] >= 1500
    assert plan.every == 250
    assert plan.split == "test"
    assert settings["fresh_questions"]
    assert plan.size.train_questions >= 50_000
    assert [v.name for v in plan.variants] == [
        *("grpo", "entropy_bonus", "entropy_advantage", "clip_higher"),
        *("policy_split", "positive_correction", "paper_settings"),
    ]
    split, positive, paper = plan.variants[-3:]
    assert split.settings == {"eta": 0.6, "target_kl": 0.2}
    trained = {**settings, **positive.settings}
    assert {name: trained[name] for name in RECOMMENDED if name in trained}.items() <= RECOMMENDED.items()
    assert (paper.settings["eta"], paper.settings["target_kl"], paper.settings["clamp"]) == (0.03, None, "paper")
    assert "every" not in PLANS["cpu"].run_spec(plan.variants[0], 101)  # folders of earlier runs stay theirs


def test_one_target_is_asked_on_two_sizes_with_ten_seeds():
    for name in ("target", "target-small"):
        plan = PLANS[name]
        assert len(plan.seeds) == 10
        assert {v.name: v.settings for v in plan.variants} == {
            "policy_split": {"eta": 0.3},
            "larger_eta": {"eta": 0.6},
            "held_kl": {"eta": 0.3, "target_kl": 0.2},
        }
    assert PLANS["target"].size.task != PLANS["target-small"].size.task


def hundredth(plan):
    """A model of a hundredth of the parameters and less, and a hundredth of the steps, questions and warm start."""
    size = plan.size
    own = dict(size.own_settings)
    own |= {"max_steps": own["max_steps"] // 100, "prompts_per_step": 2, "num_generations": 2, "save_steps": 0}
    size = replace(
        size,
        task=replace(size.task, largest=12, largest_target=40),
        width=32,
        layers=2,
        heads=4,
        train_questions=size.train_questions // 100,
        held_out_questions=6,
        warm_start_examples=size.warm_start_examples // 100,
        warm_start_steps=size.warm_start_steps // 100,
        warm_start_batch_size=8,
        own_settings=own,
    )
    return replace(
        plan, size=size, samples=8, every=1, threads=1, jobs=2, variants=plan.variants[::3], seeds=plan.seeds[:1]
    )


def test_the_gpu_s_plan_at_a_hundredth(tmp_path, monkeypatch, capsys):
    plan = PLANS["gpu"]
    assert plan.size.settings["fresh_questions"]
    small = hundredth(plan)
    assert [v.name for v in small.variants] == ["grpo", "policy_split"]
    monkeypatch.setitem(command.PLANS, "gpu", small)
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--plan", "gpu", "--minutes", "8"]) == 0
    text = (tmp_path / "runs" / "study-gpu" / "study.md").read_text()
    assert "### At equal seconds of training" in text
    assert "4 numbers up to 12" in text
    rows = (tmp_path / "runs/study-gpu/policy_split-101/metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3
    assert json.loads(rows[0])["policy_split/eta"] == 0.6


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if isinstance(plan.size, CountdownSize)])
def test_there_are_as_many_problems_as_a_plan_asks(name):
    """Different ones, where the task makes each once."""
    plan = PLANS[name]
    if plan.size.task.each_once:
        pool = pool_of(plan.size.task, exact_up_to=2000).problems
        assert pool["train"] >= plan.size.train_questions
        assert pool[plan.split] >= 1.2 * plan.size.held_out_questions
