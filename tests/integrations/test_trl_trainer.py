"""Policy Split on TRL's own trainer: real runs of tiny models, and its numbers against ours."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from trl_runs import batch_of, saved_model, settings, trainer

from policy_split import dual_mode_advantages, dual_mode_loss
from policy_split.integrations.interleaved import blocks_of, modes_of_rows, rows_of
from policy_split.modes import HIGH_ENTROPY, NORMAL

trl = pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
from policy_split.integrations.trl import trainer as ours  # noqa: E402

# transformers renames activation checkpointing, and TRL 1.16 calls it by its old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:trl"),
]
CHAT = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.QUESTIONS]


def test_rows_and_blocks():
    own = torch.arange(24).view(12, 2)
    blocks = blocks_of(own, own + 100, 3)
    assert blocks[:, 0].tolist() == [
        *(0, 2, 4, 12, 14, 16),  # normal prompt and response
        *(6, 8, 10, 18, 20, 22),  # high-entropy
        *(106, 108, 110, 118, 120, 122),  # high-entropy responses under the normal prompt
        *(100, 102, 104, 112, 114, 116),
    ]
    assert all(map(torch.equal, rows_of(blocks, 3), (own, own + 100)))
    assert modes_of_rows(2, 6, 2) == [HIGH_ENTROPY, HIGH_ENTROPY, NORMAL, NORMAL, HIGH_ENTROPY, HIGH_ENTROPY]
    with pytest.raises(ValueError, match="12 rows are not whole questions of 2 x 4"):
        blocks_of(own, own, 4)


@pytest.mark.parametrize(
    ("questions", "options"),
    [
        (tiny.QUESTIONS, {"num_iterations": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "beta": 0.1}),
        (CHAT, {"bonus_estimator": "entropy", "loss_type": "grpo", "share_correction": "truncated"}),
        (CHAT, {"fused_kernels": False, "mask_truncated_completions": True, "rollout_sharing": False}),
    ],
    ids=["iterations-reference", "chat-entropy-estimator", "plain-head-no-sharing"],
)
def test_runs(tmp_path, questions, options):
    model = saved_model(tmp_path / "model") if "beta" in options else tiny.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer(tmp_path / "run", model=model, questions=questions, eval_dataset=questions[:2], **options)
    run.train()
    first = run.state.log_history[0]
    for name in ("normal/reward", "high_entropy/reward", "normal/entropy", "high_entropy/entropy"):
        assert math.isfinite(first[name])
    assert first["reward"] == pytest.approx((first["normal/reward"] + first["high_entropy/reward"]) / 2)
    assert first["policy_split/kl_high_normal"] > 0
    assert first["policy_split/kl_normal_high"] > 0
    assert 0 <= first["policy_split/bonus_dead_frac"] <= 1
    assert ("kl" in first) == ("beta" in options)
    ratios = [f"{mode}/clip_ratio/{x}_mean" for mode in ("normal", "high_entropy") for x in ("low", "high", "region")]
    lines = [line for line in run.state.log_history if "loss" in line]
    assert all(0 <= line[name] <= 1 for line in lines for name in ratios)
    if "num_iterations" in options:  # the second time the rows' ratios are not 1
        assert any(lines[1][name] > 0 for name in ratios)
    after = run.model.state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    assert set(run._logs["extra"]["mode"]) == {"normal", "high_entropy"}
    asked = []
    single = run._generate_single_turn
    run._generate_single_turn = lambda ids, *more: asked.extend(ids) or single(ids, *more)
    metrics = run.evaluate()
    assert len(asked) == 16  # 2 questions x 8 responses: nothing is doubled
    assert metrics["eval_reward"] == pytest.approx(
        (metrics["eval_normal/reward"] + metrics["eval_high_entropy/reward"]) / 2
    )


@pytest.mark.parametrize("estimator", ["sampled", "entropy"])
@pytest.mark.parametrize("questions", [tiny.QUESTIONS, CHAT], ids=["text", "chat"])
def test_rows_advantages_and_loss(tmp_path, questions, estimator):
    """Twins are the same token ids behind the other prompt; advantages and loss are those of our functions."""
    options = {"bonus_estimator": estimator, "per_device_train_batch_size": 16, "beta": 0.1, "eta_normal": 0.1}
    options["use_bias_correction_kl"] = False  # the KL times the ratio, and its gradient, is TRL's own
    run = trainer(tmp_path / "run", model=saved_model(tmp_path / "model"), questions=questions, **options)
    run.ref_model.lm_head.weight.data.mul_(0.9)
    batch = batch_of(run)
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    assert torch.equal(*ids.chunk(2))
    assert torch.equal(*mask.chunk(2))
    tokenizer = run.processing_class
    prompts = [
        tokenizer.decode(row[valid.bool()])
        for row, valid in zip(*(batch[name] for name in ("prompt_ids", "prompt_mask")), strict=True)
    ]
    first = questions[0]["prompt"]
    plain, explored = (
        ("1 2 3", "explore 1 2 3")
        if isinstance(first, str)
        else ("user 1 2 3 assistant", "system explore user 1 2 3 assistant")
    )
    assert prompts[:8] == [plain] * 4 + [explored] * 4
    assert prompts[16:24] == [explored] * 4 + [plain] * 4

    input_ids = torch.cat((batch["prompt_ids"], ids), 1)
    attention = torch.cat((batch["prompt_mask"], mask), 1)
    length = ids.shape[1]
    logits = run.model(input_ids, attention_mask=attention).logits[:, -length - 1 : -1]
    log_p = torch.log_softmax(logits.double(), -1)
    logprobs = log_p.gather(-1, ids[..., None])[..., 0].detach()
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    rewards = run._rewards
    advantages, _ = dual_mode_advantages(
        blocks_of(rewards, rewards, 4),
        *(blocks_of(*x.chunk(2), 4) for x in (logprobs, mask)),
        num_prompts=2,
        num_generations=4,
        surprise=None if estimator == "sampled" else blocks_of(*entropy.chunk(2), 4),
        **run.args.bonus_options,
    )
    expected = torch.cat(rows_of(advantages, 4))
    assert expected.any()
    torch.testing.assert_close(batch["advantages"].double(), expected, rtol=1e-4, atol=1e-5)
    assert int(batch["num_items_in_batch"]) == int(mask.sum())

    modes = torch.tensor([0] * 4 + [1] * 4).repeat(2)
    modes = torch.cat((modes, 1 - modes))[:, None].expand_as(ids)
    literal = dual_mode_loss(
        logits,
        ids,
        advantages=batch["advantages"],
        mode=modes,
        ref_logprobs=batch["ref_per_token_logps"],
        mask=mask,
        loss_type="dapo",
        kl_coef=(0.1, 0.1),
    ).loss
    loss = run._compute_loss(run.model, batch)
    torch.testing.assert_close(loss, literal, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(x, list(run.model.parameters()), allow_unused=True) for x in (loss, literal)]
    for theirs, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, literal, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"importance_sampling_level": "sequence"}, {"delta": 1.3}, {"loss_type": "cispo", "epsilon_high": 1.1}],
    ids=["token", "sequence", "delta", "cispo"],
)
def test_clip_ratios_of_each_mode(tmp_path, options):
    """The counts are TRL's own, told apart by the mode of the row: a response stands once in each."""
    run = trainer(tmp_path, per_device_train_batch_size=16, num_iterations=2, **options)
    batch = batch_of(run)
    normal = (batch["modes"] == NORMAL)[:, None].expand_as(batch["completion_ids"])
    assert torch.equal(
        batch["modes"], torch.tensor([0] * 4 + [1] * 4 + [0] * 4 + [1] * 4 + [1, 1, 1, 1, 0, 0, 0, 0] * 2)
    )
    moved = torch.linspace(-0.9, 0.9, len(normal))[:, None].expand(normal.shape)
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + torch.where(normal, 0, moved)
    batch["advantages"] = torch.tensor([1.0, -1.0]).repeat(len(normal) // 2)[:, None].expand(normal.shape)
    run._metrics["train"].clear()
    run._compute_loss(run.model, batch)
    whole, split = {}, {}
    run.log(whole)
    for mode in (NORMAL, HIGH_ENTROPY):  # a micro-batch may have rows of one mode alone
        chosen = batch["modes"] == mode
        run._compute_loss(run.model, {name: x[chosen] if x.dim() else x for name, x in batch.items()})
    run.log(split)
    names = ["low_mean", "high_mean", "region_mean"]
    names = ["cispo_clip_ratio"] if "loss_type" in options else [f"clip_ratio/{name}" for name in names]
    for name in names:
        assert whole[f"normal/{name}"] == 0  # only the other mode has moved
        assert whole[f"high_entropy/{name}"] == pytest.approx(2 * whole[name])
        for mode in ("normal", "high_entropy"):
            assert split[f"{mode}/{name}"] == pytest.approx(whole[f"{mode}/{name}"])
    assert whole[names[-1]] > 0


def test_half_of_the_generations_of_each_question(tmp_path, monkeypatch):
    """vLLM's server takes every num_generations-th prompt: the number that it is given is that of one mode."""
    given = []

    def single(self, prompt_ids, images, fields, num_generations, *more):
        given.append(num_generations)
        return [[2]] * len(prompt_ids), None

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", single)
    run = trainer(tmp_path, num_generations_eval=3, per_device_eval_batch_size=3, eval_dataset=tiny.QUESTIONS[:2])
    batch_of(run)
    metrics = run.evaluate()
    assert given == [4, 3, 3]
    assert "eval_normal/reward" in metrics
    assert "eval_high_entropy/reward" not in metrics  # 3 responses have no halves: the normal mode answers all
    with pytest.raises(ValueError, match="has images"):
        run._generate_single_turn([[1]], [None], {}, 8)


def test_lora(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    run = trainer(tmp_path, peft_config=config, beta=0.1)
    base = run.model.get_base_model().lm_head.weight.clone()
    run.train()
    assert torch.equal(run.model.get_base_model().lm_head.weight, base)
    assert any(p.abs().sum() > 0 for name, p in run.model.named_parameters() if "lora_B" in name)
    assert run.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_reward_weights_and_a_function_that_leaves_responses_out(tmp_path):
    def half(completions, **columns):
        return [1.0 if index % 2 else None for index in range(len(completions))]

    def one(completions, **columns):
        return [1.0] * len(completions)

    run = trainer(tmp_path, reward=[half, one], reward_weights=[2.0, 0.5])
    batch = batch_of(run)
    assert run._rewards.tolist() == [0.5, 2.5] * 8
    assert batch["advantages"][0, 0] < 0 < batch["advantages"][1, 0]


def test_unfit(tmp_path):
    config = ours.PolicySplitGRPOConfig
    for options, message in [
        ({"num_generations": 7, "per_device_train_batch_size": 7}, "num_generations=7 must be even"),
        ({"alpha": 1.5}, r"alpha=1.5 must be a number in \[0, 1\]"),
        ({"eta_high": -1.0}, "eta_high=-1.0"),
        ({"clamp": "other"}, "clamp='other'"),
        ({"bonus_estimator": "exact"}, "'exact' needs the logits of both modes"),
        ({"high_entropy_prompt": "x", "normal_prompt": "x"}, "high_entropy_prompt must be a text of its own"),
        ({"scale_rewards": "batch"}, "scale_rewards='batch' is not for Policy Split"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold"),
        ({"loss_type": "vespo"}, "loss_type='vespo'"),
    ]:
        with pytest.raises(ValueError, match=message):
            config(**settings(tmp_path, **options))
    with pytest.raises(TypeError, match="PolicySplitGRPOConfig"):
        ours.PolicySplitGRPOTrainer(tiny.model(), tiny.reward, trl.GRPOConfig(**settings(tmp_path)))


def test_a_question_on_two_ranks():
    script = Path(tiny.__file__).with_name("trl_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done") == 2
