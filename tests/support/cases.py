"""Random logits as callers have them: any layout, dtype, mask, pattern of -inf and NaN."""

from dataclasses import dataclass

import torch
import truth
from hypothesis import strategies as st

INF = float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {  # leading shapes
    "dense": (2, 3), "sliced": (2, 3), "transposed": (2, 3), "expanded": (2, 3), "strided_vocabulary": (2, 3),
    "four": (2, 1, 3), "flat": (5,), "row": (),
    "few": (1, 2), "few_sliced": (1, 3),
}  # fmt: skip


@dataclass
class Case:
    logits: torch.Tensor  # (..., V)
    targets: torch.Tensor  # (...)
    mask: torch.Tensor | None
    temperature: float | torch.Tensor
    softcap: float | None
    keep_mask: torch.Tensor | None
    target_at_minus_inf: bool
    generator: torch.Generator

    @property
    def rows(self):
        return self.logits.reshape(-1, self.logits.shape[-1])

    @property
    def valid(self):
        counted = self.targets != -100
        return (counted if self.mask is None else counted & (self.mask != 0)).reshape(-1)

    @property
    def statistics_dtype(self):
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32

    @property
    def rounding(self):
        """How far off the logits are that the kernel sees: float32 rounds a capped one in proportion to the cap."""
        return 1 + (self.softcap or 0) / 3

    def options(self):
        return {name: getattr(self, name) for name in ("temperature", "softcap", "keep_mask")}

    def flat_options(self):
        row = self.temperature.reshape(-1) if isinstance(self.temperature, torch.Tensor) else self.temperature
        keep = None if self.keep_mask is None else self.keep_mask.expand(self.logits.shape).reshape(self.rows.shape)
        return {"temperature": row, "softcap": self.softcap, "keep_mask": keep}

    def normal(self):
        """A number for each token, in the statistics dtype."""
        x = torch.randn(self.targets.shape, generator=self.generator, dtype=torch.float64)
        return x.to(self.logits.device, self.statistics_dtype)

    def choice(self, values):
        index = torch.randint(len(values), self.targets.shape, generator=self.generator)
        return torch.tensor(values, dtype=self.statistics_dtype)[index].to(self.logits.device)

    def unmoved(self):
        """(N, V): where a logit moves nothing, because its row does not count or its probability is 0."""
        keep, target = self.flat_options()["keep_mask"], self.targets.reshape(-1, 1)
        dropped = self.rows == -INF if keep is None else (self.rows == -INF) | ~keep
        return dropped.scatter(-1, target.clamp(min=0), False) | ~self.valid[:, None]


@st.composite
def drawn_cases(draw, vocabularies, layouts=tuple(LAYOUTS)[:-2]):
    return {
        "vocabulary": draw(st.sampled_from(vocabularies)),
        "layout": draw(st.sampled_from(layouts)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "mask": draw(st.sampled_from([None, "bool", "int", "expanded", "nothing_counts"])),
        "ignored": draw(st.booleans()),
        "pattern": draw(st.sampled_from(["none", "rising", "single", "leading", "all_but_one", "target"])),
        "nan": draw(st.sampled_from(["none", "masked", "counted"])),
        "offset": draw(st.sampled_from([0.0, 0.0, 1e4, -1e4])),
        "scale": draw(st.sampled_from([0.0, 1.0, 4.0, 60.0])),
        "temperature": draw(st.sampled_from([1.0, 0.7, 2.5, "row"])),
        "softcap": draw(st.sampled_from([None, None, 5.0, 30.0])),
        "keep": draw(st.sampled_from([None, None, "whole", "shared"])),
        "seed": draw(st.integers(0, 2**31)),
    }


def build(drawn, device):
    """The Case of what was drawn."""
    generator = torch.Generator().manual_seed(drawn["seed"])
    vocabulary, layout, leading = drawn["vocabulary"], drawn["layout"], LAYOUTS[drawn["layout"]]
    n = torch.Size(leading).numel()
    m = 1 if layout == "expanded" else n
    offset = 0.0 if truth.offset_slack(drawn["offset"]) else drawn["offset"]
    x = torch.randn(m, vocabulary, generator=generator, dtype=torch.float64) * drawn["scale"] + offset
    x = x.to(drawn["dtype"])
    targets = put_pattern(x, torch.randint(vocabulary, (m,), generator=generator), drawn["pattern"])
    mask, valid = _mask(drawn["mask"], leading, generator), torch.ones(n, dtype=torch.bool)
    if mask is not None:
        valid = mask.reshape(-1) != 0
    if layout != "expanded" and drawn["nan"] != "none":
        x[~valid if drawn["nan"] == "masked" else torch.arange(n) == 1, vocabulary // 2] = torch.nan
    keep = None
    if drawn["keep"] is not None:
        keep = torch.rand(m if drawn["keep"] == "whole" else 1, vocabulary, generator=generator) > 0.3
        keep[torch.arange(m) if keep.shape[0] == m else 0, targets] = True  # a token that was drawn can be drawn
        keep = keep.to(device)
        keep = keep[0] if drawn["keep"] == "shared" else _laid_out(keep, layout, leading)
    temperature = drawn["temperature"]
    if temperature == "row":
        temperature = torch.rand(leading, generator=generator).add(0.5).to(device)
    targets = targets.expand(n).reshape(leading)
    if drawn["ignored"]:
        targets = targets.masked_fill(torch.rand(leading, generator=generator) > 0.7, -100)
    logits, mask = _laid_out(x.to(device), layout, leading), mask if mask is None else mask.to(device)
    target_at_minus_inf = drawn["pattern"] == "target"
    return Case(logits, targets.to(device), mask, temperature, drawn["softcap"], keep, target_at_minus_inf, generator)


def put_pattern(x, targets, pattern):
    """Write the pattern into x (m, V); targets that can be drawn, unless it is the targets that cannot."""
    m, vocabulary = x.shape
    if pattern == "target":
        x[torch.arange(m), targets] = -INF
        return targets
    if pattern == "single":
        x[:, vocabulary // 3] = -INF
    elif pattern == "rising":  # the maximum moves from tile to tile
        x.copy_(x.sort(-1).values)
    elif pattern == "leading":  # whole tiles of every backend where the vocabulary has several
        x[:, : vocabulary - vocabulary // 10 - 1] = -INF
    elif pattern == "all_but_one":
        x[:, torch.arange(vocabulary) != vocabulary * 2 // 3] = -INF
    finite = x > -INF
    return torch.where(finite[torch.arange(m), targets], targets, finite.int().argmax(-1))


def _mask(kind, leading, generator):
    if kind is None:
        return None
    if kind == "expanded":
        return (torch.rand(leading[-1:], generator=generator) > 0.3).expand(leading)
    mask = torch.rand(leading, generator=generator) > (1.0 if kind == "nothing_counts" else 0.3)
    return mask.int() if kind == "int" else mask


def _laid_out(x, layout, leading):
    """(..., V) of the layout with the numbers of x; what lies between its rows is NaN (True in a mask)."""
    vocabulary = x.shape[-1]
    if layout == "expanded":
        return x.view(1, 1, vocabulary).expand(*leading, vocabulary)
    x = x.view(*leading, vocabulary)
    between = True if x.dtype == torch.bool else torch.nan
    if layout.endswith("sliced"):
        batch, length = leading
        whole = x.new_full((batch, length + 2, vocabulary + 5), between)
        view = whole[:, 1 : length + 1, 3 : vocabulary + 3]
    elif layout == "transposed":
        view = torch.empty_like(x.transpose(0, 1).contiguous()).transpose(0, 1)
    elif layout == "strided_vocabulary":
        view = x.new_full((*x.shape, 2), between)[..., 0]
    else:
        return x
    view.copy_(x)
    return view
