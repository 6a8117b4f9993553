"""More of the high-entropy mode's responses where the normal mode's all have the same reward; the number stays."""

import json
import math

import pytest
import tiny
import torch

from policy_split.algorithms.advantages import dual_mode_advantages
from policy_split.models.policy import Policy
from policy_split.modes import HIGH_ENTROPY, NORMAL
from policy_split.rewards.functions import as_reward_functions
from policy_split.rollouts.answering import first_of, writers_by_need
from policy_split.rollouts.metrics import means, rollout_sums
from policy_split.rollouts.rollout import make_rollout, score_rollout
from policy_split.rollouts.samples import sample_rows
from policy_split.training.trainer import PolicySplitTrainer

P, N = len(tiny.QUESTIONS), 5
FIRST = 3
NAN = math.nan


def test_literal_writers():
    assert [first_of(n) for n in (1, 2, 3, 4, 5, 8)] == [1, 2, 2, 2, 3, 4]
    rewards = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [NAN, 1.0], [NAN, NAN]])
    normal, high = writers_by_need(rewards, 4)
    assert normal.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert (high == HIGH_ENTROPY).all()


def reward(prompts, completions, log_extra, log_metric, **columns):
    """Always 0 for questions of one number, so that their groups are dead; else by the words."""
    log_extra("text", completions)
    log_metric("calls", len(completions))
    return [
        text.split().count("a") / 6 if len(p.split()) > 1 else 0.0 for p, text in zip(prompts, completions, strict=True)
    ]


def rolled(tmp_path, **options):
    policy = Policy(tiny.model().eval(), tiny.tokenizer())
    config = tiny.config(tmp_path)
    functions = as_reward_functions(reward, None)
    rollout = make_rollout(policy, tiny.QUESTIONS, functions, config, num_generations=N, seed=3, **options)
    return policy, config, rollout


def test_who_wrote_a_response_stands_in_its_rows(tmp_path):
    policy, _, rollout = rolled(tmp_path, by_need=True)
    writer = rollout.writer.view(2, P, N)
    expected = writers_by_need(rollout.rewards[: P * N].view(P, N)[:, :FIRST], N)
    assert torch.equal(writer, expected)
    alone = torch.tensor([len(question["prompt"].split()) == 1 for question in tiny.QUESTIONS])
    assert writer[NORMAL, alone, FIRST:].eq(HIGH_ENTROPY).all()
    assert not writer[NORMAL].eq(HIGH_ENTROPY).any(1).all()  # both kinds were there
    own = rollout.own_rows
    assert torch.equal(rollout.mode[own], rollout.writer)
    assert [rollout.response(row) for row in own.tolist()] == list(range(2 * P * N))
    assert torch.equal(rollout.mode[rollout.twins(own)], 1 - rollout.writer)
    assert [rollout.response(row) for row in rollout.twins(own).tolist()] == list(range(2 * P * N))
    assert rollout.own.nonzero().flatten().tolist() == sorted(own.tolist())
    # texts, rewards and what the reward wrote down belong to the same response
    for response, row in enumerate(own.tolist()):
        ids = rollout.completion_ids[row, : rollout.completion_lengths[row]].tolist()
        assert rollout.texts[response].split() == [tiny.WORDS[i] for i in ids if i > 3]
        prompt = tiny.QUESTIONS[response % (P * N) // N]["prompt"]
        assert rollout.rewards[row] == pytest.approx(reward([prompt], [rollout.texts[response]], print, print)[0])
    assert rollout.context.columns["text"] == rollout.texts
    assert rollout.context.metrics["calls"] == [P * (FIRST + N), P * (N - FIRST)]
    shown = list(rollout.responses(policy.tokenizer))
    assert [line["mode"] for line in shown] == [("normal", "high_entropy")[mode] for mode in rollout.writer]
    assert all(("explore" in line["prompt"]) == (line["mode"] == "high_entropy") for line in shown)


def test_metrics_are_of_what_each_mode_wrote(tmp_path):
    policy, config, rollout = rolled(tmp_path, by_need=True)
    score_rollout(policy, rollout, config)
    measured = means(rollout_sums(rollout))
    assert measured["policy_split/high_entropy_frac"] == rollout.writer.double().mean() > 0.5
    logprobs, entropy, _ = rollout.scores
    for mode, name in ((NORMAL, "normal"), (HIGH_ENTROPY, "high_entropy")):
        rows = rollout.own_rows[rollout.writer == mode]
        assert measured[f"{name}/reward"] == pytest.approx(rollout.rewards[rows].mean().item())
        assert measured[f"{name}/entropy"] == pytest.approx(entropy[rows][rollout.mask[rows]].mean().item())
        lines = sample_rows(rollout, policy.tokenizer, 1, limit=2 * N)
        first = [
            response for response in range(2 * P * N) if response % (P * N) < N and rollout.writer[response] == mode
        ]
        assert [line["completion"] for line in lines if line["mode"] == name] == [rollout.texts[i] for i in first]
    rows = rollout.own_rows[rollout.writer == HIGH_ENTROPY]
    ratio = (logprobs[rollout.twins(rows)] - logprobs[rows])[rollout.mask[rows]]
    assert measured["policy_split/kl_high_normal"] == pytest.approx((ratio.exp() - 1 - ratio).mean().item(), rel=1e-5)


def test_the_first_responses_are_drawn_as_they_would_be(tmp_path):
    """Even, nothing of it is there."""
    _, _, rollout = rolled(tmp_path)
    assert rollout.writer is None
    assert rollout.own is None
    assert rollout.own_rows.tolist() == list(range(2 * P * N))


def test_borrowed_is_who_did_not_write():
    """The same responses at other places of the table: the same advantages, each at its response's place."""
    generator = torch.Generator().manual_seed(0)
    p, n, t = 2, 3, 4
    rewards = torch.rand(2, p, n, generator=generator).double()
    logprobs = -torch.rand(2, 2, p, n, t, generator=generator, dtype=torch.float64)  # [mode of the prompt, half, ...]
    options = {"num_prompts": p, "num_generations": n, "share_correction": "truncated", "eta": 0.3}
    blocks = ((0, 0), (1, 1), (0, 1), (1, 0))

    def advantages(rewards, logprobs, writer):
        rows = torch.cat([logprobs[mode, half] for mode, half in blocks]).flatten(0, 1)
        graded = torch.cat([rewards[half] for _, half in blocks]).flatten()
        own = None if writer is None else torch.cat([writer[half] == mode for mode, half in blocks]).flatten()
        table, _ = dual_mode_advantages(graded, rows, torch.ones_like(rows), own=own, **options)
        found = table.view(4, p, n, t)
        return torch.stack([torch.stack([found[blocks.index((mode, half))] for half in (0, 1)]) for mode in (0, 1)])

    writer = torch.tensor([0, 1])[:, None, None].repeat(1, p, n)
    expected = advantages(rewards, logprobs, None)
    assert torch.equal(advantages(rewards, logprobs, writer), expected)
    # of the first question two responses change their halves, and are still the work of those who wrote them
    order = torch.arange(2 * n).view(2, n)
    order[0, 2], order[1, 0] = 3, 2
    moved = [x.clone() for x in (rewards, logprobs, writer)]
    for table, axis in zip(moved, (0, 1, 0), strict=True):
        question = table.select(axis + 1, 0)
        question.copy_(question.flatten(axis, axis + 1).index_select(axis, order.flatten()).view(question.shape))
    found = advantages(*moved)
    for half in (0, 1):
        for place in range(n):
            was = divmod(int(order[half, place]), n)
            torch.testing.assert_close(found[:, half, 0, place], expected[:, was[0], 0, was[1]])
    torch.testing.assert_close(found[:, :, 1], expected[:, :, 1])


def test_wrong_owners_are_named():
    arguments, sizes = (torch.zeros(8), torch.zeros(8, 1), torch.ones(8, 1)), {"num_prompts": 1, "num_generations": 2}
    own = torch.tensor([True] * 4 + [False] * 4)
    with pytest.raises(TypeError, match="own must be a bool tensor, got"):
        dual_mode_advantages(*arguments, own=own.long(), **sizes)
    with pytest.raises(ValueError, match=r"own has shape \(7,\), expected \(8,\)"):
        dual_mode_advantages(*arguments, own=own[:7], **sizes)
    with pytest.raises(ValueError, match="True at one of the two rows of each response"):
        dual_mode_advantages(*arguments, own=own | True, **sizes)
    with pytest.raises(ValueError, match="own needs rollout_sharing=True"):
        dual_mode_advantages(*arguments, own=own, rollout_sharing=False, **sizes)


def test_it_is_of_two_modes_that_share(tmp_path):
    for options in ({"rollout_sharing": False}, {"algorithm": "grpo"}):
        with pytest.raises(ValueError, match="split_by_need=True is of two modes that share"):
            tiny.config(tmp_path, split_by_need=True, **options)


@pytest.mark.parametrize("options", [{}, {"exact_kl": True}])
def test_a_run_trains_with_it(tmp_path, options):
    settings = {"split_by_need": True, "num_generations": N, "share_correction": "truncated"}
    settings |= {"log_completions": True, "log_exact_kl": bool(options)}
    config = tiny.config(tmp_path, **settings)
    trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), reward, tiny.QUESTIONS, config)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == config.max_steps * config.prompts_per_step * 2 * N
    for row in rows:
        of_step = [line["mode"] for line in lines if line["step"] == row["step"]]
        assert row["policy_split/high_entropy_frac"] == pytest.approx(of_step.count("high_entropy") / len(of_step))
        assert all(math.isfinite(value) for value in row.values())
