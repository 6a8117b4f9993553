"""Models as the trainer needs them: loaded with clear errors, no dropout, their heads on the completion alone."""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from policy_split.config import PolicySplitConfig
from policy_split.extras import check_extra
from policy_split.progress import progress_bars

from .adapters import base_of, load_adapter
from .batches import FLASH_ATTENTION_ARGUMENTS, Batch, PaddedBatch
from .gguf import read_model, read_tokenizer
from .lm_head import UnknownHeadError, inner_model, is_patched, patch_lm_head, unpatch_lm_head
from .packing import packing_fault, sharing_fault
from .padding import check_padding
from .prompt_attention import use_former_attention, use_prompt_attention
from .shared_prompts import ARGUMENT as SHARED_PROMPTS
from .source import check_source, gguf_file, is_adapter
from .vocabulary import Vocabulary, end_ids, pad_id, unknown_ends


def load_model(model: PreTrainedModel | str, config: PolicySplitConfig) -> PreTrainedModel:
    """The model itself, or that of a name or path in config.model_dtype; ImportError for attention not installed.

    Of a folder with a LoRA adapter it is a PeftModel over the base that the adapter names.
    """
    if isinstance(model, nn.Module):
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers then trains the base and saves the adapter
            raise ValueError(
                "the model has an adapter that transformers has put in: make a PeftModel of it, or give the adapter's "
                "folder by its path"
            )
        return model
    if not isinstance(model, str):
        raise TypeError(f"model must be a PreTrainedModel or a name or path, got {type(model).__name__}")
    check_source(model)
    if is_adapter(model):
        base = base_of(model)
        try:
            check_source(base)
            if is_adapter(base):
                raise ValueError(f"{base}: a LoRA adapter itself; merge it first with policy-split export --merge")
        except (OSError, ValueError) as error:
            raise type(error)(f"{model}: a LoRA adapter whose base cannot be loaded: {error}") from error
        adapted: PreTrainedModel = load_adapter(load_model(base, config), model)
        return adapted
    if config.attn_implementation == "flash_attention_2":
        instead = ", or choose attn_implementation='sdpa'"
        check_extra("flash_attn", "attn_implementation='flash_attention_2'", instead)
    gguf = gguf_file(model)
    if gguf is not None:
        return read_model(gguf, config)
    with progress_bars(sys.stderr.isatty()):
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model, dtype=config.model_dtype, attn_implementation=config.attn_implementation
        )
    return load_model(loaded, config)


def placed(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """The model, moved to the device."""
    move = cast(Callable[[str], PreTrainedModel], model.to)  # which transformers has wrapped, its types lost
    return move(device)


def load_tokenizer(tokenizer: Any, model: PreTrainedModel | str) -> Any:
    """The tokenizer itself, or that of a name or path; None: the one that is saved with the model."""
    if tokenizer is None and not isinstance(model, str):
        raise ValueError("tokenizer=None needs a model given by name or path; pass the model's tokenizer")
    source = model if tokenizer is None else tokenizer
    if not isinstance(source, str):
        return source
    check_source(source)
    if is_adapter(source) and not (Path(source) / "tokenizer_config.json").is_file():
        return load_tokenizer(None, base_of(source))
    gguf = gguf_file(source)
    if gguf is not None:
        return read_tokenizer(gguf)
    try:
        loaded = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:  # several lines of advice
        absent = "" if Path(source).exists() else "there is no such folder, and of that name on the Hugging Face hub "
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{source}: {absent}no tokenizer could be loaded: {reason}") from error
    if len(loaded) <= len(set(loaded.all_special_ids)):  # what transformers makes of a folder without tokenizer files
        raise FileNotFoundError(f"{source}: no tokenizer could be loaded: there is none in it")
    return loaded


def check_fit(model: PreTrainedModel, tokenizer: Any, longest_prompt: int, max_completion_length: int) -> None:
    """ValueError if tokens have no embedding, responses no end, or rows no place in the model's positions."""
    embeddings = input_embeddings(model).num_embeddings
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {embeddings} embeddings: they do not belong"
        )
    unknown = unknown_ends(model, tokenizer)
    if not end_ids(model, tokenizer):
        beside = f" but {unknown}, which the tokenizer does not have" if unknown else ""
        raise ValueError(f"neither the tokenizer nor the model has an eos token{beside}; responses could not end")
    if unknown:
        warnings.warn(
            f"the model's generation config ends responses by {unknown} as well, which the tokenizer does not have: "
            f"they are never drawn",
            stacklevel=3,
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest_prompt + max_completion_length > positions:
        raise ValueError(
            f"the longest prompt ({longest_prompt} tokens) and max_completion_length={max_completion_length} "
            f"do not fit into the model's {positions} positions"
        )


def input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, model.get_input_embeddings())


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in backward; every dropout becomes 0, as checkpointing needs model.train()."""
    # transformers 5 renames the one to the other
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and "lora_dropout" not in path:
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def fuse_lm_head(model: PreTrainedModel, config: PolicySplitConfig) -> bool:
    """Patches the LM head, before accelerate wraps the model, if the trainer is to use it: whether that is done.

    It is not where config.exact_kl needs the logits of both modes, nor, with a warning, for a head of an unknown kind.
    """
    if not config.fused_lm_head or config.exact_kl:
        return False
    try:
        patch_lm_head(model)
    except TypeError as error:
        _warn_of_logits(error)
        return False
    return True


def _warn_of_logits(error: Exception) -> None:
    warnings.warn(f"fused_lm_head=True is left aside, logits are computed: {error}", stacklevel=3)


class Policy:
    """A model that answers and scores: `bare` generates; `model`, accelerate's wrapper of it, gives log-probs.

    fused: whether scores and losses come from completion_head, or else from completion_logits. chunk_bytes: of the
    functions that completion_head takes. packed: config.packed_batches, whether batches are PackedBatch or else
    PaddedBatch; None becomes whether the model's attention is flash attention. ValueError for True where the model does
    not keep packed sequences apart, for None a warning, and batches are padded. share: config.share_prompts, whether
    rows stand behind one copy of their prompt; None: where the model can, and batches are not packed. ValueError for
    True where the model does not keep responses apart that stand behind one prompt.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        bare: PreTrainedModel | None = None,  # None: the model is not wrapped
        fused: bool = False,
        chunk_bytes: int | None = None,
        packed: bool | None = None,
        share: bool | None = False,
    ):
        self.model, self.tokenizer, self.chunk_bytes = model, tokenizer, chunk_bytes
        self.bare = cast(PreTrainedModel, model) if bare is None else bare
        self.end_ids = end_ids(self.bare, self.tokenizer)
        self.pad_id = pad_id(self.bare, self.tokenizer)
        self.vocabulary = Vocabulary(self.tokenizer)
        parameters = inspect.signature(inner_model(self.bare).forward).parameters
        self.forward_arguments = set(parameters)
        flash = "flash" in str(self.bare.config.get_text_config()._attn_implementation)
        if flash and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            self.forward_arguments |= set(FLASH_ATTENTION_ARGUMENTS)
        self.fused = fused and self._knows_head()
        self.packed = (packed or (packed is None and flash)) and self._keeps_apart(bool(packed))
        self.share = (share or (share is None and not self.packed)) and self._shares_prompts(bool(share))

    def _knows_head(self) -> bool:
        """Whether one token goes through the patched model: with a warning if not, rather than in the first step."""
        if not is_patched(self.bare):
            raise ValueError("fused=True needs a model that patch_lm_head has patched")
        ids = torch.full((1, 1), self.pad_id, device=self.device)
        with _trial(self.bare):
            try:
                self.completion_head(PaddedBatch([0], ids, ids, [1], [1]), lambda hidden, weight, **options: None)
            except UnknownHeadError as error:
                unpatch_lm_head(self.bare)
                _warn_of_logits(error)
        return is_patched(self.bare)

    def _keeps_apart(self, must: bool) -> bool:
        """Whether sequences can be packed, see `packing_fault`; ValueError where they must be and cannot."""

        def logits_of(batch: Batch) -> Tensor:
            return batch.predictions(self.bare(**self._inputs(batch)).logits)

        with _trial(self.bare):  # of the bare model: DDP would wait for the gradients of parameters
            fault = packing_fault(logits_of, input_embeddings(self.bare), self.forward_arguments)
        if fault is None:
            return True
        name = type(self.bare).__name__
        if must:
            raise ValueError(f"packed_batches=True: {name} cannot be given packed sequences: {fault}")
        warnings.warn(f"batches are padded: {name} cannot be given packed sequences: {fault}", stacklevel=3)
        return False

    def _shares_prompts(self, asked: bool) -> bool:
        """Whether responses can stand behind one copy of their prompt, see `sharing_fault`."""
        if self.packed:
            raise ValueError("share_prompts=True and packed_batches=True are two layouts of one batch; choose one")
        parameters = inspect.signature(inner_model(self.bare).forward).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            self.forward_arguments.add(SHARED_PROMPTS)
        fault = use_prompt_attention(self.bare)
        if fault is None:
            arguments = (input_embeddings(self.bare), self.forward_arguments)
            with _trial(self.bare):
                fault = sharing_fault(
                    lambda batch: batch.predictions(self.bare(**self._inputs(batch)).logits), *arguments
                )
        if fault is not None:
            use_former_attention(self.bare)
            if asked:
                raise ValueError(f"share_prompts=True: {type(self.bare).__name__} cannot share prompts: {fault}")
        return fault is None

    def check_padding(self) -> None:
        """ValueError for a model that reads the padding in front of a short prompt, see `padding_fault`."""
        with _trial(self.bare):
            check_padding(
                type(self.bare).__name__,
                lambda batch: batch.predictions(self.bare(**self._inputs(batch)).logits),
                input_embeddings(self.bare).num_embeddings,
                self.device,
            )

    @property
    def device(self) -> torch.device:
        return input_embeddings(self.bare).weight.device

    def completion_logits(self, batch: Batch) -> Tensor:
        """Logits (B, T, V) or (N, V) that predict the tokens of a batch's responses; the prompt's are not computed."""
        return batch.predictions(self.vocabulary.silenced(self._forward(batch).logits))

    def completion_head(self, batch: Batch, head_fn: Callable[..., Any]) -> Any:
        """What head_fn makes of the hidden states (B, T, D) or (N, D) of those logits and the LM head, see
        `patch_lm_head`."""
        return self._forward(batch, head_fn=functools.partial(self._of_predictions, batch, head_fn)).result

    def _of_predictions(
        self, batch: Batch, head_fn: Callable[..., Any], hidden: Tensor, weight: Tensor, **options: Any
    ) -> Any:
        """Models without logits_to_keep give their head every position."""
        keep = self.vocabulary.keep_mask(len(weight), hidden.device)
        options |= {} if keep is None else {"keep_mask": keep}
        return head_fn(batch.predictions(hidden), weight, **options)

    def _forward(self, batch: Batch, **more: Any) -> Any:
        return self.model(**self._inputs(batch), **more)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        known = {"input_ids", "attention_mask", *self.forward_arguments}
        inputs = {name: value for name, value in batch.inputs.items() if name in known}
        return {"attention_mask": None, "use_cache": False} | inputs


@contextmanager
def _trial(model: nn.Module) -> Iterator[None]:
    """A forward before the first step, of which nothing remains."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
