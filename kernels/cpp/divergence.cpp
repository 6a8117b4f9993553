// The operations on two matrices of logits with the same rows: what is read and written of each pair.
#include "divergence.h"

#include "matrix.h"
#include "mixture.h"

namespace policy_split {
namespace {

template <typename Row>
void divergence(const PsMatrix& of_a, const PsMatrix& of_b, const PsDivergence& out) {
  using Real = typename Row::Real;
  const Matrix<Row> a{of_a}, b{of_b};
  a.for_each_row([&](int64_t n) {
    RowDivergence row = {};
    if (!a.ignored(n)) row = row_divergence(a.row(n), b.row(n), of_a.vocabulary, a.inverse_temperature(n));
    put<Real>(out.kl_ab, n, row.kl_ab);
    put<Real>(out.kl_ba, n, row.kl_ba);
    put<Real>(out.entropy_a, n, row.a.entropy);
    put<Real>(out.entropy_b, n, row.b.entropy);
    put<Real>(out.max_a, n, row.a.max);
    put<Real>(out.log_sum_a, n, row.a.log_sum);
    put<Real>(out.max_b, n, row.b.max);
    put<Real>(out.log_sum_b, n, row.b.log_sum);
  });
}

template <typename Row>
void write(const Matrix<Row>& a, const Matrix<Row>& b, int64_t n, const RowDivergence& from, const PairUpstream& up) {
  const bool streamed = (!a.m.grad_logits || a.streamed(n)) && (!b.m.grad_logits || b.streamed(n));
  const auto gradient = streamed ? row_divergence_gradient<true, Row> : row_divergence_gradient<false, Row>;
  const double inverse_temperature = a.inverse_temperature(n);
  auto* grad_a = a.m.grad_logits ? a.grad(n) : nullptr;
  auto* grad_b = b.m.grad_logits ? b.grad(n) : nullptr;
  if (up.kl_ab != 0 || up.kl_ba != 0) {
    gradient(a.row(n), b.row(n), grad_a, grad_b, a.m.vocabulary, inverse_temperature, from, up);
  } else {
    // Each entropy by itself, where something comes from above: a NaN in the other row is none of its business.
    const RowDivergence of_a = {0, 0, from.a, from.a}, of_b = {0, 0, from.b, from.b};
    up.entropy_a == 0 ? a.zero_gradient(n)
                      : gradient(a.row(n), a.row(n), grad_a, nullptr, a.m.vocabulary, inverse_temperature, of_a, up);
    up.entropy_b == 0 ? b.zero_gradient(n)
                      : gradient(b.row(n), b.row(n), nullptr, grad_b, a.m.vocabulary, inverse_temperature, of_b, up);
  }
  stream_end();
}

template <typename Row>
void gradient(const PsMatrix& of_a, const PsMatrix& of_b, const PsDivergence& from, const PsPairUpstream& up) {
  using Real = typename Row::Real;
  const Matrix<Row> a{of_a}, b{of_b};
  a.prepare_gradient();
  b.prepare_gradient();
  a.for_each_row([&](int64_t n) {
    if (a.ignored(n)) return a.zero_gradient(n), b.zero_gradient(n);
    const RowStatistics row_a = {get<Real>(from.max_a, n), get<Real>(from.entropy_a, n), 0,
                                 get<Real>(from.log_sum_a, n)};
    const RowStatistics row_b = {get<Real>(from.max_b, n), get<Real>(from.entropy_b, n), 0,
                                 get<Real>(from.log_sum_b, n)};
    write(a, b, n, {get<Real>(from.kl_ab, n), get<Real>(from.kl_ba, n), row_a, row_b},
          {get<Real>(up.kl_ab, n), get<Real>(up.kl_ba, n), get<Real>(up.entropy_a, n), get<Real>(up.entropy_b, n)});
  });
}

template <typename Row>
void mixture(const PsMatrix& of_a, const PsMatrix& of_b, const PsMixture& out) {
  using Real = typename Row::Real;
  const Matrix<Row> a{of_a}, b{of_b};
  a.for_each_row([&](int64_t n) {
    RowMixture row = {};
    if (!a.ignored(n)) row = row_mixture(a.row(n), b.row(n), of_a.vocabulary, a.inverse_temperature(n), out.beta);
    put<Real>(out.divergence, n, (1 - out.beta) * row.kl_a + out.beta * row.kl_b);
    put<Real>(out.kl_a, n, row.kl_a);
    put<Real>(out.kl_b, n, row.kl_b);
    put<Real>(out.max_a, n, row.a.max);
    put<Real>(out.log_sum_a, n, row.a.log_sum);
    put<Real>(out.max_b, n, row.b.max);
    put<Real>(out.log_sum_b, n, row.b.log_sum);
  });
}

template <typename Row>
void mixture_gradient(const PsMatrix& of_a, const PsMatrix& of_b, const PsMixture& from, const void* upstream) {
  using Real = typename Row::Real;
  const Matrix<Row> a{of_a}, b{of_b};
  a.prepare_gradient();
  b.prepare_gradient();
  a.for_each_row([&](int64_t n) {
    if (a.ignored(n) || get<Real>(upstream, n) == 0) return a.zero_gradient(n), b.zero_gradient(n);
    const RowStatistics row_a = {get<Real>(from.max_a, n), 0, 0, get<Real>(from.log_sum_a, n)};
    const RowStatistics row_b = {get<Real>(from.max_b, n), 0, 0, get<Real>(from.log_sum_b, n)};
    row_mixture_gradient(a.row(n), b.row(n), of_a.grad_logits ? a.grad(n) : nullptr,
                         of_b.grad_logits ? b.grad(n) : nullptr, of_a.vocabulary, a.inverse_temperature(n), from.beta,
                         {get<Real>(from.kl_a, n), get<Real>(from.kl_b, n), row_a, row_b}, get<Real>(upstream, n));
  });
}

}  // namespace
}  // namespace policy_split

using namespace policy_split;

void ps_divergence(const PsMatrix* a, const PsMatrix* b, const PsDivergence* out) {
  by_dtype(*a, [&](auto element) { return divergence<PlainRow<decltype(element)>>(*a, *b, *out), 0; });
}

void ps_divergence_gradient(const PsMatrix* a, const PsMatrix* b, const PsDivergence* from, const PsPairUpstream* up) {
  by_dtype(*a, [&](auto element) { return gradient<PlainRow<decltype(element)>>(*a, *b, *from, *up), 0; });
}

void ps_jensen_shannon(const PsMatrix* a, const PsMatrix* b, const PsMixture* out) {
  by_dtype(*a, [&](auto element) { return mixture<PlainRow<decltype(element)>>(*a, *b, *out), 0; });
}

void ps_jensen_shannon_gradient(const PsMatrix* a, const PsMatrix* b, const PsMixture* from, const void* upstream) {
  by_dtype(*a, [&](auto element) { return mixture_gradient<PlainRow<decltype(element)>>(*a, *b, *from, upstream), 0; });
}
