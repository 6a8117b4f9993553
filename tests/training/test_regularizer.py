"""The bonus as a term of the loss: literal numbers, plain autograd of the whole formula, what it does to a model."""

import json
import math
from statistics import fmean

import pytest
import tiny
import torch

from policy_split.rollouts.micro_batches import cut, optimizer_batches
from policy_split.rollouts.rollout import BLOCKS
from policy_split.training.regularizer import entropy_coefficients, mode_push, push_coefficients
from policy_split.training.trainer import PolicySplitTrainer

ROWS = 4 * 3 * 4


def trainer(folder, **options):
    model = options.pop("model", None) or tiny.model()
    reward = options.pop("reward", tiny.reward)
    config = tiny.config(folder, **{"regularizer": "loss"} | options)
    return PolicySplitTrainer(model, tiny.tokenizer(), reward, tiny.QUESTIONS, config)


def plain_push(logits, weights, mask, coefficients, temperature):
    normal, high = torch.log_softmax(logits.double() / temperature, -1).chunk(2)
    kl_normal = (normal.exp() * (normal - high.detach())).sum(-1)
    kl_high = (high.exp() * (high - normal.detach())).sum(-1)
    kl = torch.cat((coefficients[0] * kl_normal, coefficients[1] * kl_high))
    return -(weights * kl * mask).sum()


def test_literal_push():
    """Normal (1/2, 1/2), high-entropy (3/4, 1/4), weights 2 and 5, coefficients -0.2 and 0.3.

    KL(N || H) = (ln 2/3 + ln 2) / 2 = 0.143841, KL(H || N) = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812:
    -(2 * -0.2 * 0.143841 + 5 * 0.3 * 0.130812) = -0.138682.
    d KL(N || H) / dz = 1/2 (ln 2/3 - KL) and its negative: 0.4 * -0.274653 = -0.109861 on the first word;
    d KL(H || N) / dz = 3/4 (ln 3/2 - KL) and its negative: -1.5 * 0.205990 = -0.308985.
    """
    logits = torch.tensor([[[0.0, 0.0]], [[math.log(3.0), 0.0]]], dtype=torch.float64, requires_grad=True)
    weights, mask = torch.tensor([[2.0], [5.0]]), torch.ones(2, 1, dtype=torch.bool)
    _, loss = mode_push(logits, weights, mask, (-0.2, 0.3), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-0.1386818, abs=1e-6)
    expected = torch.tensor([[[-0.1098612, 0.1098612]], [[-0.3089846, 0.3089846]]], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-6)


def example(seed=0, rows=6, length=5, vocabulary=29):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, length, vocabulary, generator=g, dtype=torch.float64)
    mask = torch.rand(rows // 2, length, generator=g).repeat(2, 1) < 0.7
    return logits, torch.rand(rows, length, generator=g, dtype=torch.float64), mask


@pytest.mark.parametrize("coefficients", [(0.0, 0.3), (-0.2, 0.0), (-0.2, 0.3), (0.4, 0.1)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_push_is_plain_autograd(coefficients, temperature):
    """Beside another reader of the logits, whose gradient is its own, and in a second backward."""
    logits, weights, mask = example()
    expected, actual = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    plain = plain_push(expected, weights, mask, coefficients, temperature)
    (3 * plain + expected.square().sum()).backward()
    passed, push = mode_push(actual * 1.0, weights, mask, coefficients, temperature)
    torch.testing.assert_close(push, plain)
    loss = 3 * push + passed.square().sum()
    for _ in range(2):
        actual.grad = None
        loss.backward(retain_graph=True)
        torch.testing.assert_close(actual.grad, expected.grad)


def test_logits_may_be_overwritten_after_the_push():
    logits, weights, mask = example()
    logits.requires_grad_()
    computed = logits * 1.0
    passed, push = mode_push(computed, weights, mask, (-0.2, 0.3), 1.0)
    assert passed.data_ptr() == computed.data_ptr()  # no copy
    passed.detach().fill_(math.nan)
    push.backward()
    other = logits.detach().requires_grad_()
    plain_push(other, weights, mask, (-0.2, 0.3), 1.0).backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_push_of_nothing():
    logits, weights, mask = example()
    logits.requires_grad_()
    passed, push = mode_push(logits, weights, mask, (0.0, 0.0), 1.0)
    assert passed is logits
    assert not push.requires_grad
    _, push = mode_push(logits, weights, torch.zeros_like(mask), (0.1, 0.1), 1.0)
    push.backward()
    assert push == 0
    assert not logits.grad.any()


def test_float16_keeps_gradients_that_only_a_loss_scale_makes_visible():
    """Weights of 1e-7: the gradient itself is below the smallest float16 number, 65,536 times it is not."""
    logits, weights, mask = example()
    half = logits.half().requires_grad_()
    (mode_push(half, 1e-7 * weights, mask, (0.0, 1.0), 1.0)[1] * 65536).backward()
    exact = half.detach().double().requires_grad_()
    plain_push(exact, 65536e-7 * weights, mask, (0.0, 1.0), 1.0).backward()
    torch.testing.assert_close(half.grad.double(), exact.grad, rtol=2e-3, atol=1e-6)
    assert half.grad[3:].any()


def test_coefficients_of_the_modes(tmp_path):
    """Normal: -eta_normal, high-entropy: eta; the entropy terms of the config are added to those of the bonus."""
    options = {"eta": 0.4, "eta_normal": 0.1, "alpha": 0.75, "entropy_coef_normal": 0.5}
    loss = tiny.config(tmp_path, regularizer="loss", **options)
    assert entropy_coefficients(loss) == pytest.approx((0.5 - 0.1, 0.4))
    assert push_coefficients(loss) == pytest.approx((-0.025, 0.1))
    advantage = tiny.config(tmp_path, **options)
    assert entropy_coefficients(advantage) == (0.5, 0.0)
    assert push_coefficients(advantage) == (0.0, 0.0)


def row_terms(run, rollout, row, temperature):
    """(log-probs of the response's tokens (T,), log-distribution (T, V)) of one row, without padding or batch."""
    prompt = rollout.prompt_ids[row, rollout.prompt_ids.shape[1] - rollout.prompt_lengths[row] :]
    response = rollout.completion_ids[row, : rollout.completion_lengths[row]]
    logits = run.policy.bare(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
    log_p = torch.log_softmax(logits / temperature, -1)
    return log_p.gather(-1, response[:, None])[:, 0], log_p


def plain_loss(run, rollout, advantages, *, alpha, eta, eta_normal, entropy_coef_normal, temperature):
    """The whole loss, row by row, as it is written down: weights of the loss type dapo, ratio 1."""
    weight, loss = 1 / rollout.train_mask.sum().item(), 0.0
    for row in range(ROWS):
        block, place = divmod(row, ROWS // 4)
        trains = rollout.train_mask[row, : rollout.completion_lengths[row]]
        l, own = row_terms(run, rollout, row, temperature)
        other = row_terms(run, rollout, (3 - block) * (ROWS // 4) + place, temperature)[1].detach()
        entropy, kl = -(own.exp() * own).sum(-1), (own.exp() * (own - other)).sum(-1)
        policy = -(l - l.detach()).exp() * advantages[row, : len(l)]
        if block in (1, 3):  # behind the high-entropy prompt
            term = policy - eta * (entropy + (1 - alpha) * kl)
        else:
            term = policy + eta_normal * (entropy + (1 - alpha) * kl) - entropy_coef_normal * entropy
        loss = loss + weight * (term * trains).sum()
    return loss


@pytest.mark.parametrize("size", [64, 7, 1])
@pytest.mark.parametrize("eta_normal", [0.0, 0.2])
def test_update_is_plain_autograd_of_the_whole_formula(tmp_path, monkeypatch, size, eta_normal):
    settings = {"alpha": 0.3, "eta": 0.5, "eta_normal": eta_normal, "entropy_coef_normal": 0.1, "temperature": 0.7}
    options = {"per_device_train_batch_size": size, "mask_truncated_completions": True}
    run = trainer(tmp_path, model=tiny.model().double(), **settings, **options)
    rollout, seen = run.sample(), {}
    assert not rollout.train_mask.equal(rollout.mask)
    monkeypatch.setattr(run.update, "_finish", lambda loss: seen.update(loss=loss) or {})
    rollout.logprobs = rollout.entropy = torch.zeros(rollout.mask.shape, dtype=torch.float64)
    tokens = run.tokens(rollout)
    tokens.fill(range(rollout.num_prompts))
    advantages = tokens.advantages
    run.update.step(rollout, range(ROWS), advantages, None, None)
    actual = {name: parameter.grad.clone() for name, parameter in run.policy.bare.named_parameters()}
    run.policy.bare.zero_grad()
    expected = plain_loss(run, rollout, advantages, **settings)
    expected.backward()
    assert seen["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in run.policy.bare.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n} {m}")


def test_advantages_are_correctness_alone(tmp_path):
    """What shapes the bonus of an advantage has no say."""
    results = []
    for options in (
        {"eta": 0.0, "regularizer": "advantage"},
        {"eta": 0.5, "kappa": None},
        {"bonus_estimator": "exact"},
    ):
        run = trainer(tmp_path, **options)
        kept, tokens = {}, run.tokens
        run.tokens = lambda rollout, kept=kept, f=tokens: kept.setdefault("out", f(rollout))
        metrics, _ = run.step()
        results.append(kept["out"].advantages)
        assert metrics["policy_split/bonus_clamped_frac"] == 0
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_groups_without_advantage_are_regularised_too(tmp_path):
    """Also where the config's own entropy term takes that of the bonus away, and the KL alone is left."""
    options = {"eta": 0.5, "entropy_coef_high_entropy": -0.5}
    run = trainer(tmp_path, reward=lambda completions: [0.0] * len(completions), **options)
    assert entropy_coefficients(run.config) == (0.0, 0.0)
    assert list(run.update.contributing(range(ROWS), torch.zeros(ROWS, 6))) == list(range(ROWS))
    metrics, _ = run.step()
    assert metrics["policy_split/bonus_dead_frac"] == 1
    assert metrics["grad_norm"] > 0


def test_the_term_does_what_its_parts_say(tmp_path):
    """Without a reward that tells responses apart entropy grows with the one part, the distance with the other.

    The distance of the first steps, as both modes end near the uniform distribution, where there is none; and means, as
    one rollout of a dozen responses says little (of seeds 42, 1, 2, 3 the least ratios were 2.2, 3.9, 1.8 and 2.4).
    """
    same = {"reward": lambda completions: [0.0] * len(completions), "learning_rate": 3e-3, "max_steps": 40}
    same |= {"lr_scheduler_type": "constant", "eta": 1.0}
    kl, entropy = {}, {}
    for name, options in {"both": {"alpha": 0.0}, "entropy": {"alpha": 1.0}, "nothing": {"eta": 0.0}}.items():
        trainer(tmp_path / name, model=tiny.model(scale=40.0), **same | options).train()
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        kl[name] = fmean(row["policy_split/exact_kl_high_normal"] for row in rows[:10])
        entropy[name] = fmean(row["high_entropy/entropy"] for row in rows[20:])
    assert kl["both"] > 2 * kl["entropy"]
    assert kl["both"] > 2 * kl["nothing"]
    assert entropy["both"] > 1.5 * entropy["nothing"]
    assert entropy["entropy"] > 2 * entropy["nothing"]


RUNS = [
    {},
    {"eta_normal": 0.1, "bonus_estimator": "exact", "share_correction": "truncated", "loss_type": "grpo"},
    {"num_iterations": 2, "per_device_train_batch_size": 1, "beta": 0.1},
    {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 7, "mask_truncated_completions": True},
    {"gradient_checkpointing": True, "alpha": 1.0},
]


@pytest.mark.parametrize("options", RUNS)
def test_runs_are_finite_and_repeatable(tmp_path, options):
    lines = []
    for name in ("first", "second"):
        trainer(tmp_path / name, max_steps=3, eta=0.1, **options).train()
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        lines.append([{key: value for key, value in row.items() if key != "step_time"} for row in rows])
    assert lines[0] == lines[1]
    for row in lines[0]:
        assert all(value is not None and math.isfinite(value) for value in row.values())
        assert row["policy_split/exact_kl_high_normal"] > 0
        assert row["policy_split/exact_kl_normal_high"] > 0
        assert row["skipped_steps"] == 0


def test_first_update_is_on_policy(tmp_path):
    options = {"learning_rate": 0.0, "num_iterations": 2, "epsilon": 1e-5, "per_device_train_batch_size": 7}
    metrics, _ = trainer(tmp_path, **options).step()
    assert metrics["normal/clip_ratio"] == metrics["high_entropy/clip_ratio"] == 0.0


@pytest.mark.parametrize(("size", "largest"), [(1, 2), (2, 2), (7, 6), (64, 48)])
def test_paired_micro_batches_hold_both_rows_of_each_response(tmp_path, size, largest):
    rollout = trainer(tmp_path).sample()
    batches = cut(rollout, range(ROWS), size, paired=True)
    assert max(map(len, batches)) == largest
    assert sorted(row for batch in batches for row in batch) == list(range(ROWS))
    for batch in batches:
        normal, high = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        assert {BLOCKS[row // 12][0] for row in normal} == {0}
        assert [(3 - row // 12) * 12 + row % 12 for row in normal] == high
        assert torch.equal(rollout.completion_ids[normal], rollout.completion_ids[high])


def test_optimizer_batches_keep_responses_together(tmp_path):
    options = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 7}
    run = trainer(tmp_path, **options)
    rollout = run.sample()
    batches = optimizer_batches(rollout, run.config, 0)
    assert [len(batch) for batch in batches] == [20, 20, 8]
    assert sorted(row for batch in batches for row in batch) == list(range(ROWS))
    for batch in batches:
        assert {(3 - row // 12) * 12 + row % 12 for row in batch} == set(batch)
    assert batches != optimizer_batches(rollout, run.config, 1)
    one = trainer(tmp_path, gradient_accumulation_steps=1, per_device_train_batch_size=1)
    assert {len(batch) for batch in optimizer_batches(rollout, one.config, 0)} == {2}
