/* SPDX-License-Identifier: MIT
 *
 * bench.h - time one made-up layer, honestly: checked first, cold weights, limits probed around it.
 */
#ifndef TOOLS_BENCH_H
#define TOOLS_BENCH_H

#include "limits.h"
#include "machine.h"
#include "synth.h"

enum {
    BENCH_ROUTINGS = 67, /* different ones; a prime, so that every copy meets every routing */
    BENCH_ATTEMPTS = 5,  /* of a point whose two bandwidth probes differ by more than 10 % */
    BENCH_COPIES = 256   /* at most */
};

/* Copies of one layer's weights, together at least 4 times the last-level cache unless `cached`.
 * Repetitions take them in turn. */
typedef struct bench {
    const synth *s;
    const tool_session *session;
    limits *limits;
    cmoe_experts **copies;
    int64_t n_copies, most_tokens;
    bool cached, quiet;
    void *x; /* [most_tokens + BENCH_ROUTINGS, H] */
    cmoe_experts_info info;
} bench;

typedef struct bench_point {
    int64_t tokens, repeats;
    double us_median, us_min;
    double spread;      /* of the middle half of the times, relative to the median */
    double experts_hit; /* mean over the repetitions */
    double ops, bytes;  /* of one repetition: 6 H I K M, weights of the experts that were hit */
    double gflops, gbps, of_limit;
    double read_before, read_after; /* GB/s */
} bench_point;

/* The structs that `b` points to stay the caller's and must outlive it. */
int bench_open(bench *b, const synth *s, const tool_session *session, const machine *m, limits *l,
               int64_t most_tokens, bool quiet);
void bench_close(bench *b);

/* Times `tokens` tokens for about `budget` seconds, or exactly `repeat` times if that is not 0. */
int bench_measure(bench *b, int64_t tokens, double budget, int64_t repeat, bench_point *out);

/* Sorts `values` [n]. */
double bench_median(double *values, int64_t n);

#endif
