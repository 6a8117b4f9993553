"""The agent loop in verl's own worker: each response behind both prompts, and those are the prompts of our trainer."""

import asyncio
from types import SimpleNamespace

import pytest
import tiny
from verl_runs import Engine, answers, configuration

from policy_split.data.datasets import as_prompts, longest_prompt
from policy_split.modes import encode_prompt


def test_each_response_is_asked_once_and_stands_behind_both_prompts(worker):
    queue = answers(worker)
    assert queue.pop("status") == "finished"
    prompts = [encode_prompt(worker.tokenizer, "1 2 3", system) for system in (None, "explore")]
    assert prompts[0] != prompts[1]
    assert sorted(worker.llm_client.asked) == sorted([prompts[0], prompts[1]] * 2)  # side by side, in no order
    assert worker.reward_loop_worker_handles[0].calls == 4
    assert sorted(queue) == [f"q_{session}_{index}" for session in range(4) for index in (0, 1)]
    for session in range(4):
        mode = session // 2
        twin, own = queue[f"q_{session}_0"], queue[f"q_{session}_1"]
        for row, prompt in ((own, prompts[mode]), (twin, prompts[1 - mode])):
            assert row["prompts"].tolist() == prompt
            assert row["input_ids"].tolist() == prompt + own["responses"].tolist()
            assert row["position_ids"].tolist() == list(range(len(prompt) + 3))
            assert row["response_mask"].tolist() == row["loss_mask"].tolist() == [1, 1, 1]
            assert row["rm_scores"].tolist() == own["rm_scores"].tolist() != [0, 0, 0]
        assert twin["responses"].tolist() == own["responses"].tolist()
        assert own["responses"].tolist()[1:] == [11, 2]


@pytest.mark.parametrize("place", ["system", "user"])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "h"}, {"role": "user", "content": [{"type": "text", "text": "1 2"}]}],
        [{"role": "system", "content": None}, {"role": "user", "content": "1 2"}],
        [{"role": "user", "content": "1 2"}, {"role": "assistant", "content": "3"}],
    ],
    ids=["parts", "none", "prefill"],
)
def test_prompts_are_those_of_our_trainer(worker, messages, place):
    worker.config = configuration(high_entropy_prompt="explore", high_entropy_place=place)
    assert answers(worker, raw_prompt=messages)["status"] == "finished"
    prompts = [encode_prompt(worker.tokenizer, messages, system, place=place) for system in (None, "explore")]
    assert sorted(worker.llm_client.asked) == sorted([prompts[0], prompts[1]] * 2)


DROPS = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"


@pytest.mark.parametrize(
    "template", [DROPS, "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + DROPS]
)
def test_a_template_without_a_system_message_is_refused_before_the_first_step(ours, monkeypatch, tmp_path, template):
    from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base, trainer_sync

    chat = [{"role": "user", "content": "1 2"}]
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = template
    rows = SimpleNamespace(dataframe={"prompt": [chat]})
    monkeypatch.setattr(trainer_sync.PPOTrainerSync, "__init__", lambda self, config: setattr(self, "config", config))
    monkeypatch.setattr(
        trainer_base.PPOTrainer, "_init_dataloader", lambda self: self.__dict__.update(train_dataset=rows)
    )

    def start(**settings):
        trainer = get_trainer_cls("policy_split")(configuration(high_entropy_prompt="explore", **settings))
        trainer.tokenizer, trainer.val_dataset = tokenizer, [{"raw_prompt": chat}]
        trainer._init_dataloader()

    with pytest.raises(ValueError, match="high_entropy_place='user'") as theirs:
        start()
    with pytest.raises(ValueError, match="train_dataset, row 0") as own:
        longest_prompt(tokenizer, as_prompts([{"prompt": chat}]), tiny.config(tmp_path))
    assert str(theirs.value) == str(own.value)
    start(high_entropy_place="user")
    with pytest.raises(ValueError, match="high_entropy_place='assistant' must be one of 'system', 'user'"):
        start(high_entropy_place="assistant")


def test_questions_that_cannot_be_shared(ours, worker, caplog):
    worker.config.actor_rollout_ref.rollout.prompt_length = 5  # of the plain prompt, not of the other
    assert answers(worker)["status"] == "failure"
    assert "a prompt has 7 tokens with its system prompt, more than data.max_prompt_length=5" in caplog.text
    worker.config.actor_rollout_ref.rollout.prompt_length = 512
    worker.llm_client = Engine(routed_experts=[[[0]]])
    assert answers(worker)["status"] == "failure"
    assert "set rollout.enable_rollout_routing_replay=False" in caplog.text
    with pytest.raises(ValueError, match=r"trainer\.use_v1=True"):
        asyncio.run(object.__new__(ours.PolicySplitAgentLoop).run({}, raw_prompt=[]))
