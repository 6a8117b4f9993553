"""Coroutines as reward functions: awaited together, limited in time, and as clear in their errors as others."""

import asyncio
import functools
import multiprocessing
import threading
import time

import pytest

from policy_split.rewards import awaiting
from policy_split.rewards.functions import as_reward_functions, check_columns, compute_rewards, reward_name

TEXTS = ["x", "yy"]


def compute(*functions, weights=None, timeout=None, **columns):
    pairs = as_reward_functions(list(functions), weights, timeout)
    return compute_rewards(pairs, ["p", "q"], TEXTS, [[5], [6, 7]], columns)


async def lengths(completions, **columns):
    await asyncio.sleep(0)
    return [len(text) for text in completions]


async def scaled(scale, completions):
    return [scale * len(text) for text in completions]


class Judge:
    async def __call__(self, completions, answer):
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def wrapped(completions):
    return lengths(completions)


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize(
    ("function", "expected"),
    [(lengths, [1, 2]), (functools.partial(scaled, 3), [3, 6]), (Judge(), [1, 0]), (wrapped, [1, 2])],
    ids=["function", "partial", "object", "wrapped"],
)
def test_every_kind_is_awaited(function, expected, timeout):
    check_columns(as_reward_functions(function, None, timeout), ["prompt", "answer", "scale"])
    assert compute(function, answer=["x", "z"], timeout=timeout) == expected


def test_they_are_mixed_with_others_in_their_order():
    assert compute(lengths, lambda completions: [10, None], Judge(), weights=[1.0, 1.0, 100.0], answer=["x", "z"]) == [
        111.0,
        2.0,
    ]


def test_they_wait_at_the_same_time():
    arrived = []

    def waiting_for(count):
        async def reward(completions):
            arrived.append(count)
            while len(arrived) < 3:
                await asyncio.sleep(0.001)
            return [1.0] * len(completions)

        return reward

    assert compute(*map(waiting_for, range(3)), timeout=60.0) == [3.0, 3.0]


def test_one_loop_serves_every_step():
    loops = []

    async def reward(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    for _ in range(3):
        compute(reward)
    assert loops[0] is loops[1] is loops[2]


def test_where_a_loop_runs_already():
    async def notebook():
        return compute(lengths)

    assert asyncio.run(notebook()) == [1, 2]


def test_in_another_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(compute(lengths)))
    thread.start()
    thread.join(60)
    assert results == [[1, 2]]


def test_in_a_fork_the_loop_is_a_new_one():
    compute(lengths)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(compute, (lengths,)).get(60) == [1, 2]


async def fails_at_yy(completions):
    if "yy" in completions:
        raise ZeroDivisionError("mine")
    return [0.0] * len(completions)


async def fails_at_many(completions):
    if len(completions) > 1:
        raise RuntimeError("too many")
    return [0.0]


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_errors_name_function_and_sample(timeout):
    with pytest.raises(ZeroDivisionError, match=r"mine\nreward function fails_at_yy, sample 1 \('yy'\)$"):
        compute(lengths, fails_at_yy, timeout=timeout)
    with pytest.raises(RuntimeError, match="fails_at_many, 2 samples at once; it does not fail for any of them alone"):
        compute(fails_at_many, timeout=timeout)

    async def wrong(completions):
        return [1.0, "2"]

    with pytest.raises(TypeError, match=r"wrong, sample 1 \('yy'\): returned '2', a str"):
        compute(wrong, timeout=timeout)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
def test_what_ends_the_process_does_not_end_the_loop_alone(error):
    """Raised in the loop's own thread it would leave nobody to answer, and the run would wait for ever."""

    async def leaves(completions):
        raise error

    with pytest.raises(type(error)) as raised:
        compute(lengths, leaves)
    assert raised.value is error
    assert compute(lengths) == [1, 2]  # by the same loop


def test_a_coroutine_that_was_cancelled_has_failed():
    async def cancelled(completions):
        if "yy" in completions:
            raise asyncio.CancelledError
        return [1.0]

    says = r"the coroutine was cancelled \(asyncio.CancelledError\)\nreward function cancelled, sample 1 \('yy'\)"
    with pytest.raises(RuntimeError, match=says):
        compute(cancelled)
    assert compute(lengths) == [1, 2]


async def sleeps(completions):
    await asyncio.sleep(60 if "yy" in completions else 0)
    return [1.0] * len(completions)


def test_one_that_hangs_is_broken_off_and_the_sample_named():
    started = time.monotonic()
    with pytest.raises(
        TimeoutError, match=r"sleeps gave no answer within 0\.2 seconds\nreward function sleeps, sample 1"
    ):
        compute(sleeps, timeout=0.2)
    assert time.monotonic() - started < 20


def test_one_that_blocks_the_loop_is_left_behind(monkeypatch):
    monkeypatch.setattr(awaiting, "GRACE", 0.2)
    monkeypatch.setattr("policy_split.rewards.calls.GRACE", 0.2)
    release = threading.Event()

    async def blocks(completions):
        release.wait(60)
        return [1.0] * len(completions)

    try:
        with pytest.raises(TimeoutError, match=r"blocks gave no answer within .* seconds, and never awaited anything"):
            compute(blocks, timeout=0.2)
        assert compute(lengths, timeout=60.0) == [1, 2]
    finally:
        release.set()


def test_names():
    assert reward_name(functools.partial(scaled, 3)) == "scaled"
    assert reward_name(Judge()) == "Judge"
    assert reward_name(as_reward_functions(Judge(), None, 1.0)[0][0]) == "Judge"
