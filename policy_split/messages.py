"""Chat messages as templates take them: checked, the parts of each as one text, a system prompt in its place."""

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]

PLACES = ("system", "user")
SYSTEM_ROLES = ("system", "developer")


def check_prompt(prompt: Prompt) -> None:
    """ValueError unless the prompt is a text, or messages of which at least one says something.

    A message is {"role", "content"}; its content is a text, None, absent, or a list of parts {"type": "text", "text"}.
    """
    if isinstance(prompt, str):
        check_characters(prompt)
    else:
        plain_messages(prompt)


def plain_messages(prompt: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with their contents as texts, "" for none; new dicts. ValueError as `check_prompt`."""
    given = prompt if isinstance(prompt, Sequence) else ()
    if not given or not all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in given):
        raise ValueError(f"a prompt must be text or a list of {{'role', 'content'}} messages, got {prompt!r}")
    messages = [
        {**message, "content": _text(message.get("content"), f"message {number} of the prompt, {message['role']}'s")}
        for number, message in enumerate(given)
    ]
    if not any(says_something(message) for message in messages):
        raise ValueError(
            f"a prompt must be text or a list of {{'role', 'content'}} messages, one of them with a content at least, "
            f"got {prompt!r}"
        )
    return messages


def says_something(message: Message) -> bool:
    """Whether there is a text, or what stands in its place: calls of tools, a reasoning."""
    return any(value for name, value in message.items() if name not in ("role", "name"))


def with_system_prompt(
    messages: Sequence[Message], system_prompt: str | None, place: str = "system"
) -> list[dict[str, Any]]:
    """The messages, contents as texts, with the system prompt in its place.

    place="system": in front of the text of their system (or developer's) message, or as a new one; "user": in front of
    the text of the first message of the user, for templates without a system role. ValueError if there is none.
    """
    plain = plain_messages(messages)
    if not system_prompt:
        return plain
    if place == "system" and plain[0]["role"] not in SYSTEM_ROLES:
        return [{"role": "system", "content": system_prompt}, *plain]
    number = next((n for n, message in enumerate(plain) if place == "system" or message["role"] == "user"), None)
    if number is None:
        raise ValueError(f"high_entropy_place='user' needs a message of the user, got {messages!r}")
    plain[number]["content"] = "\n\n".join(filter(None, (system_prompt, plain[number]["content"])))
    return plain


def _text(content: Any, whose: str) -> str:
    """A content as one text; ValueError, which says whose it is, for what is no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        check_characters(content)
        return content
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise ValueError(
            f"the content of {whose}, must be a text or a list of parts, got {content!r:.100}, "
            f"a {type(content).__name__}"
        )
    return "".join(_part(part, number, whose) for number, part in enumerate(content))


def _part(part: Any, number: int, whose: str) -> str:
    kind: Any = type(part).__name__
    text: Any = None
    if isinstance(part, str):
        kind, text = "text", part
    elif isinstance(part, Mapping):
        kind, text = part.get("type"), part.get("text")
    if kind != "text" or not isinstance(text, str):
        what = f"of type {kind!r}" if kind != "text" else f"without a text ({text!r:.50})"
        raise ValueError(
            f"part {number} of {whose}, is {what}: only parts {{'type': 'text', 'text': ...}} can be read here"
        )
    check_characters(text)
    return text


def check_characters(text: str, what: str = "the prompt") -> None:
    """ValueError for half of a surrogate pair, which JSON can bring in."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has half of a surrogate pair, {text[error.start]!r}, at {error.start}: it is no character, "
            f"and no tokenizer can read it"
        ) from None
