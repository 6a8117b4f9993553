"""An engine that is a model of its own, and draws token by token: what stands behind the interface is seen."""

from typing import ClassVar

import torch
import transformers

from policy_split.rollouts.engine import Drawn, EngineError


class FakeEngine:
    """Made like `VllmEngine`; what it was asked and given is kept. shift: added to the log-probs that it tells."""

    name = "the fake engine"
    shift = 0.0
    made: ClassVar[list] = []

    def __init__(self, described, architecture, dtype, end_ids, absent_ids, max_model_length, config):
        self.absent_ids = absent_ids
        self.end_ids, self.dtype, self.max_model_length = set(end_ids), dtype, max_model_length
        self.model = getattr(transformers, architecture)(described).eval()
        self.asked, self.seeds, self.given, self.rested, self.closed = [], [], [], 0, False
        type(self).made.append(self)

    @torch.no_grad()
    def update(self, weights):
        weights = {name: value.float().clone() for name, value in weights}
        self.given.append(weights)
        state = self.model.state_dict(keep_vars=True)
        left_out = {id(value) for name, value in state.items() if name not in weights}
        assert not left_out - {id(value) for name, value in state.items() if name in weights}  # tied ones come once
        for name, value in weights.items():
            state[name].copy_(value)

    @torch.no_grad()
    def generate(self, prompts, seeds, *, temperature, max_tokens):
        self.asked.append([list(ids) for ids in prompts])
        self.seeds.append(list(seeds))
        return [self._drawn(*asked, temperature, max_tokens) for asked in zip(prompts, seeds, strict=True)]

    def _drawn(self, prompt, seed, temperature, max_tokens):
        assert len(prompt) + max_tokens <= self.max_model_length
        generator, ids, logprobs = torch.Generator().manual_seed(seed), [], []
        while len(ids) < max_tokens and not (ids and ids[-1] in self.end_ids):
            logits = self.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1] / temperature
            logits[self.absent_ids] = -torch.inf
            distribution = logits.log_softmax(-1)
            ids.append(int(torch.multinomial(distribution.exp(), 1, generator=generator)))
            logprobs.append(float(distribution[ids[-1]]) + self.shift * (max_tokens > 1))  # probes ask for one token
        return Drawn(ids, logprobs)

    def rest(self):
        self.rested += 1

    def close(self):
        self.closed = True


class Dying(FakeEngine):
    """Answers probes, and `lives` rollouts."""

    lives = 2

    def generate(self, prompts, seeds, *, temperature, max_tokens):
        if max_tokens > 1 and len(self.rollouts()) == self.lives:
            raise EngineError(f"{self.name} failed while it generated: RuntimeError: gone")
        return super().generate(prompts, seeds, temperature=temperature, max_tokens=max_tokens)

    def rollouts(self):
        return [asked for asked in self.asked if len(asked) > 4]


class Stale(FakeEngine):
    """Takes no LM head after the first."""

    def update(self, weights):
        held = {name: value for name, value in weights if "lm_head" not in name or not self.given}
        if self.given:
            held |= {"lm_head.weight": self.given[0]["lm_head.weight"].clone()}
        super().update(held.items())
