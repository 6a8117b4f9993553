// The element types of logits: how a vector of them is loaded into, and stored from, the type that computes.
#pragma once

#include <limits>

#include "simd.h"

namespace policy_split {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <typename Element>
struct ComputeType {
  using Real = float;
};
template <>
struct ComputeType<double> {
  using Real = double;
};
template <typename Element>
using Compute = typename ComputeType<Element>::Real;

typedef uint16_t Words __attribute__((vector_size(PS_VECTOR_BYTES / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(PS_VECTOR_BYTES)));

inline Vector<float> as_float(Bits32 bits) {
  Vector<float> x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline Bits32 as_bits(Vector<float> x) {
  Bits32 bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <typename Real>
inline Vector<Real> load(const Real* from) {
  Vector<Real> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <typename Real>
inline void store(Real* to, Vector<Real> x) {
  std::memcpy(to, &x, sizeof x);
}

inline Bits32 widened(const uint16_t* from) {
#if defined(__AVX512F__)
  return (Bits32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Bits32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  Words words;
  std::memcpy(&words, from, sizeof words);
  return __builtin_convertvector(words, Bits32);
#endif
}

inline Vector<float> load(const BFloat16* from) { return as_float(widened(&from->bits) << 16); }

// Round to nearest, ties to even, in the upper half; a NaN stays one unless its payload is all ones.
inline Bits32 rounded(Vector<float> x) {
  const Bits32 bits = as_bits(x);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

inline void store(BFloat16* to, Vector<float> x) {
  const Bits32 kept = (Bits32)(x == x);
  const Words words = __builtin_convertvector(((rounded(x) >> 16) & kept) | (0x7fc0u & ~kept), Words);
  std::memcpy(to, &words, sizeof words);
}

#if defined(__AVX512F__)
inline Vector<float> load(const Half* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }
inline void store(Half* to, Vector<float> x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline Vector<float> load(const Half* from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)); }
inline void store(Half* to, Vector<float> x) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
// A subnormal half is its integer times 2^-24, a normal number in float; infinity and NaN keep their all-ones exponent.
inline Vector<float> load(const Half* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  const Bits32 half = __builtin_convertvector(words, Bits32);
  const Bits32 magnitude = half & 0x7fffu;
  const Bits32 special = (Bits32)(magnitude >= 0x7c00u), subnormal = (Bits32)(magnitude < 0x0400u);
  const Bits32 rebased = (magnitude << 13) + (special & (112u << 23)) + (112u << 23);
  const Bits32 small = as_bits(__builtin_convertvector(magnitude, Vector<float>) * 0x1p-24f);
  return as_float((rebased & ~subnormal) | (small & subnormal) | ((half & 0x8000u) << 16));
}

inline uint16_t half_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds beyond the largest half
  if (magnitude < 0x38800000u) {                                  // subnormal half: the addition rounds
    float tiny, half = 0.5f;
    std::memcpy(&tiny, &magnitude, sizeof tiny);
    tiny += half;
    uint32_t rounded;
    std::memcpy(&rounded, &tiny, sizeof rounded);
    return uint16_t(sign | (rounded - 0x3f000000u));
  }
  const uint32_t rebased = magnitude - (112u << 23);
  return uint16_t(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
}

inline void store(Half* to, Vector<float> x) {
  for (int i = 0; i < lanes<float>; ++i) to[i].bits = half_of(x[i]);
}
#endif

// Stores past the caches, into memory aligned to a vector: what is written once and read much later would otherwise be
// read from memory first, to be overwritten.
template <typename Whole>
inline void stream(void* to, const Whole& whole) {
  static_assert(sizeof whole == PS_VECTOR_BYTES, "a whole vector");
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)to, (__m512i)whole);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)to, (__m256i)whole);
#else
  std::memcpy(to, &whole, sizeof whole);
#endif
}

// Streamed stores are seen by other threads after this.
inline void stream_end() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Two vectors of neighbours, in the order in which they are cheapest to load and store.
template <typename Real>
struct Pair {
  Vector<Real> a, b;
};

template <typename Element>
inline Pair<Compute<Element>> load_pair(const Element* from) {
  return {load(from), load(from + lanes<Compute<Element>>)};
}

template <bool streamed, typename Element>
inline void store_pair(Element* to, Pair<Compute<Element>> x) {
  constexpr int width = lanes<Compute<Element>>;
  if constexpr (streamed && sizeof(Element) == sizeof(Compute<Element>)) {
    stream(to, x.a);
    stream(to + width, x.b);
  } else {
    store(to, x.a);
    store(to + width, x.b);
  }
}

// Even and odd elements: bfloat16 is the upper half of a float, so both come out of one word without a shuffle.
inline Pair<float> load_pair(const BFloat16* from) {
  Bits32 words;
  std::memcpy(&words, from, sizeof words);
  return {as_float(words << 16), as_float(words & 0xffff0000u)};
}

// The caller has seen to it that no NaN has a payload.
template <bool streamed>
inline void store_pair(BFloat16* to, Pair<float> x) {
  const Bits32 words = (rounded(x.a) >> 16) | (rounded(x.b) & 0xffff0000u);
  streamed ? stream(to, words) : (void)std::memcpy(to, &words, sizeof words);
}

template <typename Element>
constexpr Element minus_infinity = -std::numeric_limits<Element>::infinity();
template <>
constexpr BFloat16 minus_infinity<BFloat16> = {0xff80};
template <>
constexpr Half minus_infinity<Half> = {0xfc00};

// The last, partial vector of a row: lanes beyond its end hold `fill`.
template <typename Element>
inline Vector<Compute<Element>> load_part(const Element* from, int64_t count, Element fill) {
  Element part[lanes<Compute<Element>>];
  for (auto& element : part) element = fill;
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
}

template <typename Element>
inline void store_part(Element* to, int64_t count, Vector<Compute<Element>> x) {
  Element part[lanes<Compute<Element>>];
  store(part, x);
  std::memcpy(to, part, count * sizeof(Element));
}

#if defined(__AVX512F__)
inline Vector<float> load_part(const float* from, int64_t count, float fill) {
  return _mm512_mask_loadu_ps(splat<float>(fill), (__mmask16)((1u << count) - 1), from);
}
inline void store_part(float* to, int64_t count, Vector<float> x) {
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), x);
}
#endif

template <typename Element>
inline double load_one(const Element* from) {
  return load_part(from, 1, Element{})[0];
}

template <typename Element>
inline void store_one(Element* to, double x) {
  store_part(to, 1, splat<Compute<Element>>(Compute<Element>(x)));
}

// The bytes of a keep mask as lanes, 0 or not.
template <typename Real>
inline typename VectorOf<Real>::Bits kept_lanes(const uint8_t* from) {
#if defined(__AVX512F__)
  if constexpr (lanes<Real> == 16)
    return (typename VectorOf<Real>::Bits)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  if constexpr (lanes<Real> == 8)
    return (typename VectorOf<Real>::Bits)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#endif
  typedef uint8_t Bytes __attribute__((vector_size(lanes<Real>)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, typename VectorOf<Real>::Bits);
}

// 0 beyond `count`.
template <typename Real>
inline typename VectorOf<Real>::Bits kept_part(const uint8_t* from, int64_t count) {
  uint8_t part[lanes<Real>] = {};
  std::memcpy(part, from, count);
  return kept_lanes<Real>(part);
}

}  // namespace policy_split
