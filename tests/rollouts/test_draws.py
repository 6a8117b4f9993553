"""Draws by the inverse of the distribution function, against cumulated probabilities in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_split.rollouts.draws import Draw, draw

ALMOST_ONE = 1 - 2**-53


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([1, 2, 255, 256, 257, 700]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    scale=st.sampled_from([0.0, 1.0, 20.0]),
    silent=st.sampled_from([0.0, 0.5, 0.95]),
    seed=st.integers(0, 1000),
)
def test_the_id_is_where_the_distribution_passes(width, temperature, scale, silent, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(8, width, generator=generator)
    scores[torch.rand(8, width, generator=generator) < silent] = -torch.inf
    scores[:, width // 2] = 0.0  # one at least can be drawn
    uniform = torch.rand(8, dtype=torch.float64, generator=generator)
    uniform[0], uniform[1] = 0.0, ALMOST_ONE
    ids, finite = draw(scores, uniform, temperature)
    assert finite
    upper = (scores.double() / temperature).softmax(-1).cumsum(-1)
    at = ids[:, None]
    lower = torch.where(at > 0, upper.gather(1, (at - 1).clamp(min=0)), 0.0)[:, 0]
    assert (lower <= uniform + 1e-6).all()
    assert (uniform <= upper.gather(1, at)[:, 0] + 1e-6).all()
    assert scores.gather(1, at).isfinite().all()


def test_frequencies_are_the_probabilities():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.0, 0.0625, 0.0625])
    scores = torch.full((40_000, 300), -torch.inf)
    scores[:, torch.tensor([3, 50, 120, 200, 255, 299])] = probabilities.log()
    uniform = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    counts = torch.bincount(draw(scores, uniform)[0], minlength=300)[torch.tensor([3, 50, 120, 200, 255, 299])]
    assert counts.tolist() == [20_000, 10_000, 5_000, 0, 2_500, 2_500]


def test_the_rarest_id_keeps_its_place_behind_a_great_vocabulary():
    scores = torch.zeros(3, 151_936)
    scores[:, -1] = -3.0
    share = 0.049787068 / (151_935 + 0.049787068)  # of the last id: 3.3e-7
    ids, _ = draw(scores, torch.tensor([1 - 1.1 * share, 1 - 0.9 * share, 1 - 0.1 * share], dtype=torch.float64))
    assert ids.tolist() == [151_934, 151_935, 151_935]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_distribution_are_an_error(value):
    processor = Draw(1.0)
    processor(None, torch.zeros(2, 5))
    processor.check()
    processor(None, torch.tensor([[0.0, value, 0.0], [0.0, 0.0, 0.0]]))
    processor(None, torch.zeros(2, 5))
    with pytest.raises(FloatingPointError, match="not finite"):
        processor.check()


def test_a_row_without_any_id_is_an_error():
    processor = Draw(1.0)
    processor(None, torch.full((1, 300), -torch.inf))
    with pytest.raises(FloatingPointError):
        processor.check()


def test_the_processor_leaves_the_drawn_id_alone_and_follows_the_seed():
    scores = torch.randn(6, 300)
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(Draw(0.7)(None, scores.clone()))
    assert (answers[0] == 0).sum(-1).tolist() == [1] * 6
    assert (answers[0] == -torch.inf).sum() == 6 * 299
    assert answers[0].equal(answers[1])
    assert not answers[0].equal(answers[2])
