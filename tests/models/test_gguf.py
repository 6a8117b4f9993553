"""Models from GGUF files: the same model, ended by its template's tokens, converted once; faults are named."""

import json

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy_split import extras
from policy_split.models.gguf import ORIGIN, converted, end_of_turn, set_special_tokens
from policy_split.models.policy import end_ids, load_model, load_tokenizer

tiny_gguf = pytest.importorskip("tiny_gguf", reason="the extra gguf is not installed")
IDS = torch.tensor([[1, 70, 80, 90, 260, 5, 6, 2]])
CONFIG = tiny.config("run")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_the_one_that_the_file_was_made_of(tmp_path, tied):
    made = tiny_gguf.model(tied=tied)
    path = tiny_gguf.write(tmp_path / "m.gguf", made)
    loaded = load_model(str(path), CONFIG)
    assert torch.equal(logits(loaded), logits(made))
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    loaded.save_pretrained(tmp_path / "saved")  # which transformers refuses for what it has read itself
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(made))


def test_a_quantized_file_is_dequantized(tmp_path):
    made = tiny_gguf.model()
    loaded = load_model(str(tiny_gguf.write(tmp_path / "m.gguf", made, quantized=True)), CONFIG)
    assert loaded.dtype == torch.float32
    for name, weight in made.named_parameters():  # half a step of 1/127 of the largest, in half precision
        assert (loaded.get_parameter(name) - weight).abs().max() <= weight.abs().max() * (1 / 254 + 2**-11), name


def test_the_folder_of_a_file_is_the_file(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    tiny_gguf.write(folder / "q8.gguf")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')  # of another model, and not read
    (folder / "tokenizer_config.json").write_text('{"eos_token": "nonsense"}')
    assert load_model(str(folder), CONFIG).config.model_type == "llama"
    assert load_tokenizer(None, str(folder)).eos_token == "<|im_end|>"
    tiny_gguf.write(folder / "q4.gguf")
    with pytest.raises(ValueError, match=r"m holds 2 GGUF files; give one: q4.gguf, q8.gguf$"):
        load_model(str(folder), CONFIG)
    tiny.model().save_pretrained(folder)  # weights of the library's own format come first
    assert load_model(str(folder), CONFIG).config.model_type == "qwen3"


@pytest.mark.parametrize("eos", [0, 1])
def test_wrong_special_tokens_are_put_right_and_named(tmp_path, capsys, eos):
    path = tiny_gguf.write(tmp_path / "m.gguf", eos=eos)
    tokenizer = load_tokenizer(None, str(path))
    former = tiny_gguf.SPECIAL[eos]
    said = capsys.readouterr().err
    assert (
        f"m.gguf: eos_token is now '<|im_end|>', which ends a turn in its chat template, instead of '{former}'" in said
    )
    assert "m.gguf: pad_token is now '<|im_end|>'; it had none" in said
    model = load_model(str(path), CONFIG)
    assert capsys.readouterr().err == ""  # said once
    assert end_ids(model, tokenizer) == [2]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id == 2


def test_right_special_tokens_are_left_alone(tmp_path, capsys):
    tokenizer = load_tokenizer(None, str(tiny_gguf.write(tmp_path / "m.gguf", eos=2, pad=0)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (tiny_gguf.TEMPLATE, "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}", "<|endoftext|>"),
        ("{% for m in messages %}{{ m.content }} <|im_end|>\n<|endoftext|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}\nUser: {% endfor %}", None),  # ends in words
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }}<|unknown|>{% endfor %}", None),  # which the tokenizer takes apart
        ("<|im_end|>{{ messages[0].content }}<|im_end|>", None),  # shows no answer
        ("{{ raise_exception('no') }}", None),
        ("{% broken", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(tmp_path, template, end):
    tokenizer = load_tokenizer(None, str(tiny_gguf.write(tmp_path / "m.gguf", eos=2, pad=0)))
    tokenizer.chat_template, former = template, tokenizer.eos_token
    assert end_of_turn(tokenizer) == end
    set_special_tokens(tokenizer)
    assert tokenizer.eos_token == (end or former)


def test_it_is_converted_once(tmp_path, capsys):
    path, folder = tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "run" / "base_model"
    assert converted(path, folder, CONFIG, replace=False) == str(folder)
    assert f"m.gguf: its model is being converted into {folder}, once" in capsys.readouterr().err
    made = logits(tiny_gguf.model())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), made)
    assert AutoTokenizer.from_pretrained(folder).encode("hello<|im_end|>")[-1] == 2
    written = (folder / "model.safetensors").stat().st_mtime_ns
    converted(path, folder, CONFIG, replace=False)
    assert f"its model is in {folder}, converted before" in capsys.readouterr().err
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (folder / "model.safetensors").unlink()  # damaged: made again
    converted(path, folder, CONFIG, replace=False)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), made)
    assert [each.name for each in folder.parent.iterdir()] == ["base_model"]


def test_another_conversion_is_replaced_only_where_that_is_asked(tmp_path):
    path, folder = tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "base_model"
    converted(path, folder, CONFIG, replace=False)
    other = tiny_gguf.write(tmp_path / "other.gguf", tiny_gguf.model(tied=False))
    for asked, config in ((other, CONFIG), (path, tiny.config("run", model_dtype="bfloat16"))):
        with pytest.raises(FileExistsError, match=r"base_model was made of .*m.gguf in float32, not of .* in .*float"):
            converted(asked, folder, config, replace=False)
    converted(other, folder, CONFIG, replace=True)
    assert json.loads((folder / ORIGIN).read_text())["file"] == str(other)
    assert not AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings


def test_a_folder_of_somebody_elses_stays(tmp_path):
    path, folder = tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "base_model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"base_model is in the way of the model that .*m.gguf holds"):
        converted(path, folder, CONFIG, replace=True)
    assert (folder / "notes.txt").read_text() == "mine"


def broken(path, kind):
    tiny_gguf.write(path, architecture="clip" if kind == "architecture" else "llama")
    content = path.read_bytes()
    path.write_bytes(
        {"architecture": content, "empty": b"", "magic": b"GGML" + content[4:], "header": content[:60]}.get(
            kind, content[:-5000] if kind == "cut" else b"GGUF" + b"\xff" * 100
        )
    )
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("architecture", r"m.gguf: a GGUF file of architecture 'clip', which transformers \d.* cannot read; give the"),
        ("empty", "m.gguf: not a GGUF file: it does not begin with the letters GGUF"),
        ("magic", "m.gguf: not a GGUF file: it does not begin with the letters GGUF"),
        ("header", "m.gguf: the GGUF file is broken or cut short"),
        ("noise", "m.gguf: the GGUF file is broken or cut short"),
        ("cut", "m.gguf: the GGUF file is broken or cut short"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, kind, said):
    path = broken(tmp_path / "m.gguf", kind)
    for load in (load_tokenizer, lambda _, name: load_model(name, CONFIG)):
        with pytest.raises(ValueError, match=said) as caught:
            load(None, str(path))
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_in_the_file_are_not_made_up(tmp_path):
    path = tiny_gguf.write(tmp_path / "m-00001-of-00002.gguf", without=("blk.1.ffn_up.weight", "blk.1.attn_q.weight"))
    with pytest.raises(ValueError, match=r"2 weights of the LlamaForCausalLM are not in .* file \(model.layers.1"):
        load_model(str(path), CONFIG)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    path = tiny_gguf.write(tmp_path / "m.gguf")
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    for load in (load_tokenizer, lambda _, name: load_model(name, CONFIG)):
        with pytest.raises(ImportError, match=r"m.gguf, a GGUF file, needs the package gguf: pip .*split\[gguf\]$"):
            load(None, str(path))
