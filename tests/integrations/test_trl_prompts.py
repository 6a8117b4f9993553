"""Prompts in TRL's trainer: by the same function as in ours, and refused by the same words before the first step."""

import pytest
import tiny
from datasets import Dataset
from trl_runs import trainer

from policy_split import PolicySplitTrainer
from policy_split.modes import encode_modes

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:trl"),
]
USER = {"role": "user", "content": "1 2"}
DROPS = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + DROPS


def chat(template=tiny.CHAT_TEMPLATE):
    made = tiny.tokenizer(chat=True)
    made.chat_template = template
    return made


def rows(*prompts):
    return [{"prompt": prompt, "wanted": "a"} for prompt in prompts]


def asked(run):
    """(prompts of the responses, prompts of their twins) of one generation, as token ids."""
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    given, single = [], run._generate_single_turn
    run._generate_single_turn = lambda ids, *more: given.extend(ids) or single(ids, *more)
    run._generate_and_score_completions([row for row in run.train_dataset for _ in range(run.num_generations)])
    return given, run._twin_ids


@pytest.mark.parametrize(
    ("prompt", "tokenizer"),
    [
        ("1 2", tiny.tokenizer()),
        ([USER], chat()),
        ([{"role": "system", "content": "h"}, USER], chat()),
        ([{"role": "system", "content": None}, {"role": "user", "content": "1"}], chat()),
        ([USER, {"role": "assistant", "content": "3"}], chat()),
    ],
    ids=["text", "chat", "system", "none", "prefill"],
)
@pytest.mark.parametrize("place", ["system", "user"])
def test_both_modes_read_what_they_read_in_our_trainer(tmp_path, prompt, tokenizer, place):
    run = trainer(tmp_path, questions=rows(prompt), tokenizer=tokenizer, high_entropy_place=place)
    own, twins = asked(run)
    expected = encode_modes(tokenizer, prompt, tiny.config(tmp_path, high_entropy_place=place), "here")
    assert own == [expected[0]] * 4 + [expected[1]] * 4
    assert twins == [expected[1]] * 4 + [expected[0]] * 4
    assert all(tokenizer.decode(ids).count("explore") == (ids == expected[1]) for ids in own)


def test_parts_are_read_as_one_text(tmp_path):
    parts = [{"type": "text", "text": "1 "}, {"type": "text", "text": "2"}]
    own, _ = asked(trainer(tmp_path, questions=rows([{"role": "user", "content": parts}]), tokenizer=chat()))
    assert chat().decode(own[-1]) == "system explore user 1 2 assistant"


def test_a_text_is_not_put_through_the_template(tmp_path):
    own, _ = asked(trainer(tmp_path, questions=rows("1 2"), tokenizer=chat()))
    assert [chat().decode(ids) for ids in (own[0], own[-1])] == ["1 2", "explore 1 2"]


@pytest.mark.parametrize("template", [DROPS, REFUSES])
def test_a_template_without_a_system_message_is_refused_in_the_words_of_our_trainer(tmp_path, template):
    with pytest.raises(ValueError, match="high_entropy_place='user'") as ours:
        PolicySplitTrainer(tiny.model(), chat(template), tiny.reward, rows([USER]), tiny.config(tmp_path))
    with pytest.raises(ValueError, match="train_dataset, row 0: ") as theirs:
        trainer(tmp_path, questions=rows([USER]), tokenizer=chat(template))
    assert str(theirs.value) == str(ours.value)
    run = trainer(tmp_path, questions=rows([USER]), tokenizer=chat(template), high_entropy_place="user")
    run.train()
    assert run.state.log_history[0]["policy_split/kl_high_normal"] > 0


def test_every_row_of_every_dataset_is_looked_at(tmp_path):
    image = [{"role": "user", "content": [{"type": "image", "text": None}]}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "1"}]}]
    with pytest.raises(ValueError, match=r"train_dataset, row 1: part 0 of message 0 .* is of type 'image'"):
        trainer(tmp_path, questions=rows(parts, image), tokenizer=chat())
    held_out = {"a": Dataset.from_list(rows(parts)), "b": Dataset.from_list(rows(parts, image))}
    with pytest.raises(ValueError, match=r"eval_dataset\['b'\], row 1: part 0"):
        trainer(tmp_path, questions=rows(parts), tokenizer=chat(), eval_dataset=held_out)
    stream = Dataset.from_list(rows(image)).to_iterable_dataset()
    with pytest.raises(ValueError, match="eval_dataset, row 0: part 0"):
        trainer(tmp_path, questions=rows(parts), tokenizer=chat(), eval_dataset=stream)
