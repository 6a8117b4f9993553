"""fresh_questions in a run: which prompts its steps ask, and the same after a resume."""

import json

from trained import trainer, weights

DATASET = [{"prompt": prompt, "wanted": "a"} for prompt in ("1 2", "1 2", "3", "1 2", "4 5", "3", "6", "7 8")]


def asked(folder):
    rows = map(json.loads, (folder / "completions.jsonl").read_text().splitlines())
    steps: dict[int, list[str]] = {}
    for row in rows:
        prompts = steps.setdefault(row["step"], [])
        if row["prompt"] not in prompts:
            prompts.append(row["prompt"])
    return steps


def test_no_question_comes_again_before_each_has_come(tmp_path):
    options = {"fresh_questions": True, "prompts_per_step": 1, "log_completions": True, "save_steps": 2}
    options |= {"lr_scheduler_type": "constant"}
    whole = trainer(tmp_path / "whole", dataset=DATASET, max_steps=10, **options)
    whole.train()
    steps = asked(tmp_path / "whole")
    for start in (1, 6):
        assert len({steps[step][0] for step in range(start, start + 5)}) == 5
    trainer(tmp_path / "parts", dataset=DATASET, max_steps=4, **options).train()
    rest = trainer(tmp_path / "parts", dataset=DATASET, max_steps=10, **options)
    rest.train(resume_from_checkpoint=True)
    assert asked(tmp_path / "parts") == steps
    for name, value in weights(whole).items():
        assert value.equal(weights(rest)[name])
