// Vectors of VL floats, for whichever instruction set the file is compiled for, and their exponential.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int VL = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int VL = 8, REGISTERS = 16;
#else
constexpr int VL = 4, REGISTERS = 32;
#endif

typedef float Vec __attribute__((vector_size(VL * 4)));
typedef int32_t IntVec __attribute__((vector_size(VL * 4)));

inline Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

inline Vec broadcast(float value) { return value - Vec{}; }  // unlike "+", "-" leaves every value alone, and costs nothing

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// exp(x) for x <= 0 (or a little above it): under 2 units in the last place, and exactly 0 below -87.33 and at -inf.
// x = n * ln(2) + r with |r| <= ln(2) / 2; exp(r) by Taylor's polynomial of degree 7; 2^n through the exponent bits.
inline Vec exp_negative(Vec x) {
  const Vec floor = broadcast(-87.33f), rounder = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const IntVec dead = x <= floor;  // false for NaN, which must come out again
  x = x < floor ? floor : x;
  const Vec shifted = x * 1.44269504088896341f + rounder;
  const Vec n = shifted - rounder;
  Vec r = x - n * 0.693359375f;  // ln(2) in two parts
  r = r + n * 2.12194440e-4f;
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const IntVec bits = ((IntVec)p + ((IntVec)shifted << 23)) & ~dead;
  return (Vec)bits;
}
