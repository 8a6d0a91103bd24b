// Mixing of the tiles of all heads: (H, H) coefficients times the H numbers of each key and query.
#pragma once

#include "problem.h"
#include "products.h"

// Keys that are gone through at once, so that the numbers of all heads stay in the first cache.
constexpr int MIXED_KEYS = 16;

// Tiles of a panel, head by head `step` apart, and what they are multiplied by before mixing, or null.
struct Maps {
  const float* data;
  int64_t heads, step, lanes;
  const float* weight;  // [head][lane]
};

// Register tiles of `M` mixed heads and N vectors of queries, one for each key.
template <int M, int N>
OWN_REGISTERS void mix_tile(const float* coeff, Maps maps, int keys, float* mixed) {
  for (int key = 0; key < keys; key++) {
    Vec sum[M][N] = {};
    for (int64_t i = 0; i < maps.heads; i++) {
      Vec map[N];
      for (int n = 0; n < N; n++) {
        map[n] = load(maps.data + i * maps.step + key * maps.lanes + n * VL);
        if (maps.weight) map[n] *= load(maps.weight + i * maps.lanes + n * VL);
      }
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) sum[m][n] += broadcast(coeff[i * maps.heads + m]) * map[n];
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) store(mixed + m * maps.step + key * maps.lanes + n * VL, sum[m][n]);
  }
}

template <int M, int N>
inline void mix_rows(int rows, const float* coeff, const Maps& maps, int keys, float* mixed) {
  if (rows == M) return mix_tile<M, N>(coeff, maps, keys, mixed);
  if constexpr (M > 1) mix_rows<M - 1, N>(rows, coeff, maps, keys, mixed);
}

template <int N>
inline void mix_lanes(const float* coeff, Maps maps, int64_t lane, int keys, float* mixed) {
  maps.data += lane;
  if (maps.weight) maps.weight += lane;
  int64_t done = 0;
  for (int64_t tiles = (maps.heads + ROWS - 1) / ROWS; tiles > 0; tiles--) {
    const int some = even_part(maps.heads - done, tiles);
    mix_rows<ROWS, N>(some, coeff + done, maps, keys, mixed + done * maps.step + lane);
    done += some;
  }
}

// mixed[h][key][lane] = sum_i coeff[i * heads + h] * weight[i][lane] * maps[i][key][lane]: `coeff` is transposed.
inline void mix(const float* coeff, Maps maps, int keys, float* mixed) {
  for (int key = 0; key < keys; key += MIXED_KEYS) {
    const int some = std::min(MIXED_KEYS, keys - key);
    int64_t lane = 0;
    for (; lane + 2 * VL <= maps.lanes; lane += 2 * VL) mix_lanes<2>(coeff, maps, lane, some, mixed);
    if (lane < maps.lanes) mix_lanes<1>(coeff, maps, lane, some, mixed);
    maps.data += some * maps.lanes;
    mixed += some * maps.lanes;
  }
}
