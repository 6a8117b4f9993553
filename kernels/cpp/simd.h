// Vectors of the widest size this build has, and the transcendental functions that the kernels need.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

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
  static constexpr int mantissa_bits = 23, series_terms = 8, log_terms = 4;
  static constexpr int32_t exponent_bias = 127;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
};

template <>
struct VectorOf<double> {
  typedef double Vector __attribute__((vector_size(PS_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(PS_VECTOR_BYTES)));
  static constexpr int mantissa_bits = 52, series_terms = 13, log_terms = 10;
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

template <typename Real>
inline typename VectorOf<Real>::Bits bits_of(Vector<Real> x) {
  typename VectorOf<Real>::Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <typename Real>
inline Vector<Real> from_bits(typename VectorOf<Real>::Bits bits) {
  Vector<Real> x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// maximum(a, b) is a > b ? a : b: b where either is NaN. One instruction, which GCC does not see in the comparison.
#if defined(__AVX512F__)
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return _mm512_max_ps(a, b); }
inline Vector<double> maximum(Vector<double> a, Vector<double> b) { return _mm512_max_pd(a, b); }
#elif defined(__AVX2__)
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
inline Vector<double> maximum(Vector<double> a, Vector<double> b) { return _mm256_max_pd(a, b); }
#else
inline Vector<float> maximum(Vector<float> a, Vector<float> b) { return a > b ? a : b; }
inline Vector<double> maximum(Vector<double> a, Vector<double> b) { return a > b ? a : b; }
#endif

// NaN in x stays NaN.
template <typename Real>
inline Vector<Real> at_least(Vector<Real> x, Vector<Real> floor) {
  return maximum(floor, x);
}

// NaN in x is skipped.
template <typename Real>
inline Vector<Real> larger(Vector<Real> x, Vector<Real> best) {
  return maximum(x, best);
}

// Of all lanes, by halves: as many steps as the logarithm of their number.
template <typename Real, typename Combine>
inline Real over_lanes(Vector<Real> x, Combine combine) {
  Real values[lanes<Real>];
  std::memcpy(values, &x, sizeof x);
#pragma GCC unroll 8
  for (int half = lanes<Real> / 2; half >= 1; half /= 2)
    for (int i = 0; i < half; ++i) values[i] = combine(values[i], values[i + half]);
  return values[0];
}

template <typename Real>
inline Real sum_lanes(Vector<Real> x) {
  return over_lanes<Real>(x, [](Real a, Real b) { return a + b; });
}

template <typename Real>
inline Real largest_lane(Vector<Real> x) {
  return over_lanes<Real>(x, [](Real a, Real b) { return a > b ? a : b; });
}

// 2^f - 1 for f in [-1/2, 1/2] by its series, below one unit in the last place.
template <typename Real>
inline Vector<Real> exp2m1_fraction(Vector<Real> f) {
  constexpr auto coefficients = [] {  // (ln 2)^k / k!
    struct {
      double of[VectorOf<Real>::series_terms + 1] = {1};
    } series;
    for (int k = 1; k <= VectorOf<Real>::series_terms; ++k)
      series.of[k] = series.of[k - 1] * 0.693147180559945309417 / k;
    return series;
  }();
  Vector<Real> p = splat<Real>(Real(coefficients.of[VectorOf<Real>::series_terms]));
  for (int k = VectorOf<Real>::series_terms - 1; k >= 1; --k) p = p * f + Real(coefficients.of[k]);
  return p * f;
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

inline Vector<double> exp2_fraction(Vector<double> f) { return exp2m1_fraction<double>(f) + 1.0; }

// 2^n of a float that holds n + round_magic.
template <typename Real>
inline Vector<Real> power_of_two(Vector<Real> shifted) {
  using Traits = VectorOf<Real>;
  return from_bits<Real>((bits_of<Real>(shifted) + Traits::exponent_bias) << Traits::mantissa_bits);
}

// What at_least() must have been given before exp2_clamped(): 2^floor comes out as exactly 0.
template <typename Real>
constexpr Real exponent_floor = -Real(VectorOf<Real>::exponent_bias);

// 2^d for d clamped at exponent_floor, which gives 0; a result that would be subnormal is, and Flush takes it for 0.
// d < 127. The exponent is added to the bits of 2^f, so that a NaN does not come through: multiply by d, too.
template <typename Real>
inline Vector<Real> exp2_clamped(Vector<Real> d) {
  using Traits = VectorOf<Real>;
  const Vector<Real> shifted = d + Traits::round_magic;
  const Vector<Real> mantissa = exp2_fraction(d - (shifted - Traits::round_magic));
  return from_bits<Real>(bits_of<Real>(mantissa) + (bits_of<Real>(shifted) << Traits::mantissa_bits));
}

// log w for normal w > 0, with w - 1 as exactly as the caller knows it: no digits are lost near 1.
// 2 artanh(s) by its series, s = f / (f + 2), w = 2^n * (1 + f) with 1 + f between the roots of 1/2 and of 2.
template <typename Real>
inline Vector<Real> log_vector(Vector<Real> w, Vector<Real> w_m1) {
  using Traits = VectorOf<Real>;
  using Bits = typename Traits::Bits;
  const Bits bits = bits_of<Real>(w),
             n = (bits - bits_of<Real>(splat<Real>(Real(0.7071067811865475)))) >> Traits::mantissa_bits;
  const Vector<Real> f = n == 0 ? w_m1 : from_bits<Real>(bits - (n << Traits::mantissa_bits)) - Real(1);
  const Vector<Real> s = f / (f + Real(2)), z = s * s;
  Vector<Real> series = splat<Real>(Real(1.0 / (2 * Traits::log_terms + 1)));
  for (int k = Traits::log_terms - 1; k >= 0; --k) series = series * z + Real(1.0 / (2 * k + 1));
  return __builtin_convertvector(n, Vector<Real>) * Real(0.693147180559945309417) + Real(2) * s * series;
}

// tanh t = -m / (m + 2) with m = e^(-2|t|) - 1 = 2^n * (2^f - 1) + (2^n - 1): no digits are lost near 0.
template <typename Real>
inline Vector<Real> tanh_vector(Vector<Real> t) {
  using Traits = VectorOf<Real>;
  const typename Traits::Bits sign = bits_of<Real>(t) & bits_of<Real>(splat<Real>(-Real(0)));
  const Vector<Real> size = from_bits<Real>(bits_of<Real>(t) ^ sign);
  const Vector<Real> d = at_least<Real>(size * Real(-2.885390081777926814720), splat<Real>(exponent_floor<Real> / 2));
  const Vector<Real> shifted = d + Traits::round_magic;
  const Vector<Real> fraction = d - (shifted - Traits::round_magic);
  const Vector<Real> scale = power_of_two<Real>(shifted);
  const Vector<Real> m = scale * exp2m1_fraction<Real>(fraction) + (scale - Real(1));
  return from_bits<Real>(bits_of<Real>(-m / (m + Real(2))) | sign);
}

}  // namespace policy_split
