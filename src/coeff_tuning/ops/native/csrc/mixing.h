// Mixing of the tiles of all heads: (H, H) coefficients times the H numbers of each key and query.
#pragma once

#include "problem.h"
#include "products.h"

// One register tile: `M` mixed heads of N vectors of one key.
template <int M, int N>
inline __attribute__((always_inline)) void mix_tile(const float* coeff, int64_t heads, const float* maps,
                                                    int64_t step, const float* weight, int64_t lanes, float* mixed) {
  Vec sum[M][N] = {};
  for (int64_t i = 0; i < heads; i++) {
    Vec map[N];
    for (int n = 0; n < N; n++) {
      map[n] = load(maps + i * step + n * VL);
      if (weight) map[n] *= load(weight + i * lanes + n * VL);
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) sum[m][n] += broadcast(coeff[i * heads + m]) * map[n];
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(mixed + m * step + n * VL, sum[m][n]);
}

template <int M, int N>
inline void mix_rows(int rows, const float* coeff, int64_t heads, const float* maps, int64_t step,
                     const float* weight, int64_t lanes, float* mixed) {
  if (rows == M) return mix_tile<M, N>(coeff, heads, maps, step, weight, lanes, mixed);
  if constexpr (M > 1) mix_rows<M - 1, N>(rows, coeff, heads, maps, step, weight, lanes, mixed);
}

template <int N>
inline void mix_key(const float* coeff, int64_t heads, const float* maps, int64_t step, const float* weight, int64_t lanes,
                    float* mixed) {
  int64_t done = 0;
  for (int64_t tiles = (heads + ROWS - 1) / ROWS; tiles > 0; tiles--) {
    const int some = even_part(heads - done, tiles);
    mix_rows<ROWS, N>(some, coeff + done, heads, maps, step, weight, lanes, mixed + done * step);
    done += some;
  }
}

// mixed[h][key][lane] = sum_i coeff[i * heads + h] * weight[i][lane] * maps[i][key][lane]; heads are `step` apart.
// `coeff` is the transpose of the coefficients; `weight` may be null.
inline void mix(const float* coeff, int64_t heads, const float* maps, int64_t step, const float* weight, int keys,
                int64_t lanes, float* mixed) {
  for (int key = 0; key < keys; key++) {
    int64_t lane = 0;
    for (; lane + 2 * VL <= lanes; lane += 2 * VL) {
      const int64_t at = key * lanes + lane;
      mix_key<2>(coeff, heads, maps + at, step, weight ? weight + lane : nullptr, lanes, mixed + at);
    }
    if (lane < lanes) {
      const int64_t at = key * lanes + lane;
      mix_key<1>(coeff, heads, maps + at, step, weight ? weight + lane : nullptr, lanes, mixed + at);
    }
  }
}
