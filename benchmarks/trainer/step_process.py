"""One trainer of `compare` in a process of its own, which prints JSON: step_process TRAINER SIZE."""

import json
import random
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from policy_split.config import PolicySplitConfig

from ..logits.memory import status
from .compare import OURS, SIZES, TRAINERS, Size

SYSTEM = "explore"


def tokenizer_of(size: Size) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", SYSTEM, *(f"w{i}" for i in range(size.vocabulary - 5))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **names)
    made.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return made


def model_of(size: Size) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=3 * size.width,
        num_hidden_layers=size.layers, num_attention_heads=4, num_key_value_heads=2, head_dim=size.width // 4,
        max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def questions_of(size: Size) -> list[dict[str, Any]]:
    draw = random.Random(0)
    prompts = (" ".join(f"w{draw.randrange(size.vocabulary - 5)}" for _ in range(size.prompt)) for _ in range(256))
    return [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Differs between responses, so that every question trains; nothing can be learnt from it."""
    texts = (text if isinstance(text, str) else text[0]["content"] for text in completions)
    return [float(zlib.crc32(text.encode()) % 2) for text in texts]


class Phases:
    """Seconds of named functions, each with the time of the calls inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, owner: Any, name: str, phase: str) -> None:
        before = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return before(*arguments, **options)
            finally:
                self.seconds[phase] += time.perf_counter() - started

        setattr(owner, name, timed)

    def taken(self) -> dict[str, float]:
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


def ours(size: Size, kind: str, folder: str, phases: Phases) -> tuple[Callable[[], Any], int]:
    from policy_split.rollouts import engine
    from policy_split.training import trainer as trainers

    algorithm, _, twice = kind.partition(", ")
    dual = algorithm == "policy_split"
    # Policy Split's advantages follow from a question's logits: held at once, they need not be made twice
    logits = 4 * 2 * size.responses * size.response * size.vocabulary if dual and not twice else 0
    config = PolicySplitConfig(
        folder, algorithm=algorithm, prompts_per_step=size.questions, num_generations=size.responses // 2,
        per_device_train_batch_size=size.our_rows, max_completion_length=size.response,
        max_prompt_length=None, high_entropy_prompt=SYSTEM, learning_rate=1e-5, sample_steps=0, max_steps=10_000,
        use_cpu=not torch.cuda.is_available(), disable_tqdm=True, lm_head_chunk_bytes=max(64 << 20, logits),
    )  # fmt: skip
    phases.around(engine, "sample", "generation")
    phases.around(trainers, "score_rollout", "scoring")
    run = trainers.PolicySplitTrainer(model_of(size), tokenizer_of(size), reward, questions_of(size), config)
    phases.around(run.update, "step", "update")
    return run.step, size.questions * size.responses * size.response * (2 if dual else 1)


def trls(size: Size, ours: bool, folder: str, phases: Phases) -> tuple[Callable[[], Any], int]:
    """TRL's loop runs in its own way: a step ends where its callback is told so."""
    from trl import GRPOConfig, GRPOTrainer

    batch = size.questions * size.responses
    settings = {
        "output_dir": folder, "num_generations": size.responses, "per_device_train_batch_size": size.rows,
        "gradient_accumulation_steps": max(1, batch // size.rows), "max_completion_length": size.response,
        "learning_rate": 1e-5, "report_to": "none", "save_strategy": "no", "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False, "disable_tqdm": True, "max_steps": 1 + size.steps, "logging_steps": 10_000,
    }  # fmt: skip
    if ours:
        from policy_split.integrations.trl import PolicySplitGRPOConfig, PolicySplitGRPOTrainer

        kind, config = PolicySplitGRPOTrainer, PolicySplitGRPOConfig(**settings, high_entropy_prompt=SYSTEM)
    else:
        kind, config = GRPOTrainer, GRPOConfig(**settings)
    run = kind(
        model_of(size), reward, config, train_dataset=Dataset.from_list(questions_of(size)),
        processing_class=tokenizer_of(size),
    )  # fmt: skip
    phases.around(run, "_generate", "generation")
    phases.around(run, "_generate_and_score_completions", "generation and scoring")
    phases.around(run, "training_step", "all but the optimizer")
    phases.around(run.accelerator, "backward", "backward")
    return run, batch * size.response * (2 if ours else 1)


class Clock(transformers.TrainerCallback):
    """Seconds and phases of each of TRL's steps, and memory from the second on."""

    def __init__(self, phases: Phases):
        self.phases, self.steps = phases, []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.phases.taken()
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds, taken = time.perf_counter() - self.started, self.phases.taken()
        both, step = taken.get("generation and scoring", 0.0), taken.get("all but the optimizer", 0.0)
        generation = taken.get("generation", 0.0)
        phases = {"generation": generation, "scoring": both - generation, "update": step - both, "rest": seconds - step}
        self.steps.append((seconds, phases))
        reset_peak()


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")


def main(trainer: str, name: str) -> None:
    size, phases, steps = SIZES[name], Phases(), []
    with tempfile.TemporaryDirectory() as folder:
        before = status("VmRSS")
        if trainer in OURS:
            step, tokens = ours(size, trainer.partition(", ")[2], folder, phases)
            before = status("VmRSS")
            for number in range(1 + size.steps):
                phases.taken()
                started = time.perf_counter()
                step()
                seconds, taken = time.perf_counter() - started, phases.taken()
                taken["rest"] = seconds - sum(taken.values())
                steps.append((seconds, taken))
                if number == 0:
                    reset_peak()
        else:
            run, tokens = trls(size, trainer == TRAINERS[-1], folder, phases)
            before, clock = status("VmRSS"), Clock(phases)
            run.add_callback(clock)
            run.train()
            steps = clock.steps
        peak = status("VmHWM") - before
    counted = steps[1:]
    mean = {phase: sum(taken.get(phase, 0.0) for _, taken in counted) / len(counted) for phase in counted[0][1]}
    seconds = sum(taken for taken, _ in counted) / len(counted)
    print(json.dumps({"seconds": seconds, "phases": mean, "trained_tokens": tokens, "memory": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
