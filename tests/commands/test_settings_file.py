"""--config FILE.yaml: names and types are checked, flags win over it, a run's own file can be given back."""

import pytest
import saved_task
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy_split.commands import main as cli
from policy_split.commands.settings_file import read_settings_file
from policy_split.commands.train_arguments import parse
from policy_split.config import PolicySplitConfig
from policy_split.run_folder.record import as_yaml, described


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "settings.yaml").write_text(text)
        return tmp_path / "settings.yaml"

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("learning_rate: 1e-6\nkappa: .inf", {"learning_rate": 1e-6, "kappa": float("inf")}),
        ("learning_rate: 1E-4\neta_normal: -2e1\nalpha: 1", {"learning_rate": 1e-4, "eta_normal": -20.0, "alpha": 1.0}),
        ("chat_template_kwargs: {enable_thinking: false}", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("chat_template_kwargs: '{\"a\": 1}'", {"chat_template_kwargs": '{"a": 1}'}),
        ("reward_weights: [1, 0.5]\nnormal_prompt:", {"reward_weights": [1, 0.5], "normal_prompt": None}),
        ("reward: [a.py:f, b.py:g]\nmodel: m", {"reward": ["a.py:f", "b.py:g"], "model": "m"}),
        ("high_entropy_prompt: |\n  two\n  lines", {"high_entropy_prompt": "two\nlines"}),
    ],
)
def test_settings_are_read_with_their_types(file, text, expected):
    read = read_settings_file(file(text))
    assert read == expected
    assert [type(value) for value in read.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lerning_rate: 1", "there is no setting 'lerning_rate'; did you mean learning_rate?"),
        ("learning-rate: 1", "there is no setting 'learning-rate'; did you mean learning_rate?"),
        (
            "lora_rank: 4\nnum_generation: 2",
            "'lora_rank'; .*no setting 'num_generation'; did you mean num_gen",
        ),
        ("qqqqqq: 1", "there is no setting 'qqqqqq'; policy-split train --help lists them"),
        ("1: 2", "there is no setting 1"),
        ("learning_rate: fast", "learning_rate='fast' must be a number$"),
        ("learning_rate: true", "learning_rate=True must be a number$"),
        ("use_cpu: 1", "use_cpu=1 must be true or false"),
        ("max_steps: 2.5", "max_steps=2.5 must be an integer"),
        ("max_steps: true", "max_steps=True must be an integer"),
        ("seed:", "seed=None must be an integer$"),
        ("normal_prompt: yes", "normal_prompt=True must be a text, or nothing"),
        ("reward_weights: [a]", r"reward_weights=\['a'\] must be a list of numbers, or nothing"),
        ("model: 3", "model=3 must be a text"),
        ("eta: 1\nseed: 2\neta: 3", "cannot be read .eta stands twice, the second time in line 3"),
        ("- eta", "expected settings by name, got a list"),
        ("eta: [", "cannot be read"),
        ("a: !!python/object/apply:os.system [echo]", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(file, text, said):
    path = file(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_settings_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_one_that_is_no_text(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config .*nowhere\.yaml: there is no such file"):
        read_settings_file(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"bytes\.yaml: cannot be read"):
        read_settings_file(tmp_path / "bytes.yaml")


@settings(max_examples=60, deadline=None)
@example({"high_entropy_prompt": "a\x85b\u2028c\ufeff", "normal_prompt": " no\r\n"})
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(0, 1e3),
            "eta": st.floats(0, 10),
            "normal_prompt": st.none() | st.text(min_size=1).filter(str.strip),
            "high_entropy_prompt": st.text(min_size=1).filter(str.strip),
            "max_prompt_length": st.none() | st.integers(1, 10**12),
            "reward_weights": st.none() | st.lists(st.floats(-5, 5), min_size=1),
            "chat_template_kwargs": st.none() | st.dictionaries(st.text(), st.booleans() | st.integers() | st.text()),
            "bf16": st.booleans(),
        },
    )
)
def test_whatever_a_run_has_written_can_be_given_back(tmp_path_factory, given):
    try:
        config = PolicySplitConfig(**given)
    except ValueError:  # the two prompts may be the same
        return
    path = tmp_path_factory.getbasetemp() / "given.yaml"
    path.write_text(as_yaml(described(config, {})), encoding="utf-8")
    assert PolicySplitConfig(**read_settings_file(path)) == config


def test_flags_win_over_the_file_and_the_file_over_defaults(file):
    path = str(file("model: m\ndataset: d.jsonl\nreward: r.py:f\nlearning_rate: 0.5\neta: 0.25\nbf16: true"))
    asked = parse(["--config", path, "--eta", "0.75", "--dataset", "other.jsonl", "--reward", "s.py:g"])
    assert (asked.config.learning_rate, asked.config.eta, asked.config.bf16) == (0.5, 0.75, True)
    assert (asked.sources["model"], asked.sources["dataset"]) == ("m", "other.jsonl")
    assert asked.sources["reward"] == ["s.py:g"]  # not beside those of the file
    assert asked.size is None
    assert parse(["--config", path]).sources["reward"] == ["r.py:f"]
    assert parse(["--config", path, "--bf16", "false"]).config.bf16 is False


def test_the_built_in_task_takes_a_file(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = parse(["--config", str(file("size: minute\nmax_steps: 7"))])
    assert asked.size.settings["prompts_per_step"] == asked.config.prompts_per_step == 64
    assert (asked.config.max_steps, asked.config.output_dir) == (7, "runs/countdown")
    assert parse(["--config", str(file("size: minute\nmax_steps: 7")), "--max_steps", "9"]).config.max_steps == 9
    with pytest.raises(ValueError, match="size='huge' must be one of 'minute'"):
        parse(["--config", str(file("size: huge"))])
    with pytest.raises(ValueError, match="--dataset needs --model"):
        parse(["--config", str(file("dataset: q.jsonl"))])


def test_a_runs_own_file_makes_the_same_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task = saved_task.save(tmp_path)
    first = ["--output_dir", "run", "--max_steps", "2", "--overwrite_output_dir", "true", "--learning_rate", "0.01"]
    assert cli.main(["train", *task, *first]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where model, questions and rewards are not
    given = str(tmp_path / "run/config.yaml")
    assert cli.main(["train", "--config", given, "--output_dir", str(tmp_path / "again")]) == 0

    def numbers(name):
        rows = saved_task.rows(tmp_path / name)
        return [{key: value for key, value in row.items() if key != "step_time"} for row in rows]

    assert numbers("again") == numbers("run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config", given]) == 2  # not over itself
    assert "already holds a run (metrics.jsonl" in capsys.readouterr().err


def test_settings_of_a_run_that_python_has_started_need_a_model(file, capsys):
    path = str(file("model:\ndataset:\nreward:\neta: 0.5"))
    assert cli.main(["train", "--config", path]) == 2
    assert "settings of a run whose model was an object of Python; give --model as well" in capsys.readouterr().err
