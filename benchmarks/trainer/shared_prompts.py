"""What one copy of a prompt saves in an update: `python -m benchmarks.trainer.shared_prompts`.

Forward and backward of a Llama without its head over the rows of one question and mode, each behind its own prompt and
all behind one; interleaved, by tokens of prompt and response. Prints seconds, tokens computed and the ratio.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from policy_split.models.batches import PaddedBatch
from policy_split.models.prompt_attention import use_former_attention, use_prompt_attention
from policy_split.models.shared_prompts import SharedPromptBatch

from ..interleave import interleaved, machine, ratio
from ..markdown import table

SIZES = ("42:64", "500:500", "200:2000")


def candidates(prompt: int, response: int, rows: int, model: LlamaModel) -> dict[str, Callable[[int], object]]:
    ids: tuple[Tensor, Tensor] = (torch.zeros(rows, prompt).long(), torch.zeros(rows, response).long())
    arguments = (list(range(rows)), *ids, [prompt] * rows, [response] * rows)
    padded, shared = PaddedBatch(*arguments), SharedPromptBatch(*arguments, [0] * rows)

    def alone(_: int) -> int:
        use_former_attention(model)
        return _trained(model, padded)

    def together(_: int) -> int:
        use_prompt_attention(model)
        return _trained(model, shared)

    return {"a prompt each": alone, "one prompt": together}


def _trained(model: LlamaModel, batch: PaddedBatch | SharedPromptBatch) -> int:
    states = batch.predictions(model(use_cache=False, **batch.inputs).last_hidden_state)
    states.square().sum().backward()
    model.zero_grad(set_to_none=True)
    return int(batch.inputs["input_ids"].numel())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="Tokens of the prompt, a colon, of the response.")
    parser.add_argument("--rows", type=int, default=16, help="Responses of the question that are trained in one mode.")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=4096,
    )  # fmt: skip
    model, where, rows = LlamaModel(config), machine(), []
    print(f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date']}; {given.rows} rows\n")
    for size in given.sizes:
        prompt, response = map(int, size.split(":"))
        both = candidates(prompt, response, given.rows, model)
        tokens = [f"{run(0):,}" for run in both.values()]
        seconds = interleaved(both, given.rounds, warmup=0)
        medians = [f"{statistics.median(taken):.2f}" for taken in seconds.values()]
        rows.append([size, *tokens, *medians, f"{ratio(seconds, 'a prompt each', 'one prompt'):.2f}"])
    head = ["prompt:response", *(f"tokens, {name}" for name in both), *(f"{name}, s" for name in both)]
    print(table([*head, "times as fast"], rows))


if __name__ == "__main__":
    main()
