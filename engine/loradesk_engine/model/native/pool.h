/* Threads that share out the items of one short job after another. */

#ifndef LORADESK_POOL_H
#define LORADESK_POOL_H

#include <stdint.h>

enum { WORTH_SHARING = 1 << 16 }; /* multiplications of a job from which threads save more than their waiting takes */

/* Work on the items first to last - 1. */
typedef void (*Work)(void *job, int64_t first, int64_t last);

/* Do `count` items, `step` at a time, on up to `threads` threads, the caller's among them; returns when all are done.
   Whoever is free takes the next ones, so a thread that is held up by another program holds up one step only. */
void loradesk_run(Work work, void *job, int64_t count, int64_t step, int threads);

#endif
