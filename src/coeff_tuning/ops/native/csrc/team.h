// Threads that work on one batch item together.
#pragma once

#include <cstdint>

struct Team {
  int64_t size, rank;

  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
};
