"""policy-split eval RUN_OR_MODEL: both modes in detail on held-out questions, and against another run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, PreTrainedTokenizerBase

from policy_split.config import PolicySplitConfig
from policy_split.countdown.grading import canonical, countdown_reward
from policy_split.countdown.model import HIGH_ENTROPY_PROMPT, countdown_tokenizer
from policy_split.countdown.sizes import SIZES, load_size
from policy_split.data.datasets import DATASET_HELP, load_prompts
from policy_split.data.rows import Questions
from policy_split.evaluation.comparison import compare
from policy_split.evaluation.evaluate import evaluate_in_detail, plain_text
from policy_split.evaluation.judge import Judge
from policy_split.evaluation.question_scores import Key
from policy_split.evaluation.tables import comparison_table, evaluation_table
from policy_split.model_card.card import renew_card
from policy_split.models.gguf import BASE_MODEL, is_converted
from policy_split.models.policy import load_model, load_tokenizer, placed
from policy_split.models.source import check_source
from policy_split.rewards.loading import REWARD_HELP
from policy_split.rewards.own import reward_of
from policy_split.run_folder.checkpoints import CHECKPOINTS
from policy_split.run_folder.record import read_settings
from policy_split.storage.whole_folder import replace_text

from .judge_arguments import add_judge_arguments, chosen_judge

HELP = """Measure both modes of a trained model: accuracy, unbiased pass@k, entropy, length, different correct
answers, repetition and the exact KL between the modes, each with a 95 % bootstrap interval over the
questions. With --against also the paired difference to another run, with p-values. In place of a run
or model each of the two may be the JSON of an evaluation that has been made.

RUN is the output_dir of a training, whose settings are used, MODEL any causal language model with
--dataset and --reward. A model of the built-in Countdown task needs neither."""
NAME = "evaluation.json"
QUESTIONS_SEED = 1  # of the built-in task
# what sampling and scoring depend on; a run's config.yaml gives their defaults
SETTINGS = (
    "seed",
    "temperature",
    "max_prompt_length",
    "max_completion_length",
    "high_entropy_prompt",
    "normal_prompt",
    "high_entropy_place",
    "chat_template_kwargs",
    "reward_weights",
    "skip_special_tokens",
    "model_dtype",
    "attn_implementation",
    "use_cpu",
    "prompts_per_step",
    "num_generations",
    "per_device_train_batch_size",
    "per_device_generation_batch_size",
    "disable_tqdm",
)
OFFERED = [
    (each.name, each.type, field(default=each.default, metadata=each.metadata))
    for each in fields(PolicySplitConfig)
    if each.name in SETTINGS
]


@dataclass
class Task:
    """What the responses are asked and how they are graded: the same for every model of one command."""

    dataset: Questions
    reward_funcs: Any
    key: Key
    correct_reward: float
    judge: Judge | None


def run(arguments: list[str]) -> int:
    """Evaluate, write the JSON, print the tables: 0; raises ValueError or OSError in one line for what is wrong."""
    chosen, _ = _parse(arguments, {})
    output = _output(chosen)
    given = [_opened(name) for name in (chosen.model, chosen.against)]
    task, evaluation = (None, given[0]) if given[0] else _evaluated(chosen.model, arguments, None)
    print(f"{_heading(evaluation)}\n\n{evaluation_table(evaluation)}\n")
    if output and not given[0]:
        _write(output, evaluation)  # before a comparison that may fail
        if output.absolute() == (Path(chosen.model) / NAME).absolute():
            renew_card(Path(chosen.model), load_tokenizer(None, chosen.model))
    if chosen.against is not None:
        other = given[1] or _evaluated(chosen.against, arguments, task)[1]
        comparison = compare(evaluation, other)
        if output:
            _write(output, evaluation | {"comparison": {"against": chosen.against} | comparison})
        print(f"this: {chosen.model}\nother: {chosen.against}{_other_settings(evaluation, other)}\n")
        print(f"{comparison_table(comparison, 'this', 'other')}\n")
    if output:
        print(f"evaluation: {output.absolute()}")
    return 0


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """The JSON of an earlier evaluation; FileNotFoundError or ValueError in one line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        evaluation = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(evaluation, dict) or "per_question" not in evaluation:
        raise ValueError(f"{path}: not an evaluation: it has no 'per_question'")
    return evaluation


def _output(chosen: Any) -> Path | None:
    """Where to write, None for what has been written already; raises for arguments that do not go together."""
    done = chosen.model.endswith(".json")
    if chosen.num_samples < 1:
        raise ValueError(f"--num-samples={chosen.num_samples} must be at least 1")
    if done and not (chosen.against or "").endswith(".json"):
        raise ValueError(f"{chosen.model} has been evaluated; give --against the JSON of another evaluation")
    if done and chosen.judge:
        raise ValueError(f"--judge {chosen.judge}: {chosen.model} holds no responses to grade; give the run or model")
    if done and chosen.output is None:
        return None
    output = Path(chosen.output or (Path(chosen.model) / NAME if _is_run(chosen.model) else NAME))
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.absolute().parent}")
    return output


def _opened(name: str | None) -> dict[str, Any] | None:
    """An evaluation that is there, or None for what is yet to be evaluated: looked at before anything takes time."""
    if name is None:
        return None
    if name.endswith(".json"):
        return read_evaluation(name)
    check_source(name)
    return None


def _parse(arguments: list[str], defaults: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    offered: Any = make_dataclass("Settings", OFFERED)
    parser = HfArgumentParser(offered, prog="policy-split eval", description=HELP)
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="Folder of a run, or name or path of a model.")
    parser.add_argument("--against", help="Another run or model, evaluated alike, or an earlier evaluation's JSON.")
    parser.add_argument("--num-samples", "--num_samples", type=int, default=64, help="Responses per question and mode.")
    parser.add_argument("--num-questions", "--num_questions", type=int, help="The first so many of the dataset.")
    parser.add_argument("--dataset", help=f"{DATASET_HELP} with a `prompt` column.")
    parser.add_argument("--reward", action="append", help=REWARD_HELP)
    parser.add_argument("--correct-reward", "--correct_reward", type=float, default=1.0, help="From here on correct.")
    add_judge_arguments(parser)
    parser.add_argument("--output", help=f"JSON to write. Not given: {NAME} in the run's folder, or in this one.")
    parser.set_defaults(**defaults)
    settings, chosen = parser.parse_args_into_dataclasses(arguments)
    return chosen, dict(vars(settings))


def _evaluated(model: str, arguments: list[str], task: Task | None) -> tuple[Task, dict[str, Any]]:
    """One model on the task, which is made for the first of them."""
    tokenizer = load_tokenizer(None, model)
    defaults = (load_size(_run_folder(model)) or SIZES["small"]).settings if is_countdown(tokenizer) else {}
    defaults = {name: value for name, value in (defaults | _run_settings(model)).items() if name in SETTINGS}
    chosen, settings = _parse(arguments, defaults)
    config = PolicySplitConfig(**settings)
    # a batch as large as one of the training, whatever the number of responses
    prompts = max(1, config.prompts_per_step * config.num_generations // chosen.num_samples)
    task = _task(chosen, tokenizer) if task is None else task
    device = "cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu"
    loaded = placed(load_model(model, config), device)
    evaluation = evaluate_in_detail(
        loaded, tokenizer, task.dataset, task.reward_funcs, replace(config, prompts_per_step=prompts),
        chosen.num_samples, key=task.key, correct_reward=task.correct_reward, judge=task.judge,
    )  # fmt: skip
    return task, {"model": model, "settings": settings} | evaluation


def _task(chosen: Any, tokenizer: PreTrainedTokenizerBase) -> Task:
    key = canonical if is_countdown(tokenizer) else plain_text
    count, reward, judge = chosen.num_questions, chosen.reward, chosen_judge(chosen)
    if count is not None and count < 1:
        raise ValueError(f"--num-questions={count} must be at least 1")
    if chosen.dataset is None:
        if not is_countdown(tokenizer):
            raise ValueError(f"{chosen.model} needs --dataset and --reward: only the built-in Countdown has its own")
        # the same problems for runs of every seed, so that they can be compared
        size = load_size(_run_folder(chosen.model)) or SIZES["small"]
        count = size.held_out_questions if count is None else count
        dataset = size.task.dataset(count, seed=QUESTIONS_SEED, split="held_out")
        return Task(dataset, reward or countdown_reward, key, chosen.correct_reward, judge)
    dataset = load_prompts(chosen.dataset, held_out=True)
    reward = reward or reward_of(dataset, _started_from(chosen.model))
    if reward is None:
        raise ValueError("--dataset needs --reward as well, such as --reward my_rewards.py:reward")
    if count is not None:
        dataset = dataset.select(range(min(count, len(dataset))))
    return Task(dataset, reward, key, chosen.correct_reward, judge)


def is_countdown(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is the tokenizer of the built-in task, up to whatever number."""
    vocabulary = tokenizer.get_vocab()
    largest = len(vocabulary) - len(countdown_tokenizer(0))
    return HIGH_ENTROPY_PROMPT in vocabulary and countdown_tokenizer(largest).get_vocab() == vocabulary


def _is_run(model: str) -> bool:
    return (Path(model) / "metrics.jsonl").is_file()


def _run_settings(model: str) -> dict[str, Any]:
    return read_settings(_run_folder(model)) or {}


def _started_from(model: str) -> str:
    """The model before its training, as far as its run says."""
    kept = _run_folder(model).absolute() / BASE_MODEL
    return str(kept) if is_converted(kept) else _run_settings(model).get("model") or model


def _run_folder(model: str) -> Path:
    """The folder of the run whose model or checkpoint it is."""
    path = Path(model)
    return path.parent.parent if path.absolute().parent.name == CHECKPOINTS else path


def _heading(evaluation: Mapping[str, Any]) -> str:
    return (
        f"{evaluation.get('model', 'evaluation')}: {evaluation['num_questions']} questions, "
        f"{evaluation['num_samples']} responses of each mode to each"
    )


def _other_settings(evaluation: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    ours, theirs = evaluation.get("settings", {}), other.get("settings", {})
    differing = [
        f"{name} {theirs[name]!r} for {ours[name]!r}" for name in ours if theirs.get(name, ours[name]) != ours[name]
    ]
    return f" ({', '.join(differing)})" if differing else ""


def _write(path: Path, evaluation: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(evaluation, ensure_ascii=False) + "\n")
