"""A model, questions and rewards as files, and the flags of a run of seconds on them."""

import json

import tiny

QUICK = ["--use_cpu", "true", "--disable_tqdm", "true", "--max_completion_length", "4", "--num_generations", "2"]
QUICK += ["--prompts_per_step", "2", "--high_entropy_prompt", "explore"]


def save(folder):
    """The flags of the task, which stands in the folder from now on."""
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.QUESTIONS))
    text = "def reward(completions, **columns):\n    return [text.split().count('a') / 6 for text in completions]\n"
    (folder / "rewards.py").write_text(text)
    return ["--model", "model", "--dataset", "questions.jsonl", "--reward", "rewards.py:reward", *QUICK]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
