"""trainer_state, log_extra and log_metric: who is given them, and where what is written down arrives."""

import json
import math

import numpy
import pytest
import tiny
import torch
from trained import trainer
from transformers import TrainerState

from policy_split.evaluation.evaluate import evaluate_modes
from policy_split.rewards.context import RewardContext
from policy_split.rewards.functions import as_reward_functions, check_columns, compute_rewards


def compute(function, context=None):
    arguments = (["p", "q"], ["x", "yy"], [[5], [6, 7]], {"answer": ["a", "b"]})
    return compute_rewards(as_reward_functions(function, None), *arguments, context)


def test_they_go_to_functions_that_name_them():
    seen = []

    def names_all(completions, trainer_state, log_extra, log_metric):
        seen.append((trainer_state, log_extra, log_metric))
        return [0.0] * len(completions)

    def with_keywords(completions, **columns):  # columns are lists, one value for each sample
        seen.append(sorted(columns))
        return [0.0] * len(completions)

    def both(completions, trainer_state=None, **columns):
        seen.append((trainer_state, sorted(columns)))
        return [0.0] * len(completions)

    context = RewardContext(TrainerState(global_step=3))
    for function in (names_all, with_keywords, both):
        check_columns(as_reward_functions(function, None), ["prompt", "answer"])
        compute(function, context)
    assert seen[0][0].global_step == 3
    assert seen[1] == ["answer", "completion_ids", "prompts"]
    assert seen[2] == (context.trainer_state, ["answer", "completion_ids", "prompts"])


def test_who_looks_for_them_among_the_columns_is_told():
    with pytest.raises(KeyError, match="trainer_state, log_extra, log_metric are given to a function that has them as"):
        compute(lambda completions, **columns: columns["trainer_state"])


def test_faults_of_what_is_written_down():
    for function, expected in (
        (
            lambda completions, log_extra: log_extra("a", [1]) or [1, 1],
            r"log_extra\('a', \.\.\.\) was given 1 values for 2",
        ),
        (lambda completions, log_extra: log_extra("reward", [1, 1]) or [1, 1], "has a column of that name"),
        (
            lambda completions, log_metric: log_metric("a", "b") or [1, 1],
            r"log_metric\('a', 'b'\) needs a finite number",
        ),
        (lambda completions, log_metric: log_metric("a", math.nan) or [1, 1], r"log_metric\('a', nan\) needs a finite"),
    ):
        with pytest.raises(ValueError, match=expected):
            compute(function, RewardContext())


def test_values_become_what_json_has():
    context = RewardContext()
    context.log_extra("a", numpy.arange(2))
    context.log_extra("b", [torch.tensor([1.0]), {1}])
    context.log_metric("m", numpy.float32(0.5))
    context.log_metric("m", True)
    assert context.columns == {"a": [0, 1], "b": [[1.0], "{1}"]}
    assert context.metrics == {"m": [0.5, 1.0]}
    assert json.dumps(context.columns)


def test_they_arrive_in_a_runs_files(tmp_path):
    states = []

    def reward(completions, completion_ids, trainer_state, log_extra, log_metric):
        states.append(trainer_state)
        log_extra("tokens", [len(ids) for ids in completion_ids])
        log_metric("longest", max(map(len, completion_ids)))
        log_metric("longest", 0)
        return [0.0] * len(completions)

    run = trainer(tmp_path, reward=reward, log_completions=True, max_steps=3, eval_dataset=tiny.HELD_OUT[:1])
    run.train()
    run.evaluate(num_samples=1)
    assert [state.global_step for state in states] == [0, 1, 2, 3]
    assert [state.epoch for state in states] == [0, 0.5, 1, 1.5]
    assert {state.max_steps for state in states} == {3}
    assert states[1].num_input_tokens_seen > 0
    completions = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    longest = [max(row["tokens"] for row in completions if row["step"] == step) for step in (1, 2, 3)]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["longest"] for row in metrics] == [length / 2 for length in longest]


def test_an_evaluation_without_a_trainer_has_a_state_of_its_own(tmp_path):
    seen = []

    def reward(completions, trainer_state):
        seen.append(trainer_state.global_step)
        return [0.0] * len(completions)

    evaluate_modes(tiny.model(), tiny.tokenizer(), tiny.QUESTIONS[:1], reward, tiny.config(tmp_path), num_samples=1)
    assert seen == [0]


def test_a_metric_of_the_trainers_own_name_is_an_error(tmp_path):
    for name in ("loss", "step", "normal/entropy"):

        def reward(completions, log_metric, name=name):
            log_metric(name, 1.0)
            return [0.0] * len(completions)

        with pytest.raises(ValueError, match=rf"log_metric\('{name}', \.\.\.\): the trainer has a metric of that name"):
            trainer(tmp_path, reward=reward).step()


def test_special_tokens_stay_in_what_a_reward_reads(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["explore", "a"]})  # say, <think> and </think>
    texts = {}
    for keep in (True, False):

        def reward(completions, completion_ids, keep=keep):
            texts[keep] = completions
            assert completions == tokenizer.batch_decode(completion_ids, skip_special_tokens=keep)
            return [0.0] * len(completions)

        config = tiny.config(tmp_path, skip_special_tokens=keep, num_generations=20)
        evaluate_modes(tiny.model(), tokenizer, tiny.QUESTIONS, reward, config, num_samples=20)
    assert not any(word in text.split() for text in texts[True] for word in ("a", "<eos>"))
    assert all(any(word in text.split() for text in texts[False]) for word in ("a", "<eos>"))
    with pytest.raises(ValueError, match="skip_special_tokens=1 must be True or False"):
        tiny.config(tmp_path, skip_special_tokens=1)
