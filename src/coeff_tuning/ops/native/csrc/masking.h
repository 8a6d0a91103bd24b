// Masks and causality, as numbers to add to a tile of scores.
#pragma once

#include <cmath>

#include "problem.h"

// What to do with one tile of scores: nothing, add a tile of numbers, or skip it since no query sees any of its keys.
enum class Bias { NONE, ADD, SKIP };

inline float mask_value(const Mask& mask, int64_t offset) {
  if (mask.kind == BOOL_MASK) return static_cast<const uint8_t*>(mask.data)[offset] ? 0.0f : -INFINITY;
  return static_cast<const float*>(mask.data)[offset];
}

// Write the numbers that mask and causality add to the scores of `head` and keys `first..first + keys - 1`, [key][lane].
inline Bias write_bias(const Problem& p, const Block& block, int64_t head, int64_t first, int keys, float* bias) {
  const Mask& mask = p.mask;
  const bool crosses_diagonal = p.is_causal && first + keys - 1 > block.first;
  if (mask.kind == NO_MASK && !crosses_diagonal) return Bias::NONE;
  bool any_seen = false, any_added = false;
  for (int key = 0; key < keys; key++)
    for (int64_t lane = 0; lane < block.lanes; lane++) {
      const int64_t query = std::min(block.first + lane, p.queries - 1);
      float value = 0.0f;
      if (mask.kind != NO_MASK)
        value = mask_value(mask, block.item * mask.batch + head * mask.head + query * mask.query +
                                     (first + key) * mask.key);
      if (p.is_causal && first + key > query) value = -INFINITY;
      bias[key * block.lanes + lane] = value;
      any_seen |= value != -INFINITY;
      any_added |= value != 0.0f;
    }
  return any_seen ? any_added ? Bias::ADD : Bias::NONE : Bias::SKIP;
}

inline void add(float* to, const float* from, int64_t count) {
  for (int64_t n = 0; n < count; n += VL) store(to + n, load(to + n) + load(from + n));
}
