"""The warm start: what it trains on, that it is deterministic, and that it leaves the two modes close together."""

import pytest
import torch

from policy_split.countdown.model import HIGH_ENTROPY_PROMPT, countdown_model, countdown_tokenizer
from policy_split.countdown.problems import Countdown, warm_start_examples
from policy_split.training.warm_start import answer_logits, divergence_between_modes, encode_answer, warm_start

TOKENIZER = countdown_tokenizer()
EXAMPLES = warm_start_examples(Countdown(2, 6, 12), 24, seed=0)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def encode(prompt, mode):
    return TOKENIZER.encode(f"{HIGH_ENTROPY_PROMPT} {prompt}" if mode else prompt)


def small_model(seed=0):
    return countdown_model(TOKENIZER, seed=seed, width=32, layers=2)


class Recorder(torch.nn.Module):
    """Passes calls on to a model and keeps the token ids."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, input_ids, use_cache):
        self.calls.append(input_ids)
        return self.model(input_ids=input_ids, use_cache=use_cache)


def test_unpaired_examples_are_others_under_each_prompt():
    recorder = Recorder(small_model())
    losses = warm_start(recorder, TOKENIZER, EXAMPLES, encode=encode, steps=3, batch_size=5, paired=False)
    for ids in recorder.calls:
        texts = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
        normal, high = set(texts[:5]), {text.removeprefix(f"{HIGH_ENTROPY_PROMPT} ") for text in texts[5:]}
        assert not any(text.startswith(HIGH_ENTROPY_PROMPT) for text in normal)
        assert all(text.startswith(HIGH_ENTROPY_PROMPT) for text in texts[5:])
        assert len(normal & high) < 3
    options = {"encode": encode, "steps": 3, "batch_size": 5}
    assert losses == warm_start(small_model(), TOKENIZER, EXAMPLES, paired=False, **options)
    assert losses != warm_start(small_model(), TOKENIZER, EXAMPLES, **options)


def test_each_example_is_there_under_both_prompts_with_one_answer():
    recorder = Recorder(small_model())
    warm_start(recorder, TOKENIZER, EXAMPLES, encode=encode, steps=3, batch_size=5)
    assert len(recorder.calls) == 3
    for ids in recorder.calls:
        texts = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
        assert len(texts) == 10
        assert [f"{HIGH_ENTROPY_PROMPT} {text}" for text in texts[:5]] == texts[5:]
        for row, text in zip(ids, texts, strict=True):
            prompt, answer = text.removeprefix(f"{HIGH_ENTROPY_PROMPT} ").split(" : ")
            assert answer in dict(EXAMPLES)[f"{prompt} :"]
            assert (row == TOKENIZER.eos_token_id).sum() == 1


def test_answer_logits_are_those_of_each_row_alone():
    model = small_model()
    rows = [
        (encode("3 5 2 = 16 :", 1), encode_answer(TOKENIZER, "3 5 + 2 *")),
        (encode("3 5 = 8 :", 0), encode_answer(TOKENIZER, "5 3 +")),
    ]
    logits, targets = answer_logits(model, rows, TOKENIZER.pad_token_id)
    assert targets.tolist() == rows[0][1] + rows[1][1]
    assert TOKENIZER.decode(targets) == "3 5 + 2 * <eos> 5 3 + <eos>"
    alone = [model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] for prompt, answer in rows]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_first_loss_is_the_mean_over_answer_tokens_and_eos():
    example = ("3 5 2 = 16 :", ["3 5 + 2 *"])
    first = warm_start(small_model(), TOKENIZER, [example], encode=encode, steps=1, batch_size=2)[0]
    with torch.no_grad():
        total = 0.0
        for mode in (0, 1):
            prompt, answer = encode(example[0], mode), encode_answer(TOKENIZER, example[1][0])
            logprobs = small_model()(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            total -= sum(logprobs[len(prompt) - 1 + t, token].item() for t, token in enumerate(answer))
    assert first == pytest.approx(total / 12, rel=1e-5)


def test_deterministic_and_global_random_state_is_kept():
    weights = []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        model = small_model()
        losses = warm_start(model, TOKENIZER, EXAMPLES, encode=encode, steps=4, batch_size=4, seed=seed)
        weights.append((losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])))
    assert weights[0][0] == weights[1][0] != weights[2][0]
    assert torch.equal(weights[0][1], weights[1][1])
    assert not torch.equal(weights[0][1], weights[2][1])
    assert torch.equal(torch.get_rng_state(), state)


def test_learns_and_keeps_the_modes_together():
    model = small_model().eval()
    seen = []
    losses = warm_start(
        model,
        TOKENIZER,
        EXAMPLES,
        encode=encode,
        steps=150,
        batch_size=16,
        warmup_steps=10,
        progress=lambda *step: seen.append(step),
    )
    assert losses[0] > 4  # log of the vocabulary is 4.7
    assert sum(losses[-10:]) / 10 < 0.8  # uniform over about 2.5 answers of 4 tokens: 0.25 and more
    assert [(step, loss.item()) for step, loss in seen] == list(enumerate(losses))
    assert not model.training
    divergence = divergence_between_modes(model, TOKENIZER, EXAMPLES, encode=encode)
    assert 0 < divergence < 0.05
    alike = divergence_between_modes(model, TOKENIZER, EXAMPLES, encode=lambda prompt, mode: encode(prompt, 0))
    assert alike == pytest.approx(0, abs=1e-6)


def test_divergence_is_the_exact_kl_of_high_entropy_to_normal():
    model = small_model(3).eval()
    prompt, answer = "2 3 = 6 :", "2 3 *"
    tokens = encode_answer(TOKENIZER, answer)
    normal, high = (
        model(torch.tensor([encode(prompt, mode) + tokens])).logits[0, -5:-1].detach().double().log_softmax(-1)
        for mode in (0, 1)
    )
    expected = (high.exp() * (high - normal)).sum(-1).mean().item()
    assert divergence_between_modes(model, TOKENIZER, [(prompt, [answer])], encode=encode) == pytest.approx(
        expected, rel=1e-3
    )


def test_nothing_to_learn_from():
    for examples in ([], [("1 1 = 7 :", [])]):
        with pytest.raises(ValueError, match="needs examples that each have an answer"):
            warm_start(small_model(), TOKENIZER, examples, encode=encode, steps=1)
