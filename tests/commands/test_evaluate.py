"""policy-split eval as a user gives it: runs, models, Countdown, two of them compared, and wrong arguments."""

import json
import shutil

import pytest
import tiny
import yaml

from policy_split.commands import evaluate
from policy_split.countdown.grading import canonical, is_correct
from policy_split.countdown.model import countdown_model, countdown_tokenizer
from policy_split.countdown.sizes import SIZES
from policy_split.evaluation.comparison import compare

SMALL = SIZES["small"]
QUICK = ["--use_cpu", "true", "--disable_tqdm", "true", "--num-samples", "4"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run, a model beside it, a dataset and a reward, as files."""
    folder = tmp_path_factory.mktemp("saved")
    for name, seed in (("run", 0), ("model", 1)):
        tiny.model(seed=seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    settings = {"max_completion_length": 3, "high_entropy_prompt": "explore", "seed": 7, "of_a_later_version": 1}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in tiny.QUESTIONS))
    (folder / "rewards.py").write_text(
        "def reward(completions, wanted):\n    return [float(w in c) for c, w in zip(completions, wanted)]\n"
    )
    return folder


@pytest.fixture
def task(saved):
    return ["--dataset", str(saved / "questions.jsonl"), "--reward", f"{saved / 'rewards.py'}:reward", *QUICK]


def read(path):
    return json.loads(path.read_text())


def test_a_run(saved, task, capsys):
    run = saved / "run"
    assert evaluate.run([str(run), *task, "--num-questions", "5"]) == 0
    said, result = capsys.readouterr().out, read(run / "evaluation.json")
    assert f"{run}: 5 questions, 4 responses of each mode to each" in said
    assert f"evaluation: {run / 'evaluation.json'}" in said
    assert f"| {result['modes']['normal']['accuracy']['mean']:.3f} [" in said
    assert "pass@4" in said
    assert "pass@8" not in said
    assert (result["model"], result["num_questions"], result["num_samples"]) == (str(run), 5, 4)
    assert result["questions"] == [question["prompt"] for question in tiny.QUESTIONS[:5]]
    # the run's own settings, and what they mean
    assert {name: result["settings"][name] for name in ("max_completion_length", "seed")} == {
        "max_completion_length": 3,
        "seed": 7,
    }
    assert "of_a_later_version" not in result["settings"]
    assert 1 <= result["modes"]["normal"]["mean_length"]["mean"] <= 3
    assert set(result["kl_high_normal"]) == {"mean", "low", "high"}
    assert not list(run.glob("*.tmp"))


def test_the_command_line_goes_before_the_runs_settings(saved, task, tmp_path):
    output = tmp_path / "other.json"
    assert evaluate.run([str(saved / "run"), *task, "--max_completion_length", "2", "--output", str(output)]) == 0
    result = read(output)
    assert (result["settings"]["max_completion_length"], result["settings"]["seed"]) == (2, 7)
    assert result["modes"]["normal"]["mean_length"]["mean"] <= 2


def test_against_another_model_and_its_json(saved, task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [*task, "--max_completion_length", "3", "--high_entropy_prompt", "explore", "--seed", "7"]
    run, model = str(saved / "run"), str(saved / "model")
    assert evaluate.run([model, *settings]) == 0
    other = read(tmp_path / "evaluation.json")  # a model's folder is not written to
    assert not (saved / "model" / "evaluation.json").exists()
    results = []
    for against in (model, str(tmp_path / "evaluation.json")):
        assert evaluate.run([run, *settings, "--against", against, "--output", "compared.json"]) == 0
        results.append(read(tmp_path / "compared.json"))
        said = capsys.readouterr().out
        assert f"this: {run}\nother: {against}\n" in said
        assert "difference [95 % interval]" in said
    assert results[0]["comparison"]["modes"] == results[1]["comparison"]["modes"]
    measure = results[0]["comparison"]["modes"]["high_entropy"]["entropy"]
    assert measure["mean"] == pytest.approx(results[0]["modes"]["high_entropy"]["entropy"]["mean"])
    assert measure["against"] == pytest.approx(other["modes"]["high_entropy"]["entropy"]["mean"])
    assert measure["difference"] == pytest.approx(measure["mean"] - measure["against"])
    assert 0 < measure["p_value"] <= 1


def test_against_itself(saved, task, tmp_path, capsys):
    run, output = str(saved / "run"), tmp_path / "same.json"
    assert evaluate.run([run, *task, "--against", run, "--output", str(output)]) == 0
    for mode in read(output)["comparison"]["modes"].values():
        for name in ("accuracy", "entropy", "distinct_correct", "distinct_2"):
            assert (mode[name]["difference"], mode[name]["p_value"]) == (0.0, 1.0)
    # other draws of the same model, and the reader is told of it
    arguments = [run, *task, "--seed", "8", "--against", str(output), "--output", str(tmp_path / "drawn.json")]
    assert evaluate.run(arguments) == 0
    assert f"other: {output} (seed 7 for 8)\n" in capsys.readouterr().out
    assert read(tmp_path / "drawn.json")["comparison"]["modes"]["normal"]["entropy"]["difference"] != 0


def test_two_evaluations_that_are_there(saved, task, tmp_path, capsys):
    names = [str(tmp_path / f"{seed}.json") for seed in (1, 2)]
    for seed, name in enumerate(names):
        assert evaluate.run([str(saved / "run"), *task, "--seed", str(seed), "--output", name]) == 0
    before = [read(tmp_path / f"{seed}.json") for seed in (1, 2)]
    capsys.readouterr()
    assert evaluate.run([names[0], "--against", names[1]]) == 0
    assert "| high-entropy | accuracy" in capsys.readouterr().out
    assert [read(tmp_path / f"{seed}.json") for seed in (1, 2)] == before
    assert evaluate.run([names[0], "--against", names[1], "--output", str(tmp_path / "3.json")]) == 0
    written = read(tmp_path / "3.json")
    comparison = written.pop("comparison")
    assert written == before[0]
    assert comparison == {"against": names[1], **compare(*before)}
    with pytest.raises(ValueError, match="has been evaluated; give --against the JSON"):
        evaluate.run([names[0], "--against", str(saved / "run")])


def test_other_questions_are_refused_and_nothing_is_lost(saved, task, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert evaluate.run([str(saved / "run"), *task, "--output", str(first)]) == 0
    with pytest.raises(ValueError, match="5 and 6 questions: a paired comparison needs the same ones"):
        evaluate.run(
            [str(saved / "run"), *task, "--num-questions", "5", "--against", str(first), "--output", str(second)]
        )
    assert read(second)["num_questions"] == 5


def test_countdown_has_its_own_questions(tmp_path):
    tokenizer = countdown_tokenizer()
    countdown_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    output = tmp_path / "evaluation.json"
    assert evaluate.run([str(tmp_path), "--num-questions", "6", *QUICK, "--output", str(output)]) == 0
    result = read(output)
    assert result["settings"]["high_entropy_prompt"] == SMALL.settings["high_entropy_prompt"]
    held_out = SMALL.task.problems(6, seed=evaluate.QUESTIONS_SEED, split="held_out")
    assert result["questions"] == [problem.prompt for problem in held_out]
    assert result["settings"]["max_completion_length"] == SMALL.settings["max_completion_length"]
    # what the run was trained with goes before what the task would be trained with
    (tmp_path / "config.yaml").write_text("max_completion_length: 4\n")
    assert evaluate.run([str(tmp_path), "--num-questions", "6", *QUICK, "--output", str(output)]) == 0
    result = read(output)
    assert result["settings"]["max_completion_length"] == 4
    assert result["modes"]["normal"]["mean_length"]["mean"] <= 4


def test_countdown_is_graded_and_counted_by_its_own_rules(tmp_path, monkeypatch):
    tokenizer = countdown_tokenizer()
    countdown_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tasks = []

    def noted(model, tokenizer, dataset, reward_funcs, config, num_samples, **options):
        tasks.append((dataset, reward_funcs, config, options))
        raise ValueError("seen enough")

    monkeypatch.setattr(evaluate, "evaluate_in_detail", noted)
    with pytest.raises(ValueError, match="seen enough"):
        evaluate.run([str(tmp_path), *QUICK, "--num-samples", "64", "--output", str(tmp_path / "x.json")])
    [(dataset, reward, config, options)] = tasks
    assert len(dataset) == SMALL.held_out_questions
    # 64 questions of 8 responses in training: 8 questions of 64 here
    assert config.prompts_per_step == 8
    assert options == {"key": canonical, "correct_reward": 1.0, "judge": None}
    row = dataset[0]
    texts = [f"{' '.join(map(str, row['numbers']))} + +", "1 +"]
    expected = [float(is_correct(text, row["numbers"], row["target"])) for text in texts]
    columns = {name: [row[name]] * 2 for name in ("numbers", "target")}
    assert reward(prompts=[row["prompt"]] * 2, completions=texts, **columns) == expected


def test_other_tokenizers_are_not_countdowns():
    assert evaluate.is_countdown(countdown_tokenizer(30))
    assert not evaluate.is_countdown(tiny.tokenizer())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ([], ValueError, "needs --dataset and --reward"),
        (["--dataset", "questions.jsonl"], ValueError, "--dataset needs --reward"),
        (["--dataset", "/no/such.jsonl", "--reward", "rewards.py:reward"], FileNotFoundError, "/no/such.jsonl"),
        (["--num-samples", "0"], ValueError, "--num-samples=0 must be at least 1"),
        (["--num-questions", "0"], ValueError, "--num-questions=0 must be at least 1"),
        (["--against", "/no/such.json"], FileNotFoundError, "/no/such.json: there is no such file"),
        (["--against", "questions.json"], ValueError, "questions.json: not JSON"),
        (["--against", "run/config.json"], ValueError, "config.json: not an evaluation"),
        (["--against", "/no/such/run"], FileNotFoundError, "/no/such/run: there is no such folder"),
        (["--against", "empty"], FileNotFoundError, "empty: there is no model in it"),
        (["--output", "/no/such/folder/x.json"], FileNotFoundError, "there is no folder /no/such/folder"),
        (["--temperature", "0"], ValueError, r"temperature=0.0 must be a finite number above 0"),
        (["--learning_rate", "1"], ValueError, "--learning_rate"),
    ],
)
def test_wrong_arguments(saved, tmp_path, monkeypatch, arguments, error, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved / "run", "run")
    for name in ("questions.jsonl", "rewards.py"):
        shutil.copy(saved / name, name)
    shutil.copy("questions.jsonl", "questions.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=words) as raised:
        evaluate.run(["run", *QUICK, *arguments])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "evaluation.json").exists()


def test_folders_that_cannot_be_evaluated(saved, task, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model in it"):
        evaluate.run([str(tmp_path), *task])
    for text, words in (("[1, 2]", "expected settings by name, got list"), ("a: [", "cannot be read")):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copytree(saved / "run", tmp_path / "run", dirs_exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=words) as raised:
            evaluate.run([str(tmp_path / "run"), *task])
        assert "\n" not in str(raised.value)
    (tmp_path / "run" / "config.yaml").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises((OSError, ValueError)) as raised:
        evaluate.run([str(tmp_path / "run"), *task])
    assert "\n" not in str(raised.value)


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        evaluate.run(["--help"])
    said = capsys.readouterr().out
    for option in ("RUN_OR_MODEL", "--against", "--num-samples", "--dataset", "--high_entropy_prompt"):
        assert option in said
    assert "--learning_rate" not in said
