"""The run's folder: what cannot be written is said before anything is sampled, and what a run replaces it removes."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny

from policy_split.run_folder import output_dir
from policy_split.run_folder.output_dir import check_output_dir, remove_earlier_run
from policy_split.training.trainer import PolicySplitTrainer

OWN = ["metrics.jsonl", "samples.jsonl", "completions.jsonl", "config.yaml", "config-1.yaml", "environment.json"]
OWN += ["evaluation.json", "curves.png", "results.json", "table.md", "before.json", "countdown.json"]
OWN += ["config.json", "generation_config.json", "model.safetensors", "model-00001-of-00003.safetensors"]
OWN += ["model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"]
OWN += ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"]
OWN += ["checkpoints/checkpoint-3/model.safetensors", "checkpoints/unfinished-4/model.json"]
OWN += ["policy-split/1234/events.out.tfevents.5.machine", "policy-split/1234/hparams.yml"]
FOREIGN = ["README.md", "notes.txt", "config.yaml.bak", "my-config.json", "adapter_config.json.old", "rewards.py"]
FOREIGN += ["model-backup.safetensors", "model-1-of-3.safetensors", "lora/adapter_config.json", "questions.jsonl"]
FOREIGN += ["my-curves.png", "curves.png.old"]
FOREIGN += ["checkpoints/mine.txt", "checkpoints/checkpoint-best/model.safetensors", "policy-split/notes.txt"]


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_a_run_has_written_is_removed_and_what_is_somebody_elses_stays(tmp_path):
    fill(tmp_path, OWN + FOREIGN)
    remove_earlier_run(tmp_path)
    assert files(tmp_path) == sorted(FOREIGN)
    assert all((tmp_path / name).read_text() == name for name in FOREIGN)


def test_nothing_but_a_runs_files_leaves_nothing(tmp_path):
    fill(tmp_path, OWN)
    remove_earlier_run(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_earlier_run(tmp_path / "not there")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["metrics.jsonl"], r"already holds a run \(metrics.jsonl\); choose another, resume with"),
        (["checkpoints/checkpoint-2/progress.json"], r"a run \(checkpoint-2\)"),
        (["config.json", "model.safetensors"], r"a model \(config.json, model.safetensors\); choose another, or set"),
        (["adapter_config.json"], r"a model \(adapter_config.json\)"),
    ],
)
def test_a_folder_that_holds_a_run_or_a_model_is_refused(tmp_path, names, said):
    fill(tmp_path, names)
    with pytest.raises(FileExistsError, match=said):
        check_output_dir(tmp_path, resume=False, overwrite=False)
    check_output_dir(tmp_path, resume=True, overwrite=False)
    check_output_dir(tmp_path, resume=False, overwrite=True)
    assert files(tmp_path) == sorted(names)


def test_other_files_are_no_run(tmp_path):
    fill(tmp_path, ["README.md", "tokenizer.json", "config.yaml"])
    check_output_dir(tmp_path, resume=False, overwrite=False)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    check_output_dir(tmp_path / "a/b/c", resume=False, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    fill(tmp_path, ["kept/metrics.jsonl"])
    check_output_dir(tmp_path / "kept", resume=True, overwrite=False)
    assert files(tmp_path) == ["kept/metrics.jsonl"]


@pytest.fixture(params=["proc", "a file in between", "read-only mount", "full disk", "read-only rows", "dangling link"])
def unwritable(request, tmp_path):
    folder = tmp_path / "run"
    if request.param == "proc":
        yield "/proc/no/run"
    elif request.param == "a file in between":
        folder.write_text("")
        yield str(folder / "inside")
    elif request.param == "dangling link":
        folder.symlink_to("/proc/nowhere/at/all")
        yield str(folder)
    elif request.param == "read-only rows":
        fill(folder, ["metrics.jsonl"])
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").mkdir()  # what even root cannot append to
        yield str(folder)
    else:
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", "ro" if request.param == "read-only mount" else "size=4k,nr_inodes=1"]
        if subprocess.run(["mount", *options, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("cannot mount a tmpfs here")
        yield str(folder)
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_sampled(unwritable, monkeypatch):
    config = tiny.config(unwritable, overwrite_output_dir=True)
    trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config)
    monkeypatch.setattr(trainer, "step", lambda: pytest.fail("sampled"))
    with pytest.raises(OSError, match=r"output_dir='.*' (cannot be written \(.+\); choose another|is a file)"):
        trainer.train()


def test_processes_that_check_the_same_folder_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        checks = [pool.submit(check_output_dir, tmp_path / "a/b", resume=False, overwrite=False) for _ in range(400)]
    assert [check.result() for check in checks] == [None] * 400
    assert files(tmp_path) == []


def test_a_failed_check_leaves_no_folder_behind(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output_dir.tempfile, "NamedTemporaryFile", refused)
    with pytest.raises(PermissionError, match=r"/a/b' cannot be written \(Permission denied\)"):
        check_output_dir(tmp_path / "a/b", resume=False, overwrite=False)
    assert os.listdir(tmp_path) == []
