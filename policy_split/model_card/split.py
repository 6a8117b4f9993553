"""policy_split.json beside a model: the system prompts of both modes and how to sample, for programs."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from policy_split.messages import PLACES
from policy_split.run_folder.model_folder import SPLIT


@dataclass(frozen=True)
class Split:
    """How each mode of a model is asked: the fields of the file, of which a program may add others."""

    high_entropy_prompt: str
    normal_prompt: str | None = None
    high_entropy_place: str = "system"
    chat_template_kwargs: dict[str, Any] | None = None
    temperature: float = 1.0
    max_completion_length: int = 256
    top_p: float = 1.0
    top_k: int = 0  # both: nothing is filtered, as in training
    algorithm: str = "policy_split"
    dual_mode: bool = True  # whether the high-entropy prompt was trained
    base_model: str | None = None  # its name on the Hub, if it has one

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / SPLIT).write_text(text + "\n", encoding="utf-8")

    @property
    def system_prompts(self) -> tuple[str | None, str | None]:
        """The system prompt of each mode, in the modes' order."""
        return self.normal_prompt, self.high_entropy_prompt


def read_split(folder: Path) -> Split | None:
    """What policy_split.json says, None if there is none; ValueError in one line if it cannot be used."""
    path = folder / SPLIT
    if not path.is_file():
        return None
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(given, dict) or not isinstance(given.get("high_entropy_prompt"), str):
        raise ValueError(f"{path}: expected an object with a text 'high_entropy_prompt'")
    split = Split(**{each.name: given[each.name] for each in fields(Split) if each.name in given})
    if not isinstance(split.normal_prompt, str | None):
        raise ValueError(f"{path}: normal_prompt={split.normal_prompt!r} must be a text or null")
    if split.high_entropy_place not in PLACES:
        raise ValueError(
            f"{path}: high_entropy_place={split.high_entropy_place!r} must be one of {', '.join(map(repr, PLACES))}"
        )
    if not isinstance(split.chat_template_kwargs, dict | None):
        raise ValueError(f"{path}: chat_template_kwargs={split.chat_template_kwargs!r} must be an object or null")
    return split
