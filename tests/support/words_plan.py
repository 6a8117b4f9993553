"""The words task for a model whose tokens are its words, and a study of it that takes seconds."""

from pathlib import Path

import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from policy_split.study.plan import Plan
from policy_split.study.variants import chosen_variants
from policy_split.study.words_runs import WordsSize
from policy_split.words.word_list import read_word_list

OTHERS = ["<pad>", "<bos>", "<eos>", "<unk>", "explore", "The", "A", "a", "the", "and", "with", "under", "."]
SETTINGS = {
    "max_steps": 2, "prompts_per_step": 2, "num_generations": 2, "save_steps": 1, "sample_steps": 1,
    "max_completion_length": 8, "high_entropy_prompt": "explore", "learning_rate": 1e-3, "use_cpu": True,
}  # fmt: skip


def save_model(folder: Path) -> str:
    """A model whose tokens are whole words of our list, saved; returns its path."""
    words = list(dict.fromkeys([*OTHERS, *(form for word in read_word_list() for form in word.forms)]))
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **special)
    tiny.model(vocab_size=len(words)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plan(model: str) -> Plan:
    size = WordsSize(model, train_questions=6, held_out_questions=3, settings=SETTINGS)
    return Plan(size, chosen_variants(["grpo", "policy_split"], 0.3), (1,), samples=8)
