"""Progress bars: there where standard error is a terminal, and nothing at all where it is not."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import tiny
import torch

from policy_split.models.policy import Policy
from policy_split.progress import inner_bar, mode_postfix, showing, track
from policy_split.rollouts.sampling import sample, seeded
from policy_split.training.warm_start import warm_start

SCRIPT = Path(tiny.__file__).with_name("bars_process.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """What a process writes to a terminal of 80 columns, cut at every return of the carriage, for each kind of work."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, SCRIPT, tmp_path_factory.mktemp("terminal"), "short", "long", "warm"]
    with subprocess.Popen(command, stderr=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # raised when the other side is closed
            while part := os.read(ours, 1 << 16):
                said += part
        os.close(ours)
    assert process.returncode == 0, said.decode()
    parts = re.split(r"== (\w+)", said.decode())
    return {kind: re.split(r"[\r\n]+", text) for kind, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_short_steps_have_one_bar(lines):
    bars = [line for line in lines["short"] if line.startswith("train:")]
    assert re.search(r"20/20 \[.*reward=\d\.\d\d/\d\.\d\d, entropy=\d\.\d\d/\d\.\d\d\]$", bars[-1])
    assert not any("generation" in line or "optimizer" in line for line in lines["short"])


def test_long_steps_show_what_goes_on_inside(lines):
    counts = {
        name: [int(count) for line in lines["long"] for count in re.findall(rf"^{name}: .*?(\d+)/\d+ ", line)]
        for name in ("generation", "optimizer steps", "train")
    }
    assert counts["generation"][0] > 1  # not in the first second
    assert counts["generation"] == sorted(counts["generation"])
    assert counts["generation"][-1] == 12
    assert counts["optimizer steps"][-1] == 6
    assert counts["train"][0] == 0
    assert counts["train"][-1] == 1
    # they are wiped away
    last = max(number for number, line in enumerate(lines["long"]) if line.startswith("optimizer steps"))
    assert any(line.strip("\x1b[A ") == "" and " " * 40 in line for line in lines["long"][last + 1 :])


def test_a_warm_start_shows_its_loss(lines):
    assert re.search(r"warm start: .*12/12 .*loss=\d\.\d\d\d\]", lines["warm"][-2])


def test_without_a_terminal_nothing_is_written(tmp_path):
    command = [sys.executable, SCRIPT, tmp_path, "short", "warm"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bars_are_shown_inside_showing_alone(capsys):
    items = [1, 2, 3]
    assert track(items, "x") is items
    for disable in (True, None):  # None: standard error is no terminal here
        with showing(disable):
            assert track(items, "x") is items
            assert inner_bar(3, "x").disable
    with showing(False):
        tracked = track(iter(items), "x", total=3)
        with showing(True):
            assert track(items, "x") is items
        assert next(tracked) == 1
        assert list(tracked) == [2, 3]
        assert not inner_bar(3, "x").disable
    assert track(items, "x") is items
    assert capsys.readouterr().err == ""  # three items take less than a second


def test_the_postfix_has_the_modes_that_are_there():
    both = {"normal/reward": 0.123, "normal/entropy": 1.0, "high_entropy/reward": 0.5, "high_entropy/entropy": 12.0}
    assert mode_postfix(both | {"loss": 1.0}) == {"reward": "0.12/0.50", "entropy": "1.00/12.00"}
    assert mode_postfix({"normal/reward": 0.5, "normal/entropy": 1.0}) == {"reward": "0.50", "entropy": "1.00"}


def test_a_bar_changes_no_token(tmp_path):
    config = tiny.config(tmp_path, per_device_generation_batch_size=2)
    drawn = []
    for disable in (True, False):
        policy = Policy(tiny.model(), tiny.tokenizer())
        with showing(disable), seeded(3, torch.device("cpu")):
            drawn.append(sample(policy, [[8, 9], [10], [11, 12, 13]], config))
    assert torch.equal(*drawn)


class Unread(torch.Tensor):
    """A tensor that must not be brought to the host."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function is not torch.Tensor.__float__, "the loss was read"
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_hidden_bar_reads_no_loss(monkeypatch):
    import policy_split.training.warm_start as module
    from policy_split.countdown.model import countdown_model, countdown_tokenizer
    from policy_split.countdown.problems import Countdown, warm_start_examples

    tokenizer = countdown_tokenizer()
    examples = warm_start_examples(Countdown(2, 6, 12), 4, seed=0)
    entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    monkeypatch.setattr(module.F, "cross_entropy", lambda *args: entropy(*args).as_subclass(Unread))
    options = {"encode": lambda prompt, mode: tokenizer.encode(prompt), "steps": 2, "batch_size": 2}
    model = countdown_model(tokenizer, seed=0, width=16, layers=1)
    assert len(warm_start(model, tokenizer, examples, disable_tqdm=True, **options)) == 2
    with pytest.raises(AssertionError, match="the loss was read"):
        warm_start(model, tokenizer, examples, disable_tqdm=False, **options)
