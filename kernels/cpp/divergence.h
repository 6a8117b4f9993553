// Two rows of logits over one vocabulary: both KLs and both entropies in one pass, their gradients in another.
#pragma once

#include "rows.h"

namespace policy_split {

// So that every lane adds as many numbers, whatever the instruction set: a small KL needs the digits.
template <typename Real>
constexpr int64_t pair_tile_elements = 128 * lanes<Real>;

struct RowDivergence {
  double kl_ab, kl_ba;  // nats
  RowStatistics a, b;   // without log-prob
};

// What a vector of each row adds: u = a - origin_a, v = b - origin_b, and the gap g = u - v. A gap is a small number
// even where log p_a and log p_b are large: averaging it keeps the digits of a small KL.
template <typename Real>
struct Exponents {
  Vector<Real> u, v, d_a, d_b, e_a, e_b;

  Exponents(Vector<Real> a, Vector<Real> b, Vector<Real> origin_a, Vector<Real> origin_b, Vector<Real> factor)
      : u(a - origin_a), v(b - origin_b) {
    const Vector<Real> floor = splat<Real>(exponent_floor<Real>);
    d_a = at_least<Real>(u * factor, floor);
    d_b = at_least<Real>(v * factor, floor);
    e_a = exp2_clamped<Real>(d_a);
    e_b = exp2_clamped<Real>(d_b);
  }
  Vector<Real> gap() const { return u - v; }
  // Finite, so that 0 times it is 0 where a probability is 0. A NaN is lost: the entropies' sums have it.
  static Vector<Real> bounded(Vector<Real> gap) {
    const Vector<Real> most = splat<Real>(std::numeric_limits<Real>::max());
    return -maximum(-maximum(gap, -most), -most);
  }
};

struct PairSums {
  Sums a, b;
  double gap_ab = 0, gap_ba = 0;        // sums of e_a * (u - v) and of e_b * (v - u)
  double widest_ab = 0, widest_ba = 0;  // largest u - v and v - u, at least 0

  // Either origin moves, from -inf if there was none. A difference that overflows is -inf, too, and leaves nothing.
  void move_a(double by, double scale) {
    if (a.sum == 0 && std::isinf(by)) return;
    if (b.sum != 0) gap_ba -= by * b.sum;
    gap_ab = moved(gap_ab + by * a.sum, by * scale);
    a.move(by * scale);
  }
  void move_b(double by, double scale) {
    if (b.sum == 0 && std::isinf(by)) return;
    if (a.sum != 0) gap_ab -= by * a.sum;
    gap_ba = moved(gap_ba + by * b.sum, by * scale);
    b.move(by * scale);
  }
  void add(const PairSums& other) {
    a.add(other.a);
    b.add(other.b);
    gap_ab += other.gap_ab;
    gap_ba += other.gap_ba;
    widest_ab = std::fmax(widest_ab, other.widest_ab);
    widest_ba = std::fmax(widest_ba, other.widest_ba);
  }

 private:
  static double moved(double gap, double by) {
    const double factor = std::exp2(by);
    return factor == 0 ? 0 : factor * gap;
  }
};

template <typename Row>
PairSums tile_pair_sums(const Row& row_a, const Row& row_b, int64_t start, int64_t end, double origin_a,
                        double origin_b, double scale) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  const Vector<Real> zero_a = splat<Real>(Real(origin_a)), zero_b = splat<Real>(Real(origin_b));
  const Vector<Real> factor = splat<Real>(Real(scale)), least = splat<Real>(-std::numeric_limits<Real>::infinity());
  Vector<Real> sum_a = {}, sum_b = {}, weighted_a = {}, weighted_b = {}, best_a = least, best_b = least;
  Vector<Real> gap_ab = {}, gap_ba = {}, widest_ab = {}, widest_ba = {};
  auto add = [&](Vector<Real> a, Vector<Real> b) {
    best_a = larger<Real>(a, best_a);
    best_b = larger<Real>(b, best_b);
    const Exponents<Real> x(a, b, zero_a, zero_b, factor);
    sum_a += x.e_a;
    sum_b += x.e_b;
    weighted_a += x.e_a * x.d_a;
    weighted_b += x.e_b * x.d_b;
    const Vector<Real> gap = x.gap(), bounded = x.bounded(gap);
    widest_ab = larger<Real>(gap, widest_ab);
    widest_ba = larger<Real>(-gap, widest_ba);
    gap_ab += x.e_a * bounded;
    gap_ba -= x.e_b * bounded;
  };
  int64_t i = start;
  for (; i + 2 * width <= end; i += 2 * width) {
    row_a.template prefetch<2>(i, prefetch_bytes);
    row_b.template prefetch<2>(i, prefetch_bytes);
    const Pair<Real> a = row_a.pair(i), b = row_b.pair(i);
    add(a.a, b.a);
    add(a.b, b.b);
  }
  for (; i + width <= end; i += width) add(row_a.at(i), row_b.at(i));
  if (i < end) add(row_a.part(i, end - i), row_b.part(i, end - i));
  auto total = [](Vector<Real> x) { return double(sum_lanes<Real>(x)); };
  auto most = [](Vector<Real> x) { return double(largest_lane<Real>(x)); };
  return {{total(sum_a), total(weighted_a), most(best_a)},
          {total(sum_b), total(weighted_b), most(best_b)},
          total(gap_ab),
          total(gap_ba),
          most(widest_ab),
          most(widest_ba)};
}

inline double kl(double gap, double sum_own, double sum_other, double widest, double inverse_temperature) {
  if (!(sum_own > 0 && sum_other > 0)) return std::numeric_limits<double>::quiet_NaN();
  if (std::isinf(widest)) return widest;  // a token that only the own row can draw
  return inverse_temperature * gap / sum_own - std::log(sum_own) + std::log(sum_other);
}

inline RowStatistics settled(Sums& sums, double origin, double scale) {
  sums.move((origin - sums.top) * scale);
  const double log_sum = std::log(sums.sum);
  return {sums.top, log_sum - ln_2 * sums.weighted / sums.sum, 0, log_sum};
}

template <typename Row>
RowDivergence row_divergence(const Row& row_a, const Row& row_b, int64_t count, double inverse_temperature) {
  const double infinity = std::numeric_limits<double>::infinity(), scale = inverse_temperature * log2_e;
  double origin_a = -infinity, origin_b = -infinity;
  PairSums total;
  constexpr int64_t tile_elements = pair_tile_elements<typename Row::Real>;
  for (int64_t start = 0; start < count; start += tile_elements) {
    const int64_t end = count - start < tile_elements ? count : start + tile_elements;
    if (origin_a == -infinity) origin_a = first_max(row_a, start, end);
    if (origin_b == -infinity) origin_b = first_max(row_b, start, end);
    auto sums = [&] {
      return tile_pair_sums(row_a, row_b, start, end, origin_a == -infinity ? 0.0 : origin_a,
                            origin_b == -infinity ? 0.0 : origin_b, scale);
    };
    PairSums tile = sums();
    const bool above_a = (tile.a.top - origin_a) * scale > headroom;
    const bool above_b = (tile.b.top - origin_b) * scale > headroom;
    if (above_a) total.move_a(origin_a - tile.a.top, scale), origin_a = tile.a.top;
    if (above_b) total.move_b(origin_b - tile.b.top, scale), origin_b = tile.b.top;
    if (above_a || above_b) tile = sums();
    total.add(tile);
  }
  if (std::isnan(total.a.weighted)) total.a.sum = total.a.weighted;
  if (std::isnan(total.b.weighted)) total.b.sum = total.b.weighted;
  const double kl_ab = kl(total.gap_ab, total.a.sum, total.b.sum, total.widest_ab, inverse_temperature);
  const double kl_ba = kl(total.gap_ba, total.b.sum, total.a.sum, total.widest_ba, inverse_temperature);
  return {kl_ab, kl_ba, settled(total.a, origin_a, scale), settled(total.b, origin_b, scale)};
}

struct PairUpstream {
  double kl_ab, kl_ba, entropy_a, entropy_b;
};

// The gradient of one of the two rows: e_own * (constant + slope * d_own) + gap * (e_own * g) - other * e_other, with
// g = v - u for row b.
template <typename Real>
struct Side {
  Vector<Real> constant, slope, gap, other;

  Side(const RowStatistics& own, const RowStatistics& of_other, double kl_own, double to_kl_own, double to_kl_other,
       double to_entropy, double inverse_temperature) {
    const double unit_own = inverse_temperature / std::exp(own.log_sum);
    const double unit_other = inverse_temperature / std::exp(of_other.log_sum);
    const double level = of_other.log_sum - own.log_sum - kl_own;
    constant = all(unit_own * (times(to_kl_own, std::isinf(kl_own) ? NAN : level) + to_kl_other -
                               times(to_entropy, own.entropy - own.log_sum)));
    slope = all(-unit_own * to_entropy * ln_2);
    gap = all(unit_own * to_kl_own * inverse_temperature);
    other = all(to_kl_other == 0 ? 0 : unit_other * to_kl_other);
  }
  Vector<Real> gradient(Vector<Real> e_own, Vector<Real> d_own, Vector<Real> g, Vector<Real> e_other) const {
    return e_own * (constant + slope * d_own) + gap * (e_own * g) - other * e_other;
  }

 private:
  static double times(double factor, double x) { return factor == 0 ? 0 : factor * x; }
  static Vector<Real> all(double x) {
    return splat<Real>(std::isnan(x) ? std::numeric_limits<Real>::quiet_NaN() : Real(x));
  }
};

// Either gradient may be null, and may be its logits.
template <bool streamed, typename Row>
void row_divergence_gradient(const Row& row_a, const Row& row_b, typename Row::Element* grad_a,
                             typename Row::Element* grad_b, int64_t count, double inverse_temperature,
                             const RowDivergence& from, const PairUpstream& up) {
  using Real = typename Row::Real;
  constexpr int width = lanes<Real>;
  const Side<Real> side_a(from.a, from.b, from.kl_ab, up.kl_ab, up.kl_ba, up.entropy_a, inverse_temperature);
  const Side<Real> side_b(from.b, from.a, from.kl_ba, up.kl_ba, up.kl_ab, up.entropy_b, inverse_temperature);
  const Vector<Real> top_a = splat<Real>(Real(from.a.max)), top_b = splat<Real>(Real(from.b.max));
  const Vector<Real> factor = splat<Real>(Real(inverse_temperature * log2_e));
  const Vector<Real> impossible = splat<Real>(-std::numeric_limits<Real>::infinity());
  const bool infinite = std::isinf(from.kl_ab) || std::isinf(from.kl_ba);
  auto gradients = [&](Vector<Real> a, Vector<Real> b) -> Pair<Real> {
    const Exponents<Real> x(a, b, top_a, top_b, factor);
    const Vector<Real> gap = x.bounded(x.gap());
    Pair<Real> g = {side_a.gradient(x.e_a, x.d_a, gap, x.e_b), side_b.gradient(x.e_b, x.d_b, -gap, x.e_a)};
    if (infinite) {  // the NaN of an infinite KL is not that of a token over which it does not average
      g.a = a == impossible ? -side_a.other * x.e_b : g.a;
      g.b = b == impossible ? -side_b.other * x.e_a : g.b;
    }
    return g;
  };
  int64_t i = 0;
  for (; i + 2 * width <= count; i += 2 * width) {
    const Pair<Real> a = row_a.pair(i), b = row_b.pair(i);
    const Pair<Real> first = gradients(a.a, b.a), second = gradients(a.b, b.b);
    if (grad_a) Row::template put<streamed>(grad_a + i, {first.a, second.a});
    if (grad_b) Row::template put<streamed>(grad_b + i, {first.b, second.b});
  }
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
