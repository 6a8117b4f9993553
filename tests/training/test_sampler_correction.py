"""Truncated importance weights of an engine's tokens: by hand, and in the updates of both ways of scoring."""

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from fake_engine import FakeEngine
from trained import lines, trainer, weights

from policy_split.config import PolicySplitConfig
from policy_split.rollouts import sampler
from policy_split.rollouts.rollout import BLOCKS, SINGLE_BLOCKS, Scores, score_rollout
from policy_split.training.dual_step import DualTokens
from policy_split.training.sampler_correction import sampler_weights

CORRECTED = {"rollout_engine": "vllm", "vllm_importance_sampling_correction": True}


class Shifted(FakeEngine):
    shift = -math.log(2)  # so that every weight is 2


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(sampler, "VllmEngine", Shifted)
    monkeypatch.setattr(sampler, "check_vllm", lambda: None)


@pytest.mark.parametrize("blocks", [BLOCKS, SINGLE_BLOCKS])
def test_by_hand(blocks):
    own = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]])  # of each half one response
    engine = torch.tensor([[-1.0, -2.0 - math.log(2)], [-0.5 + math.log(4), -9.0]])
    logprobs = torch.cat([own, own - 1]) if blocks == BLOCKS else own
    given = {"sampler_logprobs": engine, "blocks": blocks, "own_rows": torch.arange(2)}
    rollout = SimpleNamespace(scores=Scores(logprobs, logprobs), **given)
    config = PolicySplitConfig(**CORRECTED, vllm_importance_sampling_clip_max=5.0)
    halves = [[1.0, 2.0], [0.25, 5.0]]
    expected = torch.tensor([halves[half] for _, half in blocks])
    torch.testing.assert_close(sampler_weights(rollout, config), expected)
    assert expected.tolist()[2:] == ([[0.25, 5.0], [1.0, 2.0]] if blocks == BLOCKS else [])
    ones = torch.ones_like(logprobs)
    assert torch.equal(sampler_weights(rollout, PolicySplitConfig(rollout_engine="vllm")), ones)
    rollout.sampler_logprobs = None
    assert torch.equal(sampler_weights(rollout, config), ones)


@pytest.mark.parametrize("split", [False, True])
def test_advantages_are_weighed(tmp_path, split):
    run = trainer(tmp_path, **CORRECTED, split_by_need=split)
    rollout = run.sample()
    score_rollout(run.policy, rollout, run.config)
    filled = []
    for config in (run.config, tiny.config(tmp_path)):
        tokens = DualTokens(rollout, config)
        tokens.fill(range(3))
        filled.append(tokens)
    assert filled[1].advantages.abs().sum() > 0
    torch.testing.assert_close(filled[0].advantages, 2 * filled[1].advantages)
    assert torch.equal(filled[0].bonus, filled[1].bonus)


@pytest.mark.parametrize("options", [{}, {"share_correction": "truncated", "eta": 0.3}, {"algorithm": "grpo"}])
def test_scoring_in_the_update_or_apart_gives_the_same_weights(tmp_path, options):
    def run_of(name, **more):
        options_of = {"model": tiny.model(), "max_steps": 2, "share_prompts": False, "adam_epsilon": 1e-3}
        run = trainer(tmp_path / name, **options_of | options | more)
        run.train()
        return weights(run), lines(tmp_path / name)

    corrected, said = run_of("auto", **CORRECTED)
    apart, other = run_of("off", score_with_update="off", **CORRECTED)
    plain, _ = run_of("plain", rollout_engine="vllm")
    assert [row["score_with_update"] for row in said] == ([0.0] if "algorithm" in options else [1.0]) * 2
    for name, value in apart.items():
        torch.testing.assert_close(corrected[name], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, plain[name]) for name, value in corrected.items())
    assert other[0]["grad_norm"] == pytest.approx(said[0]["grad_norm"], rel=1e-4)


def test_the_gradient_of_a_policy_loss_is_weighed(tmp_path):
    for name, options in (("corrected", CORRECTED), ("plain", {"rollout_engine": "vllm"})):
        trainer(tmp_path / name, max_steps=1, **options).train()
    corrected, plain = (lines(tmp_path / name)[0]["grad_norm"] for name in ("corrected", "plain"))
    assert corrected == pytest.approx(2 * plain, rel=1e-4)
