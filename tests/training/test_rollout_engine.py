"""The trainer with an engine that draws for it: both modes, the weights of the moment, exact resume, what fails."""

import fake_engine
import pytest
import tiny
import torch
from fake_engine import FakeEngine
from trained import lines, trainer, weights

from policy_split.modes import encode_modes
from policy_split.rollouts import sampler
from policy_split.rollouts.engine import EngineError
from policy_split.run_folder.checkpoints import checkpoints


@pytest.fixture
def engine(monkeypatch):
    """Puts a fake engine into the place of vLLM's; returns a function that takes another."""

    def use(kind):
        kind.made = []
        monkeypatch.setattr(sampler, "VllmEngine", kind)
        monkeypatch.setattr(sampler, "check_vllm", lambda: None)
        return kind

    use(FakeEngine)
    return use


def run_of(folder, **options):
    made = trainer(folder, rollout_engine="vllm", log_completions=True, **options)
    made.train(resume_from_checkpoint=bool(checkpoints(folder)))
    return made


def test_both_modes_are_drawn_with_the_weights_of_the_moment(tmp_path, engine):
    run = run_of(tmp_path, max_steps=3)
    (made,) = FakeEngine.made
    said = lines(tmp_path)
    assert all(0 <= row["sampling/logp_difference"] < 1e-5 for row in said)
    assert all(row["high_entropy/reward"] >= 0 for row in said)
    rollouts = made.asked[1::2]  # each behind a probe
    assert [len(asked) for asked in rollouts] == [24] * 3
    assert [len(asked) for asked in made.asked[::2]] == [4] * 3
    prompts = {tuple(map(tuple, encode_modes(run.tokenizer, q["prompt"], run.config, ""))) for q in tiny.QUESTIONS}
    for asked in rollouts:
        normal, high = asked[:12:4], asked[12::4]
        assert {(tuple(n), tuple(h)) for n, h in zip(normal, high, strict=True)} <= prompts
        assert asked == [ids for ids in (*normal, *high) for _ in range(4)]
    seeds = [seed for drawn in made.seeds[1::2] for seed in drawn]
    assert len(set(seeds)) == 72
    given = [each["lm_head.weight"] for each in made.given]
    assert not torch.equal(given[0], given[1])
    assert (made.rested, made.closed, run.sampler.engine) == (3, True, None)
    longest = max(len(ids) for pair in prompts for ids in pair)
    assert made.max_model_length == longest + 6


def test_responses_reach_the_rollout_as_they_were_drawn(tmp_path, engine):
    run = trainer(tmp_path, rollout_engine="vllm")
    rollout = run.sample()
    again = FakeEngine.made[0]
    drawn = again.generate(again.asked[1], again.seeds[1], temperature=1.0, max_tokens=6)
    assert rollout.sampler_logprobs.shape == (24, rollout.completion_ids.shape[1])
    for row, (ids, logprobs) in enumerate(drawn):
        length = rollout.completion_lengths[row]
        assert rollout.completion_ids[row, :length].tolist() == ids
        assert rollout.sampler_logprobs[row].tolist()[:length] == pytest.approx(logprobs, abs=1e-7)
        assert rollout.sampler_logprobs[row, length:].eq(0).all()
        assert bool(rollout.truncated[row]) == (ids[-1] != run.tokenizer.eos_token_id)
    assert 0 < int(rollout.truncated.sum()) < 24


def test_ids_without_a_token_are_not_drawn(tmp_path, engine):
    run = trainer(tmp_path, model=tiny.model(vocab_size=40), rollout_engine="vllm", max_steps=1)
    run.train()
    assert FakeEngine.made[0].absent_ids == list(range(len(tiny.WORDS), 40))
    assert lines(tmp_path)[0]["sampling/logp_difference"] < 1e-5


def test_a_resumed_run_draws_the_same(tmp_path, engine):
    whole = run_of(tmp_path / "whole", max_steps=4)
    run_of(tmp_path / "parts", max_steps=2, save_steps=2, lr_scheduler_type="constant")
    parts = run_of(tmp_path / "parts", max_steps=4, save_steps=2, lr_scheduler_type="constant")
    constant = run_of(tmp_path / "constant", max_steps=4, lr_scheduler_type="constant")
    texts = [(tmp_path / name / "completions.jsonl").read_text() for name in ("parts", "constant", "whole")]
    assert texts[0] == texts[1]
    assert texts[1] != texts[2]
    assert all(torch.equal(value, weights(constant)[name]) for name, value in weights(parts).items())
    assert whole.progress.step == 4


def test_evaluations_are_drawn_by_it(tmp_path, engine):
    run_of(tmp_path, max_steps=1, eval_steps=1, eval_num_samples=2, eval_dataset=tiny.HELD_OUT)
    (made,) = FakeEngine.made
    assert [len(asked) for asked in made.asked] == [4, 24, 4, 12, 12]
    assert "eval/normal/accuracy" in lines(tmp_path)[0]


def test_an_engine_that_dies_is_named_and_the_run_goes_on_without_it(tmp_path, engine):
    engine(fake_engine.Dying)
    with pytest.raises(EngineError, match=r"the fake engine failed while it generated") as caught:
        run_of(tmp_path, max_steps=4)
    assert "2 steps are finished" in "".join(caught.value.__notes__)
    run = trainer(tmp_path, rollout_engine="transformers", max_steps=4, log_completions=True)
    run.train(resume_from_checkpoint=True)
    said = lines(tmp_path)
    assert ["sampling/logp_difference" in row for row in said] == [True, True, False, False]


def test_weights_that_did_not_arrive_stop_the_run(tmp_path, engine):
    engine(fake_engine.Stale)
    with pytest.raises(EngineError, match=r"the fake engine does not have the model's weights.*differ by up to"):
        run_of(tmp_path, max_steps=4, learning_rate=0.5)
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("broken", ["nan", "later nan", "cut", "empty", "fewer", "behind the end"])
def test_answers_that_are_none_are_errors(tmp_path, engine, broken):
    class Broken(FakeEngine):
        def generate(self, prompts, seeds, *, temperature, max_tokens):
            drawn = super().generate(prompts, seeds, temperature=temperature, max_tokens=max_tokens)
            if broken == "nan":
                drawn[0].logprobs[0] = float("nan")
            elif max_tokens > 1 and broken == "later nan":
                drawn[3] = type(drawn[3])([5, 2], [-1.0, float("nan")])
            elif max_tokens > 1 and broken == "cut":
                drawn[3] = type(drawn[3])([5, 6], [-1.0, -1.0])
            elif max_tokens > 1 and broken == "empty":
                drawn[3] = type(drawn[3])([], [])
            elif max_tokens > 1 and broken == "fewer":
                drawn.pop()
            elif max_tokens > 1:
                drawn[3] = type(drawn[3])([5, 2, 6], [-1.0] * 3)
            return drawn

    engine(Broken)
    said = {"nan": "differ by up to nan", "fewer": "answered 23 of 24 prompts"}
    with pytest.raises(EngineError, match=said.get(broken, r"response 3 has [023] tokens")):
        run_of(tmp_path)


def test_the_model_keeps_its_own_log_probs(tmp_path, engine):
    """What the engine says of its tokens is a metric: without the correction it moves nothing."""

    class Shifted(FakeEngine):
        shift = -0.25

    engine(Shifted)
    shifted = run_of(tmp_path / "shifted", max_steps=2)
    engine(FakeEngine)
    run = run_of(tmp_path / "run", max_steps=2)
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(shifted).items())
    assert [row["sampling/logp_difference"] for row in lines(tmp_path / "shifted")] == pytest.approx([0.25] * 2, 1e-4)
