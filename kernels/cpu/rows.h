// One row of logits: its statistics in one pass, its gradient in another.
#pragma once

#include <cmath>

#include "elements.h"

namespace policy_split {

constexpr double log2_e = 1.442695040888963407360, ln_2 = 0.693147180559945309417;
constexpr int64_t tile_elements = 2048;    // 8 KiB of float: stays in L1 between a tile's maximum and its sums
constexpr int64_t prefetch_bytes = 32768;  // this far ahead logits are called into L2; a row rarely comes from nearer
constexpr int chains = 4;                  // independent accumulators, to cover the latency of the additions

struct RowStatistics {
  double max;      // of the logits as they were given
  double entropy;  // nats
  double logprob;  // nats, of the target
  double log_sum;  // log of the sum of exp((z - max) / temperature)
};

template <typename Element>
double target_logprob(const Element* z, int64_t target, double inverse_temperature, double max, double log_sum) {
  return (load_one(z + target) - max) * inverse_temperature - log_sum;
}

template <typename Element>
Compute<Element> tile_max(const Element* z, int64_t count) {
  using Real = Compute<Element>;
  constexpr int width = lanes<Real>;
  const Real least = -std::numeric_limits<Real>::infinity();
  Vector<Real> best[chains];
  for (auto& b : best) b = splat<Real>(least);
  int64_t i = 0;
  for (; i + chains * width <= count; i += chains * width)
    for (int k = 0; k < chains; ++k) best[k] = larger<Real>(load(z + i + k * width), best[k]);
  for (; i + width <= count; i += width) best[0] = larger<Real>(load(z + i), best[0]);
  if (i < count) best[0] = larger<Real>(load_part(z + i, count - i, least), best[0]);
  for (int k = 1; k < chains; ++k) best[0] = larger<Real>(best[k], best[0]);
  Real top = best[0][0];
  for (int j = 1; j < width; ++j) top = best[0][j] > top ? best[0][j] : top;
  return top;
}

// Adds sum 2^d and sum 2^d * d of a tile, d = (z - max) * scale.
template <typename Element>
void add_tile(const Element* z, int64_t count, double max, double scale, double& sum, double& weighted) {
  using Real = Compute<Element>;
  constexpr int width = lanes<Real>;
  const Vector<Real> top = splat<Real>(Real(max)), factor = splat<Real>(Real(scale));
  const Vector<Real> floor = splat<Real>(exponent_floor<Real>);
  Vector<Real> sums[chains] = {}, products[chains] = {};
  auto add = [&](int k, Vector<Real> x) {
    const Vector<Real> d = at_least<Real>((x - top) * factor, floor);
    const Vector<Real> e = exp2_clamped<Real>(d);
    sums[k] += e;
    products[k] += e * d;
  };
  int64_t i = 0;
  for (; i + chains * width <= count; i += chains * width) {
    for (int k = 0; k < chains; ++k) {
      if (k * width * sizeof(Element) % 64 == 0)  // once a cache line
        __builtin_prefetch((const char*)(z + i + k * width) + prefetch_bytes, 0, 2);
      add(k, load(z + i + k * width));
    }
  }
  for (; i + width <= count; i += width) add(0, load(z + i));
  if (i < count) add(0, load_part(z + i, count - i, -std::numeric_limits<Real>::infinity()));
  for (int k = 0; k < chains; ++k) {
    sum += double(sum_lanes<Real>(sums[k]));
    weighted += double(sum_lanes<Real>(products[k]));
  }
}

template <typename Element>
RowStatistics row_statistics(const Element* z, int64_t count, int64_t target, double inverse_temperature) {
  const double infinity = std::numeric_limits<double>::infinity(), scale = inverse_temperature * log2_e;
  double max = -infinity, sum = 0, weighted = 0;
  for (int64_t start = 0; start < count; start += tile_elements) {
    const int64_t size = count - start < tile_elements ? count - start : tile_elements;
    const double top = tile_max(z + start, size);
    if (top > max) {
      if (sum != 0) {  // what was summed under the old maximum moves to the new one
        const double moved = (max - top) * scale, shrink = std::exp2(moved);
        weighted = shrink == 0 ? 0 : shrink * (weighted + moved * sum);
        sum *= shrink;
      }
      max = top;
    }
    // A leading tile that is all -inf has no maximum yet: 0 keeps -inf - max from being NaN, and a real NaN is seen.
    add_tile(z + start, size, max == -infinity ? 0.0 : max, scale, sum, weighted);
  }
  const double log_sum = std::log(sum);  // a row that is all -inf becomes NaN through -inf - -inf below
  const double logprob = target_logprob(z, target, inverse_temperature, max, log_sum);
  return {max, log_sum - ln_2 * weighted / sum, logprob, log_sum};
}

// grad_j = inverse_temperature * (grad_logprob * ([j = target] - p_j) - grad_entropy * p_j * (log p_j + entropy)),
// as 2^d * (constant + slope * d), d = (z - max) * scale. `grad` may be `z`. `streamed`: past the caches.
template <bool streamed, typename Element>
void row_gradient(const Element* z, Element* grad, int64_t count, int64_t target, double inverse_temperature,
                  const RowStatistics& row, double grad_logprob, double grad_entropy) {
  using Real = Compute<Element>;
  constexpr int width = lanes<Real>;
  const double log_p = row.logprob, p = std::exp(log_p), surprise = p == 0 ? 0.0 : p * (log_p + row.entropy);
  const double at_target = inverse_temperature * (grad_logprob * (1 - p) - grad_entropy * surprise);
  const double unit = inverse_temperature / std::exp(row.log_sum);
  const Vector<Real> slope = splat<Real>(Real(-grad_entropy * ln_2 * unit));
  const Vector<Real> constant = splat<Real>(Real(-(grad_logprob + grad_entropy * (row.entropy - row.log_sum)) * unit));
  const Vector<Real> top = splat<Real>(Real(row.max)), factor = splat<Real>(Real(inverse_temperature * log2_e));
  const Vector<Real> floor = splat<Real>(exponent_floor<Real>);
  auto gradient = [&](Vector<Real> x) {
    const Vector<Real> d = at_least<Real>((x - top) * factor, floor);
    return exp2_clamped<Real>(d) * (constant + slope * d);
  };
  int64_t i = 0;
  for (; i + chains * width <= count; i += chains * width)
    for (int k = 0; k < chains; ++k) {
      const Vector<Real> g = gradient(load(z + i + k * width));
      streamed ? stream(grad + i + k * width, g) : store(grad + i + k * width, g);
    }
  for (; i + width <= count; i += width) store(grad + i, gradient(load(z + i)));
  if (i < count) store_part(grad + i, count - i, gradient(load_part(z + i, count - i, Real(0))));
  store_one(grad + target, at_target);
}

}  // namespace policy_split
