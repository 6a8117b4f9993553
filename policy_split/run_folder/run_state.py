"""What a run is made of besides its settings: saved after a step, and loaded so that it goes on bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedType
from torch import nn
from torch.optim import Optimizer

from policy_split.models.adapters import adapter_state, is_adapted
from policy_split.models.sharding import load_optimizer, load_weights, whole
from policy_split.storage.state_files import read_state

from .checkpoints import Progress, save_checkpoint
from .model_folder import describe_model
from .random_states import random_states, seed_random_states, set_random_states


class RunState:
    """Model, optimizer, schedule, progress and random states of every library, as they were after the last step.

    Weights and optimizer are those of the moment, and so of the last step's end until the next optimizer step: `whole`
    says whether that is still so. The rest is remembered by `mark`, so that a step that fails halfway leaves no trace.
    Rollouts need not be kept: each is a function of (weights, seed, step, process). What FSDP2 has sharded is written
    whole, so that a checkpoint is the same for any number of processes, sharded or not.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        tokenizer: Any,
        optimizer: Optimizer,
        schedule: Any,
        progress: Progress,
        seed: int,
    ):
        self.accelerator, self.model, self.tokenizer, self.optimizer = accelerator, model, tokenizer, optimizer
        self.schedule, self.progress, self.seed = schedule, progress, seed
        self.weights = "adapter_model" if is_adapted(model) else "model"  # the name of their file, as others know it
        self.whole = True  # no optimizer step since the last `mark`
        self.saved: int | None = None  # the step whose checkpoint this run has saved or loaded
        optimizer.register_step_post_hook(self._stepped)
        self.mark()

    def check_supported(self) -> None:
        """Raises NotImplementedError where a process holds a shard of the model in another form than FSDP2's."""
        kind = self.accelerator.distributed_type
        if self.accelerator.is_fsdp2:
            return
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise NotImplementedError(
                f"checkpoints of a model sharded by {kind.value} are not written, those of DDP and FSDP2 are; "
                f"set save_steps=0"
            )

    def mark(self) -> None:
        """A step has been finished."""
        self.whole = True
        self.small = {"progress": self.progress.state_dict(), "schedule": self.schedule.state_dict()}
        if self.accelerator.scaler is not None:
            self.small["scaler"] = self.accelerator.scaler.state_dict()
        self.random = random_states()

    @property
    def finished(self) -> int:
        """Steps that were finished at the last `mark`."""
        step: int = self.small["progress"]["step"]
        return step

    def save(self, folder: Path, limit: int | None) -> Path:
        """Save the last finished step as a checkpoint of the run's folder; raises what `save_checkpoint` raises."""
        self.check_supported()
        step = self.finished
        keep = self.accelerator.is_main_process
        parts = {self.weights: self._weights(), "optimizer": self.optimizer.state_dict(), "progress": self.small}
        parts = {name: whole(state, keep=keep) for name, state in parts.items()}
        describe = partial(describe_model, self.model, self.tokenizer)
        path = save_checkpoint(self.accelerator, folder, step, parts, {"random": self.random}, describe, limit)
        self.saved = step
        return path

    def load(self, path: Path) -> None:
        """Go back to a checkpoint, which `find_checkpoint` has found whole, of any number of processes.

        The random states come back where there are as many processes as then, and otherwise follow from (seed, step,
        process).
        """
        load_weights(self._weights(), read_state(path, self.weights))
        own = [{name: value for name, value in group.items() if name != "params"} for group in self._groups]
        load_optimizer(self.optimizer, read_state(path, "optimizer"))
        for group, settings in zip(self._groups, own, strict=True):
            group.update(settings)  # learning rate, weight decay and the like are those of now
        small = read_state(path, "progress")
        self.progress.load_state_dict(small["progress"])
        self._move_schedule(self.progress.step)
        if self.accelerator.scaler is not None and "scaler" in small:
            self.accelerator.scaler.load_state_dict(small["scaler"])
        rank = self.accelerator.process_index
        if len(list(path.glob("random-*.json"))) == self.accelerator.num_processes:
            set_random_states(read_state(path, f"random-{rank}"))
        else:
            seed_random_states(f"{self.seed}, {self.progress.step}, {rank}")
        self.mark()
        self.saved = self.progress.step

    def _weights(self) -> dict[str, Any]:
        return adapter_state(self.model) if is_adapted(self.model) else self.model.state_dict()

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _move_schedule(self, step: int) -> None:
        """To where it would be after that many steps of the settings of now: it is a function of the step alone."""
        factors = [factor(step) for factor in self.schedule.lr_lambdas]
        rates = [base * factor for base, factor in zip(self.schedule.base_lrs, factors, strict=True)]
        self.schedule.last_epoch, self.schedule._step_count, self.schedule._last_lr = step, step + 1, rates
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate

    def _stepped(self, *_: Any) -> None:
        self.whole = False
