// Products between the tiles of all pairs of heads, query by query: from them come the gradient of the coefficients and
// the row sums that softmax's gradient subtracts.
#pragma once

#include "problem.h"
#include "products.h"

// Keys that are gone through at once, so that the numbers of all heads stay in the first cache.
constexpr int GRAM_KEYS = 16;

// One register tile: M heads of `left` and N heads of `right`, one vector of queries.
template <int M, int N>
OWN_REGISTERS void gram_tile(const float* left, const float* right, int64_t step, int keys, int64_t lanes, float* gram,
                             int64_t heads) {
  Vec sum[M][N];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) sum[m][n] = load(gram + (m * heads + n) * lanes);
  for (int key = 0; key < keys; key++) {
    Vec b[N];
    for (int n = 0; n < N; n++) b[n] = load(right + n * step + key * lanes);
    for (int m = 0; m < M; m++) {
      const Vec a = load(left + m * step + key * lanes);
      for (int n = 0; n < N; n++) sum[m][n] += a * b[n];
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(gram + (m * heads + n) * lanes, sum[m][n]);
}

template <int M, int N>
inline void gram_columns(int columns, const float* left, const float* right, int64_t step, int keys, int64_t lanes,
                         float* gram, int64_t heads) {
  if (columns == N) return gram_tile<M, N>(left, right, step, keys, lanes, gram, heads);
  if constexpr (N > 1) gram_columns<M, N - 1>(columns, left, right, step, keys, lanes, gram, heads);
}

template <int M>
inline void gram_rows(int rows, int columns, const float* left, const float* right, int64_t step, int keys,
                      int64_t lanes, float* gram, int64_t heads) {
  if (rows == M) return gram_columns<M, 3>(columns, left, right, step, keys, lanes, gram, heads);
  if constexpr (M > 1) gram_rows<M - 1>(rows, columns, left, right, step, keys, lanes, gram, heads);
}

// gram[h][i][lane] += sum_key left[h][key][lane] * right[i][key][lane]; heads are `step` apart.
inline void add_gram(const float* left, const float* right, int64_t step, int keys, int64_t lanes, int64_t heads,
                     float* gram) {
  for (int key = 0; key < keys; key += GRAM_KEYS) {
    const int some = std::min(GRAM_KEYS, keys - key);
    for (int64_t lane = 0; lane < lanes; lane += VL)
      for (int64_t h = 0; h < heads; h += 4)
        for (int64_t i = 0; i < heads; i += 3) {
          const int64_t at = key * lanes + lane;
          gram_rows<4>(static_cast<int>(std::min<int64_t>(4, heads - h)), static_cast<int>(std::min<int64_t>(3, heads - i)),
                       left + h * step + at, right + i * step + at, step, some, lanes,
                       gram + (h * heads + i) * lanes + lane, heads);
        }
  }
}
