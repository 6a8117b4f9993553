"""Damaged checkpoints are passed over, and a full disk costs none that is whole."""

import errno
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from run_files import STEPS, names, same, steps
from trained import trainer, weights

from policy_split.storage.whole_folder import damage


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
