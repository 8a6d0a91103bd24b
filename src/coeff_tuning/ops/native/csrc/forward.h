// Forward pass. A block of queries keeps the exponentials of all its heads; each number is written and read once.
//
//   for each head, tile of keys:  E = exp(scores - m),  m = the largest score of each query so far;  l += sum E
//   for each tile of keys:        mixed[h] = sum_i coeff[h, i] * (exp(m_tile - m_last) / l)[i] * E[i]
//                                 out[h] += mixed[h] @ value[h]
#pragma once

#include "masking.h"
#include "mixing.h"

// Make scores [key][lane] their exponentials, shifted by the largest of each query so far, and add these up.
OWN_REGISTERS inline void exponentials(float* scores, int keys, int64_t lanes, float* peak, float* tile_peak,
                                       float* total) {
  for (int64_t lane = 0; lane < lanes; lane += VL) {
    const Vec before = load(peak + lane);
    Vec now = before;
    for (int key = 0; key < keys; key++) now = max(now, load(scores + key * lanes + lane));
    const Vec origin = now > -INFINITY ? now : Vec{};  // nothing seen so far
    Vec sum = load(total + lane) * exp_negative(before - origin);
    for (int key = 0; key < keys; key++) {
      const Vec e = exp_negative(load(scores + key * lanes + lane) - origin);
      store(scores + key * lanes + lane, e);
      sum += e;
    }
    store(peak + lane, now);
    store(tile_peak + lane, now);
    store(total + lane, sum);
  }
}

struct Forward {
  const Problem& p;
  float *panel, *biases, *kinds, *maps, *peaks, *peak, *total, *weight, *mixed, *sums, *coeff_t, *is_seen;

  static int64_t floats(const Problem& p) {
    const int64_t tiles = p.tiles(), rows = p.heads * p.block_queries;
    return p.block_queries * p.key_size + tiles * (p.heads + 1) * p.tile_step() + tiles * (rows + 2) + 3 * rows +
           p.heads * p.tile_step() + rows * p.value_size + p.heads * p.heads + 12 * 16;
  }

  Forward(const Problem& p, float* memory) : p(p) {
    const int64_t tiles = p.tiles(), rows = p.heads * p.block_queries;
    Arena arena{memory};
    panel = arena.take(p.block_queries * p.key_size);
    biases = arena.take(tiles * p.tile_step());
    kinds = arena.take(tiles);
    maps = arena.take(tiles * p.heads * p.tile_step());
    peaks = arena.take(tiles * rows);
    peak = arena.take(rows);
    total = arena.take(rows);
    weight = arena.take(rows);
    mixed = arena.take(p.heads * p.tile_step());
    sums = arena.take(rows * p.value_size);
    coeff_t = arena.take(p.heads * p.heads);
    is_seen = arena.take(tiles);
  }

  void run(const Block& block) {
    std::fill_n(is_seen, block.tiles, 0.0f);
    std::fill_n(sums, p.heads * p.block_queries * p.value_size, 0.0f);
    for (int64_t h = 0; h < p.heads; h++) {
      std::fill_n(peak + h * block.lanes, block.lanes, -INFINITY);
      std::fill_n(total + h * block.lanes, block.lanes, 0.0f);
      transpose(p.query, block, h, p.key_size, p.scale, panel);
      for (int64_t tile = 0; tile < block.tiles; tile++) fill(block, h, tile);
      finish(block, h);
    }
    const float* coeff = p.coeff + block.item * p.coeff_batch;
    for (int64_t h = 0; h < p.heads; h++)
      for (int64_t i = 0; i < p.heads; i++) coeff_t[i * p.heads + h] = coeff[h * p.heads + i];
    for (int64_t tile = 0; tile < block.tiles; tile++)
      if (is_seen[tile] != 0.0f) apply(block, tile);
    write(block);
  }

 private:
  float* tile_maps(int64_t tile, int64_t head) { return maps + (tile * p.heads + head) * p.tile_step(); }
  float* tile_peaks(const Block& block, int64_t tile, int64_t head) {
    return peaks + (tile * p.heads + head) * block.lanes;
  }

  void fill(const Block& block, int64_t h, int64_t tile) {
    const int keys = block.tile_keys(tile);
    const int64_t first = tile * KEYS;
    float* scores = tile_maps(tile, h);
    float* tile_peak = tile_peaks(block, tile, h);
    float* bias = biases + tile * p.tile_step();
    if (h == 0 || !is_shared_by_heads(p)) kinds[tile] = static_cast<float>(write_bias(p, block, h, first, keys, bias));
    const Bias kind = static_cast<Bias>(kinds[tile]);
    if (kind == Bias::SKIP) {
      std::fill_n(scores, keys * block.lanes, 0.0f);
      std::fill_n(tile_peak, block.lanes, -INFINITY);
      return;
    }
    is_seen[tile] = 1.0f;
    product<false>(keys, block.lanes, p.key_size, p.key.at(block.item, p.kv_head(h), first), p.key.position, 1, panel,
                   block.lanes, scores, block.lanes);
    if (kind == Bias::ADD) add(scores, bias, keys * block.lanes);
    exponentials(scores, keys, block.lanes, peak + h * block.lanes, tile_peak, total + h * block.lanes);
  }

  // Turn totals into their inverses, and keep what the backward pass needs.
  void finish(const Block& block, int64_t h) {
    for (int64_t lane = 0; lane < block.lanes; lane++) {
      float &sum = total[h * block.lanes + lane], &most = peak[h * block.lanes + lane];
      const bool is_dead = sum == 0.0f;
      if (is_dead) most = 0.0f;
      sum = is_dead ? 0.0f : 1.0f / sum;
      if (lane >= block.count) continue;
      *p.peak(block.item, h, block.first + lane) = most;
      *p.inverse(block.item, h, block.first + lane) = sum;
    }
  }

  void apply(const Block& block, int64_t tile) {
    const int keys = block.tile_keys(tile);
    for (int64_t n = 0; n < p.heads * block.lanes; n += VL) {
      const Vec shift = load(tile_peaks(block, tile, 0) + n) - load(peak + n);
      store(weight + n, exp_negative(shift) * load(total + n));
    }
    mix(coeff_t, {tile_maps(tile, 0), p.heads, p.tile_step(), block.lanes, weight}, keys, mixed);
    for (int64_t h = 0; h < p.heads; h++) {
      const float* values = p.value.at(block.item, p.kv_head(h), tile * KEYS);
      float* sum = sums + h * p.block_queries * p.value_size;
      product<true>(block.count, p.value_size, keys, mixed + h * p.tile_step(), 1, block.lanes, values,
                    p.value.position, sum, p.value_size);
    }
  }

  void write(const Block& block) {
    for (int64_t h = 0; h < p.heads; h++)
      for (int64_t row = 0; row < block.count; row++)
        std::copy_n(sums + (h * p.block_queries + row) * p.value_size, p.value_size, p.out.at(block.item, h, block.first + row));
  }
};
