"""The rollout engine of verl_cpu, apart from it: Ray loads its class before verl has loaded its modules."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


class Engine:
    """A Ray actor: answers one prompt at a time with the weights that it was last given, and writes down both."""

    def __init__(self, path: str, number: int):
        torch.set_num_threads(1)
        torch.manual_seed(number)
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32).eval()
        self.step, self.log = None, Path(path) / f"engine-{number}.jsonl"

    def write(self, **event: Any) -> None:
        with self.log.open("a") as log:
            log.write(json.dumps({"step": self.step} | event) + "\n")

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict, **ignored: Any) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        if self.step is None:
            raise RuntimeError("asked before it was given any weights")
        self.write(asked=prompt_ids)
        ids = torch.tensor([prompt_ids])
        longest = sampling_params.get("max_tokens", 6)
        greedy = sampling_params.get("temperature", 1.0) == 0
        answer = self.model.generate(ids, max_new_tokens=longest, do_sample=not greedy, top_k=0)[0, len(prompt_ids) :]
        return TokenOutput(token_ids=answer.tolist(), stop_reason="completed", extra_fields={"global_steps": self.step})

    async def load(self, weights: dict[str, torch.Tensor], step: int) -> None:
        self.model.load_state_dict({name: weight.float() for name, weight in weights.items()})
        self.step = step
        self.write(weights=sum(float(weight.double().sum()) for weight in weights.values()))

    async def wake_up(self) -> None:
        """It never sleeps."""

    sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = resume_generation = wake_up
