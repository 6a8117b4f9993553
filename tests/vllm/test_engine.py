"""vLLM behind our interface: its tokens and log-probs are those of the model whose weights it was given."""

import pytest
import tiny
import torch
import vllm_models

from policy_split.rollouts import vllm_engine
from policy_split.rollouts.engine import EngineError
from policy_split.rollouts.engine_weights import named_weights

PROMPTS = [[4, 8, 9, 10], [11, 12], [20, 21, 22, 23, 24, 25, 8], [13]]


@pytest.fixture(scope="module", params=["qwen3", "llama-tied"])
def pair(request, tmp_path_factory):
    """A model and an engine of its kind, which has had its weights."""
    model = vllm_models.model(request.param, vocab_size=40).eval()
    config = tiny.config(tmp_path_factory.mktemp("unused"), **vllm_models.SETTINGS)
    arguments = (torch.float32, [2, 3], range(36, 40), 64, config)
    engine = vllm_engine.VllmEngine(model.config, type(model).__name__, *arguments)
    engine.update(named_weights(model))
    yield model, engine
    engine.close()


def test_its_log_probs_are_the_models(pair):
    model, engine = pair
    drawn = engine.generate(PROMPTS * 8, range(32), temperature=0.7, max_tokens=8)
    assert len({tuple(response.ids) for response in drawn}) > 16
    silenced = torch.zeros(40).index_fill_(0, torch.arange(36, 40), -torch.inf)
    ends = set()
    for prompt, (ids, told) in zip(PROMPTS * 8, drawn, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = ((logits + silenced) / 0.7).log_softmax(-1)[range(len(ids)), ids]
        assert told == pytest.approx(expected.tolist(), abs=1e-5)
        assert max(ids) < 36
        assert not {2, 3} & set(ids[:-1])
        assert len(ids) == 8 or ids[-1] in (2, 3)
        ends.add(ids[-1])
    assert {2, 3} <= ends


def test_a_seed_gives_the_same_tokens_in_any_company(pair):
    _, engine = pair
    options = {"temperature": 1.0, "max_tokens": 8}
    seeds = [5, 6, 7, 2**62 + 1]
    together = engine.generate(PROMPTS, seeds, **options)
    reverse = engine.generate(PROMPTS[::-1], seeds[::-1], **options)[::-1]
    alone = [engine.generate([prompt], [seed], **options)[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert [each.ids for each in together] == [each.ids for each in reverse] == [each.ids for each in alone]
    same = engine.generate([PROMPTS[0]] * 3, [5, 5, 6], **options)
    assert same[0] == same[1]
    assert engine.generate(PROMPTS, [8, 9, 10, 11], **options) != together


def test_the_prompt_of_several_responses_is_computed_once(pair):
    """As far as its blocks of 32 tokens are whole; and again once the weights are others."""
    model, engine = pair
    prompts = [{"prompt_token_ids": [number, *[7, 8, 9, 10] * 10]} for number in (4, 4, 5, 4)]
    one = engine.vllm.SamplingParams(max_tokens=1, detokenize=False)
    for _ in range(2):
        engine.update(named_weights(model))
        answers = engine.llm.generate(prompts, one, use_tqdm=False)
        assert [answer.num_cached_tokens for answer in answers] == [0, 32, 0, 32]


def test_new_weights_arrive(pair):
    model, engine = pair
    before = engine.generate(PROMPTS, range(4), temperature=0.0, max_tokens=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    engine.update(named_weights(model))
    after = engine.generate(PROMPTS, range(4), temperature=0.0, max_tokens=8)
    assert [each.ids for each in after] == vllm_models.greedy(model, PROMPTS, 8, (2, 3), tokens=36)
    assert [each.ids for each in after] != [each.ids for each in before]


def test_a_weight_that_it_does_not_have_is_one_line(pair):
    model, engine = pair
    with pytest.raises(EngineError, match=r"^vLLM 0\.31\.0\S* did not take the new weights: .*nowhere.*transformers$"):
        engine.update([("model.nowhere.weight", torch.zeros(3))])
    engine.update(named_weights(model))
    after = engine.generate(PROMPTS, range(4), temperature=0.0, max_tokens=8)
    assert [each.ids for each in after] == vllm_models.greedy(model, PROMPTS, 8, (2, 3), tokens=36)


def test_an_engine_that_dies_is_named(pair, monkeypatch):
    _, engine = pair

    def lost(*arguments, **options):
        raise RuntimeError("the worker is gone")

    executor = engine.llm.llm_engine.model_executor
    monkeypatch.setattr(executor.driver_worker, "execute_model", lost)
    with pytest.raises(EngineError, match=r"^vLLM 0\.31\.0\S* failed while it generated: .*the worker is gone"):
        engine.generate(PROMPTS, range(4), temperature=1.0, max_tokens=8)
