"""Our kernels in TRL's own trainers: the same run with TRL's head and with ours."""

import pytest
import tiny
import torch
from datasets import Dataset
from trl_runs import saved_model, settings, trainer

from policy_split_kernels import linear

trl = pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
from policy_split.integrations.trl import kernels  # noqa: E402
from policy_split.integrations.trl.kernels import use_fused_kernels  # noqa: E402

# transformers renames activation checkpointing, and TRL 1.16 calls it by its old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:trl"),
]


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_fused_kernels_of_a_plain_trainer(tmp_path, monkeypatch, kind):
    """The same run with TRL's head and with ours: weights to rounding, GRPO's entropy bonus and the reference too."""
    made, config = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    options = {"beta": 0.1, "temperature": 0.7} | ({"entropy_coef": 0.01} if kind == "GRPO" else {})
    finals, calls = [], []
    original = linear.linear_logprobs_and_entropy
    counted = lambda *a, **k: calls.append(1) or original(*a, **k)  # noqa: E731
    monkeypatch.setattr(kernels, "linear_logprobs_and_entropy", counted)
    for fused in (False, True):
        run = made(
            saved_model(tmp_path / "model"),
            tiny.reward,
            config(**settings(tmp_path / str(fused), **options)),
            train_dataset=Dataset.from_list(tiny.QUESTIONS),
            processing_class=tiny.tokenizer(),
        )
        if fused:
            assert use_fused_kernels(run) is run
        torch.manual_seed(0)
        run.train()
        finals.append((dict(run.model.state_dict()), run.state.log_history[0]))
        assert bool(calls) == fused
    for name, value in finals[0][0].items():
        torch.testing.assert_close(finals[1][0][name], value, rtol=1e-3, atol=1e-3)
    for name in ("loss", "grad_norm", "kl", *(["entropy"] if kind == "GRPO" else [])):
        assert float(finals[1][1][name]) == pytest.approx(float(finals[0][1][name]), rel=1e-3, abs=1e-6)


def test_fused_kernels_of_something_else(tmp_path):
    with pytest.raises(TypeError, match="GRPOTrainer, RLOOTrainer"):
        use_fused_kernels(object())
    run = trainer(tmp_path, fused_kernels=False)
    forward = run.model.forward
    run.model.lm_head = torch.nn.Sequential(run.model.lm_head)
    with pytest.raises(TypeError, match="LM head must be"):
        use_fused_kernels(run)
    assert run.model.forward == forward
