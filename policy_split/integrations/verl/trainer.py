"""Policy Split on verl (0.9 and newer, `pip install policy-split[verl]`): rollout sharing, advantages and loss.

    VERL_USE_EXTERNAL_MODULES=policy_split.integrations.verl python -m verl.trainer.main_ppo ...

imports this module in every process that sees the variable (Ray's on other machines do not: see examples/verl/run.sh),
which registers under the name `policy_split`

- an agent loop: half of a question's rollout.n sessions ask behind the high-entropy system prompt, and each returns its
  response twice, behind the other mode's prompt and behind its own, by token ids. verl grades the second and gives the
  first the same score;
- a trainer (`trainer.v1.trainer_mode`): the synchronous one, whose advantages are those of `dual_mode_advantages`, with
  twice the rows in a mini-batch, so that sharing does not change the number of updates, metrics of each mode, and with
  target_kl an eta that moves, a file of each checkpoint;
- an advantage estimator, correctness alone, whose place the trainer's advantages then take, and a policy loss, verl's
  clipped one, for configurations that name both.

The sharing is in the agent loop, not in the data or the trainer: verl's queue takes several rows of a session, grades
them once and computes old log-probs of all, and the response's token ids are at hand there.

Settings are those of `dual_mode_advantages`, target_kl, the two prompts and their place, under
`algorithm.policy_split`; see examples/verl.
Run on CPUs: a whole training by examples/verl/run.sh on Ray, with two FSDP2 actors and a rollout engine of the tests.
Not run yet: vLLM and SGLang, GPUs, several machines.
Source: arXiv 2604.11510.
"""

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo import core_algos

from policy_split.algorithms.advantages import bonus_statistics
from policy_split.integrations.interleaved import blocks_of
from policy_split.integrations.keyed_rows import order_of, place_of, policy_split_advantages
from policy_split.messages import PLACES
from policy_split.modes import HIGH_ENTROPY, HIGH_ENTROPY_PROMPT, MODE_NAMES, MODES, NORMAL, encode_modes
from policy_split.rollouts.metrics import k3, means, sum_and_count

from .target import TARGET, held_kl

NAME = "policy_split"
PROMPTS = ("normal_prompt", "high_entropy_prompt", "high_entropy_place")


class Prompts(NamedTuple):
    """`PromptSettings` of a verl configuration; verl has a limit of its own, see `_cap_text_prompt_length`."""

    system_prompts: tuple[str | None, str | None]
    high_entropy_place: str
    template_kwargs: dict[str, Any]
    max_prompt_length: None = None


def given_of(config: Any) -> Mapping[str, Any]:
    """What a verl configuration has under algorithm.policy_split."""
    given: Mapping[str, Any] = config.algorithm.get(NAME) or {}
    return given


def prompts_of(config: Any) -> Prompts:
    given = given_of(config)
    place = given.get("high_entropy_place") or PLACES[0]
    if place not in PLACES:
        raise ValueError(f"algorithm.{NAME}.high_entropy_place={place!r} must be one of {', '.join(map(repr, PLACES))}")
    return Prompts(settings_of(config)[0], place, dict(config.data.get("apply_chat_template_kwargs") or {}))


def check_prompts(tokenizer: Any, dataset: Any, config: Any, name: str) -> None:
    """ValueError for a prompt of verl's dataset that cannot be asked in both modes, before anything is sampled."""
    prompts, frame = prompts_of(config), getattr(dataset, "dataframe", None)
    rows = (dataset[i]["raw_prompt"] for i in range(len(dataset))) if frame is None else frame[config.data.prompt_key]
    for row, messages in enumerate(rows):
        encode_modes(tokenizer, messages, prompts, f"{name}, row {row}")


def settings_of(config: Any) -> tuple[tuple[str | None, str | None], dict[str, Any]]:
    """(system prompts by mode, options of `dual_mode_advantages`) of a verl configuration's algorithm.policy_split."""
    given = given_of(config)
    options = {name: value for name, value in given.items() if name not in (*PROMPTS, TARGET)}
    normal, high_entropy = (given.get(name) for name in PROMPTS[:2])
    return (normal, high_entropy or HIGH_ENTROPY_PROMPT), options


def check_configuration(config: Any) -> None:
    """ValueError, saying what to set, for what would be silently wrong with rows behind another prompt."""
    n = config.actor_rollout_ref.rollout.n
    if n < 2 or n % 2:
        raise ValueError(f"actor_rollout_ref.rollout.n={n} must be even: half of the responses for each mode")
    correction = config.algorithm.get("rollout_correction") or {}
    for name in ("bypass_mode", "rollout_is", "rollout_rs"):
        if correction.get(name):
            raise ValueError(
                f"algorithm.rollout_correction.{name}={correction.get(name)} reads the engine's log-probs, which are "
                f"those of the prompt that wrote the response and not of its other prompt: leave it out"
            )
    held_kl(given_of(config))


@register(NAME)
class PolicySplitAgentLoop(SingleTurnAgentLoop):
    """One turn of one mode: session i of the 2n = rollout.n of a question is of the normal mode for i < n.

    An evaluation with val_kwargs.n up to n asks the normal mode. ValueError for an odd rollout.n, images, recorded
    routes of experts, a prompt longer than data.max_prompt_length with its system prompt, and verl's older trainer.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_configuration(self.config)
        self.prompts = prompts_of(self.config)
        self.prompt_ids: list[int] = []

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """[twin, own], of one response: the outputs that verl puts into its queue."""
        if "session_id" not in kwargs:
            raise ValueError("Policy Split needs the number of a session, which trainer.use_v1=True gives: set it")
        mode = MODES[kwargs["session_id"] * len(MODES) // self.rollout_config.n % len(MODES)]
        messages = list(kwargs["raw_prompt"])
        encode = partial(encode_modes, self.tokenizer, messages, self.prompts, f"prompt {messages!r}")
        both = [self._cap_text_prompt_length(ids) for ids in await self.loop.run_in_executor(None, encode)]
        self.prompt_ids = both[mode]  # verl makes a loop for each session
        own = await super().run(sampling_params, **kwargs)
        if own.multi_modal_data:
            raise ValueError("Policy Split asks about text alone; the dataset has images, videos or audio")
        if own.routed_experts is not None:
            raise ValueError(
                "the engine's routes are of the writer's prompt: set rollout.enable_rollout_routing_replay=False"
            )
        twin = own.model_copy(deep=True)
        twin.prompt_ids = both[HIGH_ENTROPY if mode == NORMAL else NORMAL]
        return [twin, own]

    async def ct_build_initial_tokens(self, messages: list[dict[str, Any]], *args: Any, **kwargs: Any) -> list[int]:
        """The prompt as every trainer of ours reads it, in place of what verl makes of the messages."""
        return list(self.prompt_ids)

    def _cap_text_prompt_length(self, prompt_ids: list[int]) -> list[int]:
        longest = self.rollout_config.prompt_length
        if len(prompt_ids) > longest:  # verl cuts on the left, where the system prompt stands
            raise ValueError(
                f"a prompt has {len(prompt_ids)} tokens with its system prompt, more than data.max_prompt_length="
                f"{longest}: raise that by the length of the system prompt"
            )
        return prompt_ids


@core_algos.register_adv_est(NAME)
def correctness_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns) (B, T) of GRPO; the bonus needs old log-probs, which an estimator is not given."""
    advantages, returns = core_algos.compute_grpo_outcome_advantage(token_level_rewards, response_mask, index)
    return advantages, returns


@core_algos.register_policy_loss(NAME)
def policy_loss(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The clipped objective of token-level advantages: verl's own, with its dual clip (clip_ratio_c)."""
    loss, metrics = core_algos.compute_policy_loss_vanilla(*args, **kwargs)
    return loss, metrics


def mode_metrics(
    keys: Sequence[str],
    rewards: torch.Tensor,  # (B,) of each row's response; those of twins are not read
    logprobs: torch.Tensor,  # (B, T) old log-probs, nats
    mask: torch.Tensor,  # (B, T)
    entropy: torch.Tensor,  # (B, T) nats
    *,
    num_sessions: int,
    **options: Any,
) -> dict[str, float]:
    """Reward, length, entropy of each mode's own responses, both KLs between the modes, and what the clamp took away.

    The KLs are k3 estimates over the first-named mode's responses, nats. Names are those of our own trainer's log.
    """
    own, twin = order_of(keys, num_sessions)
    n = num_sessions // 2
    rewards, mask = blocks_of(rewards[own], rewards[own], n), blocks_of(mask[own], mask[twin], n) != 0
    logprobs, entropy = (blocks_of(x[own], x[twin], n) for x in (logprobs, entropy))
    counts = {"num_prompts": len(own) // num_sessions, "num_generations": n}
    clamped, dead = bonus_statistics(rewards, logprobs, mask, **counts, **options)
    sums = {"bonus_clamped_frac": sum_and_count(clamped[None]), "bonus_dead_frac": sum_and_count(dead[None])}
    graded, scored, valid, entropies = (x.chunk(4) for x in (rewards, logprobs, mask, entropy))
    for mode, name in ((NORMAL, "kl_normal_high"), (HIGH_ENTROPY, "kl_high_normal")):
        sums[name] = sum_and_count(k3(scored[mode], scored[3 - mode])[valid[mode]])  # block 3 - k: the twins
    sums = {f"{NAME}/{name}": value for name, value in sums.items()}
    for mode in MODES:
        of_mode = {
            "reward": graded[mode],
            "entropy": entropies[mode][valid[mode]],
            "completions/mean_length": valid[mode].sum(1),
        }
        sums |= {f"{MODE_NAMES[mode]}/{name}": sum_and_count(value) for name, value in of_mode.items()}
    return means(sums)


def whole_questions(keys: Sequence[str], num_sessions: int) -> list[str]:
    """The keys of questions that have all their rows; ValueError, saying what is missing, where none has."""
    rows = Counter(place_of(key).uid for key in keys)
    whole = [key for key in keys if rows[place_of(key).uid] == len(MODES) * num_sessions]
    if not whole:
        order_of(keys, num_sessions)
    return whole


def advantages_of_queue(
    queue: Any, batch: Any, config: Any, to_nested: Any, eta: float | None = None
) -> dict[str, float]:
    """Read scores and old log-probs of the batch's rows from the queue, put back the advantages, return the metrics.

    eta: in place of the configuration's.

    Rows that verl has added to fill up the batch keep what they have, and so do those of questions of which a session
    has failed: verl's advantage of correctness. ValueError if every question is one of those.
    """
    rows = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")]
    sessions = config.actor_rollout_ref.rollout.n
    keys = whole_questions(rows, sessions)
    place = {"keys": keys, "partition_id": batch.partition_id}
    scores = "token_level_rewards" if config.algorithm.use_kl_in_reward else "rm_scores"
    fields = queue.kv_batch_get(select_fields=["response_mask", scores, "old_log_probs", "entropy"], **place)
    padded = fields.to_padded_tensor()
    arguments = keys, padded[scores].sum(-1), padded["old_log_probs"], padded["response_mask"]
    options = {"num_sessions": sessions, **settings_of(config)[1], **({} if eta is None else {"eta": eta})}
    nested = to_nested(policy_split_advantages(*arguments, **options), fields["response_mask"])
    queue.kv_batch_put(fields=TensorDict({"advantages": nested, "returns": nested}, batch_size=len(keys)), **place)
    left_out = {f"{NAME}/incomplete_frac": 1 - len(keys) / len(rows)}
    return mode_metrics(*arguments, padded["entropy"], **options) | left_out


def register_trainer() -> type:
    """Register the trainer `policy_split` and return its class; needs TransferQueue, which verl brings along."""
    from verl.trainer.ppo.v1 import trainer_base, trainer_sync

    @trainer_base.register_trainer(NAME)
    class PolicySplitTrainer(trainer_sync.PPOTrainerSync):
        def __init__(self, config: Any):
            check_configuration(config)
            config.trainer.v1.trainer_mode = "sync"  # verl takes every other name for an asynchronous trainer
            # counted in questions of rollout.n rows; ours have twice as many, and the number of updates is to stay
            config.actor_rollout_ref.actor.ppo_mini_batch_size *= len(MODES)
            self._held = held_kl(given_of(config))
            super().__init__(config)

        def _init_dataloader(self) -> None:
            super()._init_dataloader()
            for name in ("train_dataset", "val_dataset"):
                check_prompts(self.tokenizer, getattr(self, name), self.config, name)

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            batch = super()._compute_advantage(batch, metrics)
            arguments = trainer_base.tq, batch, self.config, trainer_base.response_to_nested
            measured = advantages_of_queue(*arguments, eta=self._held.applied())
            metrics.update(measured | self._held.finished(measured))
            return batch

        def _load_checkpoint(self) -> None:
            super()._load_checkpoint()
            if self.global_steps:
                given = self.config.trainer
                self._held.load(given.resume_from_path if given.resume_mode == "resume_path" else self._folder())

        def _save_checkpoint(self) -> None:
            self._held.save(self._folder())  # first: verl's last act is to name the checkpoint as the latest
            super()._save_checkpoint()

        def _folder(self) -> Path:
            return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"

    return PolicySplitTrainer


if importlib.util.find_spec("transfer_queue") is not None:
    register_trainer()
