// Backward pass. The maps P are computed again from the largest score and the sum of each query. For a block of queries, over its tiles of keys:
//
//   first:   P = exp(scores - m) / l,  dM[h] = dout[h] @ value[h]^T,  G[h, i] += sum over keys of dM[h] * P[i]
//   then:    dcoeff[h, i] += sum over queries of G[h, i],  D[i] = sum_h coeff[h, i] * G[h, i]
//   second:  dvalue[h] += (sum_i coeff[h, i] P[i])^T @ dout[h]
//            dS[i] = scale * P[i] * (sum_h coeff[h, i] dM[h] - D[i]),  dquery += dS @ key,  dkey += dS^T @ query
//
// A team of threads may share one batch item: each takes every n-th tile, so that no two write to the same keys.
#pragma once

#include "gram.h"
#include "masking.h"
#include "mixing.h"
#include "team.h"

// Make scores [key][lane] probabilities.
OWN_REGISTERS inline void probabilities(float* scores, int keys, int64_t lanes, const float* peak,
                                        const float* inverse) {
  for (int64_t lane = 0; lane < lanes; lane += VL) {
    const Vec origin = load(peak + lane), factor = load(inverse + lane);
    for (int key = 0; key < keys; key++) {
      float* at = scores + key * lanes + lane;
      store(at, exp_negative(load(at) - origin) * factor);
    }
  }
}

// Make the gradient of a map that of its scores, given the sum of map times gradient over all keys.
OWN_REGISTERS inline void softmax_backward(const float* map, const float* row_sum, int keys, int64_t lanes, float scale,
                                           float* grad) {
  for (int key = 0; key < keys; key++)
    for (int64_t lane = 0; lane < lanes; lane += VL) {
      const int64_t at = key * lanes + lane;
      store(grad + at, load(map + at) * (load(grad + at) - load(row_sum + lane)) * scale);
    }
}

struct Backward {
  const Problem& p;
  const Team team;
  const int64_t thread;
  float *queries, *douts, *bias, *maps, *dmixed, *mixed, *gram, *rows, *peak, *inverse, *dquery, *coeff_t;
  Bias bias_kind = Bias::NONE;
  bool needs_scores;

  static int64_t floats(const Problem& p) {
    const int64_t rows = p.heads * p.block_queries, tile = p.heads * p.tile_step();
    return rows * (p.key_size * 2 + p.value_size + 3 + p.heads) + p.tile_step() + 2 * p.tiles() * tile + tile +
           p.heads * p.heads + 12 * 16;
  }

  Backward(const Problem& p, Team team, int64_t thread, float* memory) : p(p), team(team), thread(thread) {
    const int64_t rows_count = p.heads * p.block_queries, tile = p.heads * p.tile_step();
    Arena arena{memory};
    gram = arena.take(rows_count * p.heads);  // these two are read by the whole team
    dquery = arena.take(rows_count * p.key_size);
    queries = arena.take(rows_count * p.key_size);
    douts = arena.take(rows_count * p.value_size);
    bias = arena.take(p.tile_step());
    mixed = arena.take(tile);
    rows = arena.take(rows_count);
    peak = arena.take(rows_count);
    inverse = arena.take(rows_count);
    coeff_t = arena.take(p.heads * p.heads);
    maps = arena.take(p.tiles() * tile);
    dmixed = arena.take(p.tiles() * tile);
    needs_scores = p.dquery.data || p.dkey.data;
  }

  void run(int64_t item) {
    const float* coeff = p.coeff + item * p.coeff_batch;
    for (int64_t h = 0; h < p.heads; h++)
      for (int64_t i = 0; i < p.heads; i++) coeff_t[i * p.heads + h] = coeff[h * p.heads + i];
    for (int64_t index = 0; index < p.blocks(); index++) run(Block(p, item, index), coeff);
  }

 private:
  float* of_tile(float* buffer, int64_t tile, int64_t head) {
    return buffer + (tile / team.size * p.heads + head) * p.tile_step();
  }

  void run(const Block& block, const float* coeff) {
    prepare(block);
    for (int64_t tile = team.rank; tile < block.tiles; tile += team.size) first_pass(block, tile);
    team.wait();
    if (p.dcoeff) sum_dcoeff(block);
    if (needs_scores) sum_rows(block, coeff);
    if (needs_scores || p.dvalue.data)
      for (int64_t tile = team.rank; tile < block.tiles; tile += team.size) second_pass(block, tile, coeff);
    team.wait();
    if (p.dquery.data) write_dquery(block);
    team.wait();
  }

  void prepare(const Block& block) {
    std::fill_n(gram, p.heads * p.heads * block.lanes, 0.0f);
    std::fill_n(dquery, p.heads * p.block_queries * p.key_size, 0.0f);
    for (int64_t h = 0; h < p.heads; h++) {
      transpose(p.query, block, h, p.key_size, p.scale, queries + h * p.key_size * block.lanes);
      transpose(p.dout, block, h, p.value_size, 1.0f, douts + h * p.value_size * block.lanes);
      for (int64_t lane = 0; lane < block.lanes; lane++) {
        const bool is_query = lane < block.count;
        peak[h * block.lanes + lane] = is_query ? *p.peak(block.item, h, block.first + lane) : 0.0f;
        inverse[h * block.lanes + lane] = is_query ? *p.inverse(block.item, h, block.first + lane) : 0.0f;
      }
    }
  }

  void first_pass(const Block& block, int64_t tile) {
    const int keys = block.tile_keys(tile);
    for (int64_t h = 0; h < p.heads; h++) {
      write_maps(block, h, tile, keys);
      if (!needs_scores && !p.dcoeff) continue;
      product<false>(keys, block.lanes, p.value_size, p.value.at(block.item, p.kv_head(h), tile * KEYS),
                     p.value.position, 1, douts + h * p.value_size * block.lanes, block.lanes,
                     of_tile(dmixed, tile, h), block.lanes);
    }
    if (needs_scores || p.dcoeff)
      add_gram(of_tile(dmixed, tile, 0), of_tile(maps, tile, 0), p.tile_step(), keys, block.lanes, p.heads, gram);
  }

  void write_maps(const Block& block, int64_t h, int64_t tile, int keys) {
    float* map = of_tile(maps, tile, h);
    if (h == 0 || !is_shared_by_heads(p)) bias_kind = write_bias(p, block, h, tile * KEYS, keys, bias);
    if (bias_kind == Bias::SKIP) {
      std::fill_n(map, keys * block.lanes, 0.0f);
      return;
    }
    product<false>(keys, block.lanes, p.key_size, p.key.at(block.item, p.kv_head(h), tile * KEYS), p.key.position, 1,
                   queries + h * p.key_size * block.lanes, block.lanes, map, block.lanes);
    if (bias_kind == Bias::ADD) add(map, bias, keys * block.lanes);
    probabilities(map, keys, block.lanes, peak + h * block.lanes, inverse + h * block.lanes);
  }

  void sum_dcoeff(const Block& block) {
    const int64_t items = p.coeff_batch ? p.batch : 1, item = p.coeff_batch ? block.item : 0;
    float* sums = p.dcoeff + (thread * items + item) * p.heads * p.heads;
    for (int64_t n = 0; n < p.heads * p.heads; n++)
      for (int64_t lane = 0; lane < block.lanes; lane++) sums[n] += gram[n * block.lanes + lane];
  }

  // rows[i] = sum_h coeff[h, i] * G[h, i], with the G of the whole team.
  void sum_rows(const Block& block, const float* coeff) {
    std::fill_n(rows, p.heads * block.lanes, 0.0f);
    for (int64_t member = 0; member < team.size; member++) {
      const float* theirs = gram + (member - team.rank) * p.workspace_floats;
      for (int64_t h = 0; h < p.heads; h++)
        for (int64_t i = 0; i < p.heads; i++)
          for (int64_t lane = 0; lane < block.lanes; lane++)
            rows[i * block.lanes + lane] += coeff[h * p.heads + i] * theirs[(h * p.heads + i) * block.lanes + lane];
    }
  }

  void second_pass(const Block& block, int64_t tile, const float* coeff) {
    const int keys = block.tile_keys(tile);
    const int64_t first = tile * KEYS, lanes = block.lanes, step = p.tile_step();
    if (p.dvalue.data) {
      mix(coeff_t, {of_tile(maps, tile, 0), p.heads, step, lanes, nullptr}, keys, mixed);
      for (int64_t h = 0; h < p.heads; h++)
        product<true>(keys, p.value_size, block.count, mixed + h * step, lanes, 1,
                      p.dout.at(block.item, h, block.first), p.dout.position,
                      p.dvalue.at(block.item, p.kv_head(h), first), p.dvalue.position);
    }
    if (!needs_scores) return;
    mix(coeff, {of_tile(dmixed, tile, 0), p.heads, step, lanes, nullptr}, keys, mixed);
    for (int64_t h = 0; h < p.heads; h++) {
      float* dscores = mixed + h * step;
      softmax_backward(of_tile(maps, tile, h), rows + h * lanes, keys, lanes, p.scale, dscores);
      if (p.dquery.data)
        product<true>(block.count, p.key_size, keys, dscores, 1, lanes, p.key.at(block.item, p.kv_head(h), first),
                      p.key.position, dquery + h * p.block_queries * p.key_size, p.key_size);
      if (p.dkey.data)
        product<true>(keys, p.key_size, block.count, dscores, lanes, 1, p.query.at(block.item, h, block.first),
                      p.query.position, p.dkey.at(block.item, p.kv_head(h), first), p.dkey.position);
    }
  }

  // Add up the parts of the team, and write them; each member some heads.
  void write_dquery(const Block& block) {
    for (int64_t h = team.rank; h < p.heads; h += team.size)
      for (int64_t row = 0; row < block.count; row++) {
        float* to = p.dquery.at(block.item, h, block.first + row);
        const float* from = dquery + (h * p.block_queries + row) * p.key_size - team.rank * p.workspace_floats;
        for (int64_t x = 0; x < p.key_size; x += VL) {
          Vec sum = load(from + x);
          for (int64_t member = 1; member < team.size; member++) sum += load(from + member * p.workspace_floats + x);
          store(to + x, sum);
        }
      }
  }
};
