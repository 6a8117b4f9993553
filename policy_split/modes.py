"""The two modes of one model: which they are, and the one prompt that each has for a question."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .messages import Prompt, check_characters, check_prompt, says_something, with_system_prompt

NORMAL, HIGH_ENTROPY = 0, 1
MODES = (NORMAL, HIGH_ENTROPY)
MODE_NAMES = ("normal", "high_entropy")

HIGH_ENTROPY_PROMPT = (
    'You are in "high entropy" mode. Do not settle for the first line of thought that comes to mind: '
    "look for an unusual one, follow it carefully, and make sure that the final answer is still right."
)
# of apply_chat_template, which `encode_prompt` sets itself
OURS = ("conversation", "tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask")
INSTEAD = (
    "high_entropy_place='user' (--high_entropy_place user) puts the high-entropy prompt in front of the first message "
    "of the user instead, for templates without a system message"
)


class PromptSettings(Protocol):
    """What prompts depend on: of a PolicySplitConfig, or what another framework's settings have of it."""

    @property
    def system_prompts(self) -> tuple[str | None, str | None]: ...  # in the modes' order

    @property
    def high_entropy_place(self) -> str: ...

    @property
    def template_kwargs(self) -> Mapping[str, Any] | None: ...  # of the chat template

    @property
    def max_prompt_length(self) -> int | None: ...


def encode_modes(
    tokenizer: Any, prompt: Prompt, settings: PromptSettings, where: str, *, raw_text: bool = False
) -> list[list[int]]:
    """The prompt's token ids in each mode, see `encode_prompt`; ValueError begins with `where` and says what helps.

    It is raised for what `encode_prompt` refuses, a prompt too long, and one of which both modes would read the same.
    """
    place, kwargs = settings.high_entropy_place, settings.template_kwargs
    try:
        ids = [
            encode_prompt(tokenizer, prompt, system, kwargs, place=place, raw_text=raw_text)
            for system in settings.system_prompts
        ]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for mode in MODES:
        if settings.max_prompt_length is not None and len(ids[mode]) > settings.max_prompt_length:
            raise ValueError(
                f"{where}: the {MODE_NAMES[mode]} prompt has {len(ids[mode])} tokens, "
                f"more than max_prompt_length={settings.max_prompt_length}; raise it or remove the sample"
            )
    if ids[0] == ids[1]:
        instead = f"; {INSTEAD}" if settings.high_entropy_place == "system" else ""
        raise ValueError(
            f"{where}: both modes read the same tokens; the chat template or tokenizer drops the system prompt{instead}"
        )
    return ids


def encode_prompt(
    tokenizer: Any,
    prompt: Prompt,
    system_prompt: str | None,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    place: str = "system",
    raw_text: bool = False,
) -> list[int]:
    """Token ids of a question behind a system prompt: what one mode reads, up to where its response begins.

    Messages go through the chat template, the system prompt among them by `with_system_prompt`; a last message of the
    assistant is the beginning of the response, which goes on behind it. A text is the user's message; without a chat
    template (set `tokenizer.chat_template = None` for raw text), or with raw_text, the system prompt stands in front of
    it. No text gets a second BOS, and none an EOS that it does not have.

    Raises ValueError for a prompt that is neither text nor messages, for messages without a chat template, for a
    template that refuses them, for a text that has been through it, and for a prompt without a single token.
    Source: arXiv 2604.11510 section 3.
    """
    check_prompt(prompt)
    if system_prompt:
        check_characters(system_prompt, "the system prompt")
    template = bool(getattr(tokenizer, "chat_template", None))
    if isinstance(prompt, str) and template:
        _check_not_rendered(tokenizer, prompt)
    if isinstance(prompt, str) and (raw_text or not template):
        ids = _through_tokenizer(tokenizer, prompt, system_prompt)
    elif template:
        bos = tokenizer.bos_token or ""  # the template's own is enough
        messages = [{"role": "user", "content": prompt.removeprefix(bos)}] if isinstance(prompt, str) else prompt
        ids = _through_template(tokenizer, messages, system_prompt, place, template_kwargs or {})
    else:
        raise ValueError(
            "the prompt is a list of chat messages, but the tokenizer has no chat template; "
            "give prompts as text, or set tokenizer.chat_template"
        )
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens; a response needs at least one to follow")
    return ids


def _through_tokenizer(tokenizer: Any, text: str, system_prompt: str | None) -> list[int]:
    if system_prompt:
        bos = tokenizer.bos_token or ""
        begin = bos if text.startswith(bos) else ""
        text = f"{begin}{system_prompt}\n\n{text.removeprefix(begin)}"
    whole = list(tokenizer.encode(text))
    if not tokenizer.num_special_tokens_to_add():
        return whole
    own = list(tokenizer.encode(text, add_special_tokens=False))
    starts = range(len(whole) - len(own) + 1)
    start = next((start for start in starts if whole[start : start + len(own)] == own), None)
    ends = {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)}
    if start is None:  # no part of the whole: what the tokenizer adds changes how the text is cut
        return whole[:-1] if whole[-1] in ends and own[-1:] != whole[-1:] else whole
    before, behind = whole[:start], whole[start + len(own) :]
    if own[: len(before)] == before:
        before = []
    return [*before, *own, *(token for token in behind if token not in ends)]


def _through_template(
    tokenizer: Any,
    prompt: Sequence[Mapping[str, Any]],
    system_prompt: str | None,
    place: str,
    template_kwargs: Mapping[str, Any],
) -> list[int]:
    taken = [name for name in OURS if name in template_kwargs]
    if taken:
        raise ValueError(f"chat_template_kwargs has {taken[0]!r}, which is not for the template: leave it out")
    messages = with_system_prompt(prompt, system_prompt, place)
    if messages[-1]["role"] == "assistant" and not says_something(messages[-1]):
        messages.pop()  # a turn that is opened and empty: what add_generation_prompt opens
    begun = messages[-1]["role"] == "assistant"
    if begun and not messages[-1]["content"]:
        raise ValueError("the last message of the prompt is the assistant's, and has no text that it could go on with")
    goes_on = begun and not template_kwargs.get("add_generation_prompt")
    kwargs: dict[str, Any] = {"continue_final_message": goes_on, **template_kwargs}
    kwargs.setdefault("add_generation_prompt", not kwargs["continue_final_message"])
    try:
        if _reads_parts(tokenizer, str(tokenizer.chat_template)):
            messages = [{**message, "content": _part(message["content"])} for message in messages]
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **kwargs))
    except Exception as error:  # a template raises what it likes: jinja2's errors, TypeError, ...
        instead = f"; {INSTEAD}" if system_prompt and place == "system" else ""
        raise ValueError(
            f"the tokenizer's chat template refuses the prompt ({type(error).__name__}: {error}){instead}"
        ) from error


@functools.lru_cache(maxsize=8)
def _reads_parts(tokenizer: Any, template: str) -> bool:
    """Whether the template goes through the parts of a content, as those for images do, and so drops a text silently.

    template: the tokenizer's, as a text.
    """
    word = "Hello"

    def shown(content: Any) -> bool:
        try:
            return word in tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except Exception:
            return False

    return not shown(word) and shown(_part(word))


def _part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def _check_not_rendered(tokenizer: Any, text: str) -> None:
    """ValueError for a text that begins as the template begins: the system prompt would stand outside its messages.

    A begin of the template's says so if it has a special token, or if BOS stands in front of it.
    """
    bos = tokenizer.bos_token or ""
    begin = text.lstrip()
    has_bos = bool(bos) and begin.startswith(bos)
    begin = begin.removeprefix(bos).lstrip()
    special = [token for token in tokenizer.get_added_vocab() if begin.startswith(token)]
    if not (has_bos or special):
        return
    for role in ("system", "user"):
        try:
            turn = tokenizer.apply_chat_template([{"role": role, "content": "X"}], tokenize=False)
        except Exception:  # a role that it does not take
            continue
        header = turn.removeprefix(bos).partition("X")[0].split()
        if header and (
            any(header[0].startswith(token) for token in special) or (has_bos and begin.startswith(header[0]))
        ):
            raise ValueError(
                f"the prompt has been through the chat template already, it begins with {text[:40]!r}: give its "
                f"messages instead, so that the system prompt is one of them, or set tokenizer.chat_template = None"
            )
