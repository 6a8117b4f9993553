"""bfloat16 autocast and threads on this CPU, by size of the model: `python -m benchmarks.trainer.arithmetic`.

Forward and backward of a Llama of two layers over 1,024 tokens, interleaved; prints milliseconds and ratios. What is
faster with a given width and machine is what `--bf16 true` and `--num_threads` should be there.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaModel

from ..interleave import interleaved, machine, ratio
from ..markdown import table

WIDTHS = (64, 128, 256, 576, 1024)
ROWS, TOKENS = 16, 64


def candidates(width: int, every: int) -> dict[str, Callable[[int], object]]:
    torch.manual_seed(0)
    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=32, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads, head_dim=width // heads, max_position_embeddings=TOKENS,
    )  # fmt: skip
    model, ids = LlamaModel(config), torch.zeros(ROWS, TOKENS, dtype=torch.long)

    def step(threads: int, bf16: bool) -> Callable[[int], object]:
        def run(_: int) -> None:
            torch.set_num_threads(threads)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                hidden = model(input_ids=ids, use_cache=False).last_hidden_state
            hidden.float().square().sum().backward()
            model.zero_grad(set_to_none=True)

        return run

    made = {"one": step(1, False), "one, bf16": step(1, True)}
    return made | ({"all": step(every, False), "all, bf16": step(every, True)} if every > 1 else {})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    where, every = machine(), torch.get_num_threads()
    bf16 = (
        "avx512_bf16 or AMX" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "none"
    )
    print(f"{where['cpu']}, {every} threads, bfloat16 products: {bf16}; torch {where['torch']}, {where['date']}\n")
    rows = []
    for width in given.widths:
        seconds = interleaved(candidates(width, every), given.rounds)
        names = list(seconds)
        milliseconds = [f"{1000 * statistics.median(seconds[name]):.1f}" for name in names]
        faster = [f"{ratio(seconds, name, f'{name}, bf16'):.2f}" for name in names if f"{name}, bf16" in seconds]
        threads = [f"{ratio(seconds, 'one', 'all'):.2f}"] if every > 1 else []
        rows.append([str(width), *milliseconds, *faster, *threads])
    head = [f"{name}, ms" for name in names] + [f"bf16 faster, {name}" for name in names if "bf16" not in name]
    print(table(["width", *head, *(["all faster than one, fp32"] if every > 1 else [])], rows))


if __name__ == "__main__":
    main()
