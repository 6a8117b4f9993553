"""Messages: contents of every kind as one text, and the system prompt once, in its place."""

import pytest

from policy_split.messages import check_prompt, plain_messages, with_system_prompt

USER = {"role": "user", "content": "1 2"}
PARTS = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind", "image": None}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"content": "be kind"}, "be kind"),
        ({"content": PARTS}, "be kind"),
        ({"content": ["be ", "kind"]}, "be kind"),
        ({"content": []}, ""),
        ({"content": ""}, ""),
        ({"content": None}, ""),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_contents_become_texts(role, content, expected):
    given = [{"role": role, "name": "x", **content}, USER]
    assert plain_messages(given) == [{"role": role, "name": "x", "content": expected}, USER]
    assert given[0] == {"role": role, "name": "x", **content}  # the user's own stays as it is


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", [{"content": "be kind"}, {"content": PARTS}])
def test_an_existing_system_message_stays_behind_ours(role, content):
    assert with_system_prompt([{"role": role, **content}, USER], "explore") == [
        {"role": role, "content": "explore\n\nbe kind"},
        USER,
    ]


@pytest.mark.parametrize("content", [{"content": None}, {"content": []}, {"content": ""}, {}])
def test_an_empty_system_message_becomes_ours(content):
    assert with_system_prompt([{"role": "system", **content}, USER], "explore") == [
        {"role": "system", "content": "explore"},
        USER,
    ]


def test_without_a_system_message_there_is_a_new_one():
    later = [USER, {"role": "system", "content": "h"}]
    assert with_system_prompt(later, "explore") == [{"role": "system", "content": "explore"}, *later]
    assert with_system_prompt([USER], None) == [USER]
    assert with_system_prompt([USER], "") == [USER]


def test_in_front_of_the_first_message_of_the_user():
    chat = [{"role": "system", "content": "h"}, {"role": "user", "content": PARTS}, {"role": "assistant"}, USER]
    assert with_system_prompt(chat, "explore", "user") == [
        {"role": "system", "content": "h"},
        {"role": "user", "content": "explore\n\nbe kind"},
        {"role": "assistant", "content": ""},
        USER,
    ]
    assert with_system_prompt([{"role": "user"}, USER], "explore", "user")[0]["content"] == "explore"
    with pytest.raises(ValueError, match="high_entropy_place='user' needs a message of the user"):
        with_system_prompt([{"role": "system", "content": "h"}], "explore", "user")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            [{"type": "image", "image": "x"}],
            "part 0 of message 1 of the prompt, user's, is of type 'image': only parts",
        ),
        ([PARTS[0], {"type": "input_audio"}], "part 1 of message 1 .* is of type 'input_audio'"),
        ([{"text": "a"}], "part 0 .* is of type None"),
        ([{"type": "text"}], r"part 0 .* is without a text \(None\)"),
        ([{"type": "text", "text": 5}], r"part 0 .* is without a text \(5\)"),
        ([5], "part 0 .* is of type 'int'"),
        (5, "content of message 1 of the prompt, user's, must be a text or a list of parts, got 5, a int"),
        ({"type": "text", "text": "a"}, "must be a text or a list of parts, got .*, a dict"),
        (b"a", "got b'a', a bytes"),
        ("a\ud800", r"half of a surrogate pair, '\\ud800', at 1"),
        ([{"type": "text", "text": "\udfff"}], r"half of a surrogate pair, '\\udfff', at 0"),
    ],
)
def test_contents_that_are_no_text(content, expected):
    with pytest.raises(ValueError, match=expected):
        check_prompt([{"role": "system", "content": "h"}, {"role": "user", "content": content}])


@pytest.mark.parametrize(
    "prompt",
    [
        7,
        None,
        [],
        {},
        ["1"],
        {"role": "user", "content": "1"},
        [{"content": "1"}],
        [{"role": 5, "content": "1"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}, {"role": "assistant", "content": []}],
    ],
)
def test_what_is_no_prompt(prompt):
    with pytest.raises(ValueError, match="a prompt must be text or a list of"):
        check_prompt(prompt)


def test_what_is_a_prompt():
    for prompt in ("1", [USER], [{"role": "user", "content": PARTS}], [{"role": "assistant", "tool_calls": [{}]}]):
        check_prompt(prompt)
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        check_prompt("\ud83d")
