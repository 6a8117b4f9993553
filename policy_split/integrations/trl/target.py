"""`HeldKL` as a callback of transformers' trainer, which keeps it in a checkpoint's trainer_state.json."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from policy_split.algorithms.kl_target import HeldEta
from policy_split.integrations.held_kl import HeldKL


class HeldKLCallback(HeldKL, TrainerCallback, ExportableState):
    @classmethod
    def of(cls, trainer: Any) -> "HeldKLCallback":
        """Asked each time: a resume with restore_callback_states_from_checkpoint puts another in its place."""
        return next(x for x in trainer.callback_handler.callbacks if isinstance(x, cls))

    def state(self) -> dict[str, Any]:
        return {"args": {"start": self.start, "target": self.target}, "attributes": self.held._asdict()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume what the checkpoint has; transformers itself gives it back only where a setting says so."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and saved and self.target is not None:
            self.held = HeldEta(**saved["attributes"])
