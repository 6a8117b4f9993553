"""What a model must do in TRL's trainer as in ours: leave padding unread, and draw its tokenizer's tokens alone."""

from typing import Any

import torch

from policy_split.models.policy import Policy, input_embeddings
from policy_split.models.vocabulary import Vocabulary


def check_padding(trainer: Any) -> None:
    """ValueError for a model, or a reference, that reads the padding in front of a short prompt."""
    for model in (trainer.model, trainer.ref_model):
        if model is None or any(each.is_meta or not each.numel() for each in model.parameters()):
            continue  # weights that lie elsewhere until the training begins: DeepSpeed's, FSDP's
        Policy(trainer.accelerator.unwrap_model(model), trainer._tokenizer, packed=False).check_padding()


def own_tokens(trainer: Any) -> Vocabulary | None:
    """Keep generation to the tokenizer's tokens; returns what scores have to be kept to, None: to nothing.

    Where that cannot be, ids without a token are drawn and scored as the model has it; ValueError if the tokenizer
    cannot decode them.
    """
    vocabulary = Vocabulary(trainer._tokenizer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    absent = vocabulary.absent(input_embeddings(model).num_embeddings, torch.device("cpu")).tolist()
    if not absent:
        return None
    if trainer.args.fused_kernels and not (trainer.use_vllm or trainer.use_transformers_continuous_batching):
        given = trainer.generation_config.suppress_tokens or []
        trainer.generation_config.suppress_tokens = sorted({*absent, *given})
        return vocabulary
    try:
        trainer._tokenizer.decode(absent)
    except Exception as error:
        raise ValueError(
            f"the model has {len(absent)} embeddings that the tokenizer has no token for, such as {absent[0]}, and it "
            f"cannot decode them ({type(error).__name__}: {error}): leave fused_kernels=True with transformers' "
            f"generation, which then never draws one, or cut them by model.resize_token_embeddings({absent[0]})"
        ) from error
    return None
