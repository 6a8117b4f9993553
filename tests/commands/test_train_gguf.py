"""`train --model FILE.gguf`: converted once into the run's folder, and nothing of an earlier run is touched."""

import json
import shutil

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy_split.commands.main import main
from policy_split.training.trainer import PolicySplitTrainer

tiny_gguf = pytest.importorskip("tiny_gguf", reason="the extra gguf is not installed")


@pytest.fixture
def given(tmp_path):
    """What the command is given, but for --max_steps."""
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in tiny.QUESTIONS))
    (tmp_path / "rewards.py").write_text(
        "def reward(completions, **columns):\n    return [len(set(text)) / 9 for text in completions]\n"
    )
    path = tiny_gguf.write(tmp_path / "m.gguf", eos=1)
    task = ["--dataset", str(tmp_path / "questions.jsonl"), "--reward", f"{tmp_path / 'rewards.py'}:reward"]
    sizes = "--prompts_per_step 2 --num_generations 2 --max_completion_length 4 --use_cpu true --disable_tqdm true"
    return ["--model", str(path), *task, "--output_dir", str(tmp_path / "run"), "--save_steps", "1", *sizes.split()]


def test_a_run_from_its_conversion_to_the_model_that_it_saves(given, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *given, "--max_steps", "1"]) == 0
    said = capsys.readouterr().err
    assert f"m.gguf: its model is being converted into {run / 'base_model'}, once" in said
    assert "m.gguf: it is there, dequantized to torch.float32" in said
    assert "m.gguf: eos_token is now '<|im_end|>', which ends a turn" in said
    assert f"model: {tmp_path / 'm.gguf'}" in (run / "config.yaml").read_text()
    assert main(["train", *given, "--max_steps", "2", "--resume"]) == 0
    assert f"m.gguf: its model is in {run / 'base_model'}, converted before" in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    base, trained = (AutoModelForCausalLM.from_pretrained(folder) for folder in (run / "base_model", run))
    assert base.config.eos_token_id == trained.generation_config.eos_token_id == 2
    assert not torch.equal(base.get_input_embeddings().weight, trained.get_input_embeddings().weight)
    assert AutoTokenizer.from_pretrained(run).eos_token == "<|im_end|>"


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_run_goes_on_without_the_file(given, tmp_path, capsys, named):
    run, file = tmp_path / "run", tmp_path / "models" / "m.gguf"
    file.parent.mkdir()
    (tmp_path / "m.gguf").rename(file)
    whole = [*given[2:], "--model", str(file if named == "file" else file.parent)]
    assert main(["train", *whole, "--max_steps", "3"]) == 0
    told = (run / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints" / "checkpoint-3")
    shutil.rmtree(file.parent)
    assert main(["train", "--resume", str(run)]) == 0
    assert f"is not there any more: its model is in {run / 'base_model'}, converted before" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == told
    assert main(["train", "--resume", str(run), "--model_dtype", "bfloat16"]) == 2
    said = capsys.readouterr().err
    assert "cannot stand for it: it was converted in float32, and model_dtype='bfloat16' is asked for" in said
    (run / "base_model" / "config.json").write_text("{}")
    assert main(["train", "--resume", str(run)]) == 2
    assert "cannot stand for it: " in capsys.readouterr().err
    assert main(["train", *given[2:], "--model", str(tmp_path / "other.gguf"), "--resume"]) == 2
    assert "other.gguf: there is no such" in capsys.readouterr().err


def test_a_folder_that_holds_another_run_is_left_as_it_is(given, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    assert main(["train", *given]) == 2
    assert "already holds a run (metrics.jsonl)" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_run_written_over_leaves_no_base_model_behind(given, tmp_path):
    assert main(["train", *given, "--max_steps", "1"]) == 0
    (tmp_path / "run" / "base_model").rename(tmp_path / "other")
    assert main(["train", *given, "--max_steps", "1", "--overwrite_output_dir", "true"]) == 0
    other = ["--model", str(tmp_path / "other"), *given[2:]]
    assert main(["train", *other, "--max_steps", "1", "--overwrite_output_dir", "true"]) == 0
    assert not (tmp_path / "run" / "base_model").exists()


def test_in_python_nothing_is_written_before_the_first_step(given, tmp_path):
    config = tiny.config(tmp_path / "python", max_steps=1)
    trainer = PolicySplitTrainer(str(tmp_path / "m.gguf"), None, tiny.reward, tiny.QUESTIONS, config)
    assert not (tmp_path / "python").exists()
    trainer.train()
    assert AutoTokenizer.from_pretrained(tmp_path / "python").eos_token == "<|im_end|>"


def test_eval_reads_the_file_itself(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = "--num-samples 2 --num-questions 2 --max_completion_length 4 --use_cpu true --disable_tqdm true"
    assert main(["eval", given[1], *given[2:6], *options.split()]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["num_questions"] == 2
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert main(["eval", str(tmp_path / "broken.gguf"), *given[2:6], *options.split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"policy-split eval: error: {tmp_path / 'broken.gguf'}: the GGUF file is broken")
