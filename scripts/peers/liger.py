"""Liger's GRPO losses, selected log-probs, scaled cross-entropy and Jensen-Shannon divergence, computed by ours."""

import warnings

import torch
from torch import nn

from policy_split import (
    dual_mode_loss,
    jensen_shannon_divergence,
    linear_dual_mode_loss,
    linear_logprobs_and_entropy,
    logprobs_and_entropy,
)
from policy_split.losses.weights import token_weights

WEIGHTS = {"sapo": "grpo", "cispo": "dapo", "vespo": "dapo"}  # the same as


def _settings(loss_type, level, eps_low, eps_high, delta, sapo, vespo, corrected, beta):
    """Ours of theirs; what we refuse raises here or in our function."""
    if loss_type == "luspo":
        raise NotImplementedError("loss_type='luspo'")
    settings = {"kl_coef": (beta,), "entropy_coef": (0.0,), "use_bias_correction_kl": corrected}
    if loss_type == "sapo":
        return settings | {"surrogate": "sapo", "sapo_temperature": sapo, "ratio_level": level}
    if loss_type == "vespo":
        k, scale = (vespo[0], vespo[2]), (vespo[1], vespo[3])
        return settings | {"surrogate": "vespo", "ratio_level": "sequence", "vespo_k": k, "vespo_lambda": scale}
    if loss_type == "cispo":  # a cap without a lower bound
        settings |= {"surrogate": "cispo", "clip_low": 1.0, "clip_high": eps_high - 1.0}
    else:
        settings |= {"clip_low": eps_low, "clip_high": eps_high, "clip_delta": delta}
    return settings | {"ratio_level": level}


def _sampler(ratio, old, own):
    """Log-probs of a sampler whose correction is this ratio: (B,), (B, 1) or (B, T)."""
    if ratio is None:
        return {}
    ratio = ratio[:, None] if ratio.ndim == 1 else ratio
    old = own() if old is None else old
    return {"old_logprobs": old, "sampler_logprobs": old - ratio.expand_as(old).float().log(), "sampler_cap": 1e30}


def _tokens(advantages, ids):
    return {"advantages": advantages[:, None].expand(ids.shape).float(), "mode": torch.zeros_like(ids)}


def _weights(mask, loss_type, max_completion_length, items):
    if items is not None and loss_type in ("dapo", "cispo", "vespo"):
        return mask / items
    length = max_completion_length or mask.shape[1]
    return token_weights(mask, WEIGHTS.get(loss_type, loss_type), max_completion_length=length)


def _metrics(out, mask, beta):
    count = mask.sum().clamp(min=1.0)
    means = [(x.float() * mask).sum() / count for x in (out.kl, out.clipped)]
    return means if beta != 0.0 else means[1:]


def triton_grpo_loss(
    logits, old_logp, ref_logp, completion_ids, advantages, completion_mask=None, temperature=0.9, beta=0.04,
    eps_low=0.2, eps_high=0.4, inplace=True, loss_type="dapo", max_completion_length=None,
    importance_sampling_level="token", reduce=False, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
    vllm_is_ratio=None, delta=None, use_bias_correction_kl=False, num_items_in_batch=None,
    vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
):  # fmt: skip
    rows = logits[:, :-1]
    settings = _settings(
        loss_type, importance_sampling_level, eps_low, eps_high, delta, (sapo_temperature_pos, sapo_temperature_neg),
        (vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg), use_bias_correction_kl, beta,
    )  # fmt: skip
    options = {"old_logprobs": old_logp, "temperature": temperature, "mask": completion_mask}
    options |= _sampler(vllm_is_ratio, old_logp, lambda: selective_log_softmax(logits, completion_ids, temperature))
    mask = torch.ones(completion_ids.shape) if completion_mask is None else completion_mask.float()
    reduction = {"reduction": "none"}
    if reduce:
        reduction = {"weights": _weights(mask, loss_type, max_completion_length, num_items_in_batch)}
    out = dual_mode_loss(
        rows, completion_ids, **_tokens(advantages, completion_ids), **options, **settings, **reduction,
        ref_logprobs=ref_logp if beta != 0.0 else None,
    )  # fmt: skip
    if reduce:
        return out.loss, _metrics(out, mask, beta)
    return out.loss, out.kl if beta != 0.0 else None, out.clipped.float()


@torch.no_grad()
def selective_log_softmax(logits, ids, temperature=0.9, mask=None):
    rows = logits[:, :-1]
    return logprobs_and_entropy(rows, ids[:, -rows.shape[1] :], temperature=temperature, mask=mask).logprobs


class FusedLinearGRPOLoss(nn.Module):
    def __init__(
        self, beta=0.04, compiled=True, use_ref_model=True, chunk_size=1, epsilon_low=0.2, epsilon_high=0.2,
        loss_type="dapo", max_completion_length=None, importance_sampling_level="token", sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05, temperature=1.0, delta=None, use_bias_correction_kl=False,
        vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
    ):  # fmt: skip
        super().__init__()
        self.beta, self.use_ref_model, self.temperature = beta, use_ref_model, temperature
        self.loss_type, self.max_completion_length = loss_type, max_completion_length
        self.settings = (
            loss_type, importance_sampling_level, epsilon_low, epsilon_high, delta,
            (sapo_temperature_pos, sapo_temperature_neg),
            (vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg), use_bias_correction_kl, beta,
        )  # fmt: skip

    def forward(
        self, _input, lin_weight, selected_token_ids, attention_mask, advantages, bias=None, ref_per_token_logps=None,
        old_per_token_logps=None, ref_input=None, ref_weight=None, ref_bias=None, vllm_is_ratio=None,
        num_items_in_batch=None,
    ):  # fmt: skip
        def logprobs(hidden, weight, offset):
            with torch.no_grad():
                return linear_logprobs_and_entropy(
                    hidden, weight, selected_token_ids, bias=offset, temperature=self.temperature
                ).logprobs

        if ref_per_token_logps is not None and ref_input is not None:
            warnings.warn("Using ref_per_token_logps", UserWarning, stacklevel=2)
        if ref_per_token_logps is None and self.beta != 0.0:
            given = (ref_input, ref_weight, ref_bias) if self.use_ref_model else (_input, lin_weight, bias)
            ref_per_token_logps = logprobs(*given)
        options = {"old_logprobs": old_per_token_logps}
        options |= _sampler(vllm_is_ratio, old_per_token_logps, lambda: logprobs(_input, lin_weight, bias))
        mask = attention_mask.float()
        out = linear_dual_mode_loss(
            _input, lin_weight, selected_token_ids, bias=bias, mask=attention_mask, temperature=self.temperature,
            weights=_weights(mask, self.loss_type, self.max_completion_length, num_items_in_batch),
            ref_logprobs=ref_per_token_logps if self.beta != 0.0 else None,
            **_tokens(advantages, selected_token_ids), **options, **_settings(*self.settings),
        )  # fmt: skip
        return out.loss, _metrics(out, mask, self.beta)


class ScaledCrossEntropy:
    """-log-prob, entropy and the log-probs of K more tokens of every row."""

    @staticmethod
    def apply(x, weight, target, temperature=1.0, ignore_index=-100, entropy=False, ids=None):
        targets = torch.where(target != ignore_index, target, -100)
        logprobs, of_rows = linear_logprobs_and_entropy(x, weight, targets, temperature=temperature)
        result = [-logprobs, of_rows.to(x.dtype)] if entropy else [-logprobs]
        if ids is not None:
            shape = (len(targets), len(ids))
            each = torch.where(targets[:, None] >= 0, ids, -100).reshape(-1)
            repeated = x.repeat_interleave(len(ids), 0)
            selected = linear_logprobs_and_entropy(repeated, weight, each, temperature=temperature).logprobs
            result.append(selected.view(shape))
        return tuple(result) if len(result) > 1 else result[0]


class FusedLinearJSD(nn.Module):
    def __init__(self, jsd_beta=0.5, ignore_index=-100, temperature=1.0):
        super().__init__()
        self.beta, self.ignore_index, self.temperature = jsd_beta, ignore_index, temperature

    def forward(self, student_input, student_weight, teacher_input, teacher_weight, shift_labels=None):
        student, teacher = (
            nn.functional.linear(x, w) for x, w in ((student_input, student_weight), (teacher_input, teacher_weight))
        )
        mask = None if shift_labels is None else shift_labels != self.ignore_index
        rows = jensen_shannon_divergence(
            student, teacher.detach(), beta=self.beta, temperature=self.temperature, mask=mask
        )
        count = len(student) if mask is None else mask.sum().clamp(min=1)
        return (rows.sum() / count).to(student.dtype)


def stand_in() -> None:
    """Before the tests import what they test."""
    import liger_kernel.chunked_loss
    import liger_kernel.ops.grpo_loss
    import liger_kernel.transformers.fused_linear_jsd
    import liger_kernel.transformers.grpo_loss

    liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss = FusedLinearGRPOLoss
    liger_kernel.transformers.grpo_loss.triton_grpo_loss = triton_grpo_loss
    liger_kernel.ops.grpo_loss.fused_selective_log_softmax = selective_log_softmax
    liger_kernel.transformers.fused_linear_jsd.LigerFusedLinearJSD = FusedLinearJSD


def stand_in_of_module(module) -> None:
    """Of a module of tests that has loaded Liger's source from its file."""
    if hasattr(module, "_FRONTEND"):
        module._FRONTEND._FusedLinearPPOFallbackFunction = ScaledCrossEntropy
