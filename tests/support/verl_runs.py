"""verl's configuration with ours, and its worker of agent loops around an engine and a grader that are stand-ins."""

import asyncio
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

CONFIG = Path(__file__).parents[2] / "examples" / "verl"


def composed(*overrides):
    hydra = pytest.importorskip("hydra")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hydra calls what omegaconf 2.4 has deprecated
        with hydra.initialize_config_dir(str(CONFIG), version_base=None):
            return hydra.compose("policy_split", list(overrides))


def configuration(**settings):
    """Four responses to a question."""
    settings = [f"algorithm.policy_split.{name}={value}" for name, value in settings.items()]
    return composed("data.train_files=x", "actor_rollout_ref.rollout.n=4", *settings)


class Engine:
    """Answers with an end of sequence that decoding would lose."""

    def __init__(self, **fields):
        self.asked, self.fields = [], fields

    async def generate(self, prompt_ids, **kwargs):
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append(list(prompt_ids))
        answer = [10 + len(self.asked) % 4, 11, 2]
        return TokenOutput(token_ids=answer, log_probs=[-0.5] * 3, **self.fields)


class Grader:
    def __init__(self):
        self.compute_score, self.calls = SimpleNamespace(remote=self.score), 0

    async def score(self, data):
        self.calls += 1
        return {"reward_score": float(self.calls), "reward_extra_info": {"acc": 1}}


def answers(worker, **prompt):
    """The queue after a question."""
    question = {"uid": "q", "raw_prompt": [{"role": "user", "content": "1 2 3"}], "agent_name": "policy_split"}
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}
    asyncio.run(worker._run_prompt(question | {"global_steps": 1} | prompt, {}, trajectory=trajectory))
    return worker.queue
