"""One optimizer step of the clipped dual-mode loss, in micro-batches."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from policy_split.algorithms import baseline_losses
from policy_split.algorithms.table import LossVectors
from policy_split.config import PolicySplitConfig
from policy_split.losses.dual_mode import DualModeLossOutput, dual_mode_loss
from policy_split.losses.linear import linear_dual_mode_loss
from policy_split.losses.weights import token_weights
from policy_split.models.adapters import set_adapter_dropout
from policy_split.models.batches import Batch
from policy_split.models.policy import Policy
from policy_split.modes import MODE_NAMES, MODES
from policy_split.progress import track
from policy_split.rollouts.metrics import Sums, add_sums, k3, sum_and_count
from policy_split.rollouts.micro_batches import micro_batches
from policy_split.rollouts.rollout import Rollout, logits_scores
from policy_split.run_folder.checkpoints import Progress
from policy_split_kernels.linear import linear_token_loss
from policy_split_kernels.logprobs import logprobs_and_entropy

from .baseline_step import baseline_loss
from .first_pass import FirstPass
from .regularizer import entropy_coefficients, mode_push, push_coefficients


@dataclass
class PolicyUpdate:
    """What an optimizer step needs besides its rows."""

    accelerator: Accelerator
    policy: Policy
    optimizer: Optimizer
    config: PolicySplitConfig
    progress: Progress
    entropy_coef: float = 0.0  # of a baseline that adapts it; it takes the place of the one in its settings

    def step(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        advantages: Tensor,  # (4*P*n, T)
        old_logprobs: Tensor | None,  # (4*P*n, T); None: the policy is still the one that sampled, the ratio is 1
        ref_logprobs: Tensor | None,  # (4*P*n, T)
        chosen: Tensor | None = None,  # (4*P*n, T) bool: what a baseline's loss treats differently
        first: FirstPass | None = None,  # the update also scores its rows
    ) -> Sums:
        """One step over some rows. Weights are those of all its rows together: how they are cut changes nothing.

        Returns sums of loss, grad_norm, skipped_steps, kl to the reference (nats) and each mode's clip_ratio.
        FloatingPointError: more than max_skipped_steps in a row had no finite gradient.
        """
        mask, index = rollout.train_mask, torch.tensor(rows, device=rollout.mask.device)
        sums, weights = self._trained_tokens(rollout, index), self._weights(mask, index)
        loss, no_count = torch.zeros((), device=mask.device), torch.zeros((), dtype=torch.float64, device=mask.device)
        if first is None:
            batches = micro_batches(rollout, self.contributing(rows, advantages), self.config)
        else:
            batches = first.batches
        self.policy.model.train(self.config.gradient_checkpointing)
        if self.config.lora_dropout:
            set_adapter_dropout(self.policy.bare, True)
        for number, micro_batch in enumerate(track(batches, "update"), 1):
            # FSDP2 sends the gradient of every micro-batch: to keep it until the last takes the memory of a whole model
            last = number == len(batches)
            send = last or self.accelerator.is_fsdp2
            self.accelerator.sync_gradients = last  # by which DeepSpeed knows when to step
            with nullcontext() if send else self.accelerator.no_sync(self.policy.model):
                arguments = (advantages, old_logprobs, ref_logprobs, weights, chosen, first)
                out = self.backward(rollout, micro_batch, *arguments)
            loss += out.loss.detach()
            mode = rollout.mode[micro_batch]
            clipped = {f"{MODE_NAMES[m]}/clip_ratio": (out.clipped[mode == m].sum().double(), no_count) for m in MODES}
            sums = add_sums(sums, clipped)
            if ref_logprobs is not None:
                sums = add_sums(sums, {"kl": sum_and_count(out.kl[mask[micro_batch, : out.kl.shape[1]]])})
        return sums | self._finish(loss)

    def contributing(self, rows: Sequence[int], advantages: Tensor) -> Sequence[int]:
        """The rows that have a gradient: as a model sharpens, most groups have equal rewards and no advantage.

        One row at least, so that the optimizer makes its step, and as many in every process, which wait for each other
        in every micro-batch: those that have fewer take rows without a gradient as well.
        """
        if self.trains_without_advantage:
            return rows
        has_gradient = (advantages != 0).any(1)
        wanted = self.accelerator.gather(has_gradient[list(rows)].sum()[None]).max().clamp(min=1)
        idle = (~has_gradient).tolist()
        return sorted(rows, key=lambda row: idle[row])[: int(wanted)]

    @property
    def trains_without_advantage(self) -> bool:
        """Whether tokens have a gradient even where their advantage is 0."""
        config = self.config
        other_terms = config.beta > 0 or any(self._entropy_coefficients()) or self._own_loss
        return other_terms or config.regularizer == "loss"

    def backward(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        advantages: Tensor,
        old_logprobs: Tensor | None,
        ref_logprobs: Tensor | None,
        weights: Tensor,
        chosen: Tensor | None = None,
        first: FirstPass | None = None,
    ) -> DualModeLossOutput:
        """Adds the gradient of one micro-batch (B, T) to the model's; the output's vectors are (B, T)."""
        config = self.config
        batch = rollout.batch(rows, packed=self.policy.packed)
        mask, weights = batch.gather(rollout.train_mask), batch.gather(weights)
        arguments: dict[str, Any] = {
            "targets": batch.gather(rollout.completion_ids),
            "advantages": batch.gather(advantages),
            "mode": batch.gather(rollout.mode[:, None].expand(rollout.mask.shape)),
            "old_logprobs": None if old_logprobs is None else batch.gather(old_logprobs),
            "ref_logprobs": None if ref_logprobs is None else batch.gather(ref_logprobs),
            "mask": mask,
            "weights": weights,
            "entropy_coef": self._entropy_coefficients(),
            "kl_coef": (config.beta, config.beta),
            "temperature": config.temperature,
            "clip_low": config.epsilon,
            "clip_high": config.clip_high,
            "clip_delta": config.delta,
        }
        arguments |= {name: x for name, x in self._settings.items() if name in ("clip_low", "clip_high")}
        if self._own_loss:
            out = self._baseline(batch, arguments, None if chosen is None else batch.gather(chosen))
        elif self.policy.fused:
            if first is not None and first.advantages_of is not None:
                # every token is scored; those that do not train have the weight 0
                arguments |= {"advantages": partial(first.advantages, batch), "mask": batch.gather(rollout.mask)}
            head_fn = partial(linear_dual_mode_loss, chunk_bytes=self.policy.chunk_bytes, **arguments)
            out = self.policy.completion_head(batch, head_fn)
        else:
            logits = self.policy.completion_logits(batch)
            if first is not None and first.advantages_of is not None:
                options = first.arguments(batch, config.temperature)
                scores = logits_scores(logits.detach(), **options, divergence=config.exact_kl)
                arguments["advantages"] = first.advantages(batch, *scores)
            logits, push = mode_push(logits, weights, mask, push_coefficients(config), config.temperature)
            # in place: the logits are this forward's own and nobody else reads them
            out = dual_mode_loss(logits, **arguments, inplace_gradient=True)
            out = out._replace(loss=out.loss + push)
        if first is not None and first.advantages_of is None:
            first.keep(batch, out.logprobs, out.entropy)
        self.accelerator.backward(out.loss)
        return DualModeLossOutput(out.loss, *map(batch.scatter, out[1:]))

    @property
    def _settings(self) -> Mapping[str, Any]:
        algorithm = self.config.chosen_algorithm
        return {} if algorithm.dual_mode else algorithm.settings

    @property
    def _own_loss(self) -> bool:
        """Whether a baseline has another loss than the clipped one."""
        return "loss" in self.config.chosen_algorithm.changes

    def _entropy_coefficients(self) -> tuple[float, float]:
        """Of each mode: the settings' own, and what a baseline adds to that of its one mode."""
        normal, high = entropy_coefficients(self.config)
        adapts = self.config.chosen_algorithm.entropy_control is not None
        return normal + (self.entropy_coef if adapts else self._settings.get("entropy_coef", 0.0)), high

    def _baseline(self, batch: Batch, arguments: dict[str, Any], chosen: Tensor | None) -> DualModeLossOutput:
        """A baseline's own loss of the tokens that those arguments of `dual_mode_loss` describe."""
        policy, names = self.policy, ("targets", "mask", "temperature")
        advantages, old, ref = (arguments[name] for name in ("advantages", "old_logprobs", "ref_logprobs"))
        clip = {name: arguments[name] for name in ("clip_low", "clip_high")}
        vectors = LossVectors(advantages.flatten(), _flat(old), _flat(chosen))
        loss_fn = baseline_loss(
            self.config.chosen_algorithm, vectors, _flat(ref), entropy_coef=arguments["entropy_coef"][0],
            kl_coef=self.config.beta, **clip,
        )  # fmt: skip
        options = {name: arguments[name] for name in names}
        if policy.fused:
            head_fn = partial(
                linear_token_loss,
                loss_fn=loss_fn,
                weights=arguments["weights"],
                chunk_bytes=policy.chunk_bytes,
                **options,
            )
            loss, _, logprobs, entropy = policy.completion_head(batch, head_fn)
        else:
            logits = policy.completion_logits(batch)
            logprobs, entropy = logprobs_and_entropy(logits, **options)
            index = arguments["mask"].flatten().nonzero().squeeze(-1)
            losses = loss_fn(logprobs.flatten()[index], entropy.flatten()[index], index)
            loss = (arguments["weights"].flatten()[index] * losses).sum()
        logprobs, entropy = logprobs.detach(), entropy.detach()
        kl = torch.zeros_like(logprobs) if ref is None else k3(logprobs, ref)
        _, clipped = baseline_losses.clip(logprobs, advantages, old, **clip)
        clipped = clipped & arguments["mask"]
        if "clip range" in self.config.chosen_algorithm.changes:  # an own loss that changes it has none
            clipped = torch.zeros_like(clipped)
        return DualModeLossOutput(loss, logprobs, entropy, kl, clipped)

    def _weights(self, mask: Tensor, rows: Tensor) -> Tensor:
        """(4*P*n, T): those of the loss type, 0 for rows that are not in this step."""
        config = self.config
        own = mask[rows]
        tokens = self.accelerator.reduce(own.sum().float(), reduction="mean")
        weights = torch.zeros(mask.shape, device=mask.device)
        weights[rows] = token_weights(
            own, config.loss_type, max_completion_length=config.max_completion_length, tokens=tokens
        )
        return weights

    def _trained_tokens(self, rollout: Rollout, rows: Tensor) -> Sums:
        mode, counts = rollout.mode[rows], rollout.train_mask[rows].sum(1).double()
        return {f"{MODE_NAMES[m]}/clip_ratio": (counts.new_zeros(()), counts[mode == m].sum()) for m in MODES}

    def _finish(self, loss: Tensor) -> Sums:
        """Clip the gradient and step; skip if loss or gradient is not finite, and stop the run if that goes on.

        DeepSpeed has clipped and stepped in the last backward, finite or not: the run stops at once.
        """
        loss = self.accelerator.reduce(loss, reduction="mean")
        norm = self.accelerator.clip_grad_norm_(self.policy.model.parameters(), self.config.max_grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm, device=loss.device)
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss))
        if finite or self.config.fp16:  # float16's loss scale skips by itself, and has to see why
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.skipped = 0 if finite else self.progress.skipped + 1
        stepped = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.progress.skipped > (0 if stepped else self.config.max_skipped_steps):
            raise FloatingPointError(
                f"step {self.progress.step + 1}: loss {float(loss)}, gradient norm {float(norm)}; "
                f"{self.progress.skipped} optimizer steps in a row were not finite "
                f"(max_skipped_steps={self.config.max_skipped_steps})"
            )
        skipped = torch.tensor(float(not finite), device=loss.device)
        return {
            name: sum_and_count(x) for name, x in {"loss": loss, "grad_norm": norm, "skipped_steps": skipped}.items()
        }


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.flatten()
