"""Policy Split on verl: rows and advantages by keys; where verl is installed, its registries, agent loop and config."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from policy_split import dual_mode_advantages, dual_mode_loss
from policy_split.integrations.verl_rows import order_of, place_of, policy_split_advantages

# verl's packages warn when they are imported
pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = Path(__file__).parents[1] / "examples" / "verl"
# two questions, two responses of each mode, in no order
KEYS = [f"{uid}_{session}_{index}" for index in (1, 0) for session in (2, 0, 3, 1) for uid in ("q_1", "q_2")]


def rows(dtype=torch.float64):
    """(rewards, logprobs, mask) of KEYS: both rows of a response have its reward and mask."""
    generator = torch.Generator().manual_seed(0)
    places = [place_of(key) for key in KEYS]
    responses = sorted({(place.uid, place.session) for place in places})
    lengths = dict(zip(responses, (3, 5, 1, 4, 2, 5, 5, 3), strict=True))
    rewards = dict(zip(responses, (1, 0, 0, 1, 0, 1, 1, 0), strict=True))
    mask = torch.stack([torch.arange(5) < lengths[place.uid, place.session] for place in places])
    logprobs = -torch.rand(len(KEYS), 5, generator=generator, dtype=dtype) * mask
    return torch.tensor([float(rewards[place.uid, place.session]) for place in places]), logprobs, mask


def test_advantages_are_those_of_the_blocks():
    rewards, logprobs, mask = rows()
    options = {"alpha": 0.4, "eta": 0.5, "clamp": "code", "share_correction": "truncated"}
    ours = policy_split_advantages(KEYS, rewards, logprobs, mask, num_sessions=4, **options)
    by_hand = [  # normal/normal, high/high, high responses under the normal prompt, normal ones under the other
        *[f"{uid}_{session}_1" for uid in ("q_1", "q_2") for session in (0, 1)],
        *[f"{uid}_{session}_1" for uid in ("q_1", "q_2") for session in (2, 3)],
        *[f"{uid}_{session}_0" for uid in ("q_1", "q_2") for session in (2, 3)],
        *[f"{uid}_{session}_0" for uid in ("q_1", "q_2") for session in (0, 1)],
    ]
    order = [KEYS.index(key) for key in by_hand]
    blocks = (x[order] for x in (rewards, logprobs, mask))
    expected, _ = dual_mode_advantages(*blocks, num_prompts=2, num_generations=2, **options)
    assert expected.any()
    assert torch.equal(ours[order], expected)


def test_unfit_rows():
    with pytest.raises(ValueError, match=r"rollout\.n=3 must be even"):
        order_of(KEYS, 3)
    with pytest.raises(ValueError, match=r"question q_2 has 7 rows, expected 4 responses .*agent_loop"):
        order_of(KEYS[:-1], 4)
    with pytest.raises(ValueError, match="'q' is not of the form"):
        order_of(["q"], 2)


@pytest.fixture(scope="module")
def ours():
    pytest.importorskip("verl", reason="verl is not installed", exc_type=ImportError)
    from policy_split.integrations import verl

    return verl


def configuration(**algorithm):
    settings = {"use_kl_in_reward": False, "policy_split": algorithm}
    rollout = SimpleNamespace(n=4)
    return SimpleNamespace(
        algorithm=SimpleNamespace(get=settings.get, use_kl_in_reward=False),
        actor_rollout_ref=SimpleNamespace(rollout=rollout),
    )


def test_registries(ours):
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.trainer.ppo import core_algos

    assert core_algos.get_policy_loss_fn("policy_split") is ours.policy_loss
    assert core_algos.get_adv_estimator_fn("policy_split") is ours.correctness_advantage
    assert _agent_loop_registry["policy_split"]["_target_"].endswith("verl.PolicySplitAgentLoop")


def test_loss_is_ours(ours):
    """verl's clipped loss of token-level advantages against `dual_mode_loss`, value and gradient."""
    from verl.workers.config import ActorConfig

    rewards, old, mask = rows()
    advantages = policy_split_advantages(KEYS, rewards, old, mask, num_sessions=4, eta=0.5, clamp="code")
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(KEYS), 5, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, mask.shape, generator=generator)
    log_prob = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    old = log_prob.detach() + 0.3 * torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    config = ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=1, clip_ratio=0.2, clip_ratio_c=3.0)
    loss, metrics = ours.policy_loss(old, log_prob, advantages, mask, loss_agg_mode="token-mean", config=config)
    tokens = {"advantages": advantages, "mode": torch.zeros_like(targets), "old_logprobs": old, "mask": mask}
    literal = dual_mode_loss(logits, targets, **tokens, loss_type="dapo", clip_delta=3.0).loss
    torch.testing.assert_close(loss, literal)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, literal)]
    torch.testing.assert_close(*gradients)
    assert 0 < metrics["actor/pg_clipfrac"] < 1


def test_agent_loop_answers_once_and_returns_both_prompts(ours, monkeypatch):
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    asked = []

    async def run(self, sampling_params, **kwargs):
        asked.append(kwargs["raw_prompt"])
        return AgentLoopOutput(
            prompt_ids=await self.ct_build_initial_tokens(kwargs["raw_prompt"]),
            response_ids=[7, 8],
            response_mask=[1, 1],
            response_logprobs=[-0.5, -0.25],
            metrics=AgentLoopMetrics(),
            extra_fields={"turn_scores": []},
        )

    async def build(self, messages):
        return [len(message["content"]) for message in messages]

    monkeypatch.setattr(ours.SingleTurnAgentLoop, "run", run)
    monkeypatch.setattr(ours.PolicySplitAgentLoop, "ct_build_initial_tokens", build, raising=False)
    loop = object.__new__(ours.PolicySplitAgentLoop)
    loop.system_prompts, loop.rollout_config = (None, "explore"), SimpleNamespace(n=4)
    question = [{"role": "user", "content": "3 + 4"}]
    prompts = {"normal": [5], "high": [7, 5]}
    for session, (own, other) in enumerate([("normal", "high")] * 2 + [("high", "normal")] * 2):
        twin, written = asyncio.run(loop.run({}, raw_prompt=question, session_id=session, uid="q"))
        assert (written.prompt_ids, twin.prompt_ids) == (prompts[own], prompts[other])
        assert twin.response_ids == written.response_ids == [7, 8]
        assert twin.response_mask == written.response_mask == [1, 1]
    assert [len(messages) for messages in asked] == [1, 1, 2, 2]
    assert question == [{"role": "user", "content": "3 + 4"}]


def test_advantages_through_the_queue(ours):
    """Nested fields of TransferQueue's form, by a stand-in; rows that fill up the batch are left alone."""
    from tensordict import TensorDict
    from verl.workers.utils.padding import response_to_nested

    rewards, logprobs, mask = rows()
    keys = [*KEYS, "pad_0_0"]
    lengths = mask.sum(1).tolist()

    def nested(x):
        return torch.nested.as_nested_tensor([row[:n] for row, n in zip(x, lengths, strict=True)], layout=torch.jagged)

    scores = torch.zeros_like(logprobs)
    scores[torch.arange(len(KEYS)), mask.sum(1) - 1] = rewards.double()
    put = {}

    class Queue:
        def kv_batch_get(self, keys, partition_id, select_fields):
            assert (keys, partition_id) == (KEYS, "train")
            fields = {
                "response_mask": nested(mask.long()),
                "rm_scores": nested(scores),
                "old_log_probs": nested(logprobs),
            }
            return TensorDict({name: fields[name] for name in select_fields}, batch_size=len(keys))

        def kv_batch_put(self, keys, partition_id, fields):
            put.update(keys=keys, fields=fields)

    batch = SimpleNamespace(keys=keys, tags=[{}] * len(KEYS) + [{"is_padding": True}], partition_id="train")
    ours.advantages_of_queue(Queue(), batch, configuration(eta=0.5, clamp="code"), response_to_nested)
    expected = policy_split_advantages(KEYS, rewards, logprobs, mask, num_sessions=4, eta=0.5, clamp="code")
    assert put["keys"] == KEYS
    for row, found in enumerate(put["fields"]["advantages"].unbind()):
        torch.testing.assert_close(found, expected[row, : lengths[row]])


def test_fused_kernels(ours, monkeypatch):
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 7, 8, generator=generator), torch.randn(33, 8, generator=generator)
    targets, pull = torch.randint(33, (2, 7), generator=generator), torch.randn(2, 2, 7, generator=generator)

    def results():
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        out = FusedLinearForPPO()(*leaves, targets, temperature=0.7)
        return *out, *torch.autograd.grad(sum((x * y).sum() for x, y in zip(out, pull, strict=True)), leaves)

    monkeypatch.setattr(FusedLinearForPPO, "forward", FusedLinearForPPO.forward)  # put back at the end
    theirs = results()
    from policy_split.integrations import verl_kernels

    assert FusedLinearForPPO.forward is verl_kernels.fused_linear
    for found, expected in zip(results(), theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_configuration(ours):
    """The overrides compose over verl's own configuration."""
    hydra = pytest.importorskip("hydra")
    with hydra.initialize_config_dir(str(CONFIG), version_base=None):
        config = hydra.compose("policy_split", ["data.train_files=x", "algorithm.policy_split.eta=0.1"])
    assert config.trainer.v1.trainer_mode == config.algorithm.adv_estimator == "policy_split"
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "policy_split"
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "policy_split"
    assert config.actor_rollout_ref.actor.clip_ratio == 0.2  # verl's
    prompts, options = ours.settings_of(config)
    assert prompts[0] is None
    assert "high entropy" in prompts[1]
    assert options["eta"] == 0.1
    rewards, logprobs, mask = rows()
    assert policy_split_advantages(KEYS, rewards, logprobs, mask, num_sessions=4, **options).any()
