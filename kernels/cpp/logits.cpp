// The operations on a matrix of logits: what is read and written of each row.
#include "matrix.h"
#include "policy_loss.h"
#include "rows.h"

namespace policy_split {
namespace {

template <typename Real>
void put_statistics(const PsStatistics& out, int64_t n, const RowStatistics& row) {
  put<Real>(out.logprobs, n, row.logprob);
  put<Real>(out.entropy, n, row.entropy);
  put<Real>(out.row_max, n, row.max);
  put<Real>(out.log_sum, n, row.log_sum);
}

template <typename Row>
void write_gradient(const Matrix<Row>& matrix, int64_t n, const RowStatistics& row, double grad_logprob,
                    double grad_entropy, double grad_lse) {
  const auto write = matrix.streamed(n) ? row_gradient<true, Row> : row_gradient<false, Row>;
  write(matrix.row(n), matrix.grad(n), matrix.m.vocabulary, matrix.m.targets[n], matrix.inverse_temperature(n), row,
        grad_logprob, grad_entropy, grad_lse);
  stream_end();
}

template <typename Row>
int64_t statistics(const PsMatrix& m, const PsStatistics& out) {
  const Matrix<Row> matrix{m};
  const int64_t bad = matrix.first_bad_target();
  if (bad >= 0) return bad;
  matrix.for_each_row([&](int64_t n) {
    RowStatistics row = {};
    if (!matrix.ignored(n))
      row = row_statistics(matrix.row(n), m.vocabulary, m.targets[n], matrix.inverse_temperature(n));
    put_statistics<typename Row::Real>(out, n, row);
  });
  return -1;
}

template <typename Row>
int64_t gradient(const PsMatrix& m, const PsStatistics& from, const void* grad_logprobs, const void* grad_entropy,
                 const void* grad_lse) {
  using Real = typename Row::Real;
  const Matrix<Row> matrix{m};
  const int64_t bad = matrix.first_bad_target();
  if (bad >= 0) return bad;
  matrix.prepare_gradient();
  matrix.for_each_row([&](int64_t n) {
    if (matrix.ignored(n)) return matrix.zero_gradient(n);
    RowStatistics row = {get<Real>(from.row_max, n), get<Real>(from.entropy, n), 0, get<Real>(from.log_sum, n)};
    row.logprob = target_logprob(matrix.row(n), m.targets[n], matrix.inverse_temperature(n), row.max, row.log_sum);
    write_gradient(matrix, n, row, get<Real>(grad_logprobs, n), get<Real>(grad_entropy, n),
                   grad_lse ? get<Real>(grad_lse, n) : 0);
  });
  return -1;
}

template <typename Real>
TokenLoss token(const PsLoss& loss, int64_t n, const RowStatistics& row) {
  double values[3];
  auto optional = [&](int k, const void* vector) -> const double* {
    if (!vector) return nullptr;
    values[k] = get<Real>(vector, n);
    return &values[k];
  };
  const double logprob = Real(row.logprob);  // as it is returned: equal old log-probs make a ratio of 1
  return token_loss(logprob, row.entropy,
                    {get<Real>(loss.advantages, n), get<Real>(loss.weights, n), get<Real>(loss.entropy_coef, n),
                     get<Real>(loss.kl_coef, n), optional(0, loss.old_logprobs), optional(1, loss.ref_logprobs),
                     optional(2, loss.sampler_logprobs)},
                    {Surrogate(loss.surrogate), loss.clip_low, loss.clip_high, loss.clip_delta, loss.sampler_cap,
                     loss.sapo_positive, loss.sapo_negative, loss.kl_weighted != 0, loss.kl_cap});
}

template <typename Row>
int64_t dual_mode_loss(const PsMatrix& m, const PsStatistics& out, const PsLoss& loss) {
  using Real = typename Row::Real;
  const Matrix<Row> matrix{m};
  const int64_t bad = matrix.first_bad_target();
  if (bad >= 0) return bad;
  matrix.prepare_gradient();
  matrix.for_each_row([&](int64_t n) {
    RowStatistics row = {};
    TokenLoss result = {};
    if (matrix.ignored(n)) {
      matrix.zero_gradient(n);
    } else {
      row = row_statistics(matrix.row(n), m.vocabulary, m.targets[n], matrix.inverse_temperature(n));
      result = token<Real>(loss, n, row);
      if (m.grad_logits)  // the row is still in this core's cache
        write_gradient(matrix, n, row, result.grad_logprob, result.grad_entropy, 0);
    }
    put_statistics<Real>(out, n, row);
    put<Real>(loss.losses, n, result.loss);
    put<Real>(loss.kl, n, result.kl);
    put<Real>(loss.grad_logprobs, n, result.grad_logprob);
    put<Real>(loss.grad_entropy, n, result.grad_entropy);
    loss.clipped[n] = result.clipped;
  });
  return -1;
}

template <typename Row>
int64_t scale_rows(const PsMatrix& m, const void* scale) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  const Matrix<Row> matrix{m};
  matrix.for_each_row([&](int64_t n) {
    const double factor = get<Real>(scale, n);
    if (factor == 1) return;
    const Vector<Real> factors = splat<Real>(Real(factor));
    auto* x = matrix.grad(n);
    int64_t i = 0;
    for (; i + width <= m.vocabulary; i += width) store(x + i, load(x + i) * factors);
    if (i < m.vocabulary) store_part(x + i, m.vocabulary - i, load_part(x + i, m.vocabulary - i, {}) * factors);
  });
  return -1;
}

}  // namespace
}  // namespace policy_split

using namespace policy_split;

int64_t ps_logprobs_entropy(const PsMatrix* m, const PsStatistics* out) {
  return by_row(*m, [&](auto row) { return statistics<decltype(row)>(*m, *out); });
}

int64_t ps_dual_mode_loss(const PsMatrix* m, const PsStatistics* out, const PsLoss* loss) {
  return by_row(*m, [&](auto row) { return dual_mode_loss<decltype(row)>(*m, *out, *loss); });
}

int64_t ps_logprobs_entropy_gradient(const PsMatrix* m, const PsStatistics* from, const void* grad_logprobs,
                                     const void* grad_entropy, const void* grad_lse) {
  return by_row(*m,
                [&](auto row) { return gradient<decltype(row)>(*m, *from, grad_logprobs, grad_entropy, grad_lse); });
}

void ps_scale_rows(const PsMatrix* m, const void* scale) {
  by_row(*m, [&](auto row) { return scale_rows<decltype(row)>(*m, scale); });
}

int64_t ps_interface_version() { return PS_INTERFACE_VERSION; }

const char* ps_instruction_set() { return PS_INSTRUCTION_SET; }
