"""encode_prompt: what each mode reads, by templates and tokenizers of every kind."""

import pytest
import tiny
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from policy_split.data.datasets import as_prompts, longest_prompt
from policy_split.modes import encode_modes, encode_prompt

USER, PREFILL = {"role": "user", "content": "1 2"}, {"role": "assistant", "content": "3"}
SPECIAL = [("<bos>", 1), ("<eos>", 2), ("<unk>", 3)]
TURNS = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
OPEN = "{% if add_generation_prompt %}assistant{% endif %}"
NO_SYSTEM = TURNS.replace("messages", "messages if m['role'] != 'system'") + OPEN  # drops it
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def chat(template=TURNS + OPEN):
    made = tiny.tokenizer(chat=True)
    made.chat_template = template
    return made


def adds(single):
    """A tokenizer that puts special tokens around a text."""
    made = tiny.tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=SPECIAL)
    return made


def read(tokenizer, prompt, system=None, *more, **options):
    return tokenizer.decode(encode_prompt(tokenizer, prompt, system, *more, **options))


@pytest.mark.parametrize(("system", "begin"), [(None, ""), ("explore", "system explore ")])
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], "user 1 2 assistant"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "2"}]}],
            "user 1 2 assistant",
        ),
        ([USER, PREFILL], "user 1 2 assistant 3"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "3"}]}], "user 1 2 assistant 3"),
        ([USER, PREFILL, USER], "user 1 2 assistant 3 user 1 2 assistant"),
        ([USER, PREFILL, USER, PREFILL], "user 1 2 assistant 3 user 1 2 assistant 3"),
        ([USER, {"role": "assistant", "content": ""}], "user 1 2 assistant"),
        ([USER, {"role": "assistant", "content": None}], "user 1 2 assistant"),
        ([USER, {"role": "assistant"}], "user 1 2 assistant"),
    ],
)
def test_messages(messages, expected, system, begin):
    assert read(chat(), messages, system) == begin + expected


def test_the_response_goes_on_behind_a_prefill_that_the_template_would_end():
    ends = chat("<bos>" + TURNS.replace("{% endfor %}", "<eos>{% endfor %}") + OPEN)
    assert read(ends, [USER, PREFILL], "explore") == "<bos> system explore <eos> user 1 2 <eos> assistant 3"
    assert read(ends, [USER, PREFILL], None, {"add_generation_prompt": True}).endswith("assistant 3 <eos> assistant")
    assert read(ends, [USER], None, {"continue_final_message": True}) == "<bos> user 1 2"
    with pytest.raises(ValueError, match="the assistant's, and has no text that it could go on with"):
        encode_prompt(ends, [USER, {"role": "assistant", "content": None, "tool_calls": [{"x": 1}]}], None)


def test_arguments_of_the_template():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with_tools = chat("{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + TURNS + OPEN + "{{ extra }}")
    assert (
        read(with_tools, [USER], "explore", {"tools": [tool], "extra": " 9"}) == "f system explore user 1 2 assistant 9"
    )
    for name in ("tokenize", "return_dict", "return_tensors"):
        with pytest.raises(ValueError, match=f"chat_template_kwargs has '{name}', which is not for the template"):
            encode_prompt(chat(), [USER], None, {name: False})


@pytest.mark.parametrize(
    ("single", "text", "expected"),
    [
        ("$A", "1 2", "1 2"),
        ("<bos> $A", "1 2", "<bos> 1 2"),
        ("<bos> $A", "<bos> 1 2", "<bos> 1 2"),
        ("$A", "<bos> 1 2", "<bos> 1 2"),
        ("<unk> <bos> $A", "1 2", "<unk> <bos> 1 2"),
        ("$A <eos>", "1 2", "1 2"),
        ("<bos> $A <eos>", "1 2", "<bos> 1 2"),
        ("<bos> $A <eos>", "<bos> 1 2", "<bos> 1 2"),
        ("<bos> $A <eos>", "1 <eos> 2 <eos>", "<bos> 1 <eos> 2 <eos>"),  # the text's own stays
        ("$A <unk>", "1 2", "1 2 <unk>"),
    ],
)
def test_no_second_bos_and_no_eos(single, text, expected):
    assert read(adds(single), text) == expected
    bos, rest = ("<bos> ", expected.split("<bos> ")[1]) if "<bos>" in expected else ("", expected)
    front = "<unk> " if expected.startswith("<unk>") else ""
    assert read(adds(single), text, "explore") == f"{front}{bos}explore {rest}"


def test_bos_alone_is_a_prompt_and_nothing_is_none():
    assert read(adds("<bos> $A <eos>"), "") == "<bos>"
    for single in ("$A", "$A <eos>"):
        with pytest.raises(ValueError, match="has no tokens"):
            encode_prompt(adds(single), "  ", None)


def test_a_slow_tokenizer_that_appends_eos():
    tokenizer = ByT5Tokenizer()
    assert tokenizer.encode("ab") == [100, 101, 1]
    assert encode_prompt(tokenizer, "ab", None) == [100, 101]
    assert encode_prompt(tokenizer, "ab", "c") == [102, 13, 13, 100, 101]


def test_a_text_with_bos_is_the_users_message_without_it():
    assert read(chat("<bos>" + TURNS + OPEN), "<bos> 1 2", "explore") == "<bos> system explore user 1 2 assistant"


@pytest.mark.parametrize("raw_text", [False, True])
@pytest.mark.parametrize("text", ["<bos>user 1 2 assistant", " <bos> system a user 1", "<unk>user 1", "<unk>system"])
def test_a_text_that_has_been_through_the_template_is_refused(text, raw_text):
    template = ("<unk>" if text.startswith("<unk>") else "<bos>") + TURNS + OPEN
    with pytest.raises(
        ValueError, match=r"has been through the chat template already, it begins with .*: give its mess"
    ):
        encode_prompt(chat(template), text, "explore", raw_text=raw_text)
    assert tiny.WORDS[encode_prompt(tiny.tokenizer(), text, None)[-1]]  # without a template it is a text


def test_what_only_looks_alike_passes():
    assert read(chat("<bos>" + TURNS + OPEN), "user 1 2") == "<bos> user user 1 2 assistant"
    assert read(chat("<bos>" + TURNS + OPEN), "<unk> 1") == "<bos> user <unk> 1 assistant"


def test_raw_text_beside_a_template():
    assert read(chat(), "1 2", "explore", raw_text=True) == "explore 1 2"
    assert read(chat(), [USER], "explore", raw_text=True) == "system explore user 1 2 assistant"


class TestTemplatesWithoutASystemMessage:
    @pytest.mark.parametrize("template", [NO_SYSTEM, REFUSES + NO_SYSTEM])
    @pytest.mark.parametrize("prompt", ["1 2", [USER], [USER, PREFILL]])
    def test_they_are_refused_and_told_what_helps(self, template, prompt, tmp_path):
        config = tiny.config(tmp_path)
        with pytest.raises(ValueError, match=r"here: .*; high_entropy_place='user' \(--high_entropy_place user\) puts"):
            encode_modes(chat(template), prompt, config, "here")
        with pytest.raises(ValueError, match=r"train_dataset, row 0: .*high_entropy_place='user'"):
            longest_prompt(chat(template), as_prompts([{"prompt": prompt}]), config)

    @pytest.mark.parametrize("template", [NO_SYSTEM, REFUSES + NO_SYSTEM, TURNS + OPEN])
    @pytest.mark.parametrize(
        ("prompt", "end"), [("1 2", "assistant"), ([USER], "assistant"), ([USER, PREFILL], "assistant 3")]
    )
    def test_the_user_message_takes_the_prompt(self, template, prompt, end, tmp_path):
        tokenizer = chat(template)
        config = tiny.config(tmp_path, high_entropy_place="user")
        normal, high = encode_modes(tokenizer, prompt, config, "here")
        assert tokenizer.decode(normal) == f"user 1 2 {end}"
        assert tokenizer.decode(high) == f"user explore 1 2 {end}"

    def test_what_drops_both_is_refused_still(self, tmp_path):
        config = tiny.config(tmp_path, high_entropy_place="user")
        with pytest.raises(ValueError, match=r"here: both modes read the same tokens; .* drops the system prompt$"):
            encode_modes(chat("{% for m in messages %}{{ m['role'] }} {% endfor %}"), [USER], config, "here")

    def test_an_unknown_place(self, tmp_path):
        with pytest.raises(ValueError, match="high_entropy_place='assistant' must be one of 'system', 'user'"):
            tiny.config(tmp_path, high_entropy_place="assistant")


PARTS = (
    "{% for m in messages %}{{ m['role'] }} {% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
REFUSES_TEXTS = (
    "{% for m in messages %}{% if m['content'] is string %}{{ raise_exception('parts!') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [PARTS, REFUSES_TEXTS + PARTS], ids=["drops-texts", "refuses-texts"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("1 2", "user 1 2 assistant"),
        ([USER], "user 1 2 assistant"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "2"}]}],
            "user 1 2 assistant",
        ),
        ([USER, PREFILL], "user 1 2 assistant 3"),
        ([{"role": "system", "content": None}, USER], "system user 1 2 assistant"),
    ],
)
def test_a_template_that_reads_parts_alone_gets_parts(template, prompt, expected):
    """A text would be left out without a word: the modes would differ, and neither have the question."""
    tokenizer = chat(template)
    assert tokenizer.decode(encode_prompt(tokenizer, prompt, None)) == expected
    with_system = expected.replace("system ", "")
    assert tokenizer.decode(encode_prompt(tokenizer, prompt, "explore")) == f"system explore {with_system}"
    user = expected.replace("user", "user explore")
    assert tokenizer.decode(encode_prompt(tokenizer, prompt, "explore", place="user")) == user


def test_half_a_surrogate_pair_in_a_system_prompt_is_named():
    for tokenizer in (tiny.tokenizer(), chat(TURNS + OPEN)):
        with pytest.raises(ValueError, match=r"the system prompt has half of a surrogate pair, '\\ud800', at 1"):
            encode_prompt(tokenizer, "1 2", "a\ud800")
