// Masks and causality, as numbers to add to a tile of scores.
#pragma once

#include <cmath>

#include "problem.h"

// What to do with one tile of scores: nothing, add a tile of numbers, or skip it since no query sees any of its keys.
enum class Bias { NONE, ADD, SKIP };

// What mask and causality add to one score.
inline float bias_at(const Problem& p, int64_t item, int64_t head, int64_t query, int64_t key) {
  if (p.is_causal && key > query) return -INFINITY;
  const Mask& mask = p.mask;
  if (mask.kind == NO_MASK) return 0.0f;
  const int64_t at = item * mask.batch + head * mask.head + query * mask.query + key * mask.key;
  if (mask.kind == BOOL_MASK) return static_cast<const uint8_t*>(mask.data)[at] ? 0.0f : -INFINITY;
  return static_cast<const float*>(mask.data)[at];
}

// Write the numbers that mask and causality add to the scores of `head` and keys `first..first + keys - 1`, [key][lane].
inline Bias write_bias(const Problem& p, const Block& block, int64_t head, int64_t first, int keys, float* bias) {
  const bool crosses_diagonal = p.is_causal && first + keys - 1 > block.first;
  if (p.mask.kind == NO_MASK && !crosses_diagonal) return Bias::NONE;
  bool any_seen = false, any_added = false;
  for (int key = 0; key < keys; key++)
    for (int64_t lane = 0; lane < block.lanes; lane++) {
      const int64_t query = std::min(block.first + lane, p.queries - 1);
      const float value = bias_at(p, block.item, head, query, first + key);
      bias[key * block.lanes + lane] = value;
      any_seen |= value != -INFINITY;
      any_added |= value != 0.0f;
    }
  return any_seen ? any_added ? Bias::ADD : Bias::NONE : Bias::SKIP;
}

inline void add(float* to, const float* from, int64_t count) {
  for (int64_t n = 0; n < count; n += VL) store(to + n, load(to + n) + load(from + n));
}
