"""Rollouts: sharing by token ids, masks, log-probs against a plain forward, sampling that nothing else disturbs."""

import pytest
import tiny
import torch

from policy_split.models.policy import Policy
from policy_split.rewards.functions import as_reward_functions
from policy_split.rollouts.micro_batches import cut, optimizer_batches
from policy_split.rollouts.rollout import BLOCKS, make_rollout, score

EOS = 2
P, N = len(tiny.QUESTIONS), 4


def rolled(tmp_path, kind="qwen3", *, chat=False, questions=tiny.QUESTIONS, seed=3, dtype=torch.float32, **options):
    tokenizer, config = tiny.tokenizer(chat=chat), tiny.config(tmp_path, **options)
    policy = Policy(tiny.model(kind).to(dtype).eval(), tokenizer)
    functions = as_reward_functions(tiny.reward, None)
    rollout = make_rollout(policy, questions, functions, config, num_generations=N, seed=seed)
    return policy, rollout


def expected_prompt(block, question, chat):
    words = question["prompt"].split()
    if chat:
        words = ["user", *words, "assistant"]
        return (["system", "explore"] if BLOCKS[block][0] else []) + words
    return (["explore"] if BLOCKS[block][0] else []) + words


@pytest.mark.parametrize("chat", [False, True])
def test_blocks_hold_the_same_ids_under_both_prompts(tmp_path, chat):
    questions = tiny.QUESTIONS
    if chat:
        questions = [q | {"prompt": [{"role": "user", "content": q["prompt"]}]} for q in questions]
    _, rollout = rolled(tmp_path, chat=chat, questions=questions)
    block = torch.arange(4 * P * N).view(4, P * N)
    for own, borrowed in ((0, 3), (1, 2)):  # the same responses
        for name in ("completion_ids", "mask", "rewards"):
            values = getattr(rollout, name)
            assert torch.equal(values[block[own]], values[block[borrowed]])
    assert rollout.mode.view(4, -1)[:, 0].tolist() == [0, 1, 0, 1]
    for row in range(4 * P * N):
        index, question = row // (P * N), tiny.QUESTIONS[row % (P * N) // N]
        ids = rollout.prompt_ids[row, rollout.prompt_ids.shape[1] - rollout.prompt_lengths[row] :]
        assert [tiny.WORDS[i] for i in ids] == expected_prompt(index, question, chat)


def test_end_of_sequence_stays_and_counts(tmp_path):
    _, rollout = rolled(tmp_path)
    lengths = rollout.mask.sum(1)
    assert lengths.tolist() == rollout.completion_lengths
    assert rollout.mask.shape[1] == max(rollout.completion_lengths)
    ended = 0
    for row in range(2 * P * N):
        ids = rollout.completion_ids[row, : lengths[row]].tolist()
        assert EOS not in ids[:-1]
        assert rollout.truncated[row] == (ids[-1] != EOS)
        ended += ids[-1] == EOS
    assert 0 < ended < 2 * P * N  # both cases were there


def test_pad_token_may_be_the_end_token(tmp_path):
    policy = Policy(tiny.model().eval(), tiny.tokenizer())
    policy.tokenizer.pad_token = "<eos>"
    policy = Policy(policy.model, policy.tokenizer)
    functions = as_reward_functions(tiny.reward, None)
    rollout = make_rollout(policy, tiny.QUESTIONS, functions, tiny.config(tmp_path), num_generations=N, seed=3)
    assert rollout.completion_lengths == rolled(tmp_path)[1].completion_lengths


def test_truncated_responses_can_be_left_out_of_training(tmp_path):
    _, rollout = rolled(tmp_path, mask_truncated_completions=True)
    truncated = torch.cat((rollout.truncated, *rollout.truncated.chunk(2)[::-1]))
    assert truncated.any()
    assert not truncated.all()
    assert not rollout.train_mask[truncated].any()
    assert torch.equal(rollout.train_mask[~truncated], rollout.mask[~truncated])


def test_rewards_are_computed_once_per_response(tmp_path):
    seen = []

    def reward(prompts, completions, completion_ids, wanted):
        seen.append((prompts, completions, completion_ids, wanted))
        return range(len(prompts))

    policy = Policy(tiny.model().eval(), tiny.tokenizer())
    functions = as_reward_functions(reward, None)
    rollout = make_rollout(policy, tiny.QUESTIONS, functions, tiny.config(tmp_path), num_generations=N, seed=3)
    ((prompts, completions, ids, wanted),) = seen
    own, half = list(range(2 * P * N)), P * N
    assert rollout.rewards.tolist() == [*own, *own[half:], *own[:half]]
    assert prompts == [q["prompt"] for q in tiny.QUESTIONS for _ in range(N)] * 2
    assert wanted == ["a"] * (2 * P * N)
    for row in own:
        assert ids[row] == rollout.completion_ids[row, : rollout.completion_lengths[row]].tolist()
        assert completions[row].split() == [tiny.WORDS[i] for i in ids[row] if i > 3]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize(
    ("temperature", "dtype", "tolerance"), [(1.0, torch.float32, 1e-5), (0.7, torch.float64, 1e-12)]
)
def test_scores_equal_a_plain_forward_without_padding(tmp_path, kind, temperature, dtype, tolerance):
    policy, rollout = rolled(tmp_path, kind, temperature=temperature, dtype=dtype)
    logprobs, entropy, _ = score(policy, rollout, cut(rollout, range(len(rollout.mode)), 7), temperature)
    for row in range(len(rollout.mode)):
        prompt = rollout.prompt_ids[row, rollout.prompt_ids.shape[1] - rollout.prompt_lengths[row] :]
        response = rollout.completion_ids[row, : rollout.completion_lengths[row]]
        with torch.no_grad():
            logits = policy.model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
        log_p = torch.log_softmax(logits.double() / temperature, -1)
        expected = log_p.gather(-1, response[:, None])[:, 0]
        length = len(response)
        torch.testing.assert_close(logprobs[row, :length].double(), expected, rtol=0, atol=tolerance)
        exact = -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(entropy[row, :length].double(), exact, rtol=0, atol=tolerance)
        assert not logprobs[row, length:].any()
        assert not entropy[row, length:].any()


def test_no_logits_of_the_prompt_are_computed(tmp_path):
    policy, rollout = rolled(tmp_path)
    shapes = []
    policy.bare.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    score(policy, rollout, [[0, 1, 2]], 1.0)
    assert shapes == [(3, max(rollout.completion_lengths[:3]), len(tiny.WORDS))]


def test_seed_decides_and_the_global_random_state_is_kept(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = (rolled(tmp_path, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert first.texts != other.texts


def test_models_own_sampling_defaults_do_not_come_in(tmp_path):
    _, expected = rolled(tmp_path)
    policy = Policy(tiny.model().eval(), tiny.tokenizer())
    defaults = policy.bare.generation_config
    defaults.top_k, defaults.top_p, defaults.min_p, defaults.repetition_penalty, defaults.temperature = (
        1,
        0.1,
        0.5,
        9.0,
        0.1,
    )
    functions = as_reward_functions(tiny.reward, None)
    rollout = make_rollout(policy, tiny.QUESTIONS, functions, tiny.config(tmp_path), num_generations=N, seed=3)
    assert rollout.texts == expected.texts
    assert policy.bare.generation_config is defaults


def test_samples_follow_the_scored_distribution(tmp_path):
    """2,000 first tokens at temperature 1.5 against the probabilities that score gives them."""
    policy = Policy(tiny.model().eval(), tiny.tokenizer())
    config, functions = (
        tiny.config(tmp_path, temperature=1.5, max_completion_length=1),
        as_reward_functions(tiny.reward, None),
    )
    rollout = make_rollout(policy, tiny.QUESTIONS[:1], functions, config, num_generations=2000, seed=0)
    logprobs, _, _ = score(policy, rollout, [range(2000)], 1.5)
    tokens = rollout.completion_ids[:2000, 0]
    for token in tokens.unique():
        drawn, probability = (tokens == token).float().mean(), logprobs[:2000, 0][tokens == token][0].exp()
        assert abs(drawn - probability) < 4 * (probability * (1 - probability) / 2000) ** 0.5 + 1e-3


def test_generation_in_parts(tmp_path):
    _, rollout = rolled(tmp_path, per_device_generation_batch_size=5)
    assert len(rollout.texts) == 2 * P * N
    assert rollout.mask.sum(1).tolist() == rollout.completion_lengths


def test_optimizer_batches_hold_every_row_once(tmp_path):
    _, rollout = rolled(tmp_path)
    rows = list(range(4 * P * N))
    assert optimizer_batches(rollout, tiny.config(tmp_path), 0) == [rows]
    config = tiny.config(tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=7)
    batches = optimizer_batches(rollout, config, 0)
    assert [len(batch) for batch in batches] == [21, 21, 21, 21, 12]
    assert sorted(row for batch in batches for row in batch) == rows
    assert max(map(len, cut(rollout, rows, 7))) == 7
    assert sorted(row for batch in cut(rollout, rows, 7) for row in batch) == rows
