// The C interface that cpu/library.py opens. The structures stand there again, field by field.
#pragma once

#include <cstdint>

#define PS_INTERFACE_VERSION 5

#define PS_PUBLIC __attribute__((visibility("default")))

extern "C" {

enum PsDtype { PS_FLOAT32 = 0, PS_BFLOAT16 = 1, PS_FLOAT16 = 2, PS_FLOAT64 = 3 };

// reference.ELSEWHERE: the target of a row that counts, whose target is in no column of this matrix.
constexpr int64_t PS_ELSEWHERE = INT64_MIN;

// Row n lies at (n / rows_per_batch) * stride_b + (n % rows_per_batch) * stride_t elements; its vocabulary is
// contiguous. Vectors (N,) are double for PS_FLOAT64 and float otherwise; a stride of 0 repeats one number.
struct PsMatrix {
  const void* logits;
  void* grad_logits;  // null: no gradient
  int64_t rows, rows_per_batch, vocabulary;
  int64_t stride_b, stride_t, grad_stride_b, grad_stride_t;
  const int64_t* targets;
  const uint8_t* mask;  // null: every row counts
  int64_t ignore_index;
  const void* inverse_temperature;
  int64_t inverse_temperature_stride;
  double softcap;       // NaN: none
  const uint8_t* keep;  // null: every token; else as the logits, with strides of its own
  int64_t keep_stride_b, keep_stride_t;
  int32_t dtype, threads;
};

struct PsStatistics {
  void *logprobs, *entropy, *row_max, *log_sum;
};

struct PsLoss {
  const void *advantages, *old_logprobs, *ref_logprobs, *sampler_logprobs;  // the last three may be null
  const void *weights, *entropy_coef, *kl_coef;
  int64_t surrogate, kl_weighted;  // position in contract.SURROGATES; 0 or 1
  double clip_low, clip_high, clip_delta, sampler_cap, sapo_positive, sapo_negative, kl_cap;  // NaN: no delta, no cap
  void *losses, *kl;
  uint8_t* clipped;
  void *grad_logprobs, *grad_entropy;
};

// (N,) each.
struct PsDivergence {
  void *kl_ab, *kl_ba, *entropy_a, *entropy_b, *max_a, *log_sum_a, *max_b, *log_sum_b;
};

struct PsPairUpstream {
  const void *kl_ab, *kl_ba, *entropy_a, *entropy_b;
};

// (N,) each; beta is above 0 and below 1.
struct PsMixture {
  double beta;
  void *divergence, *kl_a, *kl_b, *max_a, *log_sum_a, *max_b, *log_sum_b;
};

// Both return the first row whose target lies outside the vocabulary, before anything is written, or -1.
PS_PUBLIC int64_t ps_logprobs_entropy(const PsMatrix* matrix, const PsStatistics* out);
PS_PUBLIC int64_t ps_dual_mode_loss(const PsMatrix* matrix, const PsStatistics* out, const PsLoss* loss);

// From the statistics of an earlier call; reads row_max, log_sum and entropy. grad_lse may be null.
PS_PUBLIC int64_t ps_logprobs_entropy_gradient(const PsMatrix* matrix, const PsStatistics* from,
                                               const void* grad_logprobs, const void* grad_entropy,
                                               const void* grad_lse);

// Rows, mask and temperature of `a` hold for both; targets are null. The gradients go where each matrix says.
PS_PUBLIC void ps_divergence(const PsMatrix* a, const PsMatrix* b, const PsDivergence* out);
PS_PUBLIC void ps_divergence_gradient(const PsMatrix* a, const PsMatrix* b, const PsDivergence* from,
                                      const PsPairUpstream* upstream);

// The same for the generalised Jensen-Shannon divergence; rows whose upstream gradient is 0 are not read.
PS_PUBLIC void ps_jensen_shannon(const PsMatrix* a, const PsMatrix* b, const PsMixture* out);
PS_PUBLIC void ps_jensen_shannon_gradient(const PsMatrix* a, const PsMatrix* b, const PsMixture* from,
                                          const void* upstream);

// grad_logits *= scale, row by row, in place.
PS_PUBLIC void ps_scale_rows(const PsMatrix* matrix, const void* scale);

PS_PUBLIC int64_t ps_interface_version();
PS_PUBLIC const char* ps_instruction_set();
}
