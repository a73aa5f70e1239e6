/* What all compiled kernels have in common.
 *
 * No library is linked: the caller hands in the GOMP_parallel of the OpenMP runtime that its own
 * process uses, so that both share one pool of threads.
 */

#ifndef KERNELS_H
#define KERNELS_H

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define TARGET(features) __attribute__((target(features)))

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

/* Let every thread take its share of the work; without `parallel` there is one thread. */
INLINE void run_in_parallel(void (*share)(void *), void *work, Parallel parallel, int threads) {
    if (parallel && threads > 1)
        parallel(share, work, (unsigned)threads, 0);
    else
        share(work);
}

#endif
