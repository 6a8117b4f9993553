"""policy-split sample: what it asks, prints and refuses."""

import io
import json

import pytest
import tiny
from trained import trainer

from policy_split.commands.main import main
from policy_split.commands.sample import shown
from policy_split.report.terminal import COLORS, RESET, cells, level, wrapped
from policy_split.rollouts.answers import Answer

ASK = ["--prompt", "1 2", "--num-samples", "3", "--use-cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, chat=True, max_steps=1, save_steps=1, temperature=0.5).train()
    return folder


def asked(capsys, *arguments):
    assert main(["sample", *map(str, arguments), *ASK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_both_modes_of_a_run_and_of_its_checkpoint(run, capsys):
    found = asked(capsys, run)
    assert {name: len(each) for name, each in found["modes"].items()} == {"normal": 3, "high_entropy": 3}
    assert (found["temperature"], found["max_tokens"], found["seed"], found["prompt"]) == (0.5, 6, 42, "1 2")
    for answer in (*found["modes"]["normal"], *found["modes"]["high_entropy"]):
        assert 1 <= len(answer["tokens"]) == len(answer["entropy"]) <= 6
        assert all(0 <= nats < 4 for nats in answer["entropy"])
    assert asked(capsys, run / "checkpoints/checkpoint-1")["modes"] == found["modes"]


def test_settings_seed_and_one_mode(run, capsys):
    found = asked(capsys, run, "--mode", "high-entropy", "--seed", 7, "--max-tokens", 2, "--temperature", 2)
    assert list(found["modes"]) == ["high_entropy"]
    assert max(len(answer["tokens"]) for answer in found["modes"]["high_entropy"]) <= 2
    same = asked(capsys, run, "--mode", "high-entropy", "--seed", 7, "--max-tokens", 2, "--temperature", 2)
    assert same == found
    assert (found["seed"], found["temperature"]) == (7, 2.0)


def test_any_model_and_standard_input(tmp_path, capsys, monkeypatch):
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("3 4"))
    ask = ["sample", str(tmp_path), "--prompt", "-", "--num-samples", "1", "--max-tokens", "2", "--use-cpu"]
    assert main(ask) == 0
    out = capsys.readouterr().out
    assert "normal 1: " in out
    assert "high-entropy 1: " in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--num-samples", "0"], "--num-samples=0 must be at least 1"),
        (["--temperature", "0"], "temperature=0.0 must be a finite number above 0"),
        (["--max-tokens", "0"], "max_completion_length=0 must be an integer of at least 1"),
        (["--max-tokens", "400"], "do not fit into the model's 64 positions"),
        (["--prompt", " "], "--prompt is empty; give a question"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, capsys, more, said):
    assert main(["sample", str(run), *ASK, "--mode", "normal", *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_no_model_is_named(tmp_path, capsys):
    assert main(["sample", str(tmp_path), *ASK]) == 2
    assert "there is no model in it" in capsys.readouterr().err


ANSWERS = {0: [Answer("ab c", ["ab", " c"], [0.1, 2.5], False)], 1: [Answer("x", ["x"], [3.0], True)]}


def test_modes_stand_side_by_side_where_there_is_room():
    plain = shown(ANSWERS, width=80, color=False).splitlines()
    assert plain[0] == "normal 1: 2 tokens, 1.30 nats/token    | high-entropy 1: 1 tokens, 3.00 nats/to"
    assert plain[1] == "ab c                                   | ken, cut off"
    narrow = shown(ANSWERS, width=40, color=False).splitlines()
    assert narrow[1] == "ab c"
    assert narrow[-1] == "x"


def test_colors_are_those_of_the_entropy():
    painted = shown(ANSWERS, width=40, color=True)
    assert f"ab{COLORS[3]} c{RESET}\n" in painted
    assert painted.endswith(f"{COLORS[4]}x{RESET}")
    assert [level(nats) for nats in (0, 0.49, 0.5, 1, 2, 2.99, 3, float("inf"))] == [0, 0, 1, 2, 3, 3, 4, 4]


def test_an_answer_cannot_act_on_the_terminal():
    lines = wrapped([("a\x1b[2Jb\r\nc\td\u202e\x07\x9b", 0.0)], 80)
    assert ["".join(character for character, _ in line) for line in lines] == ["a␛[2Jb", "c    d\ufffd␇\ufffd"]


def test_lines_hold_as_many_cells_as_there_are():
    lines = wrapped([("日本語abc", 1.0), ("e\u0301", 0.0)], 4)
    assert ["".join(character for character, _ in line) for line in lines] == ["日本", "語ab", "ce\u0301"]
    assert [cells(line) for line in lines] == [4, 4, 2]
