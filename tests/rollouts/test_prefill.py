"""A prompt's cache is computed once for all of its responses, and changes nothing that is drawn."""

import pytest
import tiny
import torch

from policy_split.models.policy import Policy
from policy_split.rollouts.prefill import repeats_of
from policy_split.rollouts.sampling import sample, seeded

PROMPTS = [[4, 8, 9], [10], [11, 12, 13, 14, 9]]


def drawn(policy, prompts, **options):
    tokens = []
    hook = policy.bare.get_input_embeddings().register_forward_hook(lambda m, i, out: tokens.append(i[0].numel()))
    with seeded(3, policy.device):
        completions = sample(policy, prompts, tiny.config("unused", **options))
    hook.remove()
    return completions, tokens


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("size", [None, 8, 6])
def test_the_same_responses(kind, size):
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    (ours, tokens), (plain, all_tokens) = (
        drawn(Policy(tiny.model(kind), tiny.tokenizer(), share=share), prompts, per_device_generation_batch_size=size)
        for share in (True, False)
    )
    assert torch.equal(ours, plain)
    if size is None:  # two rows of four tokens, then twelve rows of the last token each
        assert tokens[:2] == [3 * 4, 12]
        assert all_tokens[0] == 12 * 5
    assert (sum(tokens) < sum(all_tokens)) == (size != 6)  # 6 rows: four of one prompt, two of the next


def test_repeats():
    assert repeats_of([[1], [1], [2], [2]]) == 2
    assert repeats_of([[1], [1], [2]]) == 1
    assert repeats_of([[1], [2]]) == 1


def test_prompts_of_one_token():
    policy = Policy(tiny.model(), tiny.tokenizer(), share=True)
    completions, tokens = drawn(policy, [[4]] * 4)
    assert completions.shape[0] == tokens[0] == 4
