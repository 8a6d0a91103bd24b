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

// Whether all heads see the same, so that what was written for the first serves the others.
inline bool is_shared_by_heads(const Problem& p) { return p.mask.kind == NO_MASK || p.mask.head == 0; }

// Write the numbers that mask and causality add to the scores of `head` and keys `first..first + keys - 1`, [key][lane].
inline Bias write_bias(const Problem& p, const Block& block, int64_t head, int64_t first, int keys, float* bias) {
  const bool crosses_diagonal = p.is_causal && first + keys - 1 > block.first;
  if (p.mask.kind == NO_MASK && !crosses_diagonal) return Bias::NONE;
  const bool is_shared = p.mask.query == 0 && !crosses_diagonal;  // by all queries, as padding is
  bool any_seen = false, any_added = false;
  for (int key = 0; key < keys; key++) {
    float* row = bias + key * block.lanes;
    const int64_t lanes = is_shared ? 1 : block.lanes;
    for (int64_t lane = 0; lane < lanes; lane++) {
      row[lane] = bias_at(p, block.item, head, std::min(block.first + lane, p.queries - 1), first + key);
      any_seen |= row[lane] != -INFINITY;
      any_added |= row[lane] != 0.0f;
    }
    if (is_shared) std::fill_n(row, block.lanes, row[0]);
  }
  return any_seen ? any_added ? Bias::ADD : Bias::NONE : Bias::SKIP;
}

inline void add(float* to, const float* from, int64_t count) {
  for (int64_t n = 0; n < count; n += VL) store(to + n, load(to + n) + load(from + n));
}
