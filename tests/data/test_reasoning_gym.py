"""Tasks of reasoning-gym by name: the questions, the task's own score in a child process, and what is refused."""

import ast
import datetime
import enum
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Literal

import datasets
import pytest
import tiny

from policy_split.commands.main import main
from policy_split.data import reasoning_gym
from policy_split.data.datasets import as_prompts, load_prompts
from policy_split.data.gym_worker import typed
from policy_split.data.reasoning_gym import GymTask, ReasoningGymReward, check_held_out, gym_task, own_reward
from policy_split.rewards.functions import as_reward_functions, check_columns, compute_rewards, reward_name
from policy_split.training.trainer import PolicySplitTrainer

pytest.importorskip("reasoning_gym")
# words of the tiny tokenizer, and sums that its two-layer model writes by chance
SUMS = "reasoning-gym:chain_sum?size=24&min_terms=2&max_terms=2&min_digits=1&max_digits=1"


class Color(enum.Enum):
    RED = "red"


@pytest.fixture(scope="module")
def countdown():
    return load_prompts("reasoning-gym:countdown?size=4&min_numbers=3&max_numbers=3&operators=+,-")


@pytest.fixture(scope="module")
def reward(countdown):
    return own_reward(countdown)


def expressions(dataset):
    return [ast.literal_eval(entry)["metadata"]["expression"] for entry in dataset["entry"]]


def test_names():
    task = gym_task("reasoning-gym:countdown?size=20&min_numbers=3&operators=+,-&seed=3")
    assert task == GymTask("countdown", 20, 3, {"min_numbers": "3", "operators": "+,-"})
    assert gym_task(str(task)) == task
    assert gym_task("reasoning-gym:a?b=1%262%3D%253") == GymTask("a", 2000, 0, {"b": "1&2=%3"})
    assert gym_task(str(gym_task("reasoning-gym:a?b=1%262%3D%253"))).settings == {"b": "1&2=%3"}
    trained, held_out = gym_task("reasoning-gym:countdown"), gym_task("reasoning-gym:countdown", held_out=True)
    assert (trained.size, held_out.size) == (2000, 500)
    assert not set(trained.seeds) & set(held_out.seeds)


def test_questions_are_the_same_each_time_and_change_with_the_seed(countdown):
    state = random.getstate()
    again = load_prompts("reasoning-gym:countdown?size=4&seed=0&min_numbers=3&max_numbers=3&operators=+,-")
    assert random.getstate() == state  # reasoning-gym's import seeds it
    assert again["prompt"] == countdown["prompt"]
    assert again["entry"] == countdown["entry"]
    # question i is drawn from seed + i
    other = load_prompts("reasoning-gym:countdown?size=4&seed=2&min_numbers=3&max_numbers=3&operators=+,-")
    assert other["prompt"][:2] == countdown["prompt"][2:]
    assert len({*other["prompt"], *countdown["prompt"]}) == 6


# random's generator, the order of sets, numpy's strings
@pytest.mark.parametrize("task", ["list_functions", "isomorphic_strings", "knights_knaves"])
def test_tasks_that_use_global_generators_sets_and_numpy_are_repeatable_too(task):
    name = f"reasoning-gym:{task}?size=3"
    made = load_prompts(name)
    assert made.to_list() == load_prompts(name).to_list()
    assert own_reward(made)(made["answer"], made["entry"], made["task"]) == [1.0, 1.0, 1.0]


def test_settings_reach_the_task(countdown):
    for entry in countdown["entry"]:
        metadata = ast.literal_eval(entry)["metadata"]
        assert len(metadata["numbers"]) == 3
        assert not set("*/") & set(metadata["expression"])
    upper = load_prompts("reasoning-gym:word_sorting?size=2&transformation=uppercase")
    assert all(answer == answer.upper() for answer in upper["answer"])


def test_scores_are_the_tasks_own(countdown, reward):
    right = expressions(countdown)
    chat = [{"role": "assistant", "content": f"<answer>1</answer> no: <answer> {right[1]} </answer>."}]
    assert reward([right[0], chat, right[0], "nothing"], countdown["entry"]) == [1.0, 1.0, 0.05, 0.01]
    # a tuple in the metadata: in JSON it would be a list, and no answer right
    arc = load_prompts("reasoning-gym:rearc?size=1")
    assert own_reward(arc)(arc["answer"], arc["entry"], arc["task"]) == [1.0]


def test_a_score_that_hangs_is_0_and_named_and_the_others_are_scored(countdown):
    hurried = ReasoningGymReward("reasoning-gym:countdown", seconds=1.0)
    texts = [expressions(countdown)[0], "9**9**9**9", "9**9**9**9", "2"]
    entries = [countdown["entry"][0]] * 4
    expected = (
        r"countdown: 2 of 4 responses could not be scored and get 0\.0; "
        r"the score of sample 1 \('9\*\*9\*\*9\*\*9'\) gave no answer within 1 seconds"
    )
    with pytest.warns(UserWarning, match=expected) as warned:
        assert hurried(texts, entries) == [1.0, 0.0, 0.0, 0.05]
    assert len(warned) == 1


@pytest.mark.parametrize("value", ["float('nan')", "'1.0'", "None", "[1.0]"])
def test_a_score_that_is_no_finite_number_is_0(countdown, value, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(f"def scorer(name, settings): return lambda item: {value}\n")
    monkeypatch.setattr(reasoning_gym, "WORKER", tmp_path / "worker.py")
    grade = ReasoningGymReward("reasoning-gym:countdown")
    with pytest.warns(UserWarning, match="1 of 1 responses .* is .*, not a finite number"):
        assert grade(["1"], countdown["entry"][:1]) == [0.0]


def test_a_rows_task_goes_before_the_rewards_own(countdown):
    sums = load_prompts(SUMS)
    mixed = datasets.concatenate_datasets([countdown, sums.select(range(2))])
    grade = own_reward(mixed)
    right = [*expressions(countdown), *sums["answer"][:2]]
    assert grade(right, mixed["entry"], mixed["task"]) == [1.0] * 6
    assert len(grade.workers) == 2


def test_the_reward_by_name(countdown):
    functions = as_reward_functions("reasoning-gym:countdown", None, 60.0)
    assert reward_name(functions[0][0]) == "reasoning-gym:countdown"
    with pytest.raises(ValueError, match="reasoning-gym:countdown needs entry; it can have"):
        check_columns(functions, ["prompt", "answer"])
    check_columns(functions, countdown.column_names)
    columns = {name: countdown[name] for name in countdown.column_names if name != "prompt"}
    texts = expressions(countdown)
    assert compute_rewards(functions, countdown["prompt"], texts, [[]] * 4, columns) == [1.0] * 4


def test_only_its_datasets_have_a_reward_of_their_own(countdown, tmp_path):
    countdown.to_parquet(tmp_path / "saved.parquet")
    assert own_reward(load_prompts(tmp_path / "saved.parquet")) is not None
    assert own_reward(as_prompts(tiny.QUESTIONS)) is None
    assert own_reward(as_prompts([{"prompt": "1", "task": "a", "entry": "b"}])) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("countdow", "reasoning-gym:countdow: no such task; there are countdown"),
        ("", "a task's name must follow"),
        ("countdown?min_number=3", "no setting 'min_number'; its settings are size, seed, min_numbers, max_numbers"),
        ("countdown?min_numbers=0", "min_numbers must be greater than 1"),
        ("countdown?size=0", "size=0 must be an integer of at least 1"),
        ("countdown?seed=-1", "seed=-1 must be an integer of at least 0"),
        ("countdown?size", "'size' must be setting=value"),
        ("countdown?size=1&size=2", "'size=2' must be setting=value, each setting once"),
        ("word_sorting?transformation=no", "transformation=no must be one of lowercase, uppercase"),
    ],
)
def test_wrong_names_are_said_in_one_line(name, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        load_prompts(f"reasoning-gym:{name}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("0.5", float, 0.5),
        ("True", bool, True),
        ("none", int | None, None),
        ("4", int | None, 4),
        ("+,-", tuple, ("+", "-")),
        ("1,2", list[int], [1, 2]),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("b", Literal["a", "b"], "b"),
        ("red", Color, Color.RED),
        ("red,red", list[Color], [Color.RED, Color.RED]),
    ],
)
def test_settings_are_of_the_tasks_types(text, hint, value):
    assert typed(text, hint, "key") == value


@pytest.mark.parametrize(
    ("text", "hint", "expected"),
    [
        ("x", int, "of type int"),
        ("1", bool, "true or false"),
        ("c", Literal["a", "b"], "one of a, b"),
        ("blue", Color, "one of red"),
        ("1,x", list[int], "of type int"),
    ],
)
def test_settings_that_are_not_of_the_tasks_types(text, hint, expected):
    with pytest.raises(ValueError, match=f"^key={text} must be {expected}$"):
        typed(text, hint, f"key={text}")
    for unknown in (datetime.date, list[tuple[float, float]]):
        with pytest.raises(ValueError, match=r"cannot be given in a name: it is a (date|list)"):
            typed(text, unknown, f"key={text}")


def test_training_and_evaluation_share_no_question():
    train = as_prompts(SUMS)
    same = SUMS.replace("size=24", "size=8&seed=23")
    with pytest.raises(ValueError, match=r"has \d+ questions of train_dataset .*seed \+ i; .* set it to 24 or more"):
        check_held_out(train, as_prompts(same, held_out=True))
    # few sums of two digits there are: the same ones come again from other seeds
    few = SUMS.replace("size=24", "size=300") + "&allow_negation=false"
    with pytest.warns(UserWarning, match="different questions of eval_dataset are in train_dataset as well, by chance"):
        check_held_out(as_prompts(few), as_prompts(few.replace("size=300&", ""), held_out=True))
    check_held_out(train, as_prompts(tiny.QUESTIONS))
    check_held_out(train, as_prompts("reasoning-gym:countdown?size=2&seed=0"))


@pytest.fixture
def model(tmp_path):
    tiny.model(max_position_embeddings=256).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


QUICK = ["--use_cpu", "true", "--disable_tqdm", "true", "--max_completion_length", "4"]


def test_train_and_evaluate_by_name(model, tmp_path, capsys):
    run = str(tmp_path / "run")
    command = ["train", "--model", model, "--dataset", SUMS, "--output_dir", run, *QUICK]
    command += ["--eval_dataset", SUMS.replace("size=24", "size=2&seed=24"), "--eval_steps", "2"]
    command += ["--eval_num_samples", "2", "--max_steps", "2", "--save_steps", "0", "--learning_rate", "1e-2"]
    assert main(command) == 0
    steps = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(0 <= step[f"{mode}/reward"] <= 1 for step in steps for mode in ("normal", "high_entropy"))
    assert 0 <= steps[-1]["eval/normal/accuracy"] <= 1
    command = ["eval", run, "--dataset", SUMS.replace("size=24&", ""), "--num-questions", "3", "--num-samples", "2"]
    assert main([*command, *QUICK]) == 0
    evaluation = json.loads(Path(run, "evaluation.json").read_text())
    trained = load_prompts(SUMS)["prompt"]
    assert evaluation["num_questions"] == 3
    assert not set(evaluation["questions"]) <= set(trained)


def test_the_trainer_by_name(tmp_path):
    model = tiny.model(max_position_embeddings=256)
    arguments = (tiny.tokenizer(), None, SUMS, tiny.config(tmp_path / "run", max_steps=1))
    trainer = PolicySplitTrainer(model, *arguments, eval_dataset=SUMS.replace("size=24&", "size=2&seed=24&"))
    assert trainer.train()["step"] == 1
    assert len(trainer.evaluate("reasoning-gym:chain_sum?size=2", 2)) > 2
    with pytest.raises(ValueError, match="questions of train_dataset"):
        PolicySplitTrainer(model, *arguments, eval_dataset=f"{SUMS}&seed=0")
    with pytest.raises(ValueError, match="reward_funcs is None; only reasoning-gym and words have one of their own"):
        PolicySplitTrainer(model, tiny.tokenizer(), None, tiny.QUESTIONS, tiny.config(tmp_path / "other"))


def test_the_trainers_process_never_imports_reasoning_gym():
    code = (
        "import sys; from policy_split.data.datasets import load_prompts\n"
        "from policy_split.data.reasoning_gym import own_reward\n"
        "made = load_prompts('reasoning-gym:chain_sum?size=2')\n"
        "assert own_reward(made)(made['answer'], made['entry']) == [1.0, 1.0]\n"
        "sys.exit('reasoning_gym' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error::ResourceWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
