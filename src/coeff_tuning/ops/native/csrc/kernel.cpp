// What Python calls. Compiled once for each instruction set.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "forward.h"

extern "C" {

int64_t coeff_lanes() { return VL; }

int64_t coeff_forward_floats(const Problem* p) { return Forward::floats(*p); }

void coeff_forward(const Problem* problem) {
  const Problem& p = *problem;
  const int64_t blocks = (p.queries + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(p.threads)
  {
#ifdef _OPENMP
    const int64_t thread = omp_get_thread_num();
#else
    const int64_t thread = 0;
#endif
    Forward forward(p, p.workspace + thread * p.workspace_floats);
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < p.batch * blocks; n++)
      forward.run(Block(p, n / blocks, p.is_causal ? blocks - 1 - n % blocks : n % blocks));
  }
}
}
