"""Run by test_signals: `interrupted_process.py FOLDER` interrupts trainings whose rewards have processes.

Each training is a session of its own, forked from this one, which has imported everything. A signal goes to it alone,
or to all of its processes as Ctrl-C does, once its reward has said that it is in its second call. A line of JSON for
each says how it ended, what it left, and whether the run, resumed, comes to the weights of the undisturbed one.
"""

import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tiny
import torch

from policy_split.run_folder.checkpoints import checkpoints
from policy_split.training import stopping
from policy_split.training.trainer import PolicySplitTrainer

fork = multiprocessing.get_context("fork")
STEPS = 3


def grade(text, seconds):
    time.sleep(seconds)
    return text.split().count("a") / 6


def with_pool(texts, seconds):
    with fork.Pool(2) as pool:
        return pool.starmap(grade, [(text, seconds) for text in texts], 1)


@functools.cache
def held_pool():
    return fork.Pool(2)


def with_held_pool(texts, seconds):
    return held_pool().starmap(grade, [(text, seconds) for text in texts], 1)


@functools.cache
def held_executor():
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=fork)


def with_held_executor(texts, seconds):
    return list(held_executor().map(grade, texts, [seconds] * len(texts)))


def with_program(texts, seconds):
    """A program that is ended counts as a wrong answer: what Ctrl-C does to it must not be taken for a grade."""
    code = f"import time; time.sleep({4 * seconds})"
    right = subprocess.run([sys.executable, "-S", "-c", code], stderr=subprocess.DEVNULL).returncode == 0
    return [grade(text, 0) if right else 0.0 for text in texts]


def swallowing(texts, seconds):
    try:
        return with_pool(texts, seconds)
    except KeyboardInterrupt:
        return [0.0] * len(texts)


def never_again(texts, seconds):
    """What hangs once the signal has been there, as a pool does whose lock the signal has left locked."""
    if never_again.interrupted:
        time.sleep(30)
    try:
        return with_pool(texts, seconds)
    except KeyboardInterrupt:
        never_again.interrupted = True
        held_pool()  # with processes
        raise


never_again.interrupted = False
WAYS = {each.__name__: each for each in (with_pool, with_held_pool, with_held_executor, with_program, swallowing)}
WAYS["never_again"] = never_again
# the way, the signal, whether it goes to all processes
CASES = [(name, signal.SIGINT, True) for name in WAYS]
CASES += [(name, signal.SIGTERM, False) for name in ("with_held_pool", "with_program")]


def live(folder, way, say=None):
    calls = []

    def reward(completions):
        calls.append(len(completions))
        waits = len(calls) == 2 and say is not None
        if waits:
            os.write(say, b"x")
        return WAYS[way](list(completions), 0.3 if waits else 0.0)

    config = tiny.config(folder, max_steps=STEPS, num_generations=2, prompts_per_step=2)
    trainer = PolicySplitTrainer(tiny.model(), tiny.tokenizer(), reward, tiny.QUESTIONS, config)
    trainer.train(resume_from_checkpoint=bool(checkpoints(folder)))
    return digest(folder)


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def interrupted(folder, way, number, everyone):
    """Of a training of its own session: how it ended, in how many seconds, and which of its processes are left."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(os.open(folder.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT), 2)
        ended = "finished"
        try:
            live(folder, way, writing)
        except KeyboardInterrupt as error:
            ended = str(error)
        except BaseException as error:
            ended = f"{type(error).__name__}: {error}"
        folder.with_suffix(".ended").write_text(ended)
        sys.exit(0)  # as a program ends: what multiprocessing does then ends its processes
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    time.sleep(0.4)
    started = time.monotonic()
    (os.killpg if everyone else os.kill)(child, number)
    os.waitpid(child, 0)
    seconds = time.monotonic() - started
    time.sleep(0.1)
    listed = subprocess.run(["ps", "-o", "stat=,args=", "-s", str(child)], capture_output=True, text=True).stdout
    left = [line for line in listed.splitlines() if not line.startswith("Z")]  # nobody has waited for it yet
    return {"ended": folder.with_suffix(".ended").read_text(), "seconds": seconds, "left": left}


def main(folder):
    torch.set_num_threads(1)
    stopping.GRACE = 3.0
    expected = live(folder / "undisturbed", "with_program")
    for number, (way, which, everyone) in enumerate(CASES):
        run = folder / str(number)
        said = {"way": way, "signal": which.name, "everyone": everyone, **interrupted(run, way, which, everyone)}
        said["checkpoints"] = [path.name for path in checkpoints(run)]
        said["same"] = live(run, "with_program") == expected
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
