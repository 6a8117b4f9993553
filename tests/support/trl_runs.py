"""PolicySplitGRPOTrainer of a tiny model."""

import tiny
from datasets import Dataset

from policy_split.integrations.trl import trainer as ours


def settings(folder, **options):
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 8,
        "num_generations": 8,
        "max_completion_length": 6,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
    } | options


def trainer(folder, *, model=None, reward=tiny.reward, questions=tiny.QUESTIONS, tokenizer=None, **options):
    given = {name: options.pop(name) for name in ("eval_dataset", "peft_config") if name in options}
    given = {name: Dataset.from_list(x) if isinstance(x, list) else x for name, x in given.items()}
    options = {"high_entropy_prompt": "explore", "clamp": "code", "eta_high": 0.5} | options
    return ours.PolicySplitGRPOTrainer(
        tiny.model() if model is None else model,
        reward,
        ours.PolicySplitGRPOConfig(**settings(folder, **options)),
        train_dataset=Dataset.from_list(questions),
        processing_class=tokenizer or tiny.tokenizer(chat=not isinstance(questions[0]["prompt"], str)),
        **given,
    )


def saved_model(folder):
    """A model that TRL can load once more, as it does for its reference."""
    tiny.model().save_pretrained(folder)
    return type(tiny.model()).from_pretrained(folder)


def batch_of(run):
    """The rows of one generation, as TRL's loss gets them."""
    run.model.train()
    questions = [row for row in run.train_dataset.select(range(2)) for _ in range(run.num_generations)]
    run.current_gradient_accumulation_steps = 1
    return run._generate_and_score_completions(questions)
