"""A run: a trainer's steps to the last one, what is written after each, and what is kept when one stops or fails."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from policy_split.evaluation.evaluate import flatten
from policy_split.isolation.foreign_calls import foreign_calls_by
from policy_split.isolation.time_limit import add_note, check_time_limit
from policy_split.progress import mode_postfix, showing, steps_bar
from policy_split.rollouts.rollout import Rollout
from policy_split.run_folder.checkpoints import find_checkpoint, usable
from policy_split.run_folder.hub import check_hub, push
from policy_split.run_folder.output_dir import check_output_dir
from policy_split.run_folder.resume import check_resumable, noted_changes
from policy_split.run_folder.runlog import RunLog

from .garbage import old_objects_aside
from .stopping import StopRequest

if TYPE_CHECKING:
    from .trainer import PolicySplitTrainer


class Run:
    """What `PolicySplitTrainer.train` does; nothing is written before the first step has passed without an error."""

    def __init__(self, trainer: "PolicySplitTrainer"):
        self.trainer, self.config, self.state = trainer, trainer.config, trainer.state
        self.progress, self.accelerator = trainer.progress, trainer.accelerator
        self.process = os.getpid()

    def train(self, resume_from_checkpoint: str | Path | bool, resume_anyway: bool) -> dict[str, float]:
        trainer, config, resume = self.trainer, self.config, bool(resume_from_checkpoint)
        self._check(resume)
        record = trainer.record()
        if resume:
            checkpoint = find_checkpoint(trainer.output_dir, resume_from_checkpoint)
            check_resumable(checkpoint, record, anyway=resume_anyway)
            for line in noted_changes(checkpoint, record):
                self.accelerator.print(line, file=sys.stderr)
            self.state.load(checkpoint)
        metrics: dict[str, float] = {}
        disable = config.disable_tqdm if self.accelerator.is_main_process else True
        with (
            RunLog(self.accelerator, config, record, resume=resume) as log,
            showing(disable),
            steps_bar(self.progress.step, trainer.max_steps, disable) as bar,
            StopRequest() as stop,
            foreign_calls_by(stop.call),
            closing(trainer.sampler),
            old_objects_aside(),
        ):
            while self.progress.step < trainer.max_steps:
                metrics, rollout = self._finished_step(log, stop)
                done = self.progress.step
                log.write(metrics, rollout, trainer.tokenizer)
                stopped = self._any_process(stop.asked)
                if stopped or (config.save_steps and done % config.save_steps == 0):
                    log.sync()
                    self.state.save(trainer.output_dir, config.save_total_limit)
                bar.set_postfix(mode_postfix(metrics), refresh=False)
                bar.update()
                if stopped:
                    raise KeyboardInterrupt(f"stopped after step {done} of {trainer.max_steps}, which is saved")
        trainer.save_model()
        if trainer.repository and self.accelerator.is_main_process:
            push(trainer.repository, trainer.output_dir, trainer.saved_files)
        return metrics

    def _check(self, resume: bool) -> None:
        """What can be known before anything is sampled."""
        config = self.config
        check_output_dir(self.trainer.output_dir, resume=resume, overwrite=config.overwrite_output_dir)
        self.accelerator.wait_for_everyone()  # the others still make and remove the folder
        if config.save_steps:
            self.state.check_supported()
        if config.reward_timeout is not None:
            check_time_limit(f"reward_timeout={config.reward_timeout}")
        if config.push_to_hub:
            name = config.hub_model_id or self.trainer.output_dir.absolute().name
            create = self.accelerator.is_main_process
            self.trainer.repository = check_hub(name, config.hub_private_repo, create=create)

    def _finished_step(self, log: RunLog, stop: StopRequest) -> tuple[dict[str, float], Rollout]:
        try:
            return self._step(log)
        except Exception as error:
            if stop.asked:  # perhaps because the signal has ended processes of a reward function
                reasons = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
                said = f"stopped; the step in progress could not be finished ({'; '.join(reasons)})"
                raise KeyboardInterrupt(said) from error
            raise

    def _step(self, log: RunLog) -> tuple[dict[str, float], Rollout]:
        """A step and the evaluation that is due after it; if one of them fails, the run's state is saved first."""
        every = self.config.eval_steps
        try:
            metrics, rollout = self.trainer.step()
        except Exception as error:
            self._keep_state(error)
            raise
        self.state.mark()
        if every and self.progress.step % every == 0:
            try:
                metrics |= flatten(self.trainer.evaluate(), "eval")
            except Exception as error:
                log.write(metrics, rollout, self.trainer.tokenizer)
                log.sync()
                self._keep_state(error)
                raise
            self.state.mark()  # rewards may have drawn random numbers
        return metrics, rollout

    def _keep_state(self, error: Exception) -> None:
        """Save the last finished step if that can be done, and note on the error where the run can go on."""
        if os.getpid() != self.process:  # a process that a reward function has forked and left to come back here
            return
        folder, step = self.trainer.output_dir, self.state.finished
        together = self.accelerator.num_processes == 1 or isinstance(error, FloatingPointError)
        try:
            if step and step != self.state.saved and self.state.whole and together:
                self.state.save(folder, self.config.save_total_limit)
        except (OSError, NotImplementedError) as failed:
            add_note(error, str(failed))
            return
        if step:
            add_note(error, f"{step} steps are finished; {usable(folder)}")

    def _any_process(self, asked: bool) -> bool:
        """Whether any process was asked: signals do not reach all of them during the same step."""
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum"))
