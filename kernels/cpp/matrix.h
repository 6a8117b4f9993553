// Matrices of logits: where their rows lie, which of them count, and which thread works on which.
#pragma once

#include <omp.h>

#include <type_traits>

#include "interface.h"
#include "logits.h"
#include "pages.h"
#include "subnormals.h"

namespace policy_split {

// The rows of a matrix and what is known of each. Row: PlainRow, or TransformedRow where there are options.
template <typename Row>
struct Matrix {
  using Element = typename Row::Element;
  using Real = typename Row::Real;
  const PsMatrix& m;

  bool ignored(int64_t n) const { return (m.mask && !m.mask[n]) || (m.targets && m.targets[n] == m.ignore_index); }
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
      if (!ignored(n) && m.targets[n] != PS_ELSEWHERE && (m.targets[n] < 0 || m.targets[n] >= m.vocabulary)) return n;
    return -1;
  }

  // Each row belongs to one thread and is reduced in one order: its result does not depend on the others.
  template <typename Body>
  void for_each_row(Body body) const {
    const int chunk = int(1 + 65536 / m.vocabulary);  // neighbours' results share cache lines
    const bool parallel = m.threads > 1 && m.rows > chunk;
#pragma omp parallel num_threads(m.threads) if (parallel)
    {
      const Flush flush;
#pragma omp for schedule(dynamic, chunk)
      for (int64_t n = 0; n < m.rows; ++n) body(n);
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

// Calls run(Element{}) for the elements of this matrix.
template <typename Run>
int64_t by_dtype(const PsMatrix& m, Run run) {
  switch (m.dtype) {
    case PS_BFLOAT16:
      return run(BFloat16{});
    case PS_FLOAT16:
      return run(Half{});
    case PS_FLOAT64:
      return run(double{});
    default:
      return run(float{});
  }
}

// Calls run(Row{}) for the rows of this matrix: their elements, with options or without.
template <typename Run>
int64_t by_row(const PsMatrix& m, Run run) {
  return by_dtype(m, [&](auto element) {
    using Element = decltype(element);
    return m.keep || m.softcap == m.softcap ? run(TransformedRow<Element>{}) : run(PlainRow<Element>{});
  });
}

}  // namespace policy_split
