/* SPDX-License-Identifier: MIT
 *
 * pool.c - regions of tasks: our own threads, the barrier between phases, and the shared item
 * counter.
 *
 * One region at a time owns the pool; whoever finds it taken runs the region on its own thread
 * alone, which gives the same bits, so nobody ever waits for another layer and a region inside a
 * region cannot deadlock.  Waiting is a bounded spin, then a condition variable: with a free core a
 * wake-up costs under a microsecond, without one the waiter gives the core back.
 *
 * After fork() the child has none of our threads; it notices by the process id and runs alone.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* pthread_sigmask */
#endif
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "core.h"

enum { SPIN = 2000 }; /* pauses; about 20 to 100 microseconds */

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* A counter that somebody waits on to move away from a value. */
typedef struct event {
    _Atomic uint32_t value;
    _Atomic int32_t sleepers;
    pthread_mutex_t lock;
    pthread_cond_t moved;
} event;

#define EVENT_INIT                                                           \
    {                                                                        \
        .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER \
    }

static void event_wait(event *e, uint32_t seen)
{
    for (int i = 0; i < SPIN; i++) {
        if (atomic_load_explicit(&e->value, memory_order_acquire) != seen) return;
        relax();
    }
    pthread_mutex_lock(&e->lock);
    atomic_fetch_add(&e->sleepers, 1);
    while (atomic_load(&e->value) == seen)
        pthread_cond_wait(&e->moved, &e->lock);
    atomic_fetch_sub(&e->sleepers, 1);
    pthread_mutex_unlock(&e->lock);
}

/* Sequentially consistent on both sides: either the waiter sees the new value before it sleeps, or
 * we see the sleeper. */
static void event_add(event *e, uint32_t step)
{
    atomic_fetch_add(&e->value, step);
    if (atomic_load(&e->sleepers) > 0) {
        pthread_mutex_lock(&e->lock);
        pthread_cond_broadcast(&e->moved);
        pthread_mutex_unlock(&e->lock);
    }
}

static void event_close(event *e)
{
    pthread_cond_destroy(&e->moved);
    pthread_mutex_destroy(&e->lock);
}

/* ---- region, barrier, items ------------------------------------------------------------------ */

struct cmoei_team {
    cmoei_region_fn fn;
    void *arg;
    _Atomic int32_t count; /* tasks of this region; known when the first one starts */
    _Atomic int32_t arrived;
    _Atomic int64_t next;
    event passed; /* moves once per barrier */
};

static void team_task(void *arg, int32_t index, int32_t count)
{
    cmoei_team *team = arg;
    const uint64_t before = cmoei_float_enter();
    atomic_store_explicit(&team->count, count, memory_order_relaxed); /* all write the same */
    team->fn(team->arg, team, index, count);
    cmoei_float_leave(before);
}

void cmoei_barrier(cmoei_team *team)
{
    const int32_t count = atomic_load_explicit(&team->count, memory_order_relaxed);
    if (count == 1) {
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        return;
    }
    const uint32_t seen = atomic_load_explicit(&team->passed.value, memory_order_acquire);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == count) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->next, 0);
        event_add(&team->passed, 1);
    } else {
        event_wait(&team->passed, seen);
    }
}

int64_t cmoei_next(cmoei_team *team, int64_t grain)
{
    return atomic_fetch_add_explicit(&team->next, grain, memory_order_relaxed);
}

void cmoei_region(cmoe_ctx *ctx, int64_t max, cmoei_region_fn fn, void *arg)
{
    cmoei_team team = {.fn = fn, .arg = arg, .passed = EVENT_INIT};
    if (max > ctx->threads) max = ctx->threads;
    if (max <= 1)
        team_task(&team, 0, 1);
    else
        ctx->parallel(ctx->parallel_user, (int32_t)max, team_task, &team);
    event_close(&team.passed);
}

/* ---- our own threads ------------------------------------------------------------------------- */

struct cmoei_pool {
    pthread_mutex_t owner; /* held by the region that runs */
    pid_t pid;
    int32_t threads; /* the caller is one of them */
    int32_t started;
    event work;     /* moves when there is a region, or the pool closes */
    event finished; /* moves once per worker that is done with a region */
    /* Of the current region, written before `work` moves: */
    cmoe_task_fn task;
    void *arg;
    int32_t count;
    bool closing;
    int64_t bytes;
    struct worker {
        cmoei_pool *pool;
        int32_t index;
        pthread_t thread;
    } workers[];
};

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    cmoei_pool *p = w->pool;
    for (uint32_t seen = 0;; seen++) {
        event_wait(&p->work, seen);
        if (p->closing) return NULL;
        if (w->index < p->count) p->task(p->arg, w->index, p->count);
        event_add(&p->finished, 1);
    }
}

void cmoei_pool_run(void *user, int32_t max, cmoe_task_fn task, void *arg)
{
    cmoei_pool *p = user;
    if (getpid() != p->pid || pthread_mutex_trylock(&p->owner) != 0) {
        task(arg, 0, 1);
        return;
    }
    p->task = task;
    p->arg = arg;
    p->count = CMOEI_MIN(max, p->threads);
    const uint32_t target = atomic_load(&p->finished.value) + (uint32_t)p->started;
    event_add(&p->work, 1);
    task(arg, 0, p->count);
    for (uint32_t seen;
         (seen = atomic_load_explicit(&p->finished.value, memory_order_acquire)) != target;)
        event_wait(&p->finished, seen);
    pthread_mutex_unlock(&p->owner);
}

void cmoei_pool_free(cmoei_pool *p, cmoe_ctx *ctx)
{
    if (!p) return;
    if (getpid() == p->pid) {
        p->closing = true;
        event_add(&p->work, 1);
        for (int32_t i = 0; i < p->started; i++)
            pthread_join(p->workers[i].thread, NULL);
        event_close(&p->work);
        event_close(&p->finished);
        pthread_mutex_destroy(&p->owner);
    }
    cmoei_free(ctx, p, p->bytes);
}

cmoe_status cmoei_pool_create(cmoei_pool **out, cmoe_ctx *ctx, int32_t threads, cmoe_error *err)
{
    cmoei_pool *p = NULL;
    const int64_t bytes = (int64_t)sizeof *p + (threads - 1) * (int64_t)sizeof p->workers[0];
    CMOEI_TRY(cmoei_alloc(ctx, bytes, "thread pool", (void **)&p, err));
    *p = (cmoei_pool){.pid = getpid(), .threads = threads, .bytes = bytes};
    p->owner = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    p->work = (event)EVENT_INIT;
    p->finished = (event)EVENT_INIT;
    /* Signals that somebody sends are for the program's own threads, and ours inherit this mask.
     * What a thread raises itself must reach the program's handler, and profilers want to see it.
     */
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF};
    sigset_t all, before;
    sigfillset(&all);
    for (int64_t i = 0; i < CMOEI_COUNT(own); i++)
        sigdelset(&all, own[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = 0;
    for (int32_t i = 0; i < threads - 1 && !failed; i++) {
        struct worker *w = &p->workers[i];
        w->pool = p;
        w->index = i + 1;
        failed = pthread_create(&w->thread, NULL, worker_main, w);
        if (!failed) p->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        const int32_t started = p->started;
        cmoei_pool_free(p, ctx);
        return cmoei_fail(err, CMOE_ERR_MEMORY,
                          "thread %d of %d could not be started (error %d); want fewer threads",
                          started + 2, threads, failed);
    }
    *out = p;
    return CMOE_OK;
}
