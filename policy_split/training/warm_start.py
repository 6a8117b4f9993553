"""Supervised warm start: teach a model the task under both modes' prompts at once, so that they begin as one policy."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

Example = tuple[str, Sequence[str]]  # a prompt and its right answers
Row = tuple[list[int], list[int]]  # token ids of a prompt and of an answer with its end of sequence
MODES = (0, 1)
BAR_SECONDS = 0.5


def warm_start(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    encode: Callable[[str, int], list[int]],
    steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    warmup_steps: int = 50,
    weight_decay: float = 0.01,
    seed: int = 0,
    paired: bool = True,
    progress: Callable[[int, Tensor], None] | None = None,
    disable_tqdm: bool | None = None,
) -> list[float]:
    """Train the model in place on random answers of random examples; returns each step's loss (nats per token).

    `encode(prompt, mode)` gives the prompt's token ids in mode 0 (normal) or 1 (high-entropy). Each step draws
    `batch_size` examples, one answer each, and trains it under both prompts: `2 * batch_size` rows, loss on the answer
    and its EOS only. paired=False draws other examples for each prompt, which leaves the modes further apart. AdamW,
    linear warm-up and linear decay to zero over a fixed number of steps: the same seed and number of threads give the
    same weights. `progress(step, loss)` is called after each step with the detached loss.
    disable_tqdm: whether to hide the bar; None: hidden where there is no terminal.
    Raises ValueError if there is no example, or one without an answer.
    """
    if not examples or not all(answers for _, answers in examples):
        raise ValueError(f"warm_start needs examples that each have an answer; got {len(examples)} examples")
    prompts = [[encode(prompt, mode) for mode in MODES] for prompt, _ in examples]
    answers = [[encode_answer(tokenizer, answer) for answer in answers] for _, answers in examples]
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup_steps if warmup_steps else 1.0, 1 - step / max(steps, 1))
    )
    generator = random.Random(seed)
    losses = []
    was_training = model.training
    model.train()
    bar = tqdm(range(steps), desc="warm start", mininterval=BAR_SECONDS, miniters=1, disable=disable_tqdm)
    read = time.monotonic()
    for step in bar:
        draws = [[generator.randrange(len(examples)) for _ in range(batch_size)] for _ in MODES[: 1 if paired else 2]]
        pairs = [[(prompts[i], generator.choice(answers[i])) for i in drawn] for drawn in draws]
        rows = [(pair[mode], answer) for mode in MODES for pair, answer in pairs[mode if len(pairs) > 1 else 0]]
        logits, targets = answer_logits(model, rows, tokenizer.pad_token_id, device)
        loss = F.cross_entropy(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if not bar.disable and time.monotonic() - read >= BAR_SECONDS:  # a loss that is read makes a GPU wait
            bar.set_postfix(loss=f"{float(losses[-1]):.3f}", refresh=False)
            read = time.monotonic()
        if progress is not None:
            progress(step, losses[-1])
    model.train(was_training)
    return torch.stack(losses).tolist() if losses else []


def encode_answer(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer and its end of sequence."""
    return [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]


def answer_logits(model: nn.Module, rows: Sequence[Row], pad_id: int, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """Logits (N, V) and targets (N,) of the N answer tokens of all rows, in the rows' order.

    Rows are padded on the right: with causal attention no token that counts sees the padding, and no mask is needed.
    """
    ids = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in rows], True, pad_id)  # (B, T)
    counts = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        counts[row, len(prompt) : len(prompt) + len(answer)] = True
    ids, counts = ids.to(device), counts.to(device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    return logits[counts[:, 1:]], ids[counts]


@torch.no_grad()
def divergence_between_modes(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], *, encode: Callable[[str, int], list[int]]
) -> float:
    """Mean exact KL(high-entropy || normal), in nats, over the answer tokens of the first answer of each example."""
    device = next(model.parameters()).device
    answers = [encode_answer(tokenizer, answers[0]) for _, answers in examples]
    normal, high = (
        answer_logits(
            model,
            [(encode(prompt, mode), answer) for (prompt, _), answer in zip(examples, answers, strict=True)],
            tokenizer.pad_token_id,
            device,
        )[0]
        .float()
        .log_softmax(-1)
        for mode in MODES
    )
    return F.kl_div(normal, high, reduction="none", log_target=True).sum(-1).mean().item()
