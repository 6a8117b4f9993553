"""Policy Split on verl (0.9 and newer, `pip install policy-split[verl]`): rollout sharing, advantages and loss.

    VERL_USE_EXTERNAL_MODULES=policy_split.integrations.verl python -m verl.trainer.main_ppo ...

imports this module in every process, which registers under the name `policy_split`

- an agent loop: half of a question's rollout.n sessions ask behind the high-entropy system prompt, and each returns its
  response twice, behind the other mode's prompt and behind its own, by token ids. verl grades the second and gives the
  first the same score;
- a trainer (`trainer.v1.trainer_mode`): the synchronous one, whose advantages are those of `dual_mode_advantages`;
- an advantage estimator, correctness alone, whose place the trainer's advantages then take, and a policy loss, verl's
  clipped one, for configurations that name both.

Settings are those of `dual_mode_advantages` and the two prompts, under `algorithm.policy_split`; see examples/verl.
Run on a CPU: the agent loop, the advantages and the registries, with a stand-in for TransferQueue. Not run yet: Ray,
rollout engines, GPUs. Source: arXiv 2604.11510.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from ..extras import check_extra
from ..modes import HIGH_ENTROPY, HIGH_ENTROPY_PROMPT, MODES, NORMAL, with_system_prompt
from .verl_rows import policy_split_advantages

check_extra("verl", "policy_split.integrations.verl")

from tensordict import TensorDict  # noqa: E402
from verl.experimental.agent_loop.agent_loop import register  # noqa: E402
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402

NAME = "policy_split"
PROMPTS = ("normal_prompt", "high_entropy_prompt")


def settings_of(config: Any) -> tuple[tuple[str | None, str | None], dict[str, Any]]:
    """(system prompts by mode, options of `dual_mode_advantages`) of a verl configuration's algorithm.policy_split."""
    given: Mapping[str, Any] = config.algorithm.get(NAME) or {}
    options = {name: value for name, value in given.items() if name not in PROMPTS}
    return (given.get(PROMPTS[0]), given.get(PROMPTS[1], HIGH_ENTROPY_PROMPT)), options


@register(NAME)
class PolicySplitAgentLoop(SingleTurnAgentLoop):
    """One turn of one mode: session i of the 2n = rollout.n of a question is of the normal mode for i < n.

    An evaluation with val_kwargs.n up to n asks the normal mode. ValueError for an odd rollout.n and for images.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.system_prompts, _ = settings_of(self.config)
        if self.rollout_config.n % 2:
            raise ValueError(f"rollout.n={self.rollout_config.n} must be even: half of the responses for each mode")

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """[twin, own], of one response: the outputs that verl puts into its queue."""
        mode = MODES[kwargs["session_id"] * len(MODES) // self.rollout_config.n % len(MODES)]
        messages = list(kwargs["raw_prompt"])
        asked = [with_system_prompt(messages, prompt) for prompt in self.system_prompts]
        own = await super().run(sampling_params, **{**kwargs, "raw_prompt": asked[mode]})
        if own.multi_modal_data:
            raise ValueError("Policy Split asks about text alone; the dataset has images, videos or audio")
        other = HIGH_ENTROPY if mode == NORMAL else NORMAL
        twin = own.model_copy(deep=True)
        twin.prompt_ids = list(await self.ct_build_initial_tokens(asked[other]))
        return [twin, own]


@core_algos.register_adv_est(NAME)
def correctness_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns) (B, T) of GRPO; the bonus needs old log-probs, which an estimator is not given."""
    return core_algos.compute_grpo_outcome_advantage(token_level_rewards, response_mask, index)


@core_algos.register_policy_loss(NAME)
def policy_loss(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The clipped objective of token-level advantages: verl's own, with its dual clip (clip_ratio_c)."""
    return core_algos.compute_policy_loss_vanilla(*args, **kwargs)


def advantages_of_queue(queue: Any, batch: Any, config: Any, to_nested: Any) -> None:
    """Read scores and old log-probs of the batch's rows from the queue, and put back the advantages.

    Rows that verl has added to fill up the batch keep what they have.
    """
    rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding")]
    keys = [batch.keys[row] for row in rows]
    place = {"keys": keys, "partition_id": batch.partition_id}
    scores = "token_level_rewards" if config.algorithm.use_kl_in_reward else "rm_scores"
    fields = queue.kv_batch_get(select_fields=["response_mask", scores, "old_log_probs"], **place)
    padded = fields.to_padded_tensor()
    _, options = settings_of(config)
    advantages = policy_split_advantages(
        keys,
        padded[scores].sum(-1),
        padded["old_log_probs"],
        padded["response_mask"],
        num_sessions=config.actor_rollout_ref.rollout.n,
        **options,
    )
    nested = to_nested(advantages, fields["response_mask"])
    queue.kv_batch_put(fields=TensorDict({"advantages": nested, "returns": nested}, batch_size=len(keys)), **place)


def register_trainer() -> type:
    """Register the trainer `policy_split` and return its class; needs TransferQueue, which verl brings along."""
    from verl.trainer.ppo.v1 import trainer_base, trainer_sync

    @trainer_base.register_trainer(NAME)
    class PolicySplitTrainer(trainer_sync.PPOTrainerSync):
        def __init__(self, config: Any):
            config.trainer.v1.trainer_mode = "sync"  # verl takes every other name for an asynchronous trainer
            super().__init__(config)

        def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
            batch = super()._compute_advantage(batch, metrics)
            advantages_of_queue(trainer_base.tq, batch, self.config, trainer_base.response_to_nested)
            return batch

    return PolicySplitTrainer


if importlib.util.find_spec("transfer_queue") is not None:
    register_trainer()
