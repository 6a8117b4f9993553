"""Policy Split on verl: rows and advantages by keys; where verl is installed, its registries, agent loop and config."""

import importlib
import inspect
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from verl_runs import CONFIG, composed, configuration

from policy_split import dual_mode_advantages, dual_mode_loss, extras
from policy_split.integrations.keyed_rows import order_of, place_of, policy_split_advantages

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


@pytest.mark.parametrize("module", ["verl", "verl.kernels"])
def test_without_verl(monkeypatch, module):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.startswith("policy_split.integrations.verl")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"needs the package verl: pip install policy-split\[verl\]"):
        importlib.import_module(f"policy_split.integrations.{module}")


def test_registries(ours):
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.trainer.ppo import core_algos

    assert core_algos.get_policy_loss_fn("policy_split") is ours.policy_loss
    assert core_algos.get_adv_estimator_fn("policy_split") is ours.correctness_advantage
    assert _agent_loop_registry["policy_split"]["_target_"].endswith("verl.trainer.PolicySplitAgentLoop")


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


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("actor_rollout_ref.rollout.n=5", r"rollout\.n=5 must be even"),
        ("algorithm.rollout_correction.bypass_mode=true", r"bypass_mode=True reads the engine's log-probs"),
        ("algorithm.rollout_correction.rollout_is=token", r"rollout_is=token reads the engine's log-probs"),
        ("algorithm.rollout_correction.rollout_rs=token_k1", r"rollout_rs=token_k1 reads the engine's log-probs"),
        ("algorithm.policy_split.target_kl=0", r"policy_split\.target_kl=0 must be a finite number above 0, or null"),
        ("algorithm.policy_split.target_kl=nan", r"policy_split\.target_kl=nan must be a finite number above 0"),
        ("algorithm.policy_split.target_kl=much", r"policy_split\.target_kl='much' must be a finite number above 0"),
        (
            "algorithm.policy_split={target_kl: 0.2, eta: 0}",
            r"target_kl=0\.2 multiplies eta, and nothing comes of eta=0",
        ),
    ],
)
def test_unfit_configurations(ours, override, error):
    with pytest.raises(ValueError, match=error):
        ours.check_configuration(composed("data.train_files=x", override))


def test_the_trainer_is_synchronous_and_updates_as_often_as_without_sharing(ours, monkeypatch):
    from verl.trainer.ppo.v1 import get_trainer_cls, trainer_sync

    def init(self, config):
        self.config, self.use_critic, self.global_steps = config, False, 1

    monkeypatch.setattr(trainer_sync.PPOTrainerSync, "__init__", init)
    batch = ["data.train_batch_size=6", "actor_rollout_ref.actor.ppo_mini_batch_size=3"]
    config = composed("data.train_files=x", "actor_rollout_ref.rollout.n=4", *batch)
    trainer = get_trainer_cls("policy_split")(config)
    assert isinstance(trainer, trainer_sync.PPOTrainerSync)
    assert config.trainer.v1.trainer_mode == "sync"
    # 6 questions have 6 * 4 * 2 rows: two updates
    assert trainer._get_required_batch_multiple(dp_size=2) == 6 * 4 * 2 / 2


def test_advantages_through_the_queue(ours):
    """Nested fields of TransferQueue's form, by a stand-in; padding and incomplete questions are left alone."""
    from tensordict import TensorDict
    from verl.workers.utils.padding import response_to_nested

    rewards, logprobs, mask = rows()
    failed = [f"q_3_{session}_{index}" for session in (0, 1, 3) for index in (0, 1)]
    keys = [*KEYS[:3], "pad_0_0", *failed, *KEYS[3:]]
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
                "entropy": nested(-2 * logprobs),
            }
            return TensorDict({name: fields[name] for name in select_fields}, batch_size=len(keys))

        def kv_batch_put(self, keys, partition_id, fields):
            put.update(keys=keys, fields=fields)

    tags = [{"is_padding": key.startswith("pad")} for key in keys]
    batch = SimpleNamespace(keys=keys, tags=tags, partition_id="train")
    config = configuration(eta=0.5, clamp="code")
    metrics = ours.advantages_of_queue(Queue(), batch, config, response_to_nested)
    assert metrics["policy_split/incomplete_frac"] == pytest.approx(6 / 22)
    literal = ours.mode_metrics(KEYS, rewards, logprobs, mask, -2 * logprobs, num_sessions=4, eta=0.5, clamp="code")
    assert {name: metrics[name] for name in literal} == pytest.approx(literal)
    expected = policy_split_advantages(KEYS, rewards, logprobs, mask, num_sessions=4, eta=0.5, clamp="code")
    assert put["keys"] == KEYS
    for row, found in enumerate(put["fields"]["advantages"].unbind()):
        torch.testing.assert_close(found, expected[row, : lengths[row]])
    ours.advantages_of_queue(Queue(), batch, config, response_to_nested, eta=0.0)  # in place of the configuration's
    expected = policy_split_advantages(KEYS, rewards, logprobs, mask, num_sessions=4, eta=0.0, clamp="code")
    torch.testing.assert_close(put["fields"]["advantages"].to_padded_tensor(0.0), expected)
    batch.keys, batch.tags = failed, [{}] * 6
    with pytest.raises(ValueError, match=r"question q_3 has 6 rows, expected 4 responses under both prompts"):
        ours.advantages_of_queue(Queue(), batch, config, response_to_nested)


def test_metrics_of_the_modes(ours):
    rewards, logprobs, mask = rows()
    found = ours.mode_metrics(KEYS, rewards, logprobs, mask, -2 * logprobs, num_sessions=4)
    tokens = {key: [x for x, valid in zip(logprobs[row].tolist(), mask[row], strict=True) if valid]
              for row, key in enumerate(KEYS)}  # fmt: skip
    for name, sessions in (("normal", (0, 1)), ("high_entropy", (2, 3))):
        keys = [f"{uid}_{session}_1" for uid in ("q_1", "q_2") for session in sessions]
        values = [x for key in keys for x in tokens[key]]
        assert found[f"{name}/reward"] == sum(float(rewards[KEYS.index(key)]) for key in keys) / 4
        assert found[f"{name}/completions/mean_length"] == len(values) / 4
        assert found[f"{name}/entropy"] == pytest.approx(-2 * sum(values) / len(values))
        gaps = [y - x for key in keys for x, y in zip(tokens[key], tokens[key[:-1] + "0"], strict=True)]
        kl = "kl_normal_high" if name == "normal" else "kl_high_normal"
        expected = sum(math.exp(gap) - 1 - gap for gap in gaps) / len(gaps)
        assert found[f"policy_split/{kl}"] == pytest.approx(expected)
    assert found["policy_split/bonus_dead_frac"] == 0  # both questions have right and wrong responses
    assert 0 < found["policy_split/bonus_clamped_frac"] < 1


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
    from policy_split.integrations.verl import kernels as verl_kernels

    assert FusedLinearForPPO.forward is verl_kernels.fused_linear
    for found, expected in zip(results(), theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_configuration(ours):
    """The overrides compose over verl's own configuration, and hold every setting at its default."""
    config = composed("data.train_files=x")
    assert config.trainer.v1.trainer_mode == config.algorithm.adv_estimator == "policy_split"
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "policy_split"
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "policy_split"
    assert config.actor_rollout_ref.actor.clip_ratio == 0.2  # verl's
    prompts, options = ours.settings_of(config)
    assert prompts[0] is None
    assert "high entropy" in prompts[1]
    parameters = inspect.signature(dual_mode_advantages).parameters
    settings = {
        k: p.default for k, p in parameters.items() if p.default is not p.empty and "Tensor" not in str(p.annotation)
    }
    assert options == settings
    assert len(settings) == 12
    prompts, options = ours.settings_of(configuration(normal_prompt="plain", high_entropy_prompt="explore", eta=0.1))
    assert prompts == ("plain", "explore")
    assert options["eta"] == 0.1
    rewards, logprobs, mask = rows()
    assert policy_split_advantages(KEYS, rewards, logprobs, mask, num_sessions=4, **options).any()


def test_launch_script(ours, tmp_path):
    """What run.sh says to verl passes verl's own validation, and its environment registers our names."""
    from verl.utils.config import validate_config

    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$VERL_USE_EXTERNAL_MODULES" "$@"\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", CONFIG / "run.sh", "/data", "/model", "algorithm.policy_split.eta=0.1"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    modules, *arguments = said
    assert arguments[:2] == ["-m", "verl.trainer.main_ppo"]
    assert {f"--config-path={CONFIG}", "--config-name=policy_split"} <= set(arguments)
    config = composed(*(argument for argument in arguments[2:] if not argument.startswith("--")))
    assert config.algorithm.policy_split.eta == 0.1
    validate_config(config, use_reference_policy=False, use_critic=False)
    ours.check_configuration(config)
    code = (
        "import verl; from verl.trainer.ppo.core_algos import get_policy_loss_fn as loss;"
        "from verl.trainer.ppo.v1 import get_trainer_cls as trainer;"
        "print(loss('policy_split').__module__, trainer('policy_split').__module__)"
    )
    process = [sys.executable, "-W", "ignore", "-c", code]
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": modules, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(process, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.split()[-2:] == ["policy_split.integrations.verl.trainer"] * 2
