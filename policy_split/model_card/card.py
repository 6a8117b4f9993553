"""The model card: README.md with the Hub's head, numbers of both modes, and how to ask each of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from pprint import pformat
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from policy_split.messages import with_system_prompt
from policy_split.modes import MODE_NAMES, encode_prompt
from policy_split.run_folder.model_folder import ADAPTER_CONFIG, CARD, MARK, PLOT, SPLIT, is_own_card
from policy_split.run_folder.record import as_yaml, read_settings
from policy_split.storage.whole_folder import replace_text

from .facts import Facts, facts_of_run, hub_name, is_path, public_name
from .plot import draw
from .split import read_split

QUESTION = "Your question"
HERE = "path/of/this/folder"


def write_card(folder: Path, tokenizer: Any, facts: Facts, *, beside: Path | None = None) -> None:
    """Write policy_split.json, the plot and README.md into a model's folder.

    beside: the folder that all this will be moved into; a README.md there that somebody else wrote stays.
    """
    facts.split.write(folder)
    plot = draw(facts, folder)
    if is_own_card(beside or folder):
        (folder / CARD).write_text(card(facts, tokenizer, plot=plot, adapter=_is_adapter(folder)), encoding="utf-8")


def renew_card(folder: Path, tokenizer: Any) -> None:
    """Write README.md of a run's folder anew, if it is ours: there is an evaluation now."""
    split = read_split(folder)
    if split is None or not (folder / CARD).is_file() or not is_own_card(folder):
        return
    settings = read_settings(folder) or {}
    pushed = settings.get("hub_model_id") if settings.get("push_to_hub") else None
    facts = facts_of_run(folder, split, settings, pushed)
    text = card(facts, tokenizer, plot=(folder / PLOT).is_file(), adapter=_is_adapter(folder))
    replace_text(folder / CARD, text)


def card(facts: Facts, tokenizer: Any, *, plot: bool = False, adapter: bool = False) -> str:
    """The text of README.md; plot: whether the picture lies beside it, adapter: whether the weights are LoRA's."""
    split = facts.split
    base = public_name(facts.base_model)
    template = bool(getattr(tokenizer, "chat_template", None))
    modes = [name for name in MODE_NAMES if name in facts.modes]
    prompts = dict(zip(MODE_NAMES, split.system_prompts, strict=True))
    asked = {_words(mode): _asked(prompts[mode], split.high_entropy_place, chat=template) for mode in modes}
    return (
        _environment()
        .get_template("README.md.j2")
        .render(
            head=as_yaml(_head(facts, adapter)).rstrip(),
            mark=MARK, facts=facts, split=split, base=base, base_is_path=is_path(facts.base_model or ""),
            title=(facts.repository or "").rpartition("/")[2] or ", ".join(filter(None, (base, split.algorithm))),
            name=facts.repository or HERE, plot=PLOT if plot else None, split_file=SPLIT, adapter=adapter,
            dataset=public_name(facts.dataset), reward=public_name(facts.reward),
            asked_code=pformat(asked, width=100, sort_dicts=False), chat=template,
            last_mode=_words(modes[-1]), more=_more(split.chat_template_kwargs), ends=_ends(tokenizer),
            template_kwargs=split.chat_template_kwargs, columns=[_words(mode) for mode in modes],
            rendered={_words(mode): _rendered(tokenizer, prompts[mode], facts) for mode in modes},
        )
    )  # fmt: skip


def _head(facts: Facts, adapter: bool) -> dict[str, Any]:
    """What the Hub reads: names that it would refuse, such as paths, stand in the text alone."""
    head: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if base := hub_name(facts.base_model):
        head["base_model"] = base
        head["base_model_relation"] = "adapter" if adapter else "finetune"
    if dataset := hub_name(facts.dataset):
        head["datasets"] = [dataset]
    head["tags"] = [*facts.tags, *(["lora"] if adapter else [])]
    head["algorithm"] = facts.split.algorithm
    return head


def _asked(system: str | None, place: str, *, chat: bool) -> Any:
    """What a user gives: messages, or without a chat template a text."""
    if chat:
        return with_system_prompt([{"role": "user", "content": QUESTION}], system, place)
    return f"{system}\n\n{QUESTION}" if system else QUESTION


def _rendered(tokenizer: Any, system: str | None, facts: Facts) -> str | None:
    """The text that the model reads; None where the template refuses so short a conversation."""
    split = facts.split
    try:
        ids = encode_prompt(tokenizer, QUESTION, system, split.chat_template_kwargs, place=split.high_entropy_place)
    except ValueError:
        return None
    return str(tokenizer.decode(ids))


def _ends(tokenizer: Any) -> bool:
    """Whether the tokenizer puts an end behind a text, which a prompt must not have."""
    if getattr(tokenizer, "chat_template", None):
        return False
    ids = list(tokenizer.encode(QUESTION))
    return len(ids) > 0 and ids[-1] in {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)}


def _more(kwargs: dict[str, Any] | None) -> str:
    return "".join(f", {name}={value!r}" for name, value in (kwargs or {}).items())


def _words(mode: str) -> str:
    return mode.replace("_", "-")


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("policy_split.model_card"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters |= {"fenced": fenced, "code": code, "table": table}
    return environment


def fenced(text: str, language: str = "") -> str:
    """A block of code that nothing in the text ends."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def code(text: Any) -> str:
    """Code inside a line and a table's cell, whatever stands in it."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    lines = [head, [":--", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
