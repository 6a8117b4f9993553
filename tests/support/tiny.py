"""Models and tokenizers of a few thousand parameters, and settings for runs of a few steps."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from policy_split.config import PolicySplitConfig

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "explore", "system", "user", "assistant", *"abcdefgh", *"0123456789"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
QUESTIONS = [{"prompt": prompt, "wanted": "a"} for prompt in ("1 2 3", "4", "5 6", "7 8 9 0", "2 4", "3 3 3")]
HELD_OUT = [{"prompt": prompt, "wanted": "a"} for prompt in ("1 2 4", "5", "5 7", "7 8 9 1", "2 5", "3 3 4")]


def tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **special)
    made.chat_template = CHAT_TEMPLATE if chat else None
    return made


def model(kind: str = "qwen3", *, seed: int = 0, scale: float = 8.0, **options):
    """A fresh decoder; `scale` sharpens its first distributions, which are nearly uniform otherwise."""
    config_class, model_class = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[
        kind
    ]
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model_class(config_class(**settings | options))
    with torch.no_grad():
        made.lm_head.weight.mul_(scale)
    return made


def config(output_dir, **options) -> PolicySplitConfig:
    settings = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "high_entropy_prompt": "explore",
        "prompts_per_step": 3,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 64,
        "save_steps": 0,
        "disable_tqdm": True,
    }
    return PolicySplitConfig(**settings | options)


def reward(completions, **columns) -> list[float]:
    """The share of "a" among the words: differs between responses, so that groups have advantages."""
    return [(text if isinstance(text, str) else text[0]["content"]).split().count("a") / 6 for text in completions]
