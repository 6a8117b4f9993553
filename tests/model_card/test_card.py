"""The model card: what it says, whose README.md it may replace, and that its lines of code do what they say."""

import json
import re
import shutil

import pytest
import tiny
import torch
import yaml
from trained import trainer
from transformers import AutoTokenizer

from policy_split.commands.main import main
from policy_split.model_card.card import card, code, fenced
from policy_split.model_card.facts import Facts, hub_name, public_name
from policy_split.model_card.split import Split, read_split
from policy_split.modes import encode_prompt
from policy_split.run_folder.model_folder import MARK
from policy_split.run_folder.output_dir import remove_earlier_run

LINE_ENDS = ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1e", "\r", "\r\n"]
LINE_ENDS += ["\x00", "\x1b", "\x7f", "\x9f", "\ufeff"]  # and their kin


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, chat=True, max_steps=2).train()
    return folder


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.M | re.S)


def facts(**options):
    return Facts(Split("explore"), **options)


def test_a_run_ends_with_a_card_its_plot_and_the_prompts(run):
    text = (run / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["policy-split", "reinforcement-learning"],
        "algorithm": "policy_split",
    }
    assert text.startswith("---\n")
    assert MARK in text
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    row = f"| reward | {last['normal/reward']:.4g} | {last['high_entropy/reward']:.4g} |"
    assert row in text
    assert f"KL(high-entropy ‖ normal): {last['policy_split/kl_high_normal']:.4g} nats" in text
    assert "| steps | 2 |" in text
    assert "| learning_rate | `0.01` |" in text
    assert "](model_card.png)" in text
    assert (run / "model_card.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "model_card.png").stat().st_size < 1e5
    assert json.loads((run / "policy_split.json").read_text())["high_entropy_prompt"] == "explore"
    assert read_split(run) == Split("explore", temperature=1.0, max_completion_length=6)


def test_it_shows_what_both_modes_read(run):
    tokenizer = tiny.tokenizer(chat=True)
    shown = blocks((run / "README.md").read_text(), "text")
    expected = [tokenizer.decode(encode_prompt(tokenizer, "Your question", system)) for system in (None, "explore")]
    assert shown == expected


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
def test_its_lines_for_transformers_ask_the_high_entropy_mode(run, tmp_path, capsys, chat):
    if chat:
        folder = run
    else:
        folder = tmp_path
        trainer(folder, max_steps=1).train()
    python = blocks((folder / "README.md").read_text(), "python")
    place = {}
    exec(python[0].replace("path/of/this/folder", str(folder)), place)
    assert len(capsys.readouterr().out.splitlines()) == 4
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = encode_prompt(tokenizer, "Your question", "explore")
    assert place["inputs"]["input_ids"].tolist() == [wanted]
    assert place["out"].shape[0] == 4
    assert place["out"].shape[1] <= len(wanted) + 6
    assert torch.equal(place["out"][0, : len(wanted)], torch.tensor(wanted))
    compile(python[1], "vllm", "exec")


def test_a_readme_of_somebody_else_stays_and_ours_goes(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    run = trainer(tmp_path, max_steps=1)
    run.train()
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "policy_split.json").is_file()
    remove_earlier_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    (tmp_path / "README.md").unlink()
    run.save_model()
    assert MARK in (tmp_path / "README.md").read_text()
    run.save_model()
    remove_earlier_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_of_the_hub_stand_in_the_head_and_paths_nowhere(tmp_path):
    (tmp_path / "secret").mkdir()
    local = card(facts(base_model=str(tmp_path / "secret"), dataset="/home/me/questions.jsonl"), tiny.tokenizer())
    assert str(tmp_path) not in local
    assert "/home/me" not in local
    assert "| base model | `secret` (a local folder) |" in local
    assert "| questions | `questions.jsonl` |" in local
    assert "base_model" not in local.split("---\n")[1]
    known = facts(base_model="Qwen/Qwen3-0.6B", dataset="openai/gsm8k:train")
    head = yaml.safe_load(card(known, tiny.tokenizer()).split("---\n")[1])
    assert head["base_model"] == "Qwen/Qwen3-0.6B"
    assert head["datasets"] == ["openai/gsm8k"]
    assert head["base_model_relation"] == "finetune"
    adapter = yaml.safe_load(card(known, tiny.tokenizer(), adapter=True).split("---\n")[1])
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")


def test_nothing_in_a_prompt_ends_a_block_or_a_cell():
    text = card(Facts(Split("explore ````")), tiny.tokenizer())
    assert re.search(r"^`````python\n.*explore ````.*?^`````$", text, re.M | re.S)
    assert fenced("a ``` b", "text") == "````text\na ``` b\n````"
    assert code("a|b`c\nd") == "`` a\\|b`c d ``"


@pytest.mark.parametrize("name", LINE_ENDS, ids=ascii)
def test_what_yaml_would_take_for_a_line_end_comes_back(tmp_path, name):
    """In the head and in policy_split.json; the code asks with the very prompt."""
    prompt, tags = f"x{name}y", ("policy-split", f"a{name}b")
    made = Facts(Split(prompt, normal_prompt=f"{name}z"), tags=tags)
    made.split.write(tmp_path)
    assert read_split(tmp_path) == made.split
    (tmp_path / "README.md").write_text(card(made, tiny.tokenizer()), encoding="utf-8")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == [*tags]
    place = {}
    exec(re.search(r"^prompts = .*?(?=^prompt = )", text, re.M | re.S)[0], place)
    assert place["prompts"] == {"normal": f"{name}z\n\nYour question", "high-entropy": f"{prompt}\n\nYour question"}


def test_numbers_of_an_evaluation_stand_with_their_intervals():
    measure = {"mean": 0.5, "low": 0.25, "high": 0.75}
    mode = {"accuracy": measure, "pass_at_k": {"1": measure, "16": measure, "2": {"mean": None}}}
    evaluation = {"num_questions": 7, "num_samples": 16, "modes": {"normal": mode, "high_entropy": {}}}
    text = card(facts(evaluation=evaluation), tiny.tokenizer())
    assert "7 questions, 16 responses of each mode" in text
    assert "| pass@1 | 0.5 [0.25, 0.75] | – |\n| pass@16 | 0.5 [0.25, 0.75] | – |" in text
    assert "pass@2 " not in text


def test_a_baseline_has_one_mode():
    text = card(Facts(Split("explore", algorithm="grpo", dual_mode=False)), tiny.tokenizer())
    assert "high-entropy" not in text.partition("## Asking it")[2]
    assert "one mode" in text


@pytest.mark.parametrize(
    ("given", "hub", "public"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("gpt2", "gpt2", "gpt2"),
        ("/a/b/model", None, "model"),
        ("../model", None, "model"),
        ("~/model/", None, "model"),
        ("/x/rewards.py:reward", None, "rewards.py:reward"),
        ("C:\\x\\model", None, "model"),
        ("reasoning-gym:chain_sum?size=5", None, "reasoning-gym:chain_sum?size=5"),
        ("a/b/c", None, "a/b/c"),
        (None, None, None),
        ("", None, None),
        (["/x/a.py:f", "math"], None, "a.py:f, math"),
    ],
)
def test_which_names_may_be_published(given, hub, public):
    assert (hub_name(given), public_name(given)) == (hub, public)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"high_entropy_prompt": 1}', '{"high_entropy_prompt": "x", "high_entropy_place": "top"}',
     '{"high_entropy_prompt": "x", "normal_prompt": 3}', '{"high_entropy_prompt": "x", "chat_template_kwargs": []}'],
)  # fmt: skip
def test_a_policy_split_json_that_cannot_be_used_is_named(tmp_path, content):
    (tmp_path / "policy_split.json").write_text(content)
    with pytest.raises(ValueError, match=r"policy_split\.json"):
        read_split(tmp_path)


def test_an_evaluation_of_a_run_stands_in_its_card(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    before = (run / "README.md").read_text()
    (tmp_path / "questions.jsonl").write_text('{"prompt": "1 2"}\n{"prompt": "3"}\n')
    (tmp_path / "rewards.py").write_text("def reward(completions, **columns): return [1.0] * len(completions)\n")
    task = ["--dataset", str(tmp_path / "questions.jsonl"), "--reward", f"{tmp_path}/rewards.py:reward"]
    assert main(["eval", str(run), *task, "--num-samples", "2", "--use_cpu", "true"]) == 0
    text = (run / "README.md").read_text()
    assert "## Evaluation" not in before
    assert "2 questions, 2 responses of each mode" in text
    assert "| pass@2 | 1 [1, 1] | 1 [1, 1] |" in text
    assert re.sub(r"## Evaluation.*(?=## Asking)", "", text, flags=re.S) == before
    (run / "README.md").write_text("mine")
    assert main(["eval", str(run), *task, "--num-samples", "1", "--use_cpu", "true"]) == 0
    assert (run / "README.md").read_text() == "mine"
