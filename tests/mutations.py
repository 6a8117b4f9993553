"""One wrong formula each: where, the right text, the wrong one, and the tests that have to notice.

The text must stand in its file exactly once, so that a change there is noticed here. The backend is that of the file.
A test is a file of this folder and an expression of pytest's -k.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # of kernels/
    text: str
    broken: str
    tests: tuple[str, ...]

    @property
    def backend(self):
        return "native" if self.file.startswith("cpu/") else "triton" if self.file.startswith("triton") else "torch"


LITERAL = ("test_loss.py test_literal",)
STATISTICS = ("test_properties.py test_statistics",)
LOSS = ("test_properties.py test_loss",)
DIVERGENCE = ("test_properties.py test_divergence",)
RULES = ("test_peer_mistakes.py test_zero_times or test_very_negative or test_ignored",)

MUTANTS = [
    # reference_loss.py
    Mutant(
        "clip_bounds_swapped", "reference_loss.py",
        "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(1 - clip_high, 1 + clip_low)", LOSS,
    ),
    Mutant(
        "clip_keeps_its_gradient", "reference_loss.py",
        "torch.where(clipped, 0.0, ratio * advantages)", "ratio * advantages", LITERAL,
    ),
    Mutant(
        "clip_delta_ignored", "reference_loss.py",
        "bounded = ratio if clip_delta is None else", "bounded = ratio if True else", LITERAL,
    ),
    Mutant("k3_sign", "reference_loss.py", "-grad_kl - (ref_logprobs", "-grad_kl + (ref_logprobs", LITERAL),
    Mutant("k3_gradient_sign", "reference_loss.py", "+ scaled(kl_coef, grad_kl))", "- scaled(kl_coef, grad_kl))", LITERAL),
    Mutant("entropy_bonus_sign", "reference_loss.py", "grad_entropy = -weights", "grad_entropy = weights", LITERAL),
    Mutant("weight_missing", "reference_loss.py", "grad_logprobs = weights * (", "grad_logprobs = (", LITERAL),
    Mutant(
        "cispo_not_detached", "reference_loss.py",
        "logprobs), clip_objective, (", "logprobs), clip_objective * (1 + logprobs), (", LOSS,
    ),
    Mutant("sampler_weight_not_capped", "reference_loss.py", ".exp().clamp(max=sampler_cap)", ".exp()", LOSS),
    Mutant(
        "sampler_weight_inverted", "reference_loss.py",
        "(old_logprobs - sampler_logprobs)", "(sampler_logprobs - old_logprobs)", LOSS,
    ),
]  # fmt: skip
