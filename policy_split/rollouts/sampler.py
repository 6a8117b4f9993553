"""Who draws the responses of a trainer: its model, or an engine that is given the model's weights first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

from policy_split.config import PolicySplitConfig
from policy_split.messages import Prompt
from policy_split.models.batches import PaddedBatch
from policy_split.models.policy import Policy, input_embeddings
from policy_split.models.sharding import gathered
from policy_split.modes import encode_modes

from .engine import EngineError, RolloutEngine
from .engine_weights import named_weights
from .vllm_engine import VllmEngine, check_vllm

PROBES = 4  # tokens whose log-probs are compared after an update
TOLERANCES = {torch.float64: 0.01, torch.float32: 0.01}  # nats
COARSE = 0.5  # of other dtypes, whose log-probs of rare tokens are rough


class Sampler:
    """`with sampler.ready() as engine` draws with the weights of the moment; engine None: the model itself does.

    ImportError: rollout_engine="vllm" without vLLM. ValueError: what it cannot do. EngineError: an engine that does not
    start, fails, or has other log-probs than the model after an update.
    """

    def __init__(
        self,
        policy: Policy,
        config: PolicySplitConfig,
        accelerator: Accelerator,
        longest_prompt: int,  # in tokens
        prompt: Prompt,  # some prompt, whose next token's log-probs are compared
    ):
        self.policy, self.config = policy, config
        self.probe = encode_modes(policy.tokenizer, prompt, config, f"prompt {prompt!r}")[0]
        self.engine: RolloutEngine | None = None
        self.length = config.vllm_max_model_length or longest_prompt + config.max_completion_length
        if config.rollout_engine == "vllm":
            check_vllm()
            _check_runs(config, accelerator, self.length, longest_prompt)

    @contextmanager
    def ready(self) -> Iterator[RolloutEngine | None]:
        if self.config.rollout_engine == "transformers":
            with gathered(self.policy.bare):
                yield None
            return
        engine = self.engine = self.engine or self._started()
        engine.update(named_weights(self.policy.bare))
        self._compare(engine)
        yield engine
        engine.rest()

    def close(self) -> None:
        """Ends the engine; the next `ready` starts another."""
        if self.engine is not None:
            self.engine.close()
        self.engine = None

    def _started(self) -> RolloutEngine:
        bare: Any = self.policy.bare
        model = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
        absent = self.policy.vocabulary.absent(input_embeddings(bare).num_embeddings, torch.device("cpu")).tolist()
        arguments = (self._dtype(), self.policy.end_ids, absent, self.length, self.config)
        return VllmEngine(model.config, type(model).__name__, *arguments)

    def _dtype(self) -> torch.dtype:
        """What the model computes in."""
        if self.config.bf16 or self.config.fp16:
            return torch.bfloat16 if self.config.bf16 else torch.float16
        dtype: torch.dtype = self.policy.bare.dtype
        return torch.float32 if dtype == torch.float64 else dtype  # which no engine has

    @torch.no_grad()
    def _compare(self, engine: RolloutEngine) -> None:
        """EngineError unless the engine's log-probs of a few first tokens are the model's."""
        temperature = self.config.temperature
        drawn = engine.generate([self.probe] * PROBES, range(PROBES), temperature=temperature, max_tokens=1)
        tokens, theirs = ([part[0] for part in parts] for parts in zip(*drawn, strict=True))
        ours = self._first_logprobs(temperature)[tokens]
        difference = float((ours - torch.tensor(theirs, device=ours.device)).abs().max())
        tolerance = TOLERANCES.get(self._dtype(), COARSE)
        if not difference <= tolerance:  # NaN, too
            raise EngineError(
                f"{engine.name} does not have the model's weights: after an update the log-probs of {PROBES} tokens "
                f"differ by up to {difference:.3g} nats, more than {tolerance}; choose rollout_engine='transformers'"
            )

    def _first_logprobs(self, temperature: float) -> torch.Tensor:
        """(V,) of the token behind the probe."""
        policy = self.policy
        training = policy.bare.training
        policy.bare.eval()
        prompt = torch.tensor([self.probe], device=policy.device)
        batch = PaddedBatch([0], prompt, prompt[:, :1], [len(self.probe)], [1])
        logits = policy.completion_logits(batch)
        policy.bare.train(training)
        return (logits.float() / temperature).log_softmax(-1).flatten()


def _check_runs(config: PolicySplitConfig, accelerator: Accelerator, length: int, longest_prompt: int) -> None:
    kind = accelerator.distributed_type
    if accelerator.num_processes > 1 or kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"rollout_engine='vllm' has been made for one process with the whole model, not for "
            f"{accelerator.num_processes} with {kind.value}; choose rollout_engine='transformers'"
        )
    needed = longest_prompt + config.max_completion_length
    if length < needed:
        raise ValueError(
            f"vllm_max_model_length={length} is shorter than the longest prompt ({longest_prompt} tokens) and "
            f"max_completion_length={config.max_completion_length}: at least {needed}, or leave it away"
        )
