"""The model card of a run on TRL's trainer: the same as that of our own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy_split.model_card.card import write_card
from policy_split.model_card.facts import Facts, hub_name
from policy_split.model_card.split import Split
from policy_split.run_folder.model_folder import CARD, is_own_card


def save_card(trainer: Any, folder: Path, dataset: str | None = None, tags: Sequence[str] = ()) -> None:
    """Write it, policy_split.json and the plot; a README.md that somebody else wrote stays."""
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder, trainer._tokenizer, _facts(trainer, dataset, tags))


def remove_other_card(folder: Path, *, there_before: bool) -> None:
    """Remove the README.md that peft has put there meanwhile, which says nothing."""
    if not there_before and not is_own_card(folder):
        (folder / CARD).unlink()


def _facts(trainer: Any, dataset: str | None, tags: Sequence[str]) -> Facts:
    args = trainer.args
    base = getattr(trainer.accelerator.unwrap_model(trainer.model).config, "name_or_path", None) or None
    split = Split(
        high_entropy_prompt=args.high_entropy_prompt,
        normal_prompt=args.normal_prompt,
        high_entropy_place=args.high_entropy_place,
        chat_template_kwargs=args.template_kwargs,
        temperature=args.temperature,
        max_completion_length=args.max_completion_length,
        top_p=args.top_p,
        top_k=args.top_k or 0,
        base_model=hub_name(base),
    )
    return Facts(
        split,
        base,
        dataset,
        settings={"algorithm": split.algorithm, **args.to_dict()},
        rows=trainer.state.log_history,
        repository=args.hub_model_id if args.push_to_hub else None,
        tags=tuple(dict.fromkeys((*trainer._tag_names, "reinforcement-learning", *tags))),
    )
