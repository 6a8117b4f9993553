"""Policy Split on TRL's GRPO trainer (TRL 1.16 and newer, `pip install policy-split[trl]`).

    from policy_split.integrations.trl import PolicySplitGRPOConfig, PolicySplitGRPOTrainer

TRL generates (transformers or vLLM), grades, clips, accumulates, logs and saves; here both modes are asked, every
response is put under the other mode's prompt too, and the advantages are those of `dual_mode_advantages`.
Source: arXiv 2604.11510.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad, use_adapter

from policy_split.algorithms.advantages import advantages_and_bonuses, statistics_of
from policy_split.integrations.interleaved import blocks_of, modes_of_rows, rows_of
from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, MODES, NORMAL, encode_modes
from policy_split.rollouts.metrics import Sums, add_sums, means, sum_and_count
from policy_split.run_folder.model_folder import CARD

from .card import remove_other_card, save_card
from .config import PolicySplitGRPOConfig
from .kernels import use_fused_kernels
from .metrics import split_sums
from .model import check_padding, own_tokens
from .target import HeldKLCallback

ROW = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
UNSUPPORTED = ("tools", "environment_factories", "rollout_func")


class PolicySplitGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that trains both modes of one model: the arguments are GRPOTrainer's, args a PolicySplitGRPOConfig.

    Of the num_generations responses to a question the first half is asked plainly, the other behind the high-entropy
    system prompt; prompts are text or messages. Each stands under both prompts in training, so that the log-probs of
    twice the rows are computed and a micro-batch has twice per_device_train_batch_size rows. An evaluation asks both
    modes where num_generations_eval is even, else the normal one, and shares nothing. Metrics have TRL's names, those
    of a mode under `normal/` and `high_entropy/`, those between the modes under `policy_split/`; entropies and KLs are
    in nats, and completions are logged with a column `mode`.
    A response that every reward function leaves out (None) is in no group and trains nothing. Raises ValueError for
    tools, environments and rollout functions, which make prompts of their own, and for images.
    """

    _tag_names = ("trl", "grpo", "policy-split")
    _name = "Policy Split"

    def __init__(self, model: Any, reward_funcs: Any = None, args: PolicySplitGRPOConfig | None = None, **kwargs: Any):
        if args is None:
            args = PolicySplitGRPOConfig("policy-split-grpo")
        if not isinstance(args, PolicySplitGRPOConfig):
            raise TypeError(f"args must be a PolicySplitGRPOConfig, got {type(args).__name__}")
        super().__init__(model, reward_funcs, args, **kwargs)
        for name in UNSUPPORTED:
            if getattr(self, name, None):
                raise ValueError(f"{name} makes prompts of its own; Policy Split asks each question in two ways itself")
        self._check_prompts(self.train_dataset, "train_dataset")
        self._check_prompts(self.eval_dataset, "eval_dataset")
        check_padding(self)
        tokens = own_tokens(self)
        if args.fused_kernels:
            use_fused_kernels(self, vocabulary=tokens)
        self._row_modes: list[int] = []  # of the responses of this process
        self._twin_ids: list[list[int]] = []  # token ids of the same questions in the other mode
        self._rewards = torch.empty(0)  # (all processes' responses,), NaN where no function had one
        self._logprobs = torch.empty(0)  # of the last rows that were scored
        self._clip_sums: Sums = {}  # since the last line of the log
        self.add_callback(HeldKLCallback(args.eta_high, args.target_kl))

    @property
    def _held(self) -> HeldKLCallback:
        return HeldKLCallback.of(self)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Ours, with policy_split.json, in args.output_dir; TRL asks for it at checkpoints and before a push."""
        if self.is_world_process_zero():
            given = [tags] if isinstance(tags, str) else tags or ()
            save_card(self, Path(self.args.output_dir), dataset_name, given)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        there_before = (folder / CARD).exists()
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            remove_other_card(folder, there_before=there_before)
            save_card(self, folder)

    def _num_generations(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)

    def _generate(self, prompts: list[Any]) -> Any:
        total, per_mode = len(prompts), self._num_generations() // 2
        if self._num_generations() % 2:
            self._row_modes = [NORMAL] * total
        else:
            self._row_modes = modes_of_rows(self.accelerator.process_index * total, total, per_mode)
        self._log_completion_extra("mode", [MODE_NAMES[mode] for mode in self._row_modes])
        return super()._generate(prompts)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Token ids of the prompts in the modes that are to answer them; those of the other mode are kept."""
        ids: dict[str, list[list[int]]] = {}
        for prompt in prompts:
            if repr(prompt) not in ids:  # a question stands in a row as often as it is asked
                ids[repr(prompt)] = self._both_modes(prompt, f"prompt {prompt!r}")
        both = [ids[repr(prompt)] for prompt in prompts]
        self._twin_ids = [pair[1 - mode] for pair, mode in zip(both, self._row_modes, strict=True)]
        return [list(pair[mode]) for pair, mode in zip(both, self._row_modes, strict=True)], None, {}

    def _both_modes(self, prompt: Any, where: str) -> list[list[int]]:
        """A text is not put through the chat template, as TRL has it; messages are."""
        return encode_modes(self._tokenizer, prompt, self.args, where, raw_text=True)

    def _check_prompts(self, dataset: Any, name: str) -> None:
        """ValueError for a prompt that cannot be asked in both modes; of a stream the first is looked at."""
        if isinstance(dataset, Mapping):
            for split, questions in dataset.items():
                self._check_prompts(questions, f"{name}[{split!r}]")
        elif dataset is not None:
            prompts = dataset["prompt"] if hasattr(dataset, "__len__") else (row["prompt"] for row in dataset.take(1))
            for row, prompt in enumerate(prompts):
                self._both_modes(prompt, f"{name}, row {row}")

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *args: Any, **kwargs: Any
    ) -> Any:
        if images is not None:
            raise ValueError("Policy Split asks about text alone; the dataset has images")
        # vLLM's server takes every num_generations-th prompt, and both modes' prompts are to be among them
        halved = num_generations if num_generations % 2 else num_generations // 2
        return super()._generate_single_turn(prompt_ids, images, multimodal_fields, halved, *args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        graded: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        sums = (graded * self.reward_weights.to(graded.device)).nansum(1)
        self._rewards = torch.where(graded.isnan().all(1), torch.nan, sums)
        return graded

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        training = self.model.training
        output = super()._generate_and_score_completions(inputs)
        self._log_responses(output)
        return self._shared(output) if training else output

    def _shared(self, output: dict[str, Any]) -> dict[str, Any]:
        """The rows of this process and behind them their twins, with the advantages of each token."""
        own = {name: output[name] for name in ROW}
        twin = own | self._twin_prompts(output)
        scores = [self._scores(self.model, rows) for rows in (own, twin)]
        old, entropy = (torch.cat(x) for x in zip(*scores, strict=True))
        advantages = self._advantages(own["completion_mask"], old, entropy)
        output = self._without_ungraded(output)
        for rows in (own, twin):
            rows["completion_mask"] = output["completion_mask"]
        modes = torch.tensor(self._row_modes, device=old.device)
        modes = torch.cat((modes, torch.where(modes == NORMAL, HIGH_ENTROPY, NORMAL)))
        shared = {"advantages": advantages, "modes": modes, "num_items_in_batch": output["num_items_in_batch"]}
        if "old_per_token_logps" in output:
            shared["old_per_token_logps"] = old
        if "ref_per_token_logps" in output:
            shared["ref_per_token_logps"] = torch.cat((output["ref_per_token_logps"], self._reference_logprobs(twin)))
        if "importance_sampling_ratio" in output:  # between the engine that sampled and the model: one for a response
            shared["importance_sampling_ratio"] = torch.cat((output["importance_sampling_ratio"],) * 2)
        if not self.args.rollout_sharing:
            count = len(own["completion_ids"])
            return own | {name: x[:count] if x.dim() else x for name, x in shared.items()}
        shared["num_items_in_batch"] = 2 * output["num_items_in_batch"]
        for name in ROW:
            padding = self._tokenizer.pad_token_id if name == "prompt_ids" else 0
            shared[name] = pad([*own[name], *twin[name]], padding, "left")
        return shared

    def _without_ungraded(self, output: dict[str, Any]) -> dict[str, Any]:
        """Responses without a reward have no token that trains, as TRL masks those that are cut off."""
        mask, rank = output["completion_mask"], self.accelerator.process_index
        graded = ~self._rewards[rank * len(mask) : (rank + 1) * len(mask), None].isnan()
        mask = mask * graded
        return output | {"completion_mask": mask, "num_items_in_batch": self.accelerator.gather(mask.sum()).sum()}

    def _twin_prompts(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """prompt_ids and prompt_mask (B, L'): the questions of this process under the other mode's prompt."""
        ids = [torch.tensor(prompt) for prompt in self._twin_ids]
        device = output["prompt_ids"].device
        to = {"padding_side": "left", "pad_to_multiple_of": self.pad_to_multiple_of}
        prompts = pad(ids, self._tokenizer.pad_token_id, **to)
        masks = pad([torch.ones_like(prompt) for prompt in ids], 0, **to)
        return {"prompt_ids": prompts.to(device), "prompt_mask": masks.to(device)}

    def _scores(self, model: Any, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the responses (B, T), nats, in micro-batches of TRL's own scoring."""
        ids = torch.cat((rows["prompt_ids"], rows["completion_ids"]), 1)
        mask = torch.cat((rows["prompt_mask"], rows["completion_mask"]), 1)
        length, size = rows["completion_ids"].shape[1], self.args.per_device_train_batch_size
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            scores = self._get_per_token_logps_and_entropies(model, ids, mask, length, size, compute_entropy=True)
        return scores[0], scores[1]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        scores = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logprobs = scores[0].detach()
        return scores

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if "modes" in inputs:
            self._clip_sums = add_sums(self._clip_sums, self._clipped_of_modes(inputs, self._logprobs))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.model.training and self._clip_sums:
            self._log_means(means(self._clip_sums, self.accelerator))
            self._clip_sums = {}
        super().log(logs, *args, **kwargs)

    def _clipped_of_modes(self, inputs: Mapping[str, Tensor], logprobs: Tensor) -> Sums:
        """TRL's clip ratios (`clip_ratio/...`, `cispo_clip_ratio`), each mode's under its own name: sums over tokens,
        as a micro-batch need not have rows of both."""
        mask, advantages = inputs["completion_mask"] != 0, inputs["advantages"]
        log_ratio = logprobs - inputs.get("old_per_token_logps", logprobs)
        if self.importance_sampling_level == "sequence":
            log_ratio = ((log_ratio * mask).sum(1) / mask.sum(1).clamp(min=1))[:, None].expand_as(mask)
        ratio = log_ratio.exp()
        return {
            f"{MODE_NAMES[mode]}/{name}": sum_and_count(clipped[mask & (inputs["modes"] == mode)[:, None]])
            for name, clipped in self._clipped(ratio, advantages).items()
            for mode in MODES
        }

    def _clipped(self, ratio: Tensor, advantages: Tensor) -> dict[str, Tensor]:
        """Whose gradient the clip takes away, by TRL's names; nothing for a loss that does not clip."""
        if self.loss_type == "sapo":
            return {}
        if self.loss_type == "cispo":
            return {"cispo_clip_ratio": (ratio > self.epsilon_high) & (advantages > 0)}
        if self.args.delta is not None:
            ratio = ratio.clamp(max=self.args.delta)
        low = (ratio < 1 - self.epsilon_low) & (advantages < 0)
        high = (ratio > 1 + self.epsilon_high) & (advantages > 0)
        return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}

    def _reference_logprobs(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Those of the reference model; of a PEFT model, without its adapter or with the copy named "ref"."""
        if self.ref_model is not None:
            return self._scores(self.ref_model, rows)[0]
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._scores(self.model, rows)[0]

    def _advantages(self, mask: Tensor, logprobs: Tensor, entropy: Tensor) -> Tensor:
        """(2B, T) of this process: a group may lie on several of them, so that each computes with all rows."""
        count, n = len(mask), self.num_generations // 2
        length, rank = mask.shape[1], self.accelerator.process_index
        logprobs, entropy, mask = (self._all_blocks(x, count) for x in (logprobs, entropy, torch.cat((mask, mask))))
        rewards = blocks_of(self._rewards, self._rewards, n)
        options = {**self.args.bonus_options, "num_prompts": len(self._rewards) // (2 * n), "num_generations": n}
        options["surprise"] = entropy if self.args.bonus_estimator == "entropy" else None
        options["graded"], options["eta"] = ~rewards.isnan(), self._held.applied()
        found = advantages_and_bonuses(rewards, logprobs, mask, **options)
        statistics = statistics_of(found, rewards, **options)
        measured = means(split_sums(logprobs, entropy, mask != 0, statistics))
        self._log_means(measured | self._held.finished(measured))
        return torch.cat([x[rank * count : (rank + 1) * count, :length] for x in rows_of(found.advantages, n)])

    def _all_blocks(self, rows: Tensor, count: int) -> Tensor:
        """The rows (2B, T) of all processes in the order of `dual_mode_advantages`; responses differ in length."""
        rows = self.accelerator.gather(self.accelerator.pad_across_processes(rows, dim=1))
        own, twin = rows.unflatten(0, (-1, 2, count)).unbind(1)
        return blocks_of(own.flatten(0, 1), twin.flatten(0, 1), self.num_generations // 2)

    def _log_responses(self, output: Mapping[str, Tensor]) -> None:
        """Reward and length of each mode's own responses."""
        mask, rank = output["completion_mask"], self.accelerator.process_index
        modes = torch.tensor(self._row_modes, device=mask.device)
        lengths = mask.sum(1)
        last = output["completion_ids"].gather(1, (lengths - 1).clamp(min=0)[:, None])
        ends = torch.tensor([*self.eos_token_ids, self._tokenizer.pad_token_id], device=mask.device)
        ended = torch.isin(last[:, 0], ends) & (lengths > 0)
        values = {
            "reward": self._rewards[rank * len(mask) : (rank + 1) * len(mask)],
            "completions/mean_length": lengths,
            "completions/clipped_ratio": ~ended,
        }
        asked = [mode for mode in MODES if mode == NORMAL or self._num_generations() % 2 == 0]
        sums = {
            f"{MODE_NAMES[mode]}/{name}": sum_and_count(value[(modes == mode) & ~value.isnan()])
            for mode in asked
            for name, value in values.items()
        }
        self._log_means(means(sums, self.accelerator))

    def _log_means(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
