"""The built-in task: solver against brute force, disjoint splits, grading, and the tokenizer's round trips."""

import itertools
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy_split.countdown.expressions import evaluate
from policy_split.countdown.grading import canonical, countdown_reward, is_correct
from policy_split.countdown.model import HIGH_ENTROPY_PROMPT, countdown_model, countdown_tokenizer
from policy_split.countdown.problems import SPLITS, Countdown, Problem, solved_examples, warm_start_examples
from policy_split.countdown.solutions import answer_counts, solutions


def key(problem):
    return tuple(sorted(problem.numbers)), problem.target


def brute_force(numbers, target):
    """The right ones among all orders of numbers and operators that end in an operator (no infix)."""
    texts = set()
    for operators in itertools.product("+-*/", repeat=len(numbers) - 1):
        for order in set(itertools.permutations([*map(str, numbers), *operators])):
            if order[-1] in "+-*/":
                texts.add(" ".join(order))
    return sorted(text for text in texts if (found := evaluate(text)) is not None and found.value == target)


@pytest.mark.parametrize(
    ("numbers", "target"), [((3, 5, 2), 16), ((4, 4, 1), 15), ((1, 1, 1), 1), ((7, 7, 7), 7), ((9, 6, 3), 5)]
)
def test_solver_finds_what_brute_force_finds(numbers, target):
    found = solutions(numbers, target)
    assert found == brute_force(numbers, target)
    assert len(found) == len(set(found)) == dict(answer_counts(numbers)).get(target, 0)


def test_solver_by_hand():
    assert solutions([2, 3], 6) == ["2 3 *", "3 2 *"]
    assert solutions([2, 2], 4) == ["2 2 *", "2 2 +"]
    assert solutions([3, 5, 2], 16) == ["2 3 5 + *", "2 5 3 + *", "3 5 + 2 *", "5 3 + 2 *"]
    assert solutions([1, 1], 7) == []


def test_four_numbers():
    found = solutions([8, 3, 8, 3], 24)
    assert "8 3 8 3 / - /" in found  # 8 / (3 - 8 / 3): needs exact fractions
    assert all(is_correct(text, [3, 3, 8, 8], 24) for text in found)
    assert sum(len(solutions([1, 2, 3, 4], target)) for target, _ in answer_counts([1, 2, 3, 4])) == sum(
        answers for _, answers in answer_counts([1, 2, 3, 4])
    )


@pytest.mark.parametrize("task", [Countdown(), Countdown(2, 20, 50, fewest_answers=1), Countdown(4, 5, 40)])
def test_splits_are_solvable_in_range_and_disjoint(task):
    train, held_out = task.problems(60, seed=0), task.problems(60, seed=0, split="held_out")
    for problem in train + held_out:
        assert len(problem.numbers) == task.numbers
        assert 1 <= min(problem.numbers) <= max(problem.numbers) <= task.largest
        assert 1 <= problem.target <= task.largest_target
        assert len(solutions(problem.numbers, problem.target)) >= task.fewest_answers
    assert len(set(train)) == len(set(held_out)) == 60
    assert not set(map(key, train)) & set(map(key, held_out))


def test_no_seed_and_no_difficulty_moves_a_problem_to_the_other_side():
    held_out = set(map(key, Countdown().problems(800, seed=1, split="held_out")))
    assert not held_out & set(map(key, Countdown().problems(3000, seed=2)))
    assert not held_out & set(map(key, Countdown(largest_target=100, fewest_answers=1).problems(3000, seed=3)))
    problem = Problem((2, 3, 5), 16)
    assert len({Countdown().split_of(Problem(order, 16)) for order in itertools.permutations(problem.numbers)}) == 1


def test_sizes_that_the_documentation_names():
    task = Countdown()
    problems = {
        Problem(numbers, target): answers
        for numbers in itertools.combinations_with_replacement(range(1, task.largest + 1), task.numbers)
        for target, answers in answer_counts(numbers)
        if target <= task.largest_target
    }
    rich = {problem: answers for problem, answers in problems.items() if answers >= task.fewest_answers}
    held_out = sum(task.split_of(problem) == "held_out" for problem in rich)
    assert (len(problems) - len(rich), len(rich), held_out) == (612, 941, 187)
    assert round(sum(rich.values()) / len(rich), 1) == 8.5


def test_a_third_split_takes_problems_from_training_alone():
    task = Countdown(test_share=0.3)
    splits = {split: list(map(key, task.problems(300, seed=5, split=split))) for split in SPLITS}
    assert not any(a in splits[other] for split in SPLITS for other in SPLITS if other != split for a in splits[split])
    assert task.problems(300, seed=5, split="held_out") == Countdown().problems(300, seed=5, split="held_out")
    assert {Countdown().split_of(Problem(*problem)) for problem in splits["test"]} == {"train"}


def test_problems_follow_the_seed():
    task = Countdown()
    assert task.problems(50, seed=3) == task.problems(50, seed=3) != task.problems(50, seed=4)
    assert task.problems(20, seed=3) == task.problems(50, seed=3)[:20]
    state = random.getstate()
    task.problems(5, seed=0)
    assert random.getstate() == state


def test_too_much_is_a_clear_error():
    with pytest.raises(ValueError, match="prompts in its split 'train', not 1000"):
        Countdown(2, 3, 5).problems(1000, seed=0)
    with pytest.raises(ValueError, match="2 to 5 numbers, not 6"):
        Countdown(6)
    with pytest.raises(ValueError, match="largest_target=0"):
        Countdown(largest_target=0)
    with pytest.raises(ValueError, match="held_out_share"):
        Countdown(held_out_share=0)
    with pytest.raises(ValueError, match=r"test_share=0\.8"):
        Countdown(test_share=0.8)
    with pytest.raises(ValueError, match="split='tset' must be one of 'train', 'held_out', 'test'"):
        Countdown().problems(1, seed=0, split="tset")
    with pytest.raises(ValueError, match="fewest_answers=0"):
        Countdown(fewest_answers=0)


def test_dataset_and_reward():
    rows = Countdown().dataset(32, seed=0)
    assert rows.column_names == ["prompt", "numbers", "target"]
    row = rows[0]
    assert row["prompt"] == f"{' '.join(map(str, row['numbers']))} = {row['target']} :"
    answers = [random.Random(0).choice(found) for _, found in solved_examples(rows)]
    columns = {"prompts": rows["prompt"], "numbers": rows["numbers"], "target": rows["target"], "mode": [0] * 32}
    assert countdown_reward(completions=answers, **columns) == [1.0] * 32
    assert countdown_reward(completions=["1 +"] * 32, **columns) == [0.0] * 32
    with pytest.raises(ValueError, match="zip"):
        countdown_reward(completions=answers[1:], **columns)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        *[("3 5 + 2 *", True), ("(3+5)*2", True), (" 2 * (5 + 3) ", True)],
        *[("3 5 +", False), ("3 5 + 2 * 1 *", False), ("8 2 *", False), ("3 3 5 + 2 * - 3 +", False), ("16", False)],
        *[("3 5 2 + *", False), ("3 5 + 2 * =", False), ("", False), (None, False)],
    ],
)
def test_is_correct(completion, right):
    assert is_correct(completion, [3, 5, 2], 16) is right


def test_each_number_counts_as_often_as_it_is_given():
    assert is_correct("4 4 *", [4, 4], 16)
    assert not is_correct("4 4 *", [4], 16)
    assert not is_correct("4 4 * 4 + 4 -", [4, 4, 2], 16)


def test_canonical():
    assert canonical(" (3+5)*2 ") == canonical("3 5 + 2 *") == "3 5 + 2 *"
    assert canonical("5 3 + 2 *") != canonical("3 5 + 2 *")
    assert canonical("3 +") is None
    unordered = {canonical(text, ignore_order=True) for text in solutions([3, 5, 2], 16)}
    assert unordered == {canonical("3 5 + 2 *", ignore_order=True)}
    assert canonical("5 3 -", ignore_order=True) != canonical("3 5 -", ignore_order=True)


def test_tokenizer_round_trips(tmp_path):
    tokenizer = countdown_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        text = f"{HIGH_ENTROPY_PROMPT} 3 15 100 = 16 :"
        ids = loaded(text).input_ids
        assert len(ids) == len(text.split())
        assert loaded.unk_token_id not in ids
        assert loaded.decode(ids) == text
        answer = [*loaded.encode("3 5 + 2 *"), loaded.eos_token_id, loaded.pad_token_id]
        assert loaded.decode(answer, skip_special_tokens=True) == "3 5 + 2 *"
        assert loaded.decode(loaded.encode("(3+5)*2/7-1")) == "( 3 + 5 ) * 2 / 7 - 1"
        assert loaded.encode("101") == [loaded.unk_token_id]
        assert len({loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id}) == 4
        assert loaded.chat_template is None
        assert loaded.padding_side == "left"
        assert len(loaded) == tokenizer.vocab_size == 114
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_model_is_small_seeded_and_saved(tmp_path):
    tokenizer = countdown_tokenizer()
    state = torch.get_rng_state()
    model = countdown_model(tokenizer, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.14e6 < model.num_parameters() < 0.18e6
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    other = countdown_model(tokenizer, seed=2)
    ids = torch.tensor([tokenizer.encode("3 5 2 = 16 :")])
    with torch.no_grad():
        logits = model(ids).logits
        assert logits.shape == (1, 6, 114)
        assert torch.equal(countdown_model(tokenizer, seed=1)(ids).logits, logits)
        assert torch.equal(again(ids).logits, logits)
        assert not torch.allclose(other(ids).logits, logits)


def test_warm_start_examples_add_smaller_problems_and_never_a_held_out_one():
    examples = warm_start_examples(Countdown(), 50, seed=0, easier=20)
    parsed = [(tuple(map(int, prompt.split(" =")[0].split())), int(prompt.split()[-2])) for prompt, _ in examples]
    assert [len(numbers) for numbers, _ in parsed] == [3] * 50 + [2] * 20
    assert min(len(answers) for _, answers in examples[:50]) < Countdown().fewest_answers
    assert not any(Countdown().split_of(Problem(*problem)) == "held_out" for problem in parsed)
    assert all(answers == solutions(*problem) for problem, (_, answers) in zip(parsed, examples, strict=True))
