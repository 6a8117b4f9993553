"""Which tests of which package are run, what of them is left out, and where we differ on purpose."""

from typing import NamedTuple


class Suite(NamedTuple):
    package: str
    version: str
    folder: str  # where it is run
    paths: tuple[str, ...]  # to import from, in it
    tests: dict[str, tuple[str, ...]]  # file -> functions
    left_out: tuple[str, ...]  # of their cases: pieces of their names
    largest: int  # product of a case's sizes B, T, V (M, N)
    differences: dict[str, str]  # cases that have to fail, by a pattern of their names -> why
    gpu: bool = False  # written for device="cuda"


LIGER = Suite(
    "liger-kernel", "0.8.5", "liger_kernel-0.8.5", ("src", "."),
    {
        "test/chunked_loss/test_grpo_loss.py": (
            "test_correctness", "test_correctness_with_bias_correction_kl", "test_correctness_with_vllm_is_ratio",
            "test_num_items_in_batch_normalizer", "test_num_items_in_batch_matches_trl_formula",
            "test_triton_grpo_loss_matches_reference", "test_grpo_frozen_lm_head",
            "test_ref_per_token_logps_preferred_over_ref_input",
        ),
        "test/transformers/test_grpo_loss.py": (
            "test_grpo_loss_with_delta", "test_grpo_loss_with_bias_correction_kl", "test_grpo_loss_vs_trl",
            "test_triton_num_items_in_batch_normalizer", "test_grpo_loss_with_vllm_is_ratio_reduced",
            "test_grpo_loss_with_vllm_is_ratio", "test_grpo_loss_sequence_backward_matches_reference",
            "test_cispo_loss", "test_sapo_loss",
        ),
        "test/transformers/test_fused_linear_jsd.py": (
            "test_low_probability_vocab_block_is_finite", "test_correctness", "test_correctness_with_ignore_index",
        ),
        "test/transformers/test_fused_linear_scaled_cross_entropy.py": (
            "test_frontend_fallback_matches_torch_with_entropy_and_ignored_rows",
            "test_frontend_fallback_returns_only_nll_when_entropy_is_disabled",
            "test_frontend_fallback_supports_entropy_only_backward",
        ),
        "test/transformers/test_fused_linear_selected_log_probs.py": (
            "test_selected_outputs_and_combined_gradients", "test_independent_output_backward",
            "test_empty_selection_and_ignored_rows", "test_noncontiguous_inputs_and_larger_selection",
            "test_genrank_objectives", "test_frontend_cpu_selected_output",
        ),
    },
    ("cutile", "sm90"), 4_000_000,
    {
        "luspo": "there is no loss_type luspo",
        r"test_correctness\S*\[\S*cispo|test_num_items_in_batch\w*\[cispo|_with_vllm_is_ratio\[cispo":
            "CISPO with a cap of the ratio below 1 is refused (0.1, 0.2, 0.4 here: their argument is the cap itself)",
    },
)  # fmt: skip

APPLE = Suite(
    "cut-cross-entropy", "25.1.1", "cut_cross_entropy-25.1.1", (".",),
    {
        "tests/test_cce_loss_forward.py": ("test_loss_forward",),
        "tests/test_cce_loss_backward.py": ("test_loss_backward",),
        "tests/test_cce_lse.py": ("test_lse",),
    },
    ("torch_compile",), 4_000_000, {}, gpu=True,
)  # fmt: skip

QUACK = Suite(
    "quack-kernels", "0.6.5", "quack_kernels-0.6.5", (".",),
    {
        "tests/test_cross_entropy.py": (
            "test_cross_entropy", "test_cross_entropy_extreme_values", "test_cross_entropy_numerical_stability",
            "test_cross_entropy_edge_targets", "test_cross_entropy_ignore_index_edge_cases",
            "test_cross_entropy_fwd_with_grad", "test_cross_entropy_fwd_empty", "test_cross_entropy_bwd_empty",
            "test_cross_entropy_weight_reduction", "test_cross_entropy_bwd_stride0_dloss",
        ),
        "tests/test_linear_cross_entropy.py": (
            "test_chunked_linear_cross_entropy_ignore_index",
            "test_chunked_linear_cross_entropy_no_grad", "test_chunked_linear_cross_entropy_partial_grad",
        ),
    },
    ("scaled_exp-True",), 1_000_000,
    {
        r"test_cross_entropy\[False-True-289-192-input_dtype0":
            "one of 55,488 bfloat16 gradients is in the middle of two numbers; float64 is nearer to PyTorch's",
    },
    gpu=True,
)  # fmt: skip

SUITES = {suite.package: suite for suite in (LIGER, APPLE, QUACK)}
