// The small matrix products that everything is made of. All operands are in cache; results stay in registers.
#pragma once

#include "vector.h"

// Rows of a register tile; a tile is ROWS x 2 vectors.
constexpr int ROWS = REGISTERS == 16 ? 6 : 12;

// The next of `parts` parts of nearly the same size: a tile of few rows would wait for its own sums.
inline int even_part(int64_t rows, int64_t parts) { return static_cast<int>((rows + parts - 1) / parts); }

// One register tile: c[m][n] (+)= sum_k a[m * am + k * ak] * b[k * ldb + n], m < M, n < N * VL.
template <int M, int N, bool ADD>
OWN_REGISTERS void product_tile(
    const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc, int depth) {
  Vec sum[M][N];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) sum[m][n] = ADD ? load(c + m * ldc + n * VL) : Vec{};
  for (int k = 0; k < depth; k++) {
    Vec right[N];
    for (int n = 0; n < N; n++) right[n] = load(b + n * VL);
    for (int m = 0; m < M; m++) {
      const Vec left = broadcast(a[m * am]);
      for (int n = 0; n < N; n++) sum[m][n] += left * right[n];
    }
    a += ak;
    b += ldb;
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(c + m * ldc + n * VL, sum[m][n]);
}

// Tiles of `rows` <= M rows.
template <int M, int N, bool ADD>
inline void product_rows(int rows, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c,
                         int64_t ldc, int depth) {
  if (rows == M) return product_tile<M, N, ADD>(a, am, ak, b, ldb, c, ldc, depth);
  if constexpr (M > 1) product_rows<M - 1, N, ADD>(rows, a, am, ak, b, ldb, c, ldc, depth);
}

template <int N, bool ADD>
inline void product_column(int rows, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c,
                           int64_t ldc, int depth) {
  int done = 0;
  for (int tiles = (rows + ROWS - 1) / ROWS; tiles > 0; tiles--) {
    const int some = even_part(rows - done, tiles);
    product_rows<ROWS, N, ADD>(some, a + done * am, am, ak, b, ldb, c + done * ldc, ldc, depth);
    done += some;
  }
}

// c (+)= a @ b, of rows x depth and depth x columns; columns is a multiple of VL. `am` and `ak` are the steps of `a`
// from row to row and along its depth: one of them is 1, so `a` may be transposed.
template <bool ADD>
inline void product(int rows, int columns, int depth, const float* a, int64_t am, int64_t ak, const float* b,
                    int64_t ldb, float* c, int64_t ldc) {
  int n = 0;
  if (rows <= 2)  // wide tiles, or there are too few sums to hide how long one takes
    for (; n + 4 * VL <= columns; n += 4 * VL)
      product_rows<2, 4, ADD>(rows, a, am, ak, b + n, ldb, c + n, ldc, depth);
  for (; n + 2 * VL <= columns; n += 2 * VL) product_column<2, ADD>(rows, a, am, ak, b + n, ldb, c + n, ldc, depth);
  if (n < columns) product_column<1, ADD>(rows, a, am, ak, b + n, ldb, c + n, ldc, depth);
}
