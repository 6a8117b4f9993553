"""evaluate_modes: numbers counted by hand, nothing disturbed, a table that can be read."""

import itertools
import json

import pytest
import tiny
import torch

from policy_split.evaluation.evaluate import evaluate_in_detail, evaluate_modes, format_table


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


def test_numbers_of_each_question(tmp_path):
    """All of them counted again from what the reward function was given."""
    seen = []

    def has_a(prompts, completions, completion_ids):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float("a" in text) for text in completions]

    model = tiny.model().train()
    arguments = (model, tiny.tokenizer(), tiny.QUESTIONS, has_a, tiny.config(tmp_path), 5)
    result = evaluate_in_detail(*arguments)
    assert model.training
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["num_questions"], result["num_samples"], result["correct_reward"]) == (6, 5, 1.0)
    assert result["questions"] == [question["prompt"] for question in tiny.QUESTIONS]
    end = tiny.WORDS.index("<eos>")
    by_mode = {"normal": seen[:15] + seen[30:45], "high_entropy": seen[15:30] + seen[45:]}
    for mode, responses in by_mode.items():
        groups = [responses[start : start + 5] for start in range(0, 30, 5)]
        expected = {name: [] for name in ("accuracy", "correct", "distinct_correct", "mean_length", "truncated")}
        expected |= {f"distinct_{size}": [] for size in (1, 2, 3)}
        for group in groups:
            right = [text for _, text, _ in group if "a" in text]
            ids = [list(tokens) for _, _, tokens in group]
            expected["accuracy"].append(len(right) / 5)
            expected["correct"].append(len(right))
            expected["distinct_correct"].append(len({" ".join(text.split()) for text in right}))
            expected["mean_length"].append(sum(map(len, ids)) / 5)
            expected["truncated"].append(sum(tokens[-1] != end for tokens in ids) / 5)
            words = [tokens[:-1] if tokens[-1] == end else tokens for tokens in ids]
            for size in (1, 2, 3):
                grams = [str(row[i : i + size]) for row in words for i in range(len(row) + 1 - size)]
                expected[f"distinct_{size}"].append(len(set(grams)) / max(1, len(grams)))
        for name, numbers in expected.items():
            assert result["per_question"][f"{mode}/{name}"] == pytest.approx(numbers), name
        measures = result["modes"][mode]
        assert list(measures["pass_at_k"]) == ["1", "2", "4"]
        assert measures["pass_at_k"]["1"]["mean"] == pytest.approx(measures["accuracy"]["mean"])
        assert measures["mean_length"]["mean"] == pytest.approx(sum(expected["mean_length"]) / 6)
        assert all(m["low"] <= m["mean"] <= m["high"] for name, m in measures.items() if name != "pass_at_k")
    plain = evaluate_modes(*arguments)  # of the same responses
    for mode in by_mode:
        for name in ("accuracy", "distinct_correct", "mean_length"):
            assert plain[mode][name] == pytest.approx(result["modes"][mode][name]["mean"])


def test_many_responses_say_what_eight_of_them_hold(tmp_path):
    """The mean over every choice of 8 from 10; a baseline's model is asked under both prompts too."""
    seen = []

    def has_a(prompts, completions):
        seen.extend(completions)
        return [float("a" in text) for text in completions]

    config = tiny.config(tmp_path, prompts_per_step=6, algorithm="grpo")
    model, tokenizer, questions = tiny.model(), tiny.tokenizer(), tiny.QUESTIONS
    result = evaluate_in_detail(model, tokenizer, questions, has_a, config, 10, key=str.strip)
    for mode, responses in zip(("normal", "high_entropy"), (seen[:60], seen[60:]), strict=True):
        groups = [responses[start : start + 10] for start in range(0, 60, 10)]
        expected = [
            sum(len({text.strip() for text in few if "a" in text}) for few in itertools.combinations(group, 8)) / 45
            for group in groups
        ]
        assert result["per_question"][f"{mode}/distinct_correct_8"] == pytest.approx(expected, abs=1e-12)
    few = evaluate_in_detail(model, tokenizer, questions, has_a, config, 7)
    assert "distinct_correct_8" not in few["modes"]["normal"]


def test_entropy_and_kl_of_each_question_are_the_exact_ones(tmp_path):
    """One token per response: both are known from the two distributions, whatever was sampled."""
    model, config = tiny.model(scale=40.0).eval(), tiny.config(tmp_path, max_completion_length=1)
    result = evaluate_in_detail(model, tiny.tokenizer(), tiny.QUESTIONS, tiny.reward, config, 3)
    expected = {name: [] for name in ("kl_high_normal", "kl_normal_high", "normal/entropy", "high_entropy/entropy")}
    for question in tiny.QUESTIONS:
        with torch.no_grad():
            normal, high = (
                model(torch.tensor([[tiny.WORDS.index(word) for word in words.split()]])).logits[0, -1].log_softmax(-1)
                for words in (question["prompt"], f"explore {question['prompt']}")
            )
        expected["kl_high_normal"].append((high.exp() * (high - normal)).sum().item())
        expected["kl_normal_high"].append((normal.exp() * (normal - high)).sum().item())
        expected["normal/entropy"].append(-(normal.exp() * normal).sum().item())
        expected["high_entropy/entropy"].append(-(high.exp() * high).sum().item())
    for name, numbers in expected.items():
        assert result["per_question"][name] == pytest.approx(numbers, abs=1e-5)
    assert result["kl_high_normal"]["mean"] == pytest.approx(sum(expected["kl_high_normal"]) / 6, abs=1e-5)
    # every question has the weight of its tokens in the one, the same in the other: here they are equal
    exact = evaluate_modes(
        model, tiny.tokenizer(), tiny.QUESTIONS, tiny.reward,
        tiny.config(tmp_path, max_completion_length=1, log_exact_kl=True), 3,
    )  # fmt: skip
    assert exact["exact_kl_high_normal"] == pytest.approx(result["kl_high_normal"]["mean"], abs=1e-5)


def test_key_threshold_and_seed_in_detail(tmp_path):
    def measured(reward=0.5, **options):
        arguments = (tiny.model(), tiny.tokenizer(), tiny.QUESTIONS, lambda completions: [reward] * len(completions))
        return evaluate_in_detail(*arguments, tiny.config(tmp_path), 3, **options)

    everything = measured(correct_reward=0.5, key=lambda text: "one")
    assert everything["per_question"]["normal/correct"] == [3.0] * 6
    assert everything["per_question"]["normal/distinct_correct"] == [1.0] * 6
    assert everything["modes"]["normal"]["pass_at_k"]["2"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    nothing = measured()
    assert nothing["per_question"]["normal/correct"] == nothing["per_question"]["normal/distinct_correct"] == [0.0] * 6
    assert nothing["modes"]["normal"]["accuracy"]["mean"] == 0.5
    assert measured() == nothing != measured(seed=1)
    with pytest.raises(ValueError, match="num_samples=0"):
        evaluate_in_detail(tiny.model(), tiny.tokenizer(), tiny.QUESTIONS, tiny.reward, tiny.config(tmp_path), 0)


def test_every_batch_has_draws_of_its_own(tmp_path):
    seen = []

    def noted(completions):
        seen.append(completions)
        return [0.0] * len(completions)

    evaluate_modes(tiny.model(), tiny.tokenizer(), [{"prompt": "1 2"}] * 6, noted, tiny.config(tmp_path), 4)
    assert len(seen) == 2
    assert seen[0] != seen[1]


def test_progress_is_shown_where_it_is_wanted(tmp_path, capsys):
    arguments = (tiny.model(), tiny.tokenizer(), tiny.QUESTIONS, tiny.reward)
    for disable, bar in ((True, False), (None, False), (False, True)):  # None: stderr is no terminal here
        evaluate_modes(*arguments, tiny.config(tmp_path, disable_tqdm=disable), 2)
        said = capsys.readouterr().err
        assert all((words in said) == bar for words in ("evaluation", "normal/reward=", "high_entropy/entropy="))


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
