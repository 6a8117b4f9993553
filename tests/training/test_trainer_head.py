"""The trainer with the LM head inside the loss: one trainer with that of logits, and where it keeps to those."""

import warnings

import pytest
import tiny
import torch
from trained import lines, trainer, weights
from transformers import Qwen3ForCausalLM

from policy_split.models.policy import Policy


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_old_and_new_log_probs_are_the_same_numbers(tmp_path, fused, packed):
    """Bitwise, where scoring and update have the same micro-batches: an entropy term, however small, needs all rows."""
    options = {"learning_rate": 0.0, "num_iterations": 2, "epsilon": 0.0, "entropy_coef_normal": 1e-30}
    run = trainer(tmp_path, fused_lm_head=fused, packed_batches=packed, per_device_train_batch_size=7, **options)
    assert run.policy.packed == packed
    kept = {}
    backward = run.update.backward
    run.update.backward = lambda rollout, rows, *more: kept.setdefault(tuple(rows), backward(rollout, rows, *more))
    metrics, rollout = run.step()
    assert metrics["normal/clip_ratio"] == metrics["high_entropy/clip_ratio"] == 0.0
    assert kept
    for rows, out in kept.items():
        assert torch.equal(out.logprobs, rollout.logprobs[list(rows), : out.logprobs.shape[1]])
        assert torch.equal(out.entropy, rollout.entropy[list(rows), : out.entropy.shape[1]])


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2, "beta": 0.1, "entropy_coef_high_entropy": 0.01, "delta": 3.0},
        {"temperature": 0.7, "gradient_checkpointing": True, "mask_truncated_completions": True, "loss_type": "grpo"},
        {"lm_head_chunk_bytes": 1000, "per_device_train_batch_size": 7, "bonus_estimator": "entropy"},
    ],
)
def test_fused_head_and_logits_are_one_trainer(tmp_path, options):
    """The same rollouts, the same metrics and the same weights; only the one never makes logits."""
    results = []
    for fused in (False, True):
        model = tiny.model(tie_word_embeddings="beta" in options).double()
        run = trainer(
            tmp_path / str(fused),
            model=model,
            fused_lm_head=fused,
            adam_epsilon=1e-3,
            score_with_update="off",
            **options,
        )
        outputs = set()
        run.model.lm_head.register_forward_hook(lambda m, i, out, seen=outputs: seen.add(type(out).__name__))
        sample = run.sample
        run.sample = lambda sample=sample, seen=outputs: (sample(), seen.clear())[0]  # generate needs logits
        run.train()
        results.append((weights(run), lines(tmp_path / str(fused)), outputs))
    assert [result[2] for result in results] == [{"Tensor"}, {"LogprobsAndEntropy", "DualModeLossOutput"}]
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-9, atol=1e-11)
    for logits, fused in zip(results[0][1], results[1][1], strict=True):
        assert logits == pytest.approx(fused, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("options", [{"log_exact_kl": True}, {"bonus_estimator": "exact"}, {"regularizer": "loss"}])
def test_both_modes_logits_are_used_where_they_are_needed(tmp_path, options):
    run = trainer(tmp_path, beta=0.1, **options)
    assert not run.policy.fused
    assert not run.reference.fused
    assert type(run.policy.bare) is type(tiny.model())
    run.step()


@pytest.mark.parametrize(
    ("kind", "expected"), [("head", "got Scaled"), ("logits", "ScaledLogits changes its logits after lm_head")]
)
def test_a_head_that_cannot_be_patched_trains_by_its_logits(tmp_path, kind, expected):
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) * 2

    class ScaledLogits(Qwen3ForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 2
            return out

    results = []
    for fused in (False, True):
        model = tiny.model()
        if kind == "head":
            model.lm_head = Scaled(16, len(tiny.WORDS), bias=False)
            with torch.no_grad():
                model.lm_head.weight.copy_(tiny.model().lm_head.weight)
        else:
            model.__class__ = ScaledLogits
        if fused:
            with pytest.warns(UserWarning, match=f"fused_lm_head=True is left aside.*{expected}"):
                run = trainer(tmp_path / "fused", model=model)
            assert not run.policy.fused
        else:
            run = trainer(tmp_path / "logits", model=model, fused_lm_head=False)
        run.train()
        results.append(weights(run))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_lora_on_the_head_trains_the_same_by_either_way(tmp_path):
    peft = pytest.importorskip("peft")
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's use of what transformers has renamed
            options = {"r": 2, "target_modules": ["lm_head", "q_proj"], "init_lora_weights": False}
            model = peft.get_peft_model(tiny.model().double(), peft.LoraConfig(**options))
        run = trainer(tmp_path / str(fused), model=model, fused_lm_head=fused, beta=0.1, adam_epsilon=1e-3)
        assert run.policy.fused is run.reference.fused is fused
        before = weights(run)
        for _ in range(2):
            run.step()
        results.append(weights(run))
    changed = {name for name, value in results[0].items() if not torch.equal(value, before[name])}
    assert {name for name in before if "lora" in name} == changed
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-7, atol=1e-9)


def test_a_fused_policy_needs_a_patched_model():
    with pytest.raises(ValueError, match="fused=True needs a model that patch_lm_head has patched"):
        Policy(tiny.model(), tiny.tokenizer(), fused=True)
