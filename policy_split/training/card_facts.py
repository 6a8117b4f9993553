"""What the model card says of a trainer's run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from policy_split.model_card.card import write_card
from policy_split.model_card.facts import Facts, facts_of_run, hub_name
from policy_split.model_card.split import Split
from policy_split.run_folder.record import described

if TYPE_CHECKING:
    from .trainer import PolicySplitTrainer


def card_writer(trainer: "PolicySplitTrainer", folder: Path) -> Callable[[Path], None]:
    """What writes the card of a model that will lie in the folder."""
    return partial(write_card, tokenizer=trainer.tokenizer, facts=trainer_facts(trainer), beside=folder)


def trainer_facts(trainer: "PolicySplitTrainer") -> Facts:
    config = trainer.config
    base = trainer.sources.get("model") or getattr(trainer.policy.bare, "name_or_path", None) or None
    split = Split(
        high_entropy_prompt=config.high_entropy_prompt,
        normal_prompt=config.normal_prompt,
        high_entropy_place=config.high_entropy_place,
        chat_template_kwargs=config.template_kwargs,
        temperature=config.temperature,
        max_completion_length=config.max_completion_length,
        algorithm=config.algorithm,
        dual_mode=config.chosen_algorithm.dual_mode,
        base_model=hub_name(base),
    )
    return facts_of_run(
        trainer.output_dir, split, described(config, {**trainer.sources, "model": base}), trainer.repository
    )
