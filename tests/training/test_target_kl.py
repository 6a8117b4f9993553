"""target_kl in the trainer: eta moves as the function says, in every form, after a resume and in two processes."""

import itertools
import math

import pytest
from trained import lines, trainer, weights

from policy_split.algorithms.kl_target import HeldEta
from policy_split.config import PolicySplitConfig

KL, ETA = "policy_split/kl_high_normal", "policy_split/eta"
FORMS = [
    {},
    {"clamp": "code", "clamp_floor": 0.3, "eta": 0.3},
    {"regularizer": "loss", "eta": 0.05},
    {"bonus_estimator": "exact", "clamp": "code"},
    {"bonus_estimator": "entropy", "share_correction": "shaped"},
    {"score_with_update": "off", "share_correction": "positive"},
    {"kappa": None, "num_iterations": 2},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_log_is_that_of_the_function(tmp_path, form):
    run = trainer(tmp_path, target_kl=0.01, max_steps=5, **form)
    run.train()
    held = HeldEta(run.config.eta)
    measured = f"policy_split/exact_{KL.partition('/')[2]}" if run.config.exact_kl else KL
    for metrics in lines(tmp_path):
        assert metrics[ETA] == pytest.approx(held.applied(0.01), rel=1e-12)
        held = held.after(metrics[measured], 0.01, run.config.eta)
    assert run.progress.eta == pytest.approx(held.eta, rel=1e-12)
    assert held.eta != run.config.eta


def test_eta_is_what_trains(tmp_path):
    """A target that the start is far beyond cuts the bonus: what trains is a run with eta 0 from the second step on."""
    common = {"clamp": "code", "kappa": None, "max_steps": 3}
    cut = trainer(tmp_path / "cut", target_kl=1e-12, eta=0.5, **common)
    cut.train()
    assert [row[ETA] for row in lines(tmp_path / "cut")] == [0.5, 0.0, 0.0]
    free = trainer(tmp_path / "free", eta=0.5, **common)
    free.train()
    first, second = (lines(tmp_path / name) for name in ("cut", "free"))
    assert first[0][KL] == second[0][KL]
    assert first[2][KL] != second[2][KL]
    assert ETA not in second[0]


def test_a_resumed_run_is_the_same(tmp_path):
    options = {"target_kl": 0.05, "eta": 0.3, "clamp": "code", "save_steps": 1, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path / "whole", max_steps=6, **options)
    whole.train()
    trainer(tmp_path / "parts", max_steps=3, **options).train()
    rest = trainer(tmp_path / "parts", max_steps=6, **options)
    rest.train(resume_from_checkpoint=True)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert rest.progress == whole.progress
    for name, value in weights(whole).items():
        assert value.equal(weights(rest)[name])


def test_eta_stays_within_its_bounds(tmp_path):
    """20 steps of a real model, from a start whose eta does little towards a target that it does not reach alone."""
    options = {
        "clamp": "code",
        "kappa": None,
        "eta": 0.05,
        "max_steps": 20,
        "learning_rate": 3e-3,
        "prompts_per_step": 6,
    }
    run = trainer(tmp_path / "held", target_kl=0.5, **options)
    run.train()
    etas = [row[ETA] for row in lines(tmp_path / "held")]
    assert all(0.05 / 16 <= eta <= 0.05 * 16 for eta in etas if eta)
    assert max(abs(math.log(b / a)) for a, b in itertools.pairwise(etas) if a and b) <= 0.05 + 1e-9


def test_what_is_not_for_it_is_said():
    for options, said in (
        ({"algorithm": "grpo"}, "target_kl=0.2 is of two modes; algorithm='grpo' has one"),
        ({"eta": 0.0}, "target_kl=0.2 multiplies eta"),
    ):
        with pytest.raises(ValueError, match=said):
            PolicySplitConfig(target_kl=0.2, **options)
    for bad in (0, -0.1, math.inf, "0.2"):
        with pytest.raises(ValueError, match=r"target_kl=.* must be a finite number above 0, or None"):
            PolicySplitConfig(target_kl=bad)
