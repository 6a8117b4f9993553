// Rows of logits as the loops read them: x of reference/logits.py, from the logits z and the options that change them.
#pragma once

#include <cmath>

#include "elements.h"

namespace policy_split {

// x = z.
template <typename ElementType>
struct PlainRow {
  using Element = ElementType;
  using Real = Compute<Element>;
  const Element* z;

  Vector<Real> at(int64_t i) const { return load(z + i); }
  Pair<Real> pair(int64_t i) const { return load_pair(z + i); }
  template <bool streamed>
  static void put(Element* to, Pair<Real> x) {
    store_pair<streamed>(to, x);
  }
  // The last, partial vector of a row: lanes beyond its end are -inf.
  Vector<Real> part(int64_t i, int64_t count) const { return load_part(z + i, count, minus_infinity<Element>); }
  double one(int64_t i) const { return load_one(z + i); }
  Vector<Real> times_slope(Vector<Real>, Vector<Real> g) const { return g; }
  double slope_one(int64_t) const { return 1; }

  template <int vectors>
  void prefetch(int64_t i, int64_t ahead) const {
    for (int64_t byte = 0; byte < vectors * lanes<Real> * int64_t(sizeof(Element)); byte += 64)
      __builtin_prefetch((const char*)(z + i) + ahead + byte, 0, 2);
  }
};

// x = cap * tanh(z / cap) where there is a cap, infinite where z is; -inf where `keep` is 0.
template <typename ElementType>
struct TransformedRow : PlainRow<ElementType> {
  using Base = PlainRow<ElementType>;
  using typename Base::Element;
  using typename Base::Real;
  const uint8_t* keep;  // null: all
  Real cap;             // NaN: none

  Vector<Real> at(int64_t i) const {
    const Vector<Real> x = capped(Base::at(i));
    return keep ? filtered(x, kept_lanes<Real>(keep + i)) : x;
  }
  Pair<Real> pair(int64_t i) const { return {at(i), at(i + lanes<Real>)}; }
  template <bool>
  static void put(Element* to, Pair<Real> x) {
    store(to, x.a);
    store(to + lanes<Real>, x.b);
  }
  Vector<Real> part(int64_t i, int64_t count) const {
    const Vector<Real> x = capped(Base::part(i, count));
    return keep ? filtered(x, kept_part<Real>(keep + i, count)) : x;
  }
  double one(int64_t i) const {
    if (keep && !keep[i]) return -std::numeric_limits<double>::infinity();
    return capped(splat<Real>(Real(Base::one(i))))[0];  // rounded as in the sums
  }
  Vector<Real> times_slope(Vector<Real> x, Vector<Real> g) const {
    if (cap != cap) return g;
    const Vector<Real> t = x * (1 / cap);
    return finite(x) ? g * (Real(1) - t * t) : g;  // at infinite x, g is 0 or NaN
  }
  double slope_one(int64_t i) const {
    if (keep && !keep[i]) return 0;
    if (cap != cap) return 1;
    const double x = one(i);
    return std::isinf(x) ? 0 : 1 - (x / cap) * (x / cap);  // no small step moves an infinite logit
  }

 private:
  Vector<Real> capped(Vector<Real> z) const {
    if (cap != cap) return z;
    return finite(z) ? cap * tanh_vector<Real>(z * (1 / cap)) : z;
  }
  static Vector<Real> filtered(Vector<Real> x, typename VectorOf<Real>::Bits kept) {
    return kept != 0 ? x : splat<Real>(-std::numeric_limits<Real>::infinity());
  }
  static auto finite(Vector<Real> x) { return (x - x) == 0; }
};

}  // namespace policy_split
