// Vectors of the widest size this build has, and the one transcendental function that the kernels need.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define PS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define PS_VECTOR_BYTES 32
#else
#define PS_VECTOR_BYTES 16
#endif

namespace policy_split {

template <typename Real>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Vector __attribute__((vector_size(PS_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(PS_VECTOR_BYTES)));
  static constexpr int mantissa_bits = 23;
  static constexpr int32_t exponent_bias = 127;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
};

template <>
struct VectorOf<double> {
  typedef double Vector __attribute__((vector_size(PS_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(PS_VECTOR_BYTES)));
  static constexpr int mantissa_bits = 52;
  static constexpr int64_t exponent_bias = 1023;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
};

template <typename Real>
using Vector = typename VectorOf<Real>::Vector;

template <typename Real>
constexpr int lanes = PS_VECTOR_BYTES / sizeof(Real);

template <typename Real>
inline Vector<Real> splat(Real x) {
  return x - Vector<Real>{};
}

// NaN in x stays NaN: the comparison is false for it.
template <typename Real>
inline Vector<Real> at_least(Vector<Real> x, Vector<Real> floor) {
  return x < floor ? floor : x;
}

// NaN in x is skipped.
template <typename Real>
inline Vector<Real> larger(Vector<Real> x, Vector<Real> best) {
  return x > best ? x : best;
}

template <typename Real>
inline Real sum_lanes(Vector<Real> x) {
  Real total = 0;
  for (int i = 0; i < lanes<Real>; ++i) total += x[i];
  return total;
}

// 2^f for f in [-1/2, 1/2], exactly 1 at 0. float: minimax, relative error 1.1e-7.
inline Vector<float> exp2_fraction(Vector<float> f) {
  Vector<float> p = splat<float>(0x1.5bba14p-10f);
  p = p * f + 0x1.3cea88p-7f;
  p = p * f + 0x1.c6b752p-5f;
  p = p * f + 0x1.ebf9bcp-3f;
  p = p * f + 0x1.62e42ap-1f;
  return p * f + 1.0f;
}

// double: Taylor of exp(f * ln 2) to degree 13, below one unit in the last place.
inline Vector<double> exp2_fraction(Vector<double> f) {
  const Vector<double> x = f * 0.693147180559945309417;
  Vector<double> p = splat<double>(1.0);
  for (int k = 13; k >= 1; --k) p = p * (x * (1.0 / k)) + 1.0;
  return p;
}

// What at_least() must have been given before exp2_clamped(): 2^floor comes out as exactly 0.
template <typename Real>
constexpr Real exponent_floor = -Real(VectorOf<Real>::exponent_bias);

// 2^d for d <= 0 clamped at exponent_floor, which gives 0, as do all d that would be subnormal. NaN stays NaN.
template <typename Real>
inline Vector<Real> exp2_clamped(Vector<Real> d) {
  using Traits = VectorOf<Real>;
  const Vector<Real> shifted = d + Traits::round_magic;
  const Vector<Real> fraction = d - (shifted - Traits::round_magic);
  typename Traits::Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << Traits::mantissa_bits) + (Traits::exponent_bias << Traits::mantissa_bits);
  Vector<Real> scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return exp2_fraction(fraction) * scale;
}

}  // namespace policy_split
