/* SPDX-License-Identifier: MIT
 *
 * crew.c - threads made for one call; they wait at a gate until all are there.
 */
#include "crew.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t opened;
    bool open;
    int32_t count; /* threads that take part; known when the gate opens */
} gate;

typedef struct member {
    gate *gate;
    crew_fn fn;
    void *arg;
    int32_t index;
    pthread_t thread;
    double start, end;
} member;

double crew_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void member_work(member *m, int32_t count)
{
    m->start = crew_now();
    m->fn(m->arg, m->index, count);
    m->end = crew_now();
}

static void *member_main(void *arg)
{
    member *m = arg;
    pthread_mutex_lock(&m->gate->lock);
    while (!m->gate->open)
        pthread_cond_wait(&m->gate->opened, &m->gate->lock);
    const int32_t count = m->gate->count;
    pthread_mutex_unlock(&m->gate->lock);
    member_work(m, count);
    return NULL;
}

double crew_run(int32_t count, crew_fn fn, void *arg)
{
    gate g = {.lock = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER, .count = 1};
    member alone = {.gate = &g, .fn = fn, .arg = arg};
    member *m = count > 1 ? calloc((size_t)count, sizeof *m) : NULL;
    if (!m) {
        member_work(&alone, 1);
        return alone.end - alone.start;
    }
    m[0] = alone;
    for (int32_t i = 1; i < count; i++) {
        m[i] = alone;
        m[i].index = i;
        if (pthread_create(&m[i].thread, NULL, member_main, &m[i])) break;
        g.count++;
    }
    pthread_mutex_lock(&g.lock);
    g.open = true;
    pthread_cond_broadcast(&g.opened);
    pthread_mutex_unlock(&g.lock);
    member_work(&m[0], g.count);
    double start = m[0].start, end = m[0].end;
    for (int32_t i = 1; i < g.count; i++) {
        pthread_join(m[i].thread, NULL);
        if (m[i].start < start) start = m[i].start;
        if (m[i].end > end) end = m[i].end;
    }
    free(m);
    pthread_cond_destroy(&g.opened);
    pthread_mutex_destroy(&g.lock);
    return end - start;
}
