"""Policy Split training (arXiv 2604.11510), in the order in which it runs.

What is different from textbook GRPO:

1. Every question is asked twice, plainly (normal mode) and behind a high-entropy system prompt: n responses each.
2. Every response, by its token ids, is scored and trained under both prompts: 4n rows per question, 2n per group.
3. The old log-probs of all rows are computed before the update: the difference between the modes is part of the
advantage.
4. Advantages are per token: correctness of the group plus the dual-mode entropy bonus (`dual_mode_advantages`). With
regularizer="loss", our own form, the bonus is a differentiable term of the loss instead (`regularizer.mode_push`).
5. Entropy and KL are per mode, everywhere: in the loss, in the metrics, in the evaluation.

One step is one rollout and its updates. Nothing is written before the first step has passed without an error.
"""

import math
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerState, get_scheduler

from policy_split.config import PolicySplitConfig
from policy_split.data.datasets import Data, as_prompts, check_apart, longest_prompt
from policy_split.data.order import QuestionOrder
from policy_split.data.rows import rows_at
from policy_split.evaluation.evaluate import evaluate_policy, plain_text
from policy_split.evaluation.question_scores import Key
from policy_split.models.adapters import add_adapter, check_adapter, is_adapted, merged
from policy_split.models.policy import Policy, check_fit, enable_checkpointing, fuse_lm_head, load_model, load_tokenizer
from policy_split.progress import track
from policy_split.rewards.calls import reward_name
from policy_split.rewards.functions import as_reward_functions, check_columns
from policy_split.rewards.own import reward_of
from policy_split.rollouts.metrics import Sums, add_sums, logged_sums, means, rollout_sums, sum_and_count
from policy_split.rollouts.micro_batches import optimizer_batches
from policy_split.rollouts.rollout import BLOCKS, SINGLE_BLOCKS, Rollout, make_rollout, score_rollout
from policy_split.rollouts.sampler import Sampler
from policy_split.rollouts.sampling import seed_of, seeded
from policy_split.run_folder.checkpoints import Progress
from policy_split.run_folder.fingerprint import fingerprint, weights_sum
from policy_split.run_folder.launch import make_accelerator, make_optimizer
from policy_split.run_folder.model_folder import save_pretrained
from policy_split.run_folder.record import Record, described, source_name
from policy_split.run_folder.run_state import RunState
from policy_split.run_folder.runlog import shows_samples

from .baseline_step import BaselineTokens
from .card_facts import card_writer
from .controls import Controls
from .dual_step import DualTokens
from .first_pass import FirstPass, scores_with_update
from .reference import frozen_copy, frozen_reference, reference_logprobs
from .reward_state import trainer_state
from .run import Run
from .scoring import ScorePlan, first_batches, plan_scores
from .update import PolicyUpdate


class PolicySplitTrainer:
    """Trains both modes of one model: `PolicySplitTrainer(model, tokenizer, reward, dataset, config).train()`.

    model: a PreTrainedModel, trained in place, or a name or path. tokenizer: the model's; None for a model given by
    name. reward_funcs: one function or several, callable or "module:function"; None: that of a reasoning-gym dataset.
    train_dataset, eval_dataset: a Dataset, a list of rows, or what `load_prompts` takes, with a column `prompt`; the
    others go to the rewards as they are. ref_model: the reference of config.beta, by default a frozen copy of the
    model. Raises ValueError, TypeError, ImportError or FileNotFoundError, naming what is wrong, before anything is
    written; every prompt of the datasets is checked here.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        tokenizer: Any,
        reward_funcs: Any,
        train_dataset: Data,
        config: PolicySplitConfig | None = None,
        eval_dataset: Data | None = None,
        ref_model: PreTrainedModel | str | None = None,
    ):
        self.config = config = PolicySplitConfig() if config is None else config
        given = {"model": model, "dataset": train_dataset, "reward": reward_funcs}
        given |= {} if eval_dataset is None else {"eval_dataset": eval_dataset}
        self.sources: dict[str, Any] = {name: source_name(value) for name, value in given.items()}
        self.accelerator = make_accelerator(config)
        if config.prompts_per_step % self.accelerator.num_processes:
            raise ValueError(
                f"prompts_per_step={config.prompts_per_step} must be a multiple of the "
                f"{self.accelerator.num_processes} processes"
            )
        self.train_dataset = as_prompts(train_dataset, "train_dataset")
        self.order = QuestionOrder(self.train_dataset, config.fresh_questions)
        self.eval_dataset = None if eval_dataset is None else as_prompts(eval_dataset, "eval_dataset", held_out=True)
        if self.eval_dataset is not None:
            check_apart(self.train_dataset, self.eval_dataset)
        if reward_funcs is None:
            reward_funcs = reward_of(self.train_dataset, model if isinstance(model, str) else None)
        if reward_funcs is None:
            raise ValueError("reward_funcs is None; only reasoning-gym and words have one of their own")
        self.rewards = as_reward_functions(reward_funcs, config.reward_weights, config.reward_timeout)
        if config.eval_steps and self.eval_dataset is None:
            raise ValueError(f"eval_steps={config.eval_steps} needs an eval_dataset")
        self.tokenizer = load_tokenizer(tokenizer, model)
        longest = 0
        for name, dataset in (("train_dataset", self.train_dataset), ("eval_dataset", self.eval_dataset)):
            if dataset is not None:
                check_columns(self.rewards, dataset.column_names)
                longest = max(longest, longest_prompt(self.tokenizer, dataset, config, name))
        bare = load_model(model, config)
        check_fit(bare, self.tokenizer, longest, config.max_completion_length)
        if config.use_peft:
            bare = add_adapter(bare, config)
        if is_adapted(bare):
            check_adapter(bare)
        elif config.merge_adapter:
            raise ValueError("merge_adapter=True needs a model with an adapter: use_peft=True makes one")
        self._prepare(bare, ref_model, longest)

    def _prepare(self, bare: PreTrainedModel, ref_model: PreTrainedModel | str | None, longest: int) -> None:
        config = self.config
        reference = None
        # what no checkpoint holds: a resumed run has to bring it
        self.frozen = weights_sum(bare, trainable=False) if is_adapted(bare) else None
        if config.beta > 0 and not (config.use_peft and ref_model is None):
            frozen = frozen_copy(bare, ref_model, config)
            self.frozen = weights_sum(frozen, trainable=True)
            reference = frozen_reference(self.accelerator, frozen, self.tokenizer, config)
        fused = fuse_lm_head(bare, config)
        if config.gradient_checkpointing:
            enable_checkpointing(bare)
        optimizer = make_optimizer(bare, config)
        self.model, self.optimizer = self.accelerator.prepare(bare, optimizer)
        unwrapped = self.accelerator.unwrap_model(self.model)
        options = (fused, config.lm_head_chunk_bytes, config.packed_batches, config.share_prompts)
        self.policy = Policy(self.model, self.tokenizer, unwrapped, *options)
        self.policy.check_padding()
        self.sampler = Sampler(self.policy, config, self.accelerator, longest, self.train_dataset[0]["prompt"])
        self.reference = self.policy if config.beta > 0 and reference is None else reference  # without its adapter
        # stepped once per step and in every process alike: not through accelerate, which steps it once per process
        self.schedule = get_scheduler(config.lr_scheduler_type, optimizer, config.warmup_steps, self.max_steps)
        self.progress = Progress()
        self.controls = Controls(config, self.progress, self.accelerator)
        self.update = PolicyUpdate(self.accelerator, self.policy, self.optimizer, config, self.progress)
        parts = (unwrapped, self.tokenizer, optimizer, self.schedule, self.progress)
        self.state = RunState(self.accelerator, *parts, config.seed)
        self.output_dir = Path(config.output_dir)
        self.repository: str | None = None  # of the Hub, once it is known

    @property
    def max_steps(self) -> int:
        """Steps of the whole run."""
        if self.config.max_steps > 0:
            return self.config.max_steps
        return math.ceil(self.config.num_train_epochs * len(self.train_dataset) / self.config.prompts_per_step)

    @property
    def trainer_state(self) -> TrainerState:
        return trainer_state(self.config, self.progress, self.max_steps, len(self.train_dataset), self.accelerator)

    def train(
        self, resume_from_checkpoint: str | Path | bool = False, *, resume_anyway: bool = False
    ) -> dict[str, float]:
        """Train to the last step and save the model in output_dir; returns the metrics of the last step.

        resume_from_checkpoint: a checkpoint's path, or True for the newest in output_dir that is whole; the run goes on
        exactly as if it had not stopped, with the settings of now where they may change, such as the learning rate.
        ValueError lists every other difference in settings, questions, tokenizer, model and rewards; resume_anyway
        makes it a warning. FileExistsError: output_dir holds another run. FloatingPointError: too many
        steps without a finite gradient. OSError: a checkpoint could not be saved. KeyboardInterrupt: after Ctrl-C or
        SIGTERM, once the step is finished and saved. Whatever a step raises, the last finished step is saved first,
        unless weights have moved since, or other processes would have to take part; a note of the error says where to
        go on.
        """
        return Run(self).train(resume_from_checkpoint, resume_anyway)

    def record(self) -> Record:
        """What is written beside the run, and compared when it is resumed."""
        names = [reward_name(function) for function, _ in self.rewards]
        sources = self.sources.get("reward")
        parts = (self.train_dataset, self.tokenizer, self.policy.bare, names, self.frozen, sources)
        return Record(described(self.config, self.sources), fingerprint(*parts))

    def step(self) -> tuple[dict[str, float], Rollout]:
        """One step: rollout, rewards, sharing, old log-probs, advantages, updates: (metrics, rollout)."""
        started = time.perf_counter()
        config = self.update.config = self.controls.of_step()
        rollout = self.sample()
        self.policy.bare.eval()
        batches = optimizer_batches(rollout, config, seed_of(config.seed, "rows", self.progress.step))
        tokens = self.tokens(rollout)
        plan = self._plan_scores(rollout, tokens, batches[0])
        score_rollout(self.policy, rollout, config, plan.before)
        ref_logprobs = None
        if self.reference is not None:
            ref_logprobs = reference_logprobs(self.reference, self.policy, rollout, config)
        self.update.entropy_coef = self.controls.entropy_coef(rollout)
        tokens.fill(plan.measured if plan.together else [*plan.live, *plan.measured])
        first = None
        if plan.together:
            cut_to = first_batches(rollout, config, plan, batches[0], self.accelerator)
            first = FirstPass(rollout, cut_to, tokens.advantages_of)
        learning_rate = self.schedule.get_last_lr()[0]
        sums: Sums = {}
        with self._dropout_seed():
            for number, rows in enumerate(track(batches * config.num_iterations, "optimizer steps", "step")):
                begins = number == 0
                arguments = (
                    None if begins else rollout.logprobs,
                    ref_logprobs,
                    tokens.chosen,
                    first if begins else None,
                )
                sums = add_sums(sums, self.update.step(rollout, rows, tokens.advantages, *arguments))
        sums |= rollout_sums(rollout) | tokens.sums()
        sums |= logged_sums(rollout.context, self.accelerator, sums)
        sums["score_with_update"] = sum_and_count(torch.tensor(float(plan.together), device=self.policy.device))
        with warnings.catch_warnings():  # torch's, if the very first optimizer step was skipped
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()
        self.progress.step += 1
        generated = rollout.mask.sum() * 2 / len(rollout.blocks)  # a response that is shared stands in two rows
        self.progress.num_tokens += int(self.accelerator.reduce(generated, reduction="sum"))
        metrics: dict[str, float] = {"step": self.progress.step}
        metrics["epoch"] = self.progress.step * config.prompts_per_step / len(self.train_dataset)
        metrics |= means(sums, self.accelerator)
        metrics |= self.controls.finished(metrics, config)
        metrics |= {"learning_rate": learning_rate, "num_tokens": self.progress.num_tokens}
        return metrics | {"step_time": time.perf_counter() - started}, rollout

    def _dropout_seed(self) -> AbstractContextManager[None]:
        """The only draws of an update: a function of (seed, step, process), as all others."""
        if not self.config.lora_dropout:
            return nullcontext()
        seed = seed_of(self.config.seed, "dropout", self.progress.step, self.accelerator.process_index)
        return seeded(seed, self.policy.device)

    def sample(self) -> Rollout:
        """This process's share of the step's questions, answered: a function of (weights, seed, step, process)."""
        config, rank, world = self.config, self.accelerator.process_index, self.accelerator.num_processes
        step = self.progress.step
        indices = self.order.rows(config.seed, step, config.prompts_per_step)
        questions = rows_at(self.train_dataset, indices[rank::world])
        seed = seed_of(config.seed, "rollout", step, rank)
        more: dict[str, Any] = {"num_generations": config.num_generations, "seed": seed}
        more["blocks"] = BLOCKS if config.chosen_algorithm.dual_mode else SINGLE_BLOCKS
        more["by_need"] = config.split_by_need
        with self.sampler.ready() as engine:
            more |= {"state": self.trainer_state, "engine": engine}
            return make_rollout(self.policy, questions, self.rewards, config, **more)

    def tokens(self, rollout: Rollout) -> DualTokens | BaselineTokens:
        """What the rollout's tokens train on: the advantages of both modes, or those of a baseline."""
        if self.config.chosen_algorithm.dual_mode:
            return DualTokens(rollout, self.update.config)
        seed = seed_of(self.config.seed, "baseline", self.progress.step, self.accelerator.process_index)
        return BaselineTokens(rollout, self.config, seed)

    def _plan_scores(self, rollout: Rollout, tokens: DualTokens | BaselineTokens, first_rows: list[int]) -> ScorePlan:
        config, step = self.config, self.progress.step + 1
        every = self.update.trains_without_advantage or tokens.needs_every_score
        return plan_scores(
            rollout,
            config,
            range(rollout.num_prompts) if every else tokens.live(),
            first_rows,
            self.accelerator,
            together=scores_with_update(config, len(rollout.blocks) * rollout.num_generations),
            show_first=shows_samples(config, step),
            seed=seed_of(config.seed, "measured", step, self.accelerator.process_index),
        )

    def evaluate(
        self, dataset: Any = None, num_samples: int | None = None, *, key: Key = plain_text, correct_reward: float = 1.0
    ) -> dict[str, Any]:
        """Both modes on held-out questions, as `evaluate_modes` returns them; by default on the eval_dataset."""
        dataset = self.eval_dataset if dataset is None else as_prompts(dataset, "the evaluation dataset", held_out=True)
        if dataset is None:
            raise ValueError("evaluate() needs a dataset: pass one, or eval_dataset to the trainer")
        self.policy.bare.eval()
        count = self.config.eval_num_samples if num_samples is None else num_samples
        options: dict[str, Any] = {"key": key, "correct_reward": correct_reward, "accelerator": self.accelerator}
        options["state"] = self.trainer_state
        with self.sampler.ready() as engine:
            return evaluate_policy(self.policy, dataset, self.rewards, self.config, count, **options, engine=engine)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Model, tokenizer and model card in Hugging Face's format, by default in config.output_dir.

        Of a model with an adapter the adapter alone, with config.merge_adapter a whole model.
        """
        folder = Path(output_dir or self.output_dir)
        model = merged(self.policy.bare) if self.config.merge_adapter else self.model
        card = card_writer(self, folder)
        self.saved_files = save_pretrained(self.accelerator, model, self.tokenizer, folder, card)
