"""A run that is stopped by a signal, or by an error in the middle of a step, has its last finished step saved."""

import math
import os
import signal
import time

import pytest
import tiny
from run_files import calls_before, names, same, steps
from trained import trainer, weights

from policy_split.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_saves(tmp_path, undisturbed, number, capfd):
    def interrupted(completions):
        os.kill(os.getpid(), number)
        return tiny.reward(completions)

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 4, which is saved"):
        trainer(tmp_path, max_steps=4, reward=calls_before(2, interrupted)).train()
    assert f"{number.name}: finishing the step" in capfd.readouterr().err
    assert signal.getsignal(number) is handler
    assert names(tmp_path) == ["checkpoint-2"]
    resumed = trainer(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), undisturbed)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def stubborn(completions):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, max_steps=4, reward=calls_before(2, stubborn)).train()
    assert steps(tmp_path) == [1]
    assert not (tmp_path / "checkpoints").exists()


def test_signals_keep_their_meaning_outside_the_main_thread():
    from concurrent.futures import ThreadPoolExecutor

    def asked():
        with StopRequest() as stop:
            return stop.asked, signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asked).result() == (False, signal.getsignal(signal.SIGINT))


def failing(completions):
    raise KeyError("mine")


def hanging(completions):
    time.sleep(60)


@pytest.mark.parametrize(
    ("then", "error", "expected"),
    [
        (failing, KeyError, r"mine'\nreward function reward, sample 0 \('.*'\)\n2 steps are finished"),
        (hanging, TimeoutError, r"reward gave no answer within 0\.2 seconds\nreward function reward, sample 0 "),
        (lambda completions: [math.nan] * len(completions), ValueError, r"reward, sample 0 \(.*\): returned nan"),
    ],
)
def test_a_reward_function_that_fails_or_hangs_stops_a_run_whose_state_is_saved(
    tmp_path, undisturbed, then, error, expected
):
    run = trainer(tmp_path, max_steps=4, reward=calls_before(3, then), reward_timeout=0.2)
    with pytest.raises(error, match=expected) as caught:
        run.train()
    assert caught.value.__notes__[-1].endswith(f"the newest usable checkpoint is {tmp_path}/checkpoints/checkpoint-2")
    resumed = trainer(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), undisturbed)


def test_gradients_that_are_not_finite_stop_a_run_whose_state_is_saved(tmp_path, undisturbed):
    run = trainer(tmp_path, max_steps=4, max_skipped_steps=0)
    step = run.step

    def bad_third():
        if run.progress.step == 2:
            run.policy.bare.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
        return step()

    run.step = bad_third
    with pytest.raises(FloatingPointError, match="1 optimizer steps in a row were not finite") as caught:
        run.train()
    assert caught.value.__notes__ == [
        f"2 steps are finished; the newest usable checkpoint is {tmp_path}/checkpoints/checkpoint-2"
    ]
    resumed = trainer(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.progress.skipped == 0
    assert same(weights(resumed), undisturbed)


def test_a_step_that_fails_after_the_weights_have_moved_is_not_saved(tmp_path):
    """What stands in memory is then between two steps; the checkpoint of the step before is what there is."""
    run = trainer(tmp_path, max_steps=4, save_steps=2, num_iterations=2)
    update, calls = run.update.step, []

    def breaks(*arguments):
        calls.append(arguments)
        if len(calls) == 8:  # the second update of the fourth step
            raise RuntimeError("out of memory")
        return update(*arguments)

    run.update.step = breaks
    with pytest.raises(RuntimeError, match=r"out of memory\n3 steps are finished; .*checkpoint-2"):
        run.train()
    assert names(tmp_path) == ["checkpoint-2"]


def test_an_evaluation_that_fails_costs_no_step(tmp_path, undisturbed):
    run = trainer(tmp_path, max_steps=4)
    run.eval_dataset, run.config.eval_steps = run.train_dataset, 3
    run.evaluate = lambda: failing(None)
    with pytest.raises(KeyError, match=r"mine'\n3 steps are finished; .*checkpoint-3"):
        run.train()
    assert steps(tmp_path) == [1, 2, 3]
    resumed = trainer(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), undisturbed)
