/* A token is some two hundred jobs of a few microseconds to a hundred. Threads that slept between them would take
   longer to wake than the jobs take, so they look for the next one for a while before they sleep. They yield while they
   look: another program that wants the core gets it. */

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { MOST_THREADS = 64, LOOKS = 64, YIELDS = 400 };

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held by the thread whose job it is */
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int started;
static atomic_int sleeping;

static Work job_work;
static void *job;
static int64_t job_count, job_step;
static atomic_int_fast64_t job_next;
static atomic_uint job_number;
static atomic_bool job_open;
static atomic_int job_helpers; /* may still join */
static atomic_int at_work;

static inline void look_again(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_items(void) {
    for (;;) {
        int64_t first = atomic_fetch_add(&job_next, job_step);
        if (first >= job_count) return;
        job_work(job, first, first + job_step < job_count ? first + job_step : job_count);
    }
}

static void wait_for_job(unsigned seen) {
    for (int look = 0; look < LOOKS + YIELDS; look++) {
        if (atomic_load(&job_number) != seen) return;
        if (look < LOOKS)
            look_again();
        else
            sched_yield();
    }
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(&sleeping, 1);
    while (atomic_load(&job_number) == seen) pthread_cond_wait(&wake, &sleep_lock);
    atomic_fetch_sub(&sleeping, 1);
    pthread_mutex_unlock(&sleep_lock);
}

static void *help(void *unused) {
    unsigned seen = atomic_load(&job_number);
    for (;;) {
        wait_for_job(seen);
        seen = atomic_load(&job_number);
        if (atomic_load(&job_helpers) <= 0) continue; /* a look costs the others nothing, what follows does */
        /* First said to be at work, then looked whether there is any: the owner does it the other way round, so it
           either sees this thread or this thread sees that the job is closed. */
        atomic_fetch_add(&at_work, 1);
        if (atomic_load(&job_open) && atomic_fetch_sub(&job_helpers, 1) > 0) take_items();
        atomic_fetch_sub(&at_work, 1);
    }
    return unused;
}

static void start_threads(int wanted) {
    while (started < wanted && started < MOST_THREADS - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, NULL) != 0) return; /* the others do the work */
        pthread_detach(thread);
        started++;
    }
}

void loradesk_run(Work work, void *item, int64_t count, int64_t step, int threads) {
    if (count < 1) return;
    /* A second caller at the same time, as another model has, does its work by itself. */
    if (threads < 2 || count <= step || pthread_mutex_trylock(&owner) != 0) {
        work(item, 0, count);
        return;
    }
    int64_t others = (count - 1) / step; /* more have nothing to do */
    if (others > threads - 1) others = threads - 1;
    start_threads((int)others);
    job_work = work, job = item, job_count = count, job_step = step;
    atomic_store(&job_next, 0);
    atomic_store(&job_helpers, (int)others);
    atomic_store(&job_open, true);
    atomic_fetch_add(&job_number, 1);
    if (atomic_load(&sleeping) > 0) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }
    take_items();
    atomic_store(&job_open, false);
    for (int look = 0; atomic_load(&at_work) > 0; look++) {
        if (look < 10 * LOOKS)
            look_again();
        else
            sched_yield();
    }
    pthread_mutex_unlock(&owner);
}

#ifndef LORADESK_SOURCES
#define LORADESK_SOURCES ""
#endif

/* The hash of the sources, as sources.py has it: what calls the library must be of the same version. */
const char *loradesk_sources(void) { return LORADESK_SOURCES; }
