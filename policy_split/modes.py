"""The two modes of one model: which they are, and the one prompt that each has for a question."""

from collections.abc import Mapping, Sequence
from typing import Any

NORMAL, HIGH_ENTROPY = 0, 1
MODES = (NORMAL, HIGH_ENTROPY)
MODE_NAMES = ("normal", "high_entropy")

HIGH_ENTROPY_PROMPT = (
    'You are in "high entropy" mode. Do not settle for the first line of thought that comes to mind: '
    "look for an unusual one, follow it carefully, and make sure that the final answer is still right."
)

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]


def encode_prompt(
    tokenizer: Any, prompt: Prompt, system_prompt: str | None, template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of a question behind a system prompt: what one mode reads, up to where its response begins.

    With a chat template the system prompt is the system message, in front of the text of an existing one, and a text is
    the user's message; without one (set `tokenizer.chat_template = None` for raw text) it stands in front of the text.
    Raises ValueError for a prompt that is neither text nor messages, for messages without a chat template, for a
    template that refuses them, and for a prompt without a single token. Source: arXiv 2604.11510 section 3.
    """
    check_prompt(prompt)
    if getattr(tokenizer, "chat_template", None):
        ids = _through_template(tokenizer, prompt, system_prompt, template_kwargs or {})
    elif isinstance(prompt, str):
        ids = list(tokenizer.encode(f"{system_prompt}\n\n{prompt}" if system_prompt else prompt))
    else:
        raise ValueError(
            "the prompt is a list of chat messages, but the tokenizer has no chat template; "
            "give prompts as text, or set tokenizer.chat_template"
        )
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens; a response needs at least one to follow")
    return ids


def with_system_prompt(messages: Sequence[Message], system_prompt: str | None) -> list[dict[str, Any]]:
    """The messages with the system prompt in front of the text of their system message, or as a new one."""
    own = [dict(message) for message in messages]
    if not system_prompt:
        return own
    if own[0]["role"] == "system":
        own[0]["content"] = f"{system_prompt}\n\n{own[0]['content']}"
        return own
    return [{"role": "system", "content": system_prompt}, *own]


def check_prompt(prompt: Prompt) -> None:
    """Raises ValueError unless the prompt is a text or a list of {"role", "content"} messages."""
    if isinstance(prompt, str):
        return
    messages = prompt if isinstance(prompt, Sequence) else ()
    if not messages or not all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in messages):
        raise ValueError(f"a prompt must be text or a list of {{'role', 'content'}} messages, got {prompt!r}")


def _through_template(
    tokenizer: Any, prompt: Prompt, system_prompt: str | None, template_kwargs: Mapping[str, Any]
) -> list[int]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        return list(
            tokenizer.apply_chat_template(
                with_system_prompt(messages, system_prompt),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **template_kwargs,
            )
        )
    except Exception as error:  # a template raises what it likes: jinja2's errors, TypeError, ...
        raise ValueError(
            f"the tokenizer's chat template refuses the prompt ({type(error).__name__}: {error}); "
            f"if it takes no system message, give the tokenizer a template that does"
        ) from error
