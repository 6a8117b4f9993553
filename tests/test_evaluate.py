"""evaluate_modes: numbers counted by hand, nothing disturbed, a table that can be read."""

import pytest
import tiny
import torch

from policy_split.evaluate import evaluate_modes, format_table


def evaluate(tmp_path, model=None, reward=tiny.reward, dataset=tiny.QUESTIONS, **options):
    model = tiny.model() if model is None else model
    return evaluate_modes(model, tiny.tokenizer(), dataset, reward, tiny.config(tmp_path), **options)


def test_counts_are_those_of_the_responses(tmp_path):
    seen = []

    def has_a(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return [float("a" in text) for text in completions]

    result = evaluate(tmp_path, reward=has_a, num_samples=5)
    assert (result["num_samples"], result["num_prompts"]) == (5, 6)
    # batches of 3 questions (prompts_per_step), in each the normal responses first
    by_mode = {"normal": seen[:15] + seen[30:45], "high_entropy": seen[15:30] + seen[45:]}
    for mode, responses in by_mode.items():
        right = {}
        for prompt, text in responses:
            right.setdefault(prompt, set()).update([" ".join(text.split())] if "a" in text else [])
        correct = [float("a" in text) for _, text in responses]
        assert len(right) == 6
        assert result[mode]["accuracy"] == pytest.approx(sum(correct) / 30)
        assert result[mode]["best_of_n"] == pytest.approx(sum(bool(found) for found in right.values()) / 6)
        assert result[mode]["distinct_correct"] == pytest.approx(sum(map(len, right.values())) / 6)
        assert 0 < result[mode]["entropy"] < torch.tensor(float(len(tiny.WORDS))).log()
        assert 1 <= result[mode]["mean_length"] <= 6
    assert result["kl_high_normal"] > 0
    assert result["kl_normal_high"] > 0


def test_key_and_threshold(tmp_path):
    everything = evaluate(tmp_path, reward=lambda completions: [0.5] * len(completions), correct_reward=0.5, key=len)
    assert everything["normal"]["best_of_n"] == 1.0
    assert everything["normal"]["distinct_correct"] <= 7  # 0 to 6 words of one letter
    nothing = evaluate(tmp_path, reward=lambda completions: [0.5] * len(completions))
    assert nothing["normal"]["best_of_n"] == nothing["normal"]["distinct_correct"] == 0.0


def test_kl_estimate_is_near_the_exact_one(tmp_path):
    """One token per response: the exact KL of two distributions is at hand."""
    model, config = tiny.model(scale=40.0).eval(), tiny.config(tmp_path, max_completion_length=1)
    result = evaluate_modes(model, tiny.tokenizer(), [{"prompt": "1 2"}], tiny.reward, config, num_samples=4000)
    with torch.no_grad():
        normal, high = (
            model(torch.tensor([[tiny.WORDS.index(word) for word in words.split()]])).logits[0, -1].log_softmax(-1)
            for words in ("1 2", "explore 1 2")
        )
    assert result["kl_high_normal"] == pytest.approx((high.exp() * (high - normal)).sum().item(), rel=0.15)
    assert result["kl_normal_high"] == pytest.approx((normal.exp() * (normal - high)).sum().item(), rel=0.15)
    assert result["high_entropy"]["entropy"] == pytest.approx(-(high.exp() * high).sum().item(), abs=1e-5)


def test_same_seed_same_result_and_nothing_disturbed(tmp_path):
    model = tiny.model().train()
    state = torch.get_rng_state()
    first, second, other = (evaluate(tmp_path, model, seed=seed) for seed in (0, 0, 1))
    assert first == second != other
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="the evaluation dataset has no column 'prompt'"):
        evaluate(tmp_path, dataset=[{"question": "1"}])
    with pytest.raises(ValueError, match="needs answer"):
        evaluate(tmp_path, reward=lambda completions, answer: [])
    with pytest.raises(ValueError, match="num_samples=0"):
        evaluate(tmp_path, num_samples=0)


def test_table():
    def result(x):
        mode = {"accuracy": x, "best_of_n": 0.75, "distinct_correct": 1.5, "entropy": 0.25, "mean_length": 5.0}
        return {"normal": mode, "high_entropy": mode, "kl_high_normal": x, "kl_normal_high": 0.5, "num_samples": 8}

    lines = format_table(result(0.25), result(0.5)).splitlines()
    assert lines[0].split("|")[3:8] == [
        " accuracy ", " best of 8 ", " different correct of 8 ", " entropy (nats/token) ", " length (tokens) ",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0] == ["normal", "before", "0.250", "0.750", "1.50", "0.250", "5.0"]
    assert cells[1][:3] == ["normal", "after", "0.500"]
    assert cells[3][:3] == ["high-entropy", "after", "0.500"]
    assert lines[7] == "KL(high-entropy || normal), nats/token: before 0.250, after 0.500"
    assert len({len(line) for line in lines[:6]}) == 1
    assert format_table(result(0.25)).splitlines()[5] == "KL(high-entropy || normal), nats/token: 0.250"
