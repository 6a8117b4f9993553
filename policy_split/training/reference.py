"""The reference of config.beta: a frozen copy of the initial model, or the model itself without its adapter."""

import copy
from contextlib import nullcontext
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from policy_split.config import PolicySplitConfig
from policy_split.models.adapters import without_adapter
from policy_split.models.policy import Policy, fuse_lm_head, load_model
from policy_split.models.sharding import shard_frozen
from policy_split.rollouts.micro_batches import micro_batches
from policy_split.rollouts.rollout import Rollout, score


def reference_logprobs(reference: Policy, policy: Policy, rollout: Rollout, config: PolicySplitConfig) -> Tensor:
    """(4*P*n, T) nats; a reference that is the policy itself is asked without its adapter."""
    batches = micro_batches(rollout, range(len(rollout.mode)), config)
    with without_adapter(policy.bare) if reference is policy else nullcontext():
        return score(reference, rollout, batches, config.temperature).logprobs


def frozen_copy(model: PreTrainedModel, ref_model: PreTrainedModel | str | None, config: PolicySplitConfig) -> Any:
    """The reference's own model, of ref_model if it is given."""
    frozen = copy.deepcopy(model) if ref_model is None else load_model(ref_model, config)
    return frozen.requires_grad_(False).eval()


def frozen_reference(
    accelerator: Accelerator, frozen: PreTrainedModel, tokenizer: Any, config: PolicySplitConfig
) -> Policy:
    fused = fuse_lm_head(frozen, config)
    if accelerator.is_fsdp2:
        wrapped = shard_frozen(accelerator, frozen)
    else:
        wrapped = accelerator.prepare_model(frozen, evaluation_mode=True)
    options = (fused, config.lm_head_chunk_bytes, config.packed_batches, config.share_prompts)
    reference = Policy(wrapped, tokenizer, frozen, *options)
    reference.check_padding()
    return reference
