// What Python calls. Compiled once for each instruction set.
#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

#include "backward.h"
#include "forward.h"

extern "C" {

int64_t coeff_lanes() { return VL; }

int64_t coeff_forward_floats(const Problem* p) { return Forward::floats(*p); }

int64_t coeff_backward_floats(const Problem* p) { return Backward::floats(*p); }

void coeff_forward(const Problem* problem) {
  const Problem& p = *problem;
  const int64_t blocks = p.blocks();
#pragma omp parallel num_threads(p.threads)
  {
    Forward forward(p, p.workspace + omp_get_thread_num() * p.workspace_floats);
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < p.batch * blocks; n++)
      forward.run(Block(p, n / blocks, p.is_causal ? blocks - 1 - n % blocks : n % blocks));  // the longest first
  }
}

void coeff_backward(const Problem* problem) {
  const Problem& p = *problem;
#pragma omp parallel num_threads(p.threads)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t alone = p.batch / threads * threads;  // items that one thread does alone; all threads share the rest
    float* memory = p.workspace + thread * p.workspace_floats;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < alone; item++) Backward(p, {1, 0}, thread, memory).run(item);
    for (int64_t item = alone; item < p.batch; item++) Backward(p, {threads, thread}, thread, memory).run(item);
  }
}
}
