"""Run by test_resume: `kill_process.py FOLDER KILLS SEED` kills training processes by SIGKILL and resumes them.

Every life of a run is a process of its own, forked from this one, which has imported everything and trained nothing.
Half of them are killed by a timer, half by themselves just before a file operation of a checkpoint or of the final
model. The timer counts the life's own seconds of CPU: it strikes in the same places on a machine that does other things
as well. A run that comes to its end is compared with the undisturbed one, and the next run begins.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy
import tiny
import torch

from policy_split.run_folder import checkpoints, model_folder
from policy_split.storage import whole_folder
from policy_split.training.trainer import PolicySplitTrainer

OPTIONS = {"max_steps": 9, "save_steps": 2, "save_total_limit": 2, "overwrite_output_dir": True}
OPTIONS |= {
    "log_completions": True,
    "num_iterations": 2,
    "num_generations": 2,
    "prompts_per_step": 2,
    "eval_steps": 2,
    "eval_num_samples": 1,
}


def reward(completions):
    """Draws from the global generator of every library: a resumed run must have got them back."""
    drawn = random.random() + numpy.random.rand() + torch.rand(()).item()
    return [text.split().count("a") + drawn * text.split().count("b") for text in completions]


def live(folder, fatal):
    """A life of the run; it ends before its file operation number `fatal`. Writes how many operations there were."""
    torch.set_num_threads(1)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)
    done = die_at_file_operation(fatal)
    resume = bool(checkpoints.checkpoints(folder))
    config = tiny.config(folder, **OPTIONS)
    data = {"train_dataset": tiny.QUESTIONS, "eval_dataset": tiny.HELD_OUT[:2]}
    trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), reward, config=config, **data)
    trainer.train(resume_from_checkpoint=resume)
    (folder / "operations").write_text(str(done[0]))


def die_at_file_operation(fatal):
    done = [0]

    def counted(function):
        def call(*args, **kwargs):
            done[0] += 1
            if done[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    checkpoints.write_state = counted(checkpoints.write_state)
    model_folder.sync = whole_folder.sync = counted(whole_folder.sync)
    os.replace, shutil.rmtree = counted(os.replace), counted(shutil.rmtree)
    return done


def fork(folder, fatal=0):
    process = os.fork()
    if process:
        return process
    try:
        live(folder, fatal)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def cpu_seconds(process):
    """Those that it has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # in user mode, in the kernel


def ended(process, delay=None):
    """Wait for the life's end, or kill it after so many seconds of its own; returns whether it was killed."""
    if delay is not None:
        while cpu_seconds(process) < delay:
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)  # no other process can have got the number: nobody has waited for it yet
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "a life ended with the error above"
    return False


def outcome(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name != "step_time"} for row in rows]
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    last = checkpoints.checkpoints(folder)[-1]
    files = json.loads((last / "manifest.json").read_text())
    return {"weights": weights, "rows": rows, "texts": (folder / "completions.jsonl").read_text(), "files": files}


def main(folder, kills, seed):
    if importlib.util.find_spec("matplotlib"):  # of the card's picture: each life would import it anew
        importlib.import_module("matplotlib.figure")
        importlib.import_module("matplotlib.backends.backend_agg")
    warnings.simplefilter("error", UserWarning)  # a killed process leaves no damaged checkpoint behind
    generator = random.Random(seed)
    assert not ended(fork(folder / "undisturbed"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    expected, operations = outcome(folder / "undisturbed"), int((folder / "undisturbed/operations").read_text())
    told = {"timer": 0, "file operation": 0, "while saving": 0, "resumed": 0, "runs": 0, "seconds": seconds}
    run = folder / "run-0"
    while told["timer"] + told["file operation"] < kills:
        by_timer = told["timer"] < told["file operation"]
        told["resumed"] += bool(checkpoints.checkpoints(run))
        if by_timer:
            killed = ended(fork(run), generator.uniform(0, seconds))
        else:
            killed = ended(fork(run, generator.randint(1, operations)))
        told["timer" if by_timer else "file operation"] += killed
        told["while saving"] += killed and bool(list(run.glob("checkpoints/unfinished-*")))
        if not killed:
            told["runs"] += 1
            assert outcome(run) == expected, f"{run} differs from the undisturbed run"
            run = folder / f"run-{told['runs']}"
    assert not ended(fork(run))
    assert outcome(run) == expected, f"{run} differs from the undisturbed run"
    print(json.dumps(told | {"runs": told["runs"] + 1, "operations": operations}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
