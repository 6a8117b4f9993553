"""Drawing tokens by inverting the distribution function: one random number a row, where multinomial takes one an id."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

BLOCK = 256  # ids whose probabilities are summed before any single one is looked at


class Draw(LogitsProcessor):
    """Draws at a temperature inside of transformers' greedy generation: only the drawn id keeps a score."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.finite: Tensor | bool = True  # whether all scores have been, known to the device

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(len(scores), dtype=torch.float64, device=scores.device)
        ids, finite = draw(scores, uniform, self.temperature)
        self.finite = finite & self.finite
        return scores.fill_(-torch.inf).scatter_(1, ids[:, None], 0.0)  # generate has made them for its processors

    def check(self) -> None:
        """FloatingPointError if there was a row without a distribution; asks the device, so once, at the end."""
        if not bool(self.finite):
            raise FloatingPointError("the model's logits are not finite (nan or inf): nothing can be sampled from them")


def draw(scores: Tensor, uniform: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The ids at which softmax(scores / temperature)'s distribution function passes uniform, and whether there is one.

    torch.searchsorted(softmax(scores / temperature, -1).cumsum(-1), uniform[:, None], right=True)

    scores: (R, V), float32. uniform: (R,), float64, in [0, 1). Returns ids (R,) and one boolean: every row has a finite
    score and neither nan nor +inf. An id without probability is never returned. Sums of blocks are made first and added
    in float64, so that the smallest probability keeps its place at any V.
    """
    rows, width = scores.shape
    weights = scores.new_zeros(rows, -(-width // BLOCK) * BLOCK)
    own = weights[:, :width]
    torch.sub(scores, scores.amax(-1, keepdim=True), out=own)
    if temperature != 1:
        own /= temperature
    own.exp_()
    blocks = weights.view(rows, -1, BLOCK)
    sums = blocks.sum(-1).double()
    block, left = _passed(sums, uniform)
    index, _ = _passed(blocks[torch.arange(rows, device=scores.device), block].double(), left)
    return (block * BLOCK + index).clamp(max=width - 1), sums.sum(-1).isfinite().all()


def _passed(weights: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulated weights (R, n) pass a share of their sum, and which share of that weight is left below it."""
    cumulated = weights.cumsum(-1)
    below = share * cumulated[:, -1]
    last = weights.shape[-1] - 1 - (weights > 0).int().flip(-1).argmax(-1)
    place = torch.minimum(torch.searchsorted(cumulated, below[:, None], right=True)[:, 0], last)
    of_place = place[:, None]
    before = cumulated.gather(1, of_place) - weights.gather(1, of_place)
    left = (below[:, None] - before) / weights.gather(1, of_place)
    return place, left[:, 0].clamp(0, 1)
