"""Nothing lost: whatever ends a run, it goes on from its newest whole checkpoint, bit for bit as if undisturbed."""

import errno
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import tiny
import torch
import yaml
from accelerate import Accelerator

from policy_split.run_folder import checkpoints
from policy_split.storage.state_files import read_state, write_state
from policy_split.storage.whole_folder import damage
from policy_split.training.stopping import StopRequest
from policy_split.training.trainer import PolicySplitTrainer

STEPS = {"max_steps": 4, "save_steps": 1}


def trainer(folder, *, reward=tiny.reward, **options):
    return PolicySplitTrainer(tiny.model(), tiny.tokenizer(), reward, tiny.QUESTIONS, tiny.config(folder, **options))


def weights(run):
    return {name: value.clone() for name, value in run.policy.bare.state_dict().items()}


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights at the end of four steps."""
    run = trainer(tmp_path_factory.mktemp("undisturbed"), max_steps=4)
    run.train()
    return weights(run)


def calls_before(count, then):
    """A reward function that does something else from its call number `count` on."""
    calls = []

    def reward(completions):
        calls.append(len(completions))
        return tiny.reward(completions) if len(calls) < count else then(completions)

    return reward


def test_a_process_killed_at_twenty_moments_and_resumed_ends_with_the_same_weights(tmp_path):
    script = Path(tiny.__file__).with_name("kill_process.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    command = [sys.executable, script, tmp_path, "20", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["timer"], told["file operation"]) == (10, 10)
    assert told["while saving"] >= 2
    assert told["resumed"] >= 5


def test_a_state_is_read_as_it_was_written(tmp_path):
    tied = torch.randn(3, 2)
    state = {
        "numbers": [1, 0.1, -math.inf, True, None, "text"],
        "nested": {3: (torch.tensor(2.0, dtype=torch.float64), {"tensor": 1}), 7: []},
        "a.b": torch.ones(2, dtype=torch.bfloat16),
        "a": {"b": torch.zeros(0, 4)},
        "tied": [tied, tied, tied.t(), tied[1:]],
        "random": random.getstate(),
    }
    write_state(tmp_path, "state", state)
    got = read_state(tmp_path, "state")
    assert got["numbers"] == state["numbers"]
    assert got["random"] == state["random"]
    assert got["nested"][7] == []
    number, marked = got["nested"][3]
    assert (number.item(), number.dtype, marked) == (2.0, torch.float64, {"tensor": 1})
    assert torch.equal(got["a.b"], state["a.b"])
    assert got["a"]["b"].shape == (0, 4)
    assert all(torch.equal(a, b) for a, b in zip(got["tied"], state["tied"], strict=True))
    assert json.loads((tmp_path / "state.json").read_text())["tied"][:2] == [{"tensor": "tied.0"}] * 2


@pytest.mark.parametrize(
    ("state", "expected"),
    [({"a": [{1, 2}]}, r"a\.0: cannot write a set"), ({"a": {(1, 2): 3}}, "a: keys must be texts or integers")],
)
def test_a_state_that_cannot_be_written_is_named(tmp_path, state, expected):
    with pytest.raises(TypeError, match=expected):
        write_state(tmp_path, "state", state)


def test_nothing_is_unpickled(tmp_path, undisturbed, monkeypatch):
    trainer(tmp_path, max_steps=2, save_steps=2, lr_scheduler_type="linear").train()
    for path in (tmp_path / "checkpoints/checkpoint-2").iterdir():
        assert path.suffix in (".json", ".safetensors")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("pickle.load"))
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("pickle.loads"))
    resumed = trainer(tmp_path, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.progress.step == 2


def test_weights_of_a_checkpoint_have_the_names_of_the_model(tmp_path):
    from safetensors.torch import load_file

    run = trainer(tmp_path, max_steps=1, save_steps=1)
    run.train()
    assert same(load_file(tmp_path / "checkpoints/checkpoint-1/model.safetensors"), weights(run))


def test_random_states_of_every_library_come_back(tmp_path):
    def draws():
        return random.random(), numpy.random.rand(), torch.rand(()).item()

    run = trainer(tmp_path, max_steps=2)
    run.step()
    run.state.mark()
    run.state.save(tmp_path, None)
    expected = draws()
    trainer(tmp_path, max_steps=2).state.load(tmp_path / "checkpoints/checkpoint-1")
    assert draws() == expected


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "expected"),
    [
        ("model.safetensors", truncate, r"checkpoint-4/model\.safetensors has \d+ bytes instead of \d+"),
        ("optimizer.safetensors", flip, r"checkpoint-4/optimizer\.safetensors is not what was written"),
        ("random-0.json", Path.unlink, r"checkpoint-4/random-0\.json is missing"),
        ("manifest.json", Path.unlink, r"checkpoint-4/manifest\.json is missing"),
        ("manifest.json", truncate, None),  # the newline alone
        ("manifest.json", lambda path: path.write_text("[]"), r"checkpoint-4/manifest\.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, name, harm, expected):
    trainer(tmp_path, max_steps=4, save_steps=2).train()
    harm(tmp_path / "checkpoints/checkpoint-4" / name)
    resumed = trainer(tmp_path, max_steps=4, save_steps=2)
    if expected is None:
        resumed.train(resume_from_checkpoint=True)
    else:
        with pytest.warns(UserWarning, match=f"{expected}.*: going on from checkpoint-2 instead"):
            resumed.train(resume_from_checkpoint=True)
        assert damage(tmp_path / "checkpoints/checkpoint-4") is None  # written again
        shutil.rmtree(tmp_path / "checkpoints/checkpoint-2")
        harm(tmp_path / "checkpoints/checkpoint-4" / name)
        with pytest.raises(ValueError, match=r"none of the 1 checkpoints .* is whole"):
            trainer(tmp_path).train(resume_from_checkpoint=True)
        with pytest.raises(ValueError, match=f"is not a whole checkpoint: .*{expected}"):
            trainer(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoints/checkpoint-4")
    assert same(weights(resumed), undisturbed)


def test_the_newest_whole_checkpoint_is_never_removed(tmp_path):
    """Resumed from 2 because 4 is damaged, at a limit of 1: 4 must not stand for the one to keep."""
    trainer(tmp_path, max_steps=4, save_steps=2).train()
    truncate(tmp_path / "checkpoints/checkpoint-4/model.safetensors")
    resumed = trainer(tmp_path, max_steps=3, save_steps=3, save_total_limit=1)
    with pytest.warns(UserWarning, match="going on from checkpoint-2"):
        resumed.train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert damage(tmp_path / "checkpoints/checkpoint-3") is None


def test_the_oldest_are_removed(tmp_path):
    trainer(tmp_path, max_steps=4, save_steps=1, save_total_limit=2).train()
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    left = tmp_path / "checkpoints/unfinished-1"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    trainer(tmp_path, **STEPS | {"max_steps": 1}).train()
    assert names(tmp_path) == ["checkpoint-1"]


@pytest.fixture(params=["file size", "tmpfs"])
def full_disk(request, tmp_path):
    """(folder, context manager in which no more than a few kilobytes can be written there)."""
    if request.param == "tmpfs":
        folder = tmp_path / "small"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("cannot mount a tmpfs here")
        yield folder, lambda save: save()
        subprocess.run(["umount", "-l", folder], check=True)
        return

    def limited(save):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield tmp_path / "run", limited


def test_a_full_disk_is_said_and_costs_no_older_checkpoint(full_disk, undisturbed, tmp_path):
    folder, limited = full_disk
    run = trainer(folder, **STEPS)
    save = run.state.save

    def save_on_a_disk_that_fills(*arguments):
        if run.progress.step == 1:
            return save(*arguments)
        return limited(lambda: save(*arguments))

    run.state.save = save_on_a_disk_that_fills
    with pytest.raises(OSError, match=r"checkpoint-\d could not be saved .*newest usable checkpoint is") as caught:
        run.train()
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    left = names(folder)
    assert left[0] == "checkpoint-1"
    assert all(damage(folder / "checkpoints" / name) is None for name in left)
    moved = shutil.copytree(folder, tmp_path / "larger")
    resumed = trainer(moved, **STEPS)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), undisturbed)
    assert steps(moved) == [1, 2, 3, 4]


def test_a_line_of_metrics_that_the_disk_cut_off_is_written_again(tmp_path):
    trainer(tmp_path, max_steps=2, save_steps=1).train()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\x00\x00\xff\n")  # what some file systems leave after a power failure
    trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert steps(tmp_path) == [1, 2, 3]


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


def test_a_run_folder_is_understood_without_the_code(tmp_path):
    trainer(tmp_path, **STEPS).train()
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["save_steps"] == 1
    assert settings["high_entropy_prompt"] == "explore"
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["command"] == sys.argv
    assert {path.name for path in tmp_path.iterdir()} >= {"metrics.jsonl", "checkpoints", "model.safetensors"}


def test_sharded_models_are_refused_before_the_first_step(tmp_path, monkeypatch):
    from accelerate import DistributedType

    run = trainer(tmp_path, save_steps=1)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(NotImplementedError, match="sharded by FSDP"):
        run.train()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_only_a_run_without_a_checkpoint_and_without_a_result_starts_over(tmp_path):
    assert checkpoints.stopped_before_first(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert checkpoints.stopped_before_first(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # the final model's
    assert not checkpoints.stopped_before_first(tmp_path)
