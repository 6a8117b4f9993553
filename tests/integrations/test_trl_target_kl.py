"""target_kl in TRL's trainer: eta moves as the function says, trains, and is the same after a resume."""

import math

import pytest
import tiny

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
from trl_runs import trainer

from policy_split.algorithms.kl_target import HeldEta

# transformers renames activation checkpointing, and TRL 1.16 calls it by its old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:trl"),
]
KL, ETA = "policy_split/kl_high_normal", "policy_split/eta"


def lines(run):
    return [line for line in run.state.log_history if "loss" in line]


def test_the_log_is_that_of_the_function(tmp_path):
    run = trainer(tmp_path, target_kl=0.01, eta_high=0.3, max_steps=4)
    run.train()
    held, etas = HeldEta(0.3), []
    for line in lines(run):
        assert line[ETA] == pytest.approx(held.applied(0.01), rel=1e-9)
        held = held.after(line[KL], 0.01, 0.3)
        etas.append(line[ETA])
    assert len(set(etas)) > 1


def test_eta_is_what_trains(tmp_path):
    """Far beyond the target there is no bonus: the second step is that of a run with eta 0, the first is not."""
    options = {"clamp": "code", "kappa": None, "max_steps": 3}
    cut = trainer(tmp_path / "cut", target_kl=1e-12, **options)  # each seeds the draws as it is made
    cut.train()
    free = trainer(tmp_path / "free", **options)
    free.train()
    assert [line[ETA] for line in lines(cut)] == [0.5, 0.0, 0.0]
    assert lines(cut)[0][KL] == lines(free)[0][KL]
    assert lines(cut)[2][KL] != lines(free)[2][KL]
    assert ETA not in lines(free)[0]


@pytest.mark.parametrize("restored", [False, True], ids=["by its name", "by transformers"])
def test_a_resumed_run_is_the_same(tmp_path, restored):
    options = {"target_kl": 0.05, "eta_high": 0.3, "clamp": "code", "save_strategy": "steps", "save_steps": 2}
    options |= {"restore_callback_states_from_checkpoint": restored}
    options |= {"lr_scheduler_type": "constant"}
    whole = trainer(tmp_path / "whole", max_steps=4, **options)
    whole.train()
    trainer(tmp_path / "parts", max_steps=2, **options).train()
    rest = trainer(tmp_path / "parts", max_steps=4, **options)
    rest.train(resume_from_checkpoint=True)
    assert [line[ETA] for line in lines(rest)] == [line[ETA] for line in lines(whole)]
    assert rest._held.state() == whole._held.state()
    assert whole._held.held.eta != 0.3


def test_bad_targets(tmp_path):
    for bad in (0, -0.1, math.inf, math.nan, "0.2", True):
        with pytest.raises(ValueError, match=r"target_kl=.* must be a finite number above 0, or None"):
            trainer(tmp_path, target_kl=bad, questions=tiny.QUESTIONS)
    with pytest.raises(ValueError, match="nothing comes of eta_high=0"):
        trainer(tmp_path, target_kl=0.2, eta_high=0.0)
