"""Tiny models of many families, from scratch."""

import torch
import transformers

V = 61  # no multiple of a vector's lanes
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32} | {
    f"{name}_pdrop": 0.0 for name in ("attn", "embd", "resid")
}
SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = {
    "llama": ("Llama", SIZES),
    "qwen3 tied": ("Qwen3", SIZES | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2", SIZES | {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),  # tied
    "gpt2": ("GPT2", GPT2 | {"bos_token_id": 1, "eos_token_id": 2}),  # tied
    "mixtral": ("Mixtral", SIZES | EXPERTS),
    "mixtral router": ("Mixtral", SIZES | EXPERTS | {"output_router_logits": True, "router_aux_loss_coef": 0.1}),
    "cohere": ("Cohere", {k: v for k, v in SIZES.items() if k != "head_dim"} | {"logit_scale": 0.25}),  # tied
    "granite": ("Granite", {k: v for k, v in SIZES.items() if k != "head_dim"} | {"logits_scaling": 4.0}),
}


def made(kind="llama", **options):
    family, settings = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**settings | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}")(config)
        with torch.no_grad():  # distributions that differ; initial weights are nearly uniform
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(8.0)
    return model.eval()
