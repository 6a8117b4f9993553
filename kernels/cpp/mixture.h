// Generalised Jensen-Shannon divergence of two rows: the KL of each from the mixture (1 - beta) * p + beta * q.
#pragma once

#include "rows.h"

namespace policy_split {

struct RowMixture {
  double kl_a, kl_b;   // nats
  RowStatistics a, b;  // without log-prob
};

// What a token has in both rows: its probabilities, and how far the log of each is above that of the mixture.
template <typename Real>
struct TokenPair {
  Vector<Real> p, q, gap_p, gap_q;
};

// The numbers of a pair of rows that its tokens share; the logs of the sums are in base 2.
template <typename Real>
struct Mixture {
  Vector<Real> top_a, top_b, log_sum_a, log_sum_b, beta, rest, factor;

  Mixture(const RowStatistics& a, const RowStatistics& b, double share, double inverse_temperature)
      : top_a(splat<Real>(Real(a.max))),
        top_b(splat<Real>(Real(b.max))),
        log_sum_a(splat<Real>(Real(a.log_sum * log2_e))),
        log_sum_b(splat<Real>(Real(b.log_sum * log2_e))),
        beta(splat<Real>(Real(share))),
        rest(splat<Real>(Real(1 - share))),
        factor(splat<Real>(Real(inverse_temperature * log2_e))) {}

  // From the larger of p and q, so that neither their quotient nor the logarithm cancels; finite for any finite sums.
  TokenPair<Real> token(Vector<Real> a, Vector<Real> b) const {
    using Traits = VectorOf<Real>;
    const Vector<Real> least = splat<Real>(std::numeric_limits<Real>::lowest() / 4);
    const Vector<Real> floor = splat<Real>(exponent_floor<Real>);
    const Vector<Real> u = at_least<Real>(a - top_a, least), v = at_least<Real>(b - top_b, least);
    const Vector<Real> gap = (u - v) * factor + (log_sum_b - log_sum_a);  // log2 p - log2 q, before either rounds
    const auto of_a = gap >= 0;
    const Vector<Real> log_larger = of_a ? u * factor - log_sum_a : v * factor - log_sum_b;
    const Vector<Real> larger = exp2_clamped<Real>(at_least<Real>(log_larger, floor));
    const Vector<Real> minus_size = at_least<Real>(of_a ? -gap : gap, floor);
    // smaller / larger = 2^n + 2^n * fraction, and 0 at the floor
    const Vector<Real> shifted = minus_size + Traits::round_magic;
    const Vector<Real> scale = power_of_two<Real>(shifted);
    const Vector<Real> part = scale * exp2m1_fraction<Real>(minus_size - (shifted - Traits::round_magic));
    const Vector<Real> smaller = larger * (scale + part);
    const Vector<Real> share = of_a ? beta : rest, others = of_a ? rest : beta;  // of the smaller, of the larger
    const Vector<Real> mixed = at_least<Real>(others + share * (scale + part), splat<Real>(smallest));
    const Vector<Real> of_larger = -log_vector<Real>(mixed, share * (part + (scale - Real(1))));
    const Vector<Real> of_smaller = of_larger + minus_size * Real(ln_2);
    return {of_a ? larger : smaller, of_a ? smaller : larger, of_a ? of_larger : of_smaller,
            of_a ? of_smaller : of_larger};
  }

 private:
  static constexpr Real smallest = std::numeric_limits<Real>::min();
};

template <typename Row>
RowMixture row_mixture(const Row& row_a, const Row& row_b, int64_t count, double inverse_temperature, double beta) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  RowStatistics a = row_statistics(row_a, count, -1, inverse_temperature);
  RowStatistics b = row_statistics(row_b, count, -1, inverse_temperature);
  a.log_sum = Real(a.log_sum);  // as the gradient will read them: an error that both KLs share cancels there
  b.log_sum = Real(b.log_sum);
  double kl_a = a.log_sum + b.log_sum, kl_b = kl_a;
  if (std::isnan(kl_a)) return {kl_a, kl_b, a, b};
  const Mixture<Real> mixture(a, b, beta, inverse_temperature);
  kl_a = kl_b = 0;
  for (int64_t start = 0; start < count; start += tile_elements) {
    const int64_t end = count - start < tile_elements ? count : start + tile_elements;
    Vector<Real> sum_a = {}, sum_b = {};
    auto add = [&](Vector<Real> x, Vector<Real> y) {
      const TokenPair<Real> token = mixture.token(x, y);
      sum_a += token.p * token.gap_p;
      sum_b += token.q * token.gap_q;
    };
    int64_t i = start;
    for (; i + width <= end; i += width) add(row_a.at(i), row_b.at(i));
    if (i < end) add(row_a.part(i, end - i), row_b.part(i, end - i));
    kl_a += sum_lanes<Real>(sum_a);
    kl_b += sum_lanes<Real>(sum_b);
  }
  return {kl_a, kl_b, a, b};
}

// Either gradient may be null, and may be its logits.
template <typename Row>
void row_mixture_gradient(const Row& row_a, const Row& row_b, typename Row::Element* grad_a,
                          typename Row::Element* grad_b, int64_t count, double inverse_temperature, double beta,
                          const RowMixture& from, double upstream) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  const Mixture<Real> mixture(from.a, from.b, beta, inverse_temperature);
  const bool unknown = std::isnan(from.kl_a + from.kl_b);
  auto all = [&](double x) { return splat<Real>(unknown ? std::numeric_limits<Real>::quiet_NaN() : Real(x)); };
  const Vector<Real> unit_a = all(upstream * inverse_temperature * (1 - beta));
  const Vector<Real> unit_b = all(upstream * inverse_temperature * beta);
  const Vector<Real> kl_a = all(from.kl_a), kl_b = all(from.kl_b);
  auto gradients = [&](Vector<Real> x, Vector<Real> y) -> Pair<Real> {
    const TokenPair<Real> token = mixture.token(x, y);
    return {unit_a * (token.p * (token.gap_p - kl_a)), unit_b * (token.q * (token.gap_q - kl_b))};
  };
  int64_t i = 0;
  for (; i + width <= count; i += width) {
    const Pair<Real> g = gradients(row_a.at(i), row_b.at(i));
    if (grad_a) store(grad_a + i, g.a);
    if (grad_b) store(grad_b + i, g.b);
  }
  if (i < count) {
    const Pair<Real> g = gradients(row_a.part(i, count - i), row_b.part(i, count - i));
    if (grad_a) store_part(grad_a + i, count - i, g.a);
    if (grad_b) store_part(grad_b + i, count - i, g.b);
  }
}

}  // namespace policy_split
