"""A tokenizer of numbers and symbols, and a small model from scratch."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .expressions import PRECEDENCE

HIGH_ENTROPY_PROMPT = "explore"
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def countdown_tokenizer(largest_number: int = 100) -> PreTrainedTokenizerFast:
    """One token for each number in 0..largest_number, each symbol and the word of the high-entropy prompt.

    Text decodes to "3 5 + 2 *". No chat template: a system prompt goes in front of the text, "explore 3 5 2 = 16 :".
    """
    words = [*SPECIAL_TOKENS.values(), *PRECEDENCE, "(", ")", "=", ":", HIGH_ENTROPY_PROMPT]
    words += [str(number) for number in range(largest_number + 1)]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL_TOKENS["unk_token"])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        **SPECIAL_TOKENS,
    )


def countdown_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, width: int = 64, layers: int = 3, heads: int = 4
) -> Qwen3ForCausalLM:
    """A Qwen3 decoder from scratch (0.16 M parameters by default), CPU, fp32; the global random state is kept."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=width // heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
