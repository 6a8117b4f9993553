"""The exact estimator of the bonus: literal numbers, brute force over the vocabulary, the mean of the sampled one."""

import json
import math

import pytest
import tiny
import torch
from worked_example import MASK, REWARDS, rows

from policy_split.algorithms.advantages import bonus_statistics, dual_mode_advantages
from policy_split.evaluation.evaluate import evaluate_modes
from policy_split.rollouts.micro_batches import cut
from policy_split.rollouts.rollout import score
from policy_split.training.trainer import PolicySplitTrainer

# One question, n = 2, T = 2. Normal-mode responses a, b; high-entropy ones c, d; c has two tokens, the others one.
#            c0   c1   d    a    b
# H_N         2    3    6    5    0      entropy of pi(.|q)
# D_N         4    8    0    0    4      KL(pi(.|q) || pi(.|s,q))
# H_H         0    5    4.5  3    2
# D_H         4    4    2    8    4      KL(pi(.|s,q) || pi(.|q))
# b_N         3    5    6    5    1      alpha = 3/4: b = H + D / 4, mean 4, std sqrt(16 / 4) = 2
# b_H         1    6    5    5    3      the same mean and std
# B_N       -.5   .5   1    .5 -1.5
# B_H      -1.5   1    .5   .5  -.5
# R           0    0    4    0    0      mean 1, std 2: A = -.5 -.5 1.5 -.5 -.5, |A| / kappa = .25 .25 .75 .25 .25
ENTROPY_NORMAL, DIVERGENCE_NORMAL = [2, 3, 6, 5, 0], [4, 8, 0, 0, 4]
ENTROPY_HIGH, DIVERGENCE_HIGH = [0, 5, 4.5, 3, 2], [4, 4, 2, 8, 4]
ZERO = [0.0] * 5


LOGPROBS = torch.where(MASK, -1.0 - torch.arange(16.0, dtype=torch.float64).view(8, 2), math.nan)  # no part of b
EXACT = {
    "surprise": rows(ENTROPY_NORMAL, ENTROPY_HIGH, fill=math.nan),
    "divergence": rows(DIVERGENCE_NORMAL, DIVERGENCE_HIGH, fill=math.inf),
}
EXAMPLE = {"num_prompts": 1, "num_generations": 2, "alpha": 0.75}

LITERALS = [
    ({"eta": 0.1, "kappa": None, "normalize": "none"}, ZERO, [0.1, 0.6, 0.5, 0.5, 0.3]),
    ({"eta": 0.1, "kappa": None, "normalize": "none", "alpha": 1.0}, ZERO, [0.0, 0.5, 0.45, 0.3, 0.2]),  # H alone
    ({"eta": 0.1, "kappa": None, "normalize": "none", "alpha": 0.0}, ZERO, [0.4, 0.9, 0.65, 1.1, 0.6]),  # H + D
    (
        {"eta": 0.0, "eta_normal": 0.1, "kappa": None, "normalize": "none"},
        [-0.3, -0.5, -0.6, -0.5, -0.1],
        ZERO,
    ),
    ({"eta": 0.3, "kappa": None}, ZERO, [-0.45, 0.3, 0.15, 0.15, -0.15]),
    ({"eta": 0.3, "clamp": "code"}, ZERO, [-0.25, 0.25, 0.15, 0.15, -0.15]),
    ({"eta": 0.1}, ZERO, [-0.025, 0.025, 0.05, 0.025, -0.025]),
    ({"eta": 0.0, "eta_normal": 0.2, "clamp": "code"}, [0.1, -0.1, -0.2, -0.1, 0.25], ZERO),
    ({"eta": 0.3, "kappa": None, "lowest_entropy_mask_ratio": 0.5}, ZERO, [0, 0.3, 0.15, 0.15, 0]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("options", "normal", "high"), LITERALS)
def test_literal_bonus(options, normal, high, dtype):
    exact = {name: value.to(dtype) for name, value in EXACT.items()}
    advantages, bonus = dual_mode_advantages(REWARDS, LOGPROBS.to(dtype), MASK, **EXAMPLE | options, **exact)
    assert advantages.dtype == bonus.dtype == dtype
    expected = rows(normal, high).to(dtype)
    correctness = rows([-0.5, -0.5, 1.5, -0.5, -0.5], [-0.5, -0.5, 1.5, -0.5, -0.5]).to(dtype)
    torch.testing.assert_close(bonus, expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(advantages, correctness + expected, atol=2e-6, rtol=2e-6)


def test_statistics_are_of_the_exact_bonus():
    """Bounds .25 .25 .75 .25 .25 against 0.3 * B_H = -.45 .3 .15 .15 -.15: two of five are clamped."""
    clamped, _ = bonus_statistics(REWARDS, LOGPROBS, MASK, eta=0.3, clamp="code", **EXAMPLE, **EXACT)
    assert clamped.item() == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"surprise": None}, ValueError, "divergence needs surprise, the entropy of each row's own .*surprise=None"),
        ({"divergence": EXACT["divergence"][:, :1]}, ValueError, r"divergence has shape \(8, 1\), expected \(8, 2\)"),
        ({"divergence": MASK.long()}, TypeError, "divergence must be a .*floating.* tensor, got torch.int64"),
        ({"divergence": torch.full((8, 2), math.inf)}, ValueError, r"divergence\[0, 0\] is inf, expected a finite"),
    ],
)
def test_bad_divergence(change, error, message):
    with pytest.raises(error, match=message):
        dual_mode_advantages(REWARDS, LOGPROBS, MASK, **EXAMPLE, **EXACT | change)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_sampled_bonus_has_the_exact_one_as_its_mean(alpha):
    """20,000 tokens of each mode in one place: the mean of b over tokens drawn from the own distribution."""
    g, tokens = torch.Generator().manual_seed(0), 20_000
    log_p = torch.randn(2, 26, generator=g, dtype=torch.float64).mul(1.5).log_softmax(-1)  # of the two modes
    drawn = torch.multinomial(log_p.exp(), tokens, replacement=True, generator=g)
    prompt, writer = [0, 1, 0, 1], [0, 1, 1, 0]
    logprobs = torch.stack([log_p[m].gather(-1, drawn[w]) for m, w in zip(prompt, writer, strict=True)])
    entropy = -(log_p.exp() * log_p).sum(-1)
    kl = torch.stack([(log_p[m].exp() * (log_p[m] - log_p[1 - m])).sum() for m in (0, 1)])
    surprise, divergence = (x[prompt][:, None].expand(4, tokens) for x in (entropy, kl))
    options = {"num_prompts": 1, "num_generations": 1, "alpha": alpha, "normalize": "none", "kappa": None}
    options |= {"eta": 1.0, "eta_normal": -1.0}
    arguments = torch.zeros(4), logprobs, torch.ones(4, tokens)
    sampled = dual_mode_advantages(*arguments, **options)[1]
    exact = dual_mode_advantages(*arguments, surprise=surprise, divergence=divergence, **options)[1]
    for mode in (0, 1):  # block m holds what mode m wrote under its own prompt
        standard_error = sampled[mode].std().item() / math.sqrt(tokens)
        assert abs(sampled[mode].mean() - exact[mode].mean()) < 4 * standard_error
        assert exact[mode].unique().numel() == 1
        assert (1 - alpha) * kl[mode] > 20 * standard_error or alpha == 1  # the test would see its loss or its sign
        assert alpha == 1 or abs(kl[0] - kl[1]) * (1 - alpha) > 5 * standard_error  # and the other direction's KL


def trainer(folder, **options):
    model = options.pop("model", None) or tiny.model()
    reward = options.pop("reward", tiny.reward)
    return PolicySplitTrainer(model, tiny.tokenizer(), reward, tiny.QUESTIONS, tiny.config(folder, **options))


def plain_log_p(policy, rollout, row, temperature):
    """log pi(.|prompt, response so far) (T, V) of one row, by a forward without padding or batch."""
    prompt = rollout.prompt_ids[row, rollout.prompt_ids.shape[1] - rollout.prompt_lengths[row] :]
    response = rollout.completion_ids[row, : rollout.completion_lengths[row]]
    with torch.no_grad():
        logits = policy.bare(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.double() / temperature, -1)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_scored_divergence_is_brute_force_over_the_vocabulary(tmp_path, size):
    """Every row under its own prompt and under the other, whose length differs: the padding must not matter."""
    run = trainer(tmp_path, model=tiny.model().double(), temperature=0.7)
    rollout, rows = run.sample(), range(48)
    scores = score(run.policy, rollout, cut(rollout, rows, size, paired=True), 0.7, divergence=True)
    reference = score(run.policy, rollout, cut(rollout, rows, 5), 0.7)
    for exact, plain in zip(scores[:2], reference[:2], strict=True):
        torch.testing.assert_close(exact, plain, rtol=0, atol=1e-12)
    assert reference.divergence is None
    for row in rows:
        block, place = divmod(row, 12)
        own, other = (plain_log_p(run.policy, rollout, r, 0.7) for r in (row, (3 - block) * 12 + place))
        length = rollout.completion_lengths[row]
        expected = (own.exp() * (own - other)).sum(-1)
        torch.testing.assert_close(scores.divergence[row, :length], expected, rtol=0, atol=1e-12)
        assert not scores.divergence[row, length:].any()


def test_exact_estimator_in_the_trainer_is_brute_force(tmp_path):
    """Advantage minus correctness: eta * (H + (1 - alpha) * KL(own || other)) in the high-entropy mode, 0 elsewhere."""
    options = {"alpha": 0.2, "eta": 0.3, "kappa": None, "normalize": "none", "temperature": 0.7}
    run = trainer(tmp_path, model=tiny.model().double(), bonus_estimator="exact", **options)
    kept, tokens = {}, run.tokens
    run.tokens = lambda rollout: kept.setdefault("out", tokens(rollout))
    before = tiny.model().double()
    _, rollout = run.step()
    run.policy.bare.load_state_dict(before.state_dict())  # the policy that was scored
    sizes = {"num_prompts": 3, "num_generations": 4}
    correctness, _ = dual_mode_advantages(rollout.rewards, rollout.logprobs, rollout.mask, eta=0.0, **sizes)
    bonus = kept["out"].advantages - correctness
    for row in range(48):
        block, place = divmod(row, 12)
        own, other = (plain_log_p(run.policy, rollout, r, 0.7) for r in (row, (3 - block) * 12 + place))
        expected = -(own.exp() * own).sum(-1) + 0.8 * (own.exp() * (own - other)).sum(-1)
        actual = bonus[row, : rollout.completion_lengths[row]]
        torch.testing.assert_close(actual, 0.3 * expected * (block in (1, 3)), rtol=0, atol=1e-10)


RUNS = [
    {"bonus_estimator": "sampled"},
    {"bonus_estimator": "entropy", "log_exact_kl": True},
    {"bonus_estimator": "exact"},
    {"bonus_estimator": "exact", "per_device_train_batch_size": 1, "num_iterations": 2},
    {"bonus_estimator": "exact", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 7},
    {"bonus_estimator": "exact", "eta_normal": 0.1, "mask_truncated_completions": True, "beta": 0.1},
]


@pytest.mark.parametrize("options", RUNS)
def test_runs_are_finite_repeatable_and_report_what_they_know(tmp_path, options):
    lines = []
    for name in ("first", "second"):
        clamp = {"eta": 0.3, "clamp": "code", "share_correction": "truncated"}
        trainer(tmp_path / name, max_steps=3, **clamp, **options).train()
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        lines.append([{key: value for key, value in row.items() if key != "step_time"} for row in rows])
    assert lines[0] == lines[1]
    for row in lines[0]:
        assert all(value is not None and math.isfinite(value) for value in row.values())
        known = options.get("log_exact_kl", False) or options["bonus_estimator"] == "exact"
        for name in ("policy_split/exact_kl_high_normal", "policy_split/exact_kl_normal_high"):
            assert (name in row) == known
            assert row.get(name, 1.0) > 0


def test_exact_kl_in_the_metrics_is_the_mean_over_own_tokens(tmp_path):
    metrics, rollout = trainer(tmp_path, log_exact_kl=True).step()
    for name, block in (("normal_high", 0), ("high_normal", 1)):
        own = slice(12 * block, 12 * (block + 1))
        expected = rollout.divergence[own][rollout.mask[own]].mean().item()
        assert metrics[f"policy_split/exact_kl_{name}"] == pytest.approx(expected, rel=1e-6)


def test_looking_at_the_exact_kl_does_not_change_the_run(tmp_path):
    runs = []
    for log in (False, True):
        options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 7, "adam_epsilon": 1e-3}
        options |= {"share_prompts": False}  # of rows that are paired other ones stand side by side
        run = trainer(tmp_path / str(log), model=tiny.model().double(), log_exact_kl=log, **options)
        run.train()
        runs.append(run.policy.bare.state_dict())
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=1e-6, atol=1e-9)


def test_scoring_and_update_use_the_same_micro_batches(tmp_path):
    """Without a clamp every row trains; weights that do not move then have no ratio to clip."""
    options = {"learning_rate": 0.0, "num_iterations": 2, "epsilon": 1e-5, "per_device_train_batch_size": 7}
    run = trainer(tmp_path, bonus_estimator="exact", kappa=None, eta_normal=0.1, **options)
    seen, forward = [], run.policy.completion_logits
    run.policy.completion_logits = lambda batch: seen.append(batch.inputs["input_ids"]) or forward(batch)
    metrics, _ = run.step()
    scored, first, second = (seen[start : start + len(seen) // 3] for start in range(0, len(seen), len(seen) // 3))
    assert len(scored) == 8
    for batches in zip(scored, first, second, strict=True):
        assert all(torch.equal(ids, batches[0]) for ids in batches)
    assert metrics["normal/clip_ratio"] == metrics["high_entropy/clip_ratio"] == 0.0


def test_exact_kl_of_an_evaluation(tmp_path):
    """One token per response: the exact KL of two distributions is at hand, however few responses there are."""
    model = tiny.model(scale=40.0).eval()
    config = tiny.config(tmp_path, max_completion_length=1, log_exact_kl=True, temperature=0.7)
    result = evaluate_modes(model, tiny.tokenizer(), [{"prompt": "1 2"}], tiny.reward, config, num_samples=3)
    with torch.no_grad():
        normal, high = (
            model(torch.tensor([[tiny.WORDS.index(word) for word in words.split()]])).logits[0, -1].div(0.7)
            for words in ("1 2", "explore 1 2")
        )
    normal, high = normal.log_softmax(-1), high.log_softmax(-1)
    assert result["exact_kl_high_normal"] == pytest.approx((high.exp() * (high - normal)).sum().item(), abs=1e-5)
    assert result["exact_kl_normal_high"] == pytest.approx((normal.exp() * (normal - high)).sum().item(), abs=1e-5)
    assert abs(result["exact_kl_high_normal"] - result["exact_kl_normal_high"]) > 1e-3
    plain = tiny.config(tmp_path, max_completion_length=1)
    keys = evaluate_modes(model, tiny.tokenizer(), [{"prompt": "1 2"}], tiny.reward, plain, num_samples=3).keys()
    assert not [key for key in keys if key.startswith("exact")]
