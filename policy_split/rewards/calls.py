"""Calls of reward functions: with what their parameters name, coroutines together, errors with function and sample."""

import asyncio
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from policy_split.isolation.time_limit import add_note

from .awaiting import GRACE, await_together
from .context import NAMES, RewardContext
from .loading import RewardFunction
from .values import checked_rewards


def call_rewards(
    functions: Sequence[RewardFunction],
    given: Mapping[str, Sequence[Any]],
    context: RewardContext,
    texts: Sequence[str],
) -> list[list[float | None]]:
    """What each function says of each sample.

    Functions are called one after the other; coroutines among what they return are then awaited at the same time. They
    get the samples' columns that their parameters name, all of them with **kwargs, and of `context` what they name.
    """
    calls = [_Call(function, given, context, texts) for function in functions]
    results = [call.made() for call in calls]
    later = [number for number, result in enumerate(results) if inspect.isawaitable(result)]
    if later:
        awaited = _awaited([calls[number] for number in later], [results[number] for number in later])
        for number, result in zip(later, awaited, strict=True):
            if isinstance(result, BaseException):
                raise calls[number].explained(_own(result))
            results[number] = result
    return [checked_rewards(result, call.name, texts) for call, result in zip(calls, results, strict=True)]


def reward_name(function: RewardFunction) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def parameters(function: RewardFunction) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # some builtins have no signature
        return [inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)]


class _Call:
    """One function and its arguments."""

    def __init__(
        self,
        function: RewardFunction,
        given: Mapping[str, Sequence[Any]],
        context: RewardContext,
        texts: Sequence[str],
    ):
        self.function, self.name, self.texts = function, reward_name(function), texts
        self.limit: float | None = getattr(function, "limit", None)
        own = parameters(function)
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own)
        names = {parameter.name for parameter in own}
        self.samples = {key: values for key, values in given.items() if takes_all or key in names}
        self.beside = {key: value for key, value in context.arguments().items() if key in names}

    def made(self) -> Any:
        try:
            return self.function(**self.samples, **self.beside)
        except Exception as error:
            self.explained(error)
            raise

    def explained(self, error: BaseException) -> BaseException:
        """The error with a note that names function and sample; what is to end the process stays as it is."""
        if not isinstance(error, Exception):
            return error
        add_note(error, f"reward function {self.name}, {self._failing_sample()}")
        if isinstance(error, KeyError) and error.args and error.args[0] in NAMES:
            add_note(error, f"{', '.join(NAMES)} are given to a function that has them as parameters")
        return error

    def _failing_sample(self) -> str:
        """Which sample makes the function fail, for a message: the first for which it fails alone."""
        for sample, text in enumerate(self.texts):
            if self._fails_alone(sample):
                return f"sample {sample} ({text!r})"
        return f"{len(self.texts)} samples at once; it does not fail for any of them alone"

    def _fails_alone(self, sample: int) -> bool:
        alone = {key: values[sample : sample + 1] for key, values in self.samples.items()}
        beside = self.beside | {name: _nothing for name in ("log_extra", "log_metric") if name in self.beside}
        try:
            result = self.function(**alone, **beside)
            if inspect.isawaitable(result):
                (result,) = await_together([result], self.limit and self.limit + GRACE)
        except Exception:
            return True
        return isinstance(result, BaseException)


def _own(error: BaseException) -> BaseException:
    """A coroutine that was cancelled by what it used has failed; nobody has cancelled the run."""
    if not isinstance(error, asyncio.CancelledError):
        return error
    failed = RuntimeError("the coroutine was cancelled (asyncio.CancelledError)")
    failed.__cause__ = error
    return failed


def _awaited(calls: Sequence[_Call], awaitables: Sequence[Any]) -> list[Any]:
    limits = [call.limit for call in calls]
    longest = None if None in limits else max(limit for limit in limits if limit is not None) + GRACE
    try:
        return await_together(awaitables, longest)
    except TimeoutError as error:  # they block the loop, so that none of them could be told
        names = ", ".join(call.name for call in calls)
        raise TimeoutError(f"{names} gave no answer within {longest:g} seconds, and never awaited anything") from error


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In place of what writes down."""
