"""What is given for a model and is none: said by its own name, with what would be right."""

import pytest
import tiny

from policy_split.models.policy import load_model, load_tokenizer
from policy_split.models.source import check_source, is_adapter

CASES = {
    "gguf folder": (["m/q4.gguf", "m/q8.gguf"], "m", ValueError, "m holds 2 GGUF files; give one: q4.gguf, q8.gguf"),
    "gguf beside weights": (["m/q4.gguf", "m/a.bin"], "m", FileNotFoundError, r"weights \(a.bin\) without a config"),
    "weights file": (["m/model.safetensors"], "m/model.safetensors", ValueError, "a file of weights; give its "),
    "text file": (["m.txt"], "m.txt", ValueError, "m.txt: a file; a model is a folder with config.json"),
    "weights alone": (["m/model.safetensors"], "m", FileNotFoundError, r"weights \(model.safetensors\) without"),
    "old checkpoint": (
        ["r/checkpoint-4/manifest.json", "r/checkpoint-4/progress.json", "r/checkpoint-4/model.safetensors"],
        "r/checkpoint-4", FileNotFoundError, "a checkpoint of an earlier version, .* resume its run with --resume",
    ),
    "run in progress": (
        ["r/metrics.jsonl", *(f"r/checkpoints/checkpoint-{n}/config.json" for n in (2, 10, 9))],
        "r", FileNotFoundError, "there is no model in it .* newest checkpoint is one too: .*checkpoint-10$",
    ),
    "run without a checkpoint": (["r/metrics.jsonl"], "r", FileNotFoundError, "a run has one when it has ended"),
    "folder of checkpoints": (["c/checkpoint-3/adapter_config.json"], "c", FileNotFoundError, "checkpoint-3$"),
    "dataset": (["d/dataset_info.json"], "d", FileNotFoundError, "a dataset, which --dataset takes"),
    "sharded": (["s/__0_0.distcp"], "s", FileNotFoundError, "a sharded checkpoint of another trainer"),
    "one level up": (["u/model/config.json"], "u", FileNotFoundError, "but in model, a folder inside"),
    "empty": (["e/.keep"], "e", FileNotFoundError, r"there is no model in it \(no config.json\); a model is a folder"),
    "two models": (
        ["m/config.json", "m/model.safetensors", "m/adapter_config.json"],
        "m", ValueError, r"holds a whole model and a LoRA adapter \(adapter_config.json\), which would",
    ),
    "absent": ([], "./nope", FileNotFoundError, "./nope: there is no such folder; a model is a folder"),
    "absent, nested": ([], "a/b/c", FileNotFoundError, "a/b/c: there is no such folder"),
    "absent file": ([], "models/m.gguf", FileNotFoundError, "models/m.gguf: there is no such folder"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "name", "kind", "said"), CASES.values(), ids=CASES)
def test_what_is_no_model_is_named(tmp_path, monkeypatch, files, name, kind, said):
    monkeypatch.chdir(tmp_path)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"GGUF" if file.endswith("gguf") else b"{}")
    for load in (lambda: load_model(name, tiny.config("run")), lambda: load_tokenizer(None, name)):
        with pytest.raises(kind, match=said) as caught:
            load()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "org/name.with-dots_1"])
def test_names_of_the_hub_are_left_to_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_source(name)
    assert not is_adapter(name)


def test_models_and_adapters_pass(tmp_path):
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / name).write_text("{}")
        check_source(str(tmp_path / name))
    assert is_adapter(str(tmp_path / "adapter_config.json"))
    assert not is_adapter(str(tmp_path / "config.json"))


def test_a_model_without_a_tokenizer_is_said_in_one_line(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer could be loaded: ") as caught:
        load_tokenizer(None, str(tmp_path))
    assert "\n" not in str(caught.value)
