"""What the document of a study tells of a task: its measures, and the paper's findings as comparisons of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from policy_split.modes import HIGH_ENTROPY, MODE_NAMES, NORMAL

N, H = MODE_NAMES[NORMAL], MODE_NAMES[HIGH_ENTROPY]
GRPO, BEST, OWN_NORMAL = "grpo", "best", "own normal mode"  # what a claim is made against; BEST: of the baselines


class Claim(NamedTuple):
    """That a mode of Policy Split has more of a measure than something else."""

    text: str
    measure: str
    mode: str
    against: str


@dataclass(frozen=True)
class Story:
    title: str
    start: str  # what every run begins with
    measures: Mapping[str, tuple[str, int]]  # measure -> (title, decimal places)
    claims: tuple[Claim, ...]
    compared: tuple[str, ...]  # measures of the table of differences to GRPO
    window: int  # steps of the curves' running means


COUNTDOWN = Story(
    title="The comparison at our scale",
    start="warm start",
    measures={
        "accuracy": ("accuracy", 3),
        "pass@8": ("best of 8", 3),
        "pass@64": ("best of 64", 3),
        "distinct_correct_8": ("different correct of 8", 2),
        "distinct_correct": ("different correct of {samples}", 2),
        "entropy": ("entropy (nats/token)", 3),
        "kl": ("KL to the other prompt (nats/token)", 3),
    },
    claims=(
        Claim("the normal mode is more accurate than GRPO", "accuracy", N, GRPO),
        Claim("... than the most accurate baseline", "accuracy", N, BEST),
        Claim("the normal mode keeps more entropy than GRPO", "entropy", N, GRPO),
        Claim(
            "the high-entropy mode is ahead of every baseline in different correct of 8", "distinct_correct_8", H, BEST
        ),
        Claim("... and of its own normal mode in different correct of 8", "distinct_correct_8", H, OWN_NORMAL),
        Claim("the high-entropy mode is ahead of every baseline in best of 8", "pass@8", H, BEST),
        Claim("... and of its own normal mode in best of 8", "pass@8", H, OWN_NORMAL),
        Claim("the high-entropy mode has more entropy than the normal one", "entropy", H, OWN_NORMAL),
    ),
    compared=("accuracy", "pass@8", "distinct_correct_8"),
    window=20,
)
WORDS = Story(
    title="The comparison on sentences",
    start="before training",
    measures={
        "accuracy": ("reward", 3),
        "pass@8": ("full reward, best of 8", 3),
        "distinct_correct_8": ("different of full reward of 8", 2),
        "div_ngram_8": ("Div-n-gram of 8", 3),
        "div_bleu_8": ("Div-BLEU of 8", 3),
        "mean_length": ("tokens", 1),
        "entropy": ("entropy (nats/token)", 3),
        "kl": ("KL to the other prompt (nats/token)", 3),
    },
    claims=(
        Claim("the normal mode has a higher reward than GRPO", "accuracy", N, GRPO),
        Claim("... than the baseline of the highest reward", "accuracy", N, BEST),
        Claim("the normal mode keeps more entropy than GRPO", "entropy", N, GRPO),
        Claim("the normal mode is more diverse than GRPO in Div-BLEU", "div_bleu_8", N, GRPO),
        Claim("the high-entropy mode is ahead of every baseline in Div-n-gram", "div_ngram_8", H, BEST),
        Claim("... and of its own normal mode in Div-n-gram", "div_ngram_8", H, OWN_NORMAL),
        Claim("the high-entropy mode is ahead of every baseline in Div-BLEU", "div_bleu_8", H, BEST),
        Claim("... and of its own normal mode in Div-BLEU", "div_bleu_8", H, OWN_NORMAL),
        Claim("the high-entropy mode has more different sentences of full reward", "distinct_correct_8", H, BEST),
        Claim("the high-entropy mode has more entropy than the normal one", "entropy", H, OWN_NORMAL),
    ),
    compared=("accuracy", "div_ngram_8", "div_bleu_8"),
    window=3,
)
