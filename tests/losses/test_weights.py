"""How much each token counts, by the loss types of TRL."""

import pytest
import torch

from policy_split.losses.weights import token_weights

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("loss_type", "options", "expected"),
    [
        ("grpo", {}, [1 / 12, 1 / 4, 0, 1 / 16]),  # 1 / (4 rows * length)
        ("dapo", {}, [1 / 8] * 4),  # 1 / 8 tokens
        ("dapo", {"tokens": 16.0}, [1 / 16] * 4),  # two processes, 24 and 8 tokens
        ("bnpo", {"tokens": 16.0}, [1 / 8] * 4),  # this process alone
        ("dr_grpo", {}, [1 / 40] * 4),  # 1 / (4 rows * 10)
    ],
)
def test_token_weights(loss_type, options, expected):
    weights = token_weights(MASK, loss_type, max_completion_length=10, **options)
    torch.testing.assert_close(weights, torch.tensor(expected)[:, None] * MASK)


def test_token_weights_of_nothing_and_of_an_unknown_type():
    for loss_type in ("grpo", "dapo", "bnpo", "dr_grpo"):
        assert not token_weights(torch.zeros(2, 3), loss_type, max_completion_length=3).any()
    with pytest.raises(ValueError, match="loss_type='ppo'"):
        token_weights(MASK, "ppo", max_completion_length=3)
