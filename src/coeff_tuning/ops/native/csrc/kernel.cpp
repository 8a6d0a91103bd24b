// What Python calls. Compiled once for each instruction set.
#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

#include "backward.h"
#include "decode.h"
#include "forward.h"

// Do `step` for every batch item: items that one thread does alone, then those that all threads share.
template <typename Step>
inline void for_items(const Problem& p, Step step) {
  const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num(), alone = p.batch / threads * threads;
  float* memory = p.workspace + thread * p.workspace_floats;
#pragma omp for schedule(dynamic)
  for (int64_t item = 0; item < alone; item++) step(item, Team{1, 0}, thread, memory);
  for (int64_t item = alone; item < p.batch; item++) step(item, Team{threads, thread}, thread, memory);
}

inline bool is_decode(const Problem& p) { return p.queries <= FEW_QUERIES; }

extern "C" {

int64_t coeff_lanes() { return VL; }

int64_t coeff_problem_bytes() { return sizeof(Problem); }

// Floats that a thread needs: whole cache lines.
int64_t coeff_forward_floats(const Problem* p) {
  return round_up(is_decode(*p) ? Decode::floats(*p) : Forward::floats(*p), 16);
}

int64_t coeff_backward_floats(const Problem* p) { return round_up(Backward::floats(*p), 16); }

void coeff_forward(const Problem* problem) {
  const Problem& p = *problem;
  const int64_t blocks = p.blocks();
#pragma omp parallel num_threads(p.threads)
  if (is_decode(p)) {
    for_items(p, [&](int64_t item, Team team, int64_t, float* memory) { Decode(p, team, memory).run(item); });
  } else {
    Forward forward(p, p.workspace + omp_get_thread_num() * p.workspace_floats);
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < p.batch * blocks; n++)
      forward.run(Block(p, n / blocks, p.is_causal ? blocks - 1 - n % blocks : n % blocks));  // the longest first
  }
}

void coeff_backward(const Problem* problem) {
  const Problem& p = *problem;
#pragma omp parallel num_threads(p.threads)
  for_items(p, [&](int64_t item, Team team, int64_t thread, float* memory) {
    Backward(p, team, thread, memory).run(item);
  });
}
}
