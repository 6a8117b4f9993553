"""One wrong formula each: where, the right text, the wrong one, and the tests that have to notice.

The text must stand in its file exactly once, so that the table cannot outlive what it breaks. A test is a file of
tests/ and an expression of pytest's -k; it runs on the backend of the file.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    file: str  # of kernels/policy_split_kernels/, or of kernels/ where it begins with cpp/
    name: str
    text: str
    broken: str
    tests: tuple[str, ...]

    @property
    def backend(self):
        return "native" if self.file.startswith("cpp/") else "triton" if self.file.startswith("gpu/") else "torch"


LITERAL = ("losses/test_loss.py test_literal",)
STATISTICS = ("kernels/test_properties.py statistics_of_any_case",)
LOSS = ("kernels/test_properties.py loss_of_any_case",)
DIVERGENCE = ("kernels/test_properties.py divergence_of_any_case",)
MASKED = ("kernels/test_peer_mistakes.py test_ignored",)
INFINITE = ("kernels/test_peer_mistakes.py test_zero_times",)
TAIL = ("kernels/test_peer_mistakes.py test_vocabularies",)
EDGES = ("kernels/test_edges.py moves_by_more or enormous or payload or not_moved",)
PARTS = ("kernels/test_vocab_parallel.py test_parts_add_up",)
ELSEWHERE = ("kernels/test_vocab_parallel.py TestTargetElsewhere",)
HEAD = ("kernels/test_linear_handling.py every_backend",)
UPSTREAM = ("kernels/test_peer_handling.py test_every_token",)
FORWARD = ("kernels/test_forward_mode.py test_loss or test_drop_in",)
SECOND = ("kernels/test_second_derivatives.py right_gradient or impossible",)
LEARNED = ("losses/test_learned_arguments.py test_temperature or test_per_token",)
SURROGATES = ("losses/test_surrogates.py literal",)
MIXTURE = ("kernels/test_jensen_shannon.py literal or gradcheck",)
LSE = ("kernels/test_log_sum_exp.py values and float32",)
UNCOUNTED = ("losses/test_learned_arguments.py may_be_nan",)

TABLE = {
    "reference/loss.py": [
        ("clip_bounds_swapped",
         ".clamp(1 - clip_low, 1 + clip_high)", ".clamp(1 - clip_high, 1 + clip_low)", LOSS),
        ("clip_keeps_its_gradient", "torch.where(clipped, 0.0, ratio * advantages)", "ratio * advantages", LITERAL),
        ("clip_delta_ignored", "ratio if clip_delta is None else", "ratio if True else", LITERAL),
        ("k3_sign", "kl = -grad_kl - x\n", "kl = -grad_kl + x\n", LITERAL),
        ("k3_gradient_sign", "-grad_objective + scaled(", "-grad_objective - scaled(", LITERAL),
        ("entropy_bonus_sign", "grad_entropy = -weights", "grad_entropy = weights", LITERAL),
        ("weight_missing", "grad_logprobs = weights * (", "grad_logprobs = (", LITERAL),
        ("cispo_not_detached",
         "logprobs), clip_objective, clip", "logprobs), clip_objective * (1 + logprobs), clip", LOSS),
        ("cispo_clips_whatever_the_sign",
         "clip_objective < ratio * advantages\n", "clip_objective != ratio * advantages\n", LOSS),
        ("sampler_weight_not_capped",
         "torch.where(correction > sampler_cap, sampler_cap, correction)", "correction", LOSS),
        ("on_policy_ratio_without_slope",
         "sloped(logprobs, torch.ones_like(logprobs))", "torch.zeros_like(logprobs)", SECOND),
        ("cispo_weight_followed", "ratio.detach().clamp", "ratio.clamp", SECOND),
        ("sampler_weight_inverted", "(old_logprobs - sampler_logprobs)", "(sampler_logprobs - old_logprobs)", LOSS),
        ("sapo_slope_of_one_side",
         "torch.sigmoid(x) * torch.sigmoid(-x), ratio", "torch.sigmoid(x), ratio", SURROGATES),
        ("sapo_temperatures_swapped", "advantages > 0, sapo_temp", "advantages <= 0, sapo_temp", SURROGATES),
        ("corrected_kl_without_its_ratio",
         "kl = ratio * torch.where(near, kl", "kl = torch.where(near, kl", SURROGATES),
        ("corrected_kl_slope", "grad_kl = -scaled(ratio, x)", "grad_kl = scaled(ratio, x)", SURROGATES),
        ("capped_kl_has_a_slope", "(0.0, grad_kl)))", "(1.0, grad_kl)))", SURROGATES),
    ],
    "reference/logits.py": [
        ("lse_slope", "grad + grad_lse[:, None] * p", "grad - grad_lse[:, None] * p", LSE),
        ("entropy_gradient_sign", "- grad_entropy[:, None] * to", "+ grad_entropy[:, None] * to", STATISTICS),
        ("entropy_missing_in_its_gradient", "p * (log_p + entropy[:, None])", "p * log_p", STATISTICS),
        ("p_missing_at_the_target", "to(p.dtype)) - p\n", "to(p.dtype))\n", STATISTICS),
        ("inverse_temperature_missing", "grad = grad * inverse_temperature[:, None]", "pass", STATISTICS),
        ("mask_missing_in_gradient", "grad = torch.where(valid[:, None], grad, 0.0)", "pass", STATISTICS),
        ("mask_missing_in_statistics",
         "torch.where(valid, x, 0.0) for x in statistics", "x for x in statistics", STATISTICS),
        ("softcap_slope_missing", "grad * (1 - (x / softcap).square())", "grad", STATISTICS),
        ("keep_mask_ignored",
         "x = torch.where(keep_mask.reshape(x.shape) | ~valid[:, None], x, -torch.inf)", "pass", STATISTICS),
        ("keep_mask_missing_in_gradient",
         "grad = torch.where(keep_mask.reshape(grad.shape), grad, 0.0 * grad)", "pass", EDGES),
        ("zero_times_infinity", "return torch.where(log_p == -torch.inf, 0.0, x)", "return x", INFINITE),
        ("minus_infinity_times_zero", "(e * finite(d))", "(e * d)", INFINITE),
        ("elsewhere_in_the_gradient", "here[:, None].to(p.dtype)", "1.0", ELSEWHERE),
        ("elsewhere_in_the_logprob", "torch.where(here, d.gather(", "torch.where(valid, d.gather(", ELSEWHERE),
    ],
    "reference/divergence.py": [
        ("directions_swapped",
         "_mean_gap(log_p, log_q),\n        _mean_gap(log_q, log_p),",
         "_mean_gap(log_q, log_p),\n        _mean_gap(log_p, log_q),", DIVERGENCE),
        ("mean_missing_in_gradient", "own - other - infinite[:, None]", "own - other", DIVERGENCE),
        ("other_side_sign", "p - other.exp()", "other.exp() - p", DIVERGENCE),
        ("infinite_kl_has_a_gradient", "torch.where(infinite, torch.nan, 0.0)", "torch.where(infinite, 0.0, 0.0)",
         SECOND),
        ("mixture_weights_swapped",
         "rows = ((1 - beta) * kl_a + beta * kl_b,", "rows = (beta * kl_a + (1 - beta) * kl_b,",
         MIXTURE),
        ("mixture_kl_missing_in_its_gradient", "p * (gap - kl[:, None])", "p * gap", MIXTURE),
        ("impossible_token_without_slope", "impossible, -p.detach(), 0.0)", "impossible, 0.0 * p, 0.0)", SECOND),
    ],
    "reference/slopes.py": [
        ("tangent_without_slope", "return _times(slope, tangent)", "return 0 * tangent", FORWARD),
    ],
    "followed.py": [
        ("learned_arguments_unseen", "or is_followed(*others)", "", LEARNED),
    ],
    "logprobs.py": [
        ("lse_without_the_temperature", "rows.row_max * inverse_temperature + rows", "rows.row_max + rows", LSE),
    ],
    "vector_loss.py": [
        ("vespo_weight_grows", "(k * log_weight - scale *", "(k * log_weight + scale *", SURROGATES),
        ("mean_over_all_rows", "valid.view(-1, length).sum(-1, keepdim=True).clamp(min=1)",
         "0 * valid.view(-1, length).sum(-1, keepdim=True) + length", LOSS),
        ("uncounted_arguments", "name: _zero_unless(valid, x) for name", "name: x for name", UNCOUNTED),
    ],
    "vocab_parallel.py": [
        ("part_without_its_temperature", "(own_max - row_max) * inverse", "(own_max - row_max) * 0 + inverse", PARTS),
        ("moment_of_the_part_alone", "part * (log_part - entropy)", "part * (log_sum - entropy)", PARTS),
        ("target_of_the_part_alone", "here, logprobs + log_part", "here, logprobs + log_sum", PARTS),
        ("part_of_minus_infinity", "torch.where(nothing_finite, at_minus_inf, sums)", "sums", PARTS),
    ],
    "autograd.py": [
        ("upstream_gradient_ignored", "ops.call(ops.scale_rows_, formed, grad_losses.contiguous())", "pass", UPSTREAM),
        ("upstream_taken_for_one", "and float(upstream[0]) == 1", "", LOSS),
    ],
    "lm_head/products.py": [
        ("weight_gradient_of_the_last_chunk",
         "grad[:n].t(), x, start=not self._started", "grad[:n].t(), x, start=True", HEAD),
        ("hidden_gradient_of_the_last_part",
         "weight_part(part), start=part.start == 0", "weight_part(part), start=True", HEAD),
        ("bias_gradient_of_the_last_chunk", "self.bias += grad_logits", "self.bias[:] = grad_logits", HEAD),
        ("bias_missing", "_set_product(out[:, part], x, self.weight_part(part).t(), bias)",
         "_set_product(out[:, part], x, self.weight_part(part).t(), None)", HEAD),
        ("weight_gradient_in_16_bits", "return device.type == \"cpu\"", "return False", HEAD),
    ],
    "lm_head/chunks.py": [
        ("tokens_that_do_not_count", "len(places) == self._count else places", "len(places) > 0 else places", HEAD),
        ("vectors_of_the_first_tokens", "return x[self.tokens] if", "return x[: len(self.places(x.device))] if", HEAD),
        ("keep_mask_of_the_first_tokens", "places, length = chunk.places(keep_mask.device),",
         "places, length = 0 * chunk.places(keep_mask.device),", HEAD),
    ],
    "lm_head/losses.py": [
        ("weights_missing", "losses = chunk.take(self.weights) * losses", "pass", HEAD),
    ],
    "lm_head/autograd.py": [
        ("upstream_ignored", "scale_rows_(rows, scale.expand", "scale_rows_(rows, (0 * scale + 1).expand", HEAD),
        ("upstream_ignored_again", "by_entropy = (x * upstream for x in", "by_entropy = (x * 1.0 for x in", HEAD),
    ],
    "lm_head/arguments.py": [
        ("temperature_without_the_scale", "(temperature, like) * logit_scale,", "(temperature, like) * 1.0,", HEAD),
        ("softcap_without_the_scale", "else softcap / logit_scale,", "else softcap,", HEAD),
    ],
    "cpp/policy_loss.h": [
        ("clip_bounds_swapped",
         "low = 1 - terms.clip_low, high = 1 + terms.clip_high",
         "low = 1 - terms.clip_high, high = 1 + terms.clip_low", LOSS),
        ("clip_keeps_its_gradient", "clipped ? 0.0 : ratio * advantage", "ratio * advantage", LITERAL),
        ("k3_sign", "{grown - x, -grown}", "{grown + x, -grown}", LITERAL),
        ("cispo_not_detached",
         "logprob), clip_objective, clip", "logprob), clip_objective * (1 + logprob), clip", LOSS),
        ("cispo_clips_whatever_the_sign",
         "clip_objective < ratio * advantage}", "clip_objective != ratio * advantage}", LOSS),
        ("sampler_weight_not_capped",
         "correction > terms.sampler_cap ? terms.sampler_cap : correction", "correction", LOSS),
        ("sapo_slope_of_one_side", "4 * scaled(gate * rest, ratio)", "4 * scaled(gate, ratio)", SURROGATES),
        ("corrected_kl_slope", "far, -scaled(ratio, x)}", "far, scaled(ratio, x)}", SURROGATES),
        ("capped_kl_has_a_slope", "Estimate{terms.kl_cap, 0}", "Estimate{terms.kl_cap, 1}", SURROGATES),
    ],
    "cpp/mixture.h": [
        ("mixture_kl_missing_in_its_gradient", "token.p * (token.gap_p - kl_a)", "token.p * token.gap_p", MIXTURE),
        ("mixture_shares_swapped", "share = of_a ? beta : rest", "share = of_a ? rest : beta", MIXTURE),
    ],
    "cpp/rows.h": [
        ("lse_slope", "all(-(grad_logprob - grad_lse", "all(-(grad_logprob + grad_lse", LSE),
        ("lse_slope_at_the_target", "* surprise + grad_lse * p)", "* surprise)", LSE),
        ("entropy_gradient_sign", "slope = all(-grad_entropy * ln_2", "slope = all(grad_entropy * ln_2", STATISTICS),
        ("entropy_missing_in_its_gradient", "(from.entropy - from.log_sum)", "(-from.log_sum)", STATISTICS),
        ("entropy_missing_at_the_target", "p * (log_p + from.entropy)", "p * log_p", STATISTICS),
        ("inverse_temperature_missing", "unit = inverse_temperature / std::exp", "unit = 1 / std::exp", STATISTICS),
        ("moment_not_moved", "factor * (weighted + by * sum)", "factor * weighted", TAIL),
        ("last_part_lost", "if (i < end) add(0, row.part(i, end - i));", "", TAIL),
        ("zero_times_infinity", "factor == 0 ? 0 : factor * (weighted", "factor * (weighted", EDGES),
        ("elsewhere_in_the_logprob", "if (target < 0) return 0;", "if (target < 0) return -log_sum;", ELSEWHERE),
        ("nan_among_minus_infinity", "std::isnan(sums.sum) && std::isinf", "false && std::isinf", ELSEWHERE),
    ],
    "cpp/logits.h": [
        ("softcap_slope_missing", "g * (Real(1) - t * t)", "g", STATISTICS),
        ("keep_mask_ignored", "return kept != 0 ? x", "return kept == kept ? x", STATISTICS),
        ("slope_of_an_infinite_target", "std::isinf(x) ? 0 :", "std::isinf(x) ? 1 :", EDGES),
    ],
    "cpp/matrix.h": [
        ("mask_ignored", "(m.mask && !m.mask[n])", "false", MASKED),
    ],
    "cpp/divergence.h": [
        ("gap_not_rescaled", "gap_ab = moved(gap_ab + by * a.sum, by * scale)", "gap_ab += by * a.sum", DIVERGENCE),
        ("gap_not_shifted", "gap_ba -= by * b.sum;", "", DIVERGENCE),
        ("directions_swapped", "return {kl_ab, kl_ba, settled", "return {kl_ba, kl_ab, settled", DIVERGENCE),
        ("log_sums_missing_in_gradient",
         "level = of_other.log_sum - own.log_sum - kl_own", "level = -kl_own", DIVERGENCE),
        ("other_side_missing", "- other * e_other;", ";", DIVERGENCE),
        ("zero_times_infinity", "return factor == 0 ? 0 : factor * gap", "return factor * gap", EDGES),
        ("nan_lost", "if (std::isnan(total.a.weighted)) total.a.sum = total.a.weighted;", "", EDGES),
    ],
    "gpu/loss.py": [
        ("clip_bounds_swapped", "1.0 - clip_low,", "1.0 - clip_high,", LOSS),
        ("k3_sign", "grown - x)", "grown + x)", LITERAL),
        ("k3_series", "near * near * 0.5", "near * near", LITERAL),
        ("cispo_not_detached",
         "objective = _scaled(grad_objective, logprob)",
         "objective = _scaled(grad_objective, logprob)\n        grad_objective *= 1 + logprob", LOSS),
        ("cispo_clips_whatever_the_sign",
         "grad_objective < ratio * advantage", "grad_objective != ratio * advantage", LOSS),
        ("sampler_weight_not_capped", "tl.where(correction > cap, cap, correction)", "correction", LOSS),
        ("sapo_slope_of_one_side", "_scaled(gate / (1 + tl.exp(x)), ratio)", "_scaled(gate, ratio)", SURROGATES),
        ("corrected_kl_slope", "grad_kl = -_scaled(ratio, x)", "grad_kl = _scaled(ratio, x)", SURROGATES),
        ("capped_kl_has_a_slope", "tl.where(kl > cap, 0.0, grad_kl)", "tl.where(kl > cap, 1.0, grad_kl)", SURROGATES),
    ],
    "gpu/mixture.py": [
        ("mixture_kl_missing_in_its_gradient", "p * (gap_p - kl_a)", "p * gap_p", MIXTURE),
        ("mixture_weights_swapped", "rest * kl_a + beta * kl_b,", "beta * kl_a + rest * kl_b,", MIXTURE),
    ],
    "gpu/rows.py": [
        ("lse_slope", "+ kept * grad_lse -", "- kept * grad_lse -", LSE),
        ("entropy_gradient_sign", "slope = -kept * grad_entropy", "slope = kept * grad_entropy", STATISTICS),
        ("entropy_missing_in_its_gradient", "(grad_entropy * entropy + grad_logprob)", "grad_logprob", STATISTICS),
        ("inverse_temperature_missing", "tl.exp2(-offset) * inverse_temperature", "tl.exp2(-offset)", STATISTICS),
        ("moment_not_moved", "kept * (lane_moment + shift * lane_sum) + sum", "kept * lane_moment + sum", STATISTICS),
        ("elsewhere_in_the_logprob", "logprob = tl.where(target >= 0,", "logprob = tl.where(target >= -2,", ELSEWHERE),
    ],
    "gpu/tiles.py": [
        ("softcap_slope_missing", "0.0, 1 - t * t)", "0.0, 1 - t * 0)", STATISTICS),
        ("keep_mask_ignored",
         "return logits if keep is None else tl.where(keep, logits, MINUS_INF)", "return logits", STATISTICS),
    ],
    "gpu/logits.py": [
        ("mask_ignored", "valid = valid & (tl.load(mask_ptr + n) != 0)", "valid = valid & True", MASKED),
    ],
    "gpu/pairs.py": [
        ("directions_swapped", "_kl(mean_ab + log_ratio, unknown)", "_kl(mean_ba - log_ratio, unknown)", DIVERGENCE),
        ("gap_not_shifted", "kept_a * (gap_ab + gap * sum_a)", "kept_a * gap_ab", DIVERGENCE),
        ("other_side_sign", "slope * d) + to_other * other_e", "slope * d) - to_other * other_e", DIVERGENCE),
    ],
}  # fmt: skip

MUTANTS = [Mutant(file, *row) for file, rows in TABLE.items() for row in rows]
