// One row of logits: its statistics in one pass, its gradient in another.
#pragma once

#include <cmath>

#include "logits.h"

namespace policy_split {

constexpr double log2_e = 1.442695040888963407360, ln_2 = 0.693147180559945309417;
constexpr int64_t tile_elements = 2048;    // summed in the logits' precision; tiles are summed in double
constexpr int64_t prefetch_bytes = 32768;  // this far ahead logits are called into L2; a row rarely comes from nearer
constexpr int64_t first_elements = 256;    // whose maximum is the first origin
constexpr double headroom = 4;  // exponents may be this far above 0: a maximum that moves by less moves no sums

struct RowStatistics {
  double max;      // of x
  double entropy;  // nats
  double logprob;  // nats, of the target
  double log_sum;  // log of the sum of exp((x - max) / temperature)
};

// Sums over part of a row: 2^d and 2^d * d with d = (x - origin) * scale, and the largest x.
struct Sums {
  double sum = 0, weighted = 0, top = -std::numeric_limits<double>::infinity();

  void move(double by) {  // the origin moves so that every d becomes d + by
    if (sum == 0) return;
    const double factor = std::exp2(by);
    weighted = factor == 0 ? 0 : factor * (weighted + by * sum);
    sum *= factor;
  }
  void add(const Sums& other) {
    sum += other.sum;
    weighted += other.weighted;
    top = other.top > top ? other.top : top;
  }
};

// A target below 0 is in none of the row's columns, once `first_bad_target` has found nothing: its log-prob is 0.
template <typename Row>
double target_logprob(const Row& row, int64_t target, double inverse_temperature, double max, double log_sum) {
  if (target < 0) return 0;
  return (row.one(target) - max) * inverse_temperature - log_sum;
}

// A first guess of a row's maximum, from the first elements of a tile.
template <typename Row>
double first_max(const Row& row, int64_t start, int64_t end) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  if (end - start > first_elements) end = start + first_elements;
  Vector<Real> best = splat<Real>(-std::numeric_limits<Real>::infinity());
  int64_t i = start;
  for (; i + width <= end; i += width) best = larger<Real>(row.at(i), best);
  if (i < end) best = larger<Real>(row.part(i, end - i), best);
  return largest_lane<Real>(best);
}

template <typename Row>
Sums tile_sums(const Row& row, int64_t start, int64_t end, double origin, double scale) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  const Vector<Real> zero = splat<Real>(Real(origin)), factor = splat<Real>(Real(scale));
  const Vector<Real> floor = splat<Real>(exponent_floor<Real>);
  struct {  // two of each, to cover the latency of the additions
    Vector<Real> sum = {}, product = {}, best = splat<Real>(-std::numeric_limits<Real>::infinity());
  } chains[2];
  auto add = [&](int k, Vector<Real> x) {
    auto& [sum, product, best] = chains[k];
    best = larger<Real>(x, best);
    const Vector<Real> d = at_least<Real>((x - zero) * factor, floor);
    const Vector<Real> e = exp2_clamped<Real>(d);
    sum += e;
    product += e * d;
  };
  int64_t i = start;
  for (; i + 4 * width <= end; i += 4 * width) {
    row.template prefetch<4>(i, prefetch_bytes);
    for (int k = 0; k < 4; k += 2) {
      const Pair<Real> x = row.pair(i + k * width);
      add(0, x.a);
      add(1, x.b);
    }
  }
  for (; i + width <= end; i += width) add(0, row.at(i));
  if (i < end) add(0, row.part(i, end - i));
  return {double(sum_lanes<Real>(chains[0].sum + chains[1].sum)),
          double(sum_lanes<Real>(chains[0].product + chains[1].product)),
          double(largest_lane<Real>(maximum(chains[0].best, chains[1].best)))};
}

// One pass: the origin of the exponents is a first guess of the maximum, and moves only if a tile is far above it.
template <typename Row>
Sums row_sums(const Row& row, int64_t count, double scale) {
  const double infinity = std::numeric_limits<double>::infinity();
  double origin = -infinity;
  Sums total;
  for (int64_t start = 0; start < count; start += tile_elements) {
    const int64_t end = count - start < tile_elements ? count : start + tile_elements;
    if (origin == -infinity) origin = first_max(row, start, end);
    // A leading tile that is all -inf has no maximum yet: 0 keeps -inf - max from being NaN, and a real NaN is seen.
    Sums tile = tile_sums(row, start, end, origin == -infinity ? 0.0 : origin, scale);
    if ((tile.top - origin) * scale > headroom) {
      total.move((origin - tile.top) * scale);
      origin = tile.top;
      tile = tile_sums(row, start, end, origin, scale);
    }
    total.add(tile);
  }
  total.move((origin - total.top) * scale);
  if (std::isnan(total.weighted)) total.sum = total.weighted;  // exp2_clamped alone does not show a NaN
  return total;
}

template <typename Row>
RowStatistics row_statistics(const Row& row, int64_t count, int64_t target, double inverse_temperature) {
  Sums sums = row_sums(row, count, inverse_temperature * log2_e);
  // The largest of a row of NaN and -inf: -inf is for rows that hold nothing else.
  if (std::isnan(sums.sum) && std::isinf(sums.top) && sums.top < 0) sums.top = std::numeric_limits<double>::quiet_NaN();
  const double log_sum = std::log(sums.sum);  // a row that is all -inf becomes NaN through -inf - -inf below
  const double logprob = target_logprob(row, target, inverse_temperature, sums.top, log_sum);
  return {sums.top, log_sum - ln_2 * sums.weighted / sums.sum, logprob, log_sum};
}

// grad_j = inverse_temperature * slope_j * (grad_logprob * ([j = target] - p_j)
//          - grad_entropy * p_j * (log p_j + entropy) + grad_lse * p_j), slope = dx / dz,
// as 2^d * (constant + slope * d), d = (x - max) * scale. `grad` may be the logits. `streamed`: past the caches.
template <bool streamed, typename Row>
void row_gradient(const Row& row, typename Row::Element* grad, int64_t count, int64_t target,
                  double inverse_temperature, const RowStatistics& from, double grad_logprob, double grad_entropy,
                  double grad_lse) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  const double log_p = from.logprob, p = std::exp(log_p), surprise = p == 0 ? 0.0 : p * (log_p + from.entropy);
  const bool target_here = target >= 0;
  const double slope_at_target = target_here ? row.slope_one(target) : 0;
  const double at_target =
      slope_at_target * inverse_temperature * (grad_logprob * (1 - p) - grad_entropy * surprise + grad_lse * p);
  const double unit = inverse_temperature / std::exp(from.log_sum);
  auto all = [](double x) { return splat<Real>(std::isnan(x) ? std::numeric_limits<Real>::quiet_NaN() : Real(x)); };
  const Vector<Real> slope = all(-grad_entropy * ln_2 * unit);
  const Vector<Real> constant = all(-(grad_logprob - grad_lse + grad_entropy * (from.entropy - from.log_sum)) * unit);
  const Vector<Real> top = splat<Real>(Real(from.max)), factor = splat<Real>(Real(inverse_temperature * log2_e));
  const Vector<Real> floor = splat<Real>(exponent_floor<Real>);
  auto gradient = [&](Vector<Real> x) {
    const Vector<Real> d = at_least<Real>((x - top) * factor, floor);
    return row.times_slope(x, exp2_clamped<Real>(d) * (constant + slope * d));
  };
  int64_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width)
    for (int k = 0; k < 4; k += 2) {
      const Pair<Real> x = row.pair(i + k * width);
      Row::template put<streamed>(grad + i + k * width, {gradient(x.a), gradient(x.b)});
    }
  for (; i + width <= count; i += width) store(grad + i, gradient(row.at(i)));
  if (i < count) store_part(grad + i, count - i, gradient(row.part(i, count - i)));
  if (target_here) store_one(grad + target, at_target);
}

}  // namespace policy_split
