// Forward pass for few queries, as in generation with a cache: keys and values are read once, by all threads together.
//
//   each thread, own keys:  E = exp(scores - m),  m = the largest of its scores of each row,  l = sum E
//   each thread, own keys:  out[h] += (sum_i coeff[h, i] * weight[i] * E[i]) @ value[h],
//                           weight = exp(m - largest m of all threads) / (l of all threads)
//   together:               the parts of `out` are added up
//
// A row is a query of a head; the rows of the heads that share a key/value head follow each other. The maps lie as
// [row][key], as there are too few queries to fill vectors with.
#pragma once

#include "masking.h"
#include "products.h"
#include "team.h"

constexpr int64_t FEW_QUERIES = 4;
constexpr int DOT_ROWS = 4;  // rows that are gone through at once

// scores[row][key] = query[row] . key[key], for R rows.
template <int R>
OWN_REGISTERS void dot_tile(const float* query, const float* key, int64_t key_step, int keys, int64_t size,
                            float* scores, int64_t step) {
  for (int n = 0; n < keys; n++, key += key_step) {
    Vec sum[R] = {};
    for (int64_t x = 0; x < size; x += VL) {
      const Vec right = load(key + x);
      for (int row = 0; row < R; row++) sum[row] += load(query + row * size + x) * right;
    }
    for (int row = 0; row < R; row++) scores[row * step + n] = added(sum[row]);
  }
}

template <int R>
inline void dot_rows(int rows, const float* query, const float* key, int64_t key_step, int keys, int64_t size,
                     float* scores, int64_t step) {
  if (rows == R) return dot_tile<R>(query, key, key_step, keys, size, scores, step);
  if constexpr (R > 1) dot_rows<R - 1>(rows, query, key, key_step, keys, size, scores, step);
}

struct Decode {
  const Problem& p;
  const Team team;
  const int64_t rows, group, tiles, step;  // group: rows of one key/value head; step: from row to row of `maps`
  float *peak, *total, *sums, *queries, *biases, *mixed, *maps, *is_seen;

  static int64_t floats(const Problem& p) {
    return p.heads * p.queries * (2 + p.value_size + p.key_size + (p.tiles() + 2) * KEYS) + p.tiles() + 8 * 16;
  }

  Decode(const Problem& p, Team team, float* memory)
      : p(p),
        team(team),
        rows(p.heads * p.queries),
        group(rows / p.kv_heads),
        tiles((p.seen(0, p.queries) + KEYS - 1) / KEYS),
        step((tiles - team.rank + team.size - 1) / team.size * KEYS) {
    Arena arena{memory};
    peak = arena.take(rows);  // these three are read by the whole team
    total = arena.take(rows);
    sums = arena.take(rows * p.value_size);
    queries = arena.take(rows * p.key_size);
    biases = arena.take(rows * KEYS);
    mixed = arena.take(rows * KEYS);
    is_seen = arena.take(tiles);
    maps = arena.take(rows * step);
  }

  void run(int64_t item) {
    const Block block(p, item, 0);
    scale_queries(block);
    for (int64_t tile = team.rank; tile < tiles; tile += team.size) fill(block, tile);
    for (int64_t row = 0; row < rows; row++) exponentials(row);
    team.wait();
    for (int64_t row = 0; row < rows; row++) weigh(block, row);
    std::fill_n(sums, rows * p.value_size, 0.0f);
    for (int64_t tile = team.rank; tile < tiles; tile += team.size)
      if (is_seen[tile] != 0.0f) apply(block, tile);
    team.wait();
    write(block);
    team.wait();
  }

 private:
  float* tile_maps(int64_t tile) { return maps + tile / team.size * KEYS; }
  int64_t head(int64_t row) const { return row / p.queries; }
  int64_t query(int64_t row) const { return row % p.queries; }

  void scale_queries(const Block& block) {
    for (int64_t row = 0; row < rows; row++) {
      const float* from = p.query.at(block.item, head(row), query(row));
      for (int64_t x = 0; x < p.key_size; x++) queries[row * p.key_size + x] = from[x] * p.scale;
    }
  }

  void fill(const Block& block, int64_t tile) {
    const int keys = block.tile_keys(tile);
    float* scores = tile_maps(tile);
    const Bias kind = write_biases(block, tile, keys);
    is_seen[tile] = kind == Bias::SKIP ? 0.0f : 1.0f;
    for (int64_t row = 0; row < rows; row++) std::fill_n(scores + row * step, KEYS, -INFINITY);
    if (kind == Bias::SKIP) return;
    for (int64_t g = 0; g < p.kv_heads; g++)
      for (int64_t row = g * group; row < (g + 1) * group; row += DOT_ROWS)
        dot_rows<DOT_ROWS>(static_cast<int>(std::min<int64_t>(DOT_ROWS, (g + 1) * group - row)),
                           queries + row * p.key_size, p.key.at(block.item, g, tile * KEYS), p.key.position, keys,
                           p.key_size, scores + row * step, step);
    if (kind == Bias::ADD)
      for (int64_t row = 0; row < rows; row++) add(scores + row * step, biases + row * KEYS, KEYS);
  }

  // What mask and causality add to the scores of a tile, as [row][key].
  Bias write_biases(const Block& block, int64_t tile, int keys) {
    if (p.mask.kind == NO_MASK && !p.is_causal) return Bias::NONE;
    bool any_seen = false;
    std::fill_n(biases, rows * KEYS, 0.0f);
    for (int64_t row = 0; row < rows; row++)
      for (int key = 0; key < keys; key++) {
        const float bias = bias_at(p, block.item, head(row), query(row), tile * KEYS + key);
        biases[row * KEYS + key] = bias;
        any_seen |= bias != -INFINITY;
      }
    return any_seen ? Bias::ADD : Bias::SKIP;
  }

  OWN_REGISTERS void exponentials(int64_t row) {
    float* map = maps + row * step;
    Vec most = broadcast(-INFINITY), sum = {};
    for (int64_t n = 0; n < step; n += VL) most = max(most, load(map + n));
    peak[row] = largest(most);
    const Vec origin = broadcast(peak[row] > -INFINITY ? peak[row] : 0.0f);
    for (int64_t n = 0; n < step; n += VL) {
      const Vec e = exp_negative(load(map + n) - origin);
      store(map + n, e);
      sum += e;
    }
    total[row] = added(sum);
  }

  // Make the exponentials of a row maps, and keep what the backward pass needs.
  void weigh(const Block& block, int64_t row) {
    float most = -INFINITY, sum = 0.0f;
    for (int64_t member = 0; member < team.size; member++) most = std::max(most, of(member, peak)[row]);
    if (most == -INFINITY) most = 0.0f;  // nothing to attend to
    for (int64_t member = 0; member < team.size; member++)
      sum += of(member, total)[row] * std::exp(of(member, peak)[row] - most);
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f, weight = std::exp(peak[row] - most) * inverse;
    for (int64_t n = 0; n < step; n += VL) store(maps + row * step + n, load(maps + row * step + n) * weight);
    if (team.rank != 0) return;
    *p.peak(block.item, head(row), query(row)) = most;
    *p.inverse(block.item, head(row), query(row)) = inverse;
  }

  void apply(const Block& block, int64_t tile) {
    const float* coeff = p.coeff + block.item * p.coeff_batch;
    for (int64_t l = 0; l < p.queries; l++)
      product<false>(p.heads, KEYS, p.heads, coeff, p.heads, 1, tile_maps(tile) + l * step, p.queries * step,
                     mixed + l * KEYS, p.queries * KEYS);
    for (int64_t g = 0; g < p.kv_heads; g++)
      product<true>(group, p.value_size, block.tile_keys(tile), mixed + g * group * KEYS, KEYS, 1,
                    p.value.at(block.item, g, tile * KEYS), p.value.position, sums + g * group * p.value_size,
                    p.value_size);
  }

  // Add up the parts of the team, and write them; each member some rows.
  void write(const Block& block) {
    for (int64_t row = team.rank; row < rows; row += team.size) {
      float* to = p.out.at(block.item, head(row), query(row));
      for (int64_t x = 0; x < p.value_size; x += VL) {
        Vec sum = {};
        for (int64_t member = 0; member < team.size; member++) sum += load(of(member, sums) + row * p.value_size + x);
        store(to + x, sum);
      }
    }
  }

  // The same array of another member.
  const float* of(int64_t member, const float* own) const { return own + (member - team.rank) * p.workspace_floats; }
};
