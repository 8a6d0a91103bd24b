// One call as Python passes it, and how it is cut into tiles. The layout of `Problem` is mirrored in `library.py`.
#pragma once

#include <algorithm>

#include "vector.h"

constexpr int KEYS = 96;  // keys of a tile; lanes of the vectors are queries

enum MaskKind : int64_t { NO_MASK = 0, BOOL_MASK = 1, FLOAT_MASK = 2 };

// A (B, H, L, X) tensor with X contiguous; steps count floats.
struct Heads {
  float* data;
  int64_t batch, head, position;

  float* at(int64_t b, int64_t h, int64_t l) const { return data + b * batch + h * head + l * position; }
};

struct Mask {
  const void* data;
  int64_t kind, batch, head, query, key;  // steps in entries, 0 where the mask is shared
};

struct Problem {
  int64_t batch, heads, kv_heads, queries, keys, key_size, value_size;
  Heads query, key, value, out;  // sizes of a head are multiples of VL
  Heads dout, dquery, dkey, dvalue;
  float* coeff;    // (H, H) or (B, H, H)
  int64_t coeff_batch;
  float* stats;    // (2, B, H, L): largest score m of a query, and 1 / sum of exp(score - m) or 0 without any key
  float* dcoeff;   // (threads, B or 1, H, H), added to
  Mask mask;
  int64_t is_causal, threads;
  int64_t block_queries;  // a multiple of VL
  float scale;
  float* workspace;
  int64_t workspace_floats;  // of one thread

  int64_t kv_head(int64_t head) const { return head / (heads / kv_heads); }

  float* peak(int64_t item, int64_t head, int64_t query) const {
    return stats + (item * heads + head) * queries + query;
  }
  float* inverse(int64_t item, int64_t head, int64_t query) const {
    return peak(item, head, query) + batch * heads * queries;
  }

  int64_t blocks() const { return (queries + block_queries - 1) / block_queries; }
  int64_t tiles() const { return (keys + KEYS - 1) / KEYS; }

  // Floats from the tile of one head to the next: no power of two, or all heads would fall on the same cache lines.
  int64_t tile_step() const { return block_queries * KEYS + 16; }

  // Keys that the queries of a block may see at most.
  int64_t seen(int64_t first_query, int64_t count) const {
    return is_causal ? std::min(keys, first_query + count) : keys;
  }
};

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Some queries of one batch item, with all heads.
struct Block {
  int64_t item, first, count, lanes, keys, tiles;

  Block(const Problem& p, int64_t item, int64_t index)
      : item(item),
        first(index * p.block_queries),
        count(std::min(p.block_queries, p.queries - first)),
        lanes(round_up(count, VL)),
        keys(p.seen(first, count)),
        tiles((keys + KEYS - 1) / KEYS) {}

  int tile_keys(int64_t tile) const { return static_cast<int>(std::min<int64_t>(KEYS, keys - tile * KEYS)); }
};

// Bump allocation from the memory of one thread.
struct Arena {
  float* next;
  float* take(int64_t floats) {
    float* taken = next;
    next += round_up(floats, 16);
    return taken;
  }
};

// Write the queries of a block as a panel [x][lane], times `factor`; lanes without a query are 0.
inline void transpose(const Heads& from, const Block& block, int64_t head, int64_t size, float factor, float* panel) {
  for (int64_t lane = 0; lane < block.lanes; lane++) {
    const float* row = from.at(block.item, head, block.first + lane);
    for (int64_t x = 0; x < size; x++) panel[x * block.lanes + lane] = lane < block.count ? row[x] * factor : 0.0f;
  }
}
