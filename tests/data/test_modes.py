"""encode_prompt: one prompt per mode, with and without a chat template."""

import pytest
import tiny

from policy_split.modes import HIGH_ENTROPY_PROMPT, encode_prompt

CHAT = [{"role": "user", "content": "1 2"}]


def words(tokenizer, ids):
    return [tiny.WORDS[i] for i in ids]


def test_text_without_template():
    tokenizer = tiny.tokenizer()
    assert words(tokenizer, encode_prompt(tokenizer, "1 2", None)) == ["1", "2"]
    assert words(tokenizer, encode_prompt(tokenizer, "1 2", "explore")) == ["explore", "1", "2"]


@pytest.mark.parametrize("prompt", ["1 2", CHAT])
def test_template_puts_the_system_prompt_into_the_system_message(prompt):
    tokenizer = tiny.tokenizer(chat=True)
    assert words(tokenizer, encode_prompt(tokenizer, prompt, None)) == ["user", "1", "2", "assistant"]
    expected = ["system", "explore", "user", "1", "2", "assistant"]
    assert words(tokenizer, encode_prompt(tokenizer, prompt, "explore")) == expected


def test_existing_system_message_stays_behind_ours():
    tokenizer = tiny.tokenizer(chat=True)
    chat = [{"role": "system", "content": "h"}, *CHAT]
    ids = encode_prompt(tokenizer, chat, "explore")
    assert words(tokenizer, ids) == ["system", "explore", "h", "user", "1", "2", "assistant"]
    assert chat[0]["content"] == "h"


def test_template_arguments_reach_the_template():
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template += "{% if extra %} {{ extra }}{% endif %}"
    assert words(tokenizer, encode_prompt(tokenizer, CHAT, None, {"extra": "f"}))[-1] == "f"


@pytest.mark.parametrize("prompt", [7, [], ["1"], [{"role": "user"}], {"role": "user", "content": "1"}, None])
def test_what_is_no_prompt(prompt):
    with pytest.raises(ValueError, match="must be text or a list"):
        encode_prompt(tiny.tokenizer(), prompt, None)


def test_messages_need_a_template():
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(tiny.tokenizer(), CHAT, None)


def test_template_that_refuses_system_messages():
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tiny.CHAT_TEMPLATE
    )
    assert encode_prompt(tokenizer, CHAT, None)
    with pytest.raises(ValueError, match=r"refuses the prompt .*no system role"):
        encode_prompt(tokenizer, CHAT, "explore")


def test_prompt_without_tokens():
    with pytest.raises(ValueError, match="no tokens"):
        encode_prompt(tiny.tokenizer(), "  ", None)


def test_default_prompt_names_the_mode():
    assert "high entropy" in HIGH_ENTROPY_PROMPT
