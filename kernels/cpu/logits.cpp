// The operations on matrices of logits: which rows are read, by which thread, and what is written for each.
#include <omp.h>

#include <type_traits>

#include "interface.h"
#include "pages.h"
#include "policy_loss.h"
#include "rows.h"
#include "subnormals.h"

namespace policy_split {
namespace {

// The rows of a matrix and what is known of each. Row: PlainRow, or TransformedRow where there are options.
template <typename Row>
struct Matrix {
  using Element = typename Row::Element;
  using Real = typename Row::Real;
  const PsMatrix& m;

  bool ignored(int64_t n) const { return (m.mask && !m.mask[n]) || m.targets[n] == m.ignore_index; }
  int64_t offset(int64_t n, int64_t stride_b, int64_t stride_t) const {
    return (n / m.rows_per_batch) * stride_b + (n % m.rows_per_batch) * stride_t;
  }
  Row row(int64_t n) const {
    const Element* z = (const Element*)m.logits + offset(n, m.stride_b, m.stride_t);
    if constexpr (std::is_same_v<Row, PlainRow<Element>>)
      return {z};
    else
      return {{z}, m.keep ? m.keep + offset(n, m.keep_stride_b, m.keep_stride_t) : nullptr, Real(m.softcap)};
  }
  Element* grad(int64_t n) const { return (Element*)m.grad_logits + offset(n, m.grad_stride_b, m.grad_stride_t); }
  double inverse_temperature(int64_t n) const {
    return ((const Real*)m.inverse_temperature)[n * m.inverse_temperature_stride];
  }

  int64_t first_bad_target() const {
    for (int64_t n = 0; n < m.rows; ++n)
      if (!ignored(n) && (m.targets[n] < 0 || m.targets[n] >= m.vocabulary)) return n;
    return -1;
  }

  // Each row belongs to one thread and is reduced in one order: its result does not depend on the others.
  template <typename Body>
  void for_each_row(Body body) const {
    const int chunk = int(1 + 16384 / m.vocabulary);
    const bool parallel = m.threads > 1 && m.rows > chunk;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(m.threads) if (parallel)
    for (int64_t n = 0; n < m.rows; ++n) {
      const Flush flush;
      body(n);
    }
  }

  void prepare_gradient() const {
    if (m.grad_logits && m.grad_logits != m.logits && m.grad_stride_t == m.vocabulary)
      advise_huge_pages(m.grad_logits, m.rows * m.vocabulary * sizeof(Element));
  }
  // A gradient that is larger than any cache goes past them; one that is written over its logits is in them already.
  bool streamed(int64_t n) const {
    constexpr int64_t large = int64_t(32) << 20;
    return m.grad_logits != m.logits && m.rows * m.vocabulary * int64_t(sizeof(Element)) > large &&
           uintptr_t(grad(n)) % PS_VECTOR_BYTES == 0;
  }
  void write_gradient(int64_t n, double inverse_temperature, const RowStatistics& statistics, double grad_logprob,
                      double grad_entropy) const {
    const auto write = streamed(n) ? row_gradient<true, Row> : row_gradient<false, Row>;
    write(row(n), grad(n), m.vocabulary, m.targets[n], inverse_temperature, statistics, grad_logprob, grad_entropy);
    stream_end();
  }
  void zero_gradient(int64_t n) const {
    if (m.grad_logits) std::memset((void*)grad(n), 0, m.vocabulary * sizeof(Element));
  }
};

template <typename Real>
void put(void* vector, int64_t n, double x) {
  ((Real*)vector)[n] = Real(x);
}
template <typename Real>
double get(const void* vector, int64_t n) {
  return ((const Real*)vector)[n];
}

template <typename Real>
void put_statistics(const PsStatistics& out, int64_t n, const RowStatistics& row) {
  put<Real>(out.logprobs, n, row.logprob);
  put<Real>(out.entropy, n, row.entropy);
  put<Real>(out.row_max, n, row.max);
  put<Real>(out.log_sum, n, row.log_sum);
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
int64_t gradient(const PsMatrix& m, const PsStatistics& from, const void* grad_logprobs, const void* grad_entropy) {
  using Real = typename Row::Real;
  const Matrix<Row> matrix{m};
  const int64_t bad = matrix.first_bad_target();
  if (bad >= 0) return bad;
  matrix.prepare_gradient();
  matrix.for_each_row([&](int64_t n) {
    if (matrix.ignored(n)) return matrix.zero_gradient(n);
    const double inverse_temperature = matrix.inverse_temperature(n);
    RowStatistics row = {get<Real>(from.row_max, n), get<Real>(from.entropy, n), 0, get<Real>(from.log_sum, n)};
    row.logprob = target_logprob(matrix.row(n), m.targets[n], inverse_temperature, row.max, row.log_sum);
    matrix.write_gradient(n, inverse_temperature, row, get<Real>(grad_logprobs, n), get<Real>(grad_entropy, n));
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
  return token_loss(row.logprob, row.entropy,
                    {get<Real>(loss.advantages, n), get<Real>(loss.weights, n), get<Real>(loss.entropy_coef, n),
                     get<Real>(loss.kl_coef, n), optional(0, loss.old_logprobs), optional(1, loss.ref_logprobs),
                     optional(2, loss.sampler_logprobs)},
                    {Surrogate(loss.surrogate), loss.clip_low, loss.clip_high, loss.clip_delta, loss.sampler_cap});
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
      const double inverse_temperature = matrix.inverse_temperature(n);
      row = row_statistics(matrix.row(n), m.vocabulary, m.targets[n], inverse_temperature);
      result = token<Real>(loss, n, row);
      if (m.grad_logits)  // the row is still in this core's cache
        matrix.write_gradient(n, inverse_temperature, row, result.grad_logprob, result.grad_entropy);
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
    if (i < m.vocabulary) store_part(x + i, m.vocabulary - i, load_part(x + i, m.vocabulary - i, Real(0)) * factors);
  });
  return -1;
}

// Calls run(Row{}) for the rows of this matrix: their element type, and options or none.
template <typename Element, typename Run>
int64_t by_options(const PsMatrix& m, Run run) {
  return m.keep || m.softcap == m.softcap ? run(TransformedRow<Element>{}) : run(PlainRow<Element>{});
}
template <typename Run>
int64_t by_row(const PsMatrix& m, Run run) {
  switch (m.dtype) {
    case PS_BFLOAT16:
      return by_options<BFloat16>(m, run);
    case PS_FLOAT16:
      return by_options<Half>(m, run);
    case PS_FLOAT64:
      return by_options<double>(m, run);
    default:
      return by_options<float>(m, run);
  }
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
                                     const void* grad_entropy) {
  return by_row(*m, [&](auto row) { return gradient<decltype(row)>(*m, *from, grad_logprobs, grad_entropy); });
}

void ps_scale_rows(const PsMatrix* m, const void* scale) {
  by_row(*m, [&](auto row) { return scale_rows<decltype(row)>(*m, scale); });
}

int64_t ps_interface_version() { return PS_INTERFACE_VERSION; }

const char* ps_instruction_set() { return PS_INSTRUCTION_SET; }
