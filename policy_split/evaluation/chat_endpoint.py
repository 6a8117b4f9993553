"""An OpenAI-compatible endpoint that is asked for one chat completion at a time, with time limits and retries."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LATER = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses after which the same question may be answered
WAIT_SECONDS, LONGEST_WAIT = 0.5, 30.0
SHOWN = 200  # characters of what a server said


class EndpointError(OSError):
    """In one line: which endpoint, and what it said or did not say."""


@dataclass(frozen=True)
class ChatEndpoint:
    """url: with its version, such as http://localhost:8000/v1. ValueError for another kind of address."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    seconds: float = 60.0  # of one answer
    attempts: int = 4

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"{self.url!r} must be the address of an endpoint, such as http://localhost:8000/v1")
        if not self.model:
            raise ValueError(f"{self.url} needs the name of a model")
        if not self.seconds > 0 or self.attempts < 1:
            raise ValueError(f"seconds={self.seconds} and attempts={self.attempts} must be above 0")

    def ask(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int = 512) -> str:
        """The answer's text, greedy. EndpointError for an address, key or model that is refused, at once; for no
        answer, after `attempts` of them."""
        body = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        where = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(where, json.dumps(body).encode(), headers)
        wait, said = 0.0, ""
        for attempt in range(self.attempts):
            time.sleep(wait)
            wait = min(LONGEST_WAIT, WAIT_SECONDS * 2**attempt)
            try:
                with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                    return self._text(answer.read())
            except urllib.error.HTTPError as error:
                said = f"status {error.code}: {_short(error.read())}"
                if error.code not in LATER:
                    raise EndpointError(f"{where} refuses model {self.model!r}, {said}") from None
                wait = max(wait, _retry_after(error))
            except (OSError, urllib.error.URLError) as error:
                reason = getattr(error, "reason", error)
                said = f"no answer within {self.seconds:g} s" if isinstance(reason, TimeoutError) else str(reason)
        raise EndpointError(f"{where} has not answered in {self.attempts} attempts; the last: {said}")

    def _text(self, answer: bytes) -> str:
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise EndpointError(f"{self.url} has answered something that is no chat completion: {_short(answer)}")
        return text


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait, 0 if it does not say."""
    asked: Any = error.headers.get("Retry-After", "")
    return min(LONGEST_WAIT, float(asked)) if asked.isascii() and asked.isdigit() else 0.0


def _short(said: bytes) -> str:
    text = " ".join(said.decode(errors="replace").split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
