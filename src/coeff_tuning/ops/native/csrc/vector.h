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

// For functions that keep a tile in registers: inside a larger function, the compiler would spill them to memory.
#define OWN_REGISTERS __attribute__((noinline))

inline Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

inline Vec broadcast(float value) { return value - Vec{}; }  // unlike "+", "-" leaves every value alone, and costs nothing

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

inline float largest(Vec value) {
  float most = value[0];
  for (int n = 1; n < VL; n++) most = value[n] > most ? value[n] : most;
  return most;
}

inline float added(Vec value) {
  typedef float Quad __attribute__((vector_size(16)));
  Quad parts[VL / 4];
  std::memcpy(parts, &value, sizeof parts);
  for (int n = 1; n < VL / 4; n++) parts[0] += parts[n];
  return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

// exp(x) for x <= 0 (or a little above it), within 2 units in the last place; exactly 0 below -87.33 and at -inf.
// x = n * ln(2) + r with |r| <= ln(2) / 2; exp(r) by a polynomial of degree 6; 2^n through the exponent bits.
inline Vec exp_negative(Vec x) {
  const Vec rounder = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const IntVec dead = x <= broadcast(-87.33f);  // false for NaN, which must come out again
  const Vec shifted = x * 1.44269504088896341f + rounder;
  const Vec n = shifted - rounder;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  Vec p = broadcast(0.00139336463f);
  p = p * r + 0.00836317521f;
  p = p * r + 0.0416664667f;
  p = p * r + 0.166665763f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (Vec)(((IntVec)p + ((IntVec)shifted << 23)) & ~dead);
}
