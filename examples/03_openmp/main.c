/* SPDX-License-Identifier: MIT
 *
 * 03_openmp - an engine that has its own threads lends them: a cmoe_parallel in ten lines.
 *
 * The library asks for at most `max` tasks that run at the same time.  How many it gets, and which
 * thread runs which, cannot be seen in any result; the last line shows it.
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmoe/cmoe.h>

/* The adapter. */
static void openmp_parallel(void *user, int32_t max, cmoe_task_fn task, void *arg)
{
    (void)user;
#pragma omp parallel num_threads(max)
    task(arg, omp_get_thread_num(), omp_get_num_threads());
}

enum { T = 33, H = 64, I = 96, E = 8, K = 2 };

static float x[T * H], w13[E * 2 * I * H], w2[E * H * I], weights[T * K], out[3][T * H];
static int32_t ids[T * K];
static char memory[4 << 20];

static void must(cmoe_status status, const cmoe_error *err)
{
    if (status == CMOE_OK) return;
    fprintf(stderr, "03_openmp: %s: %s\n", cmoe_status_name(status), err->text);
    exit(1);
}

static void fill(float *p, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = scale * cmoe_random_normal(seed, (uint64_t)i, 0);
}

static void run(int32_t threads, cmoe_parallel parallel, float *result)
{
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx *ctx;
    cmoe_stream *s;
    cmoe_experts *experts;
    cmoe_arena arena = cmoe_arena_make(memory, sizeof memory);
    const cmoe_view none = cmoe_view_none();
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = threads;
    o.parallel = parallel;
    must(cmoe_ctx_create(&ctx, &o, &err), &err);
    must(cmoe_stream_create(&s, ctx, &err), &err);
    must(cmoe_experts_create(&experts, ctx, NULL, cmoe_view_3d(w13, CMOE_F32, E, 2 * I, H),
                             cmoe_view_3d(w2, CMOE_F32, E, H, I), none, none, &err),
         &err);
    must(cmoe_experts_run(s, experts, cmoe_view_2d(x, CMOE_F32, T, H),
                          cmoe_view_2d(ids, CMOE_I32, T, K), cmoe_view_2d(weights, CMOE_F32, T, K),
                          none, cmoe_view_mut_2d(result, CMOE_F32, T, H), &arena, &err),
         &err);
    cmoe_experts_free(experts);
    cmoe_stream_free(s);
    cmoe_ctx_free(ctx);
}

int main(void)
{
    fill(x, T * H, 1, 1.0f);
    fill(weights, T * K, 2, 0.5f);
    fill(w13, E * 2 * I * H, 3, 0.125f);
    fill(w2, E * H * I, 4, 0.1f);
    for (int i = 0; i < T * K; i++)
        ids[i] = (int32_t)(cmoe_random_u64(5, (uint64_t)i, 0) % E);
    run(1, NULL, out[0]);
    run(4, NULL, out[1]);
    run(4, openmp_parallel, out[2]);
    printf("one thread, our pool of 4: %s\n",
           memcmp(out[0], out[1], sizeof out[0]) ? "DIFFERENT" : "the same bits");
    printf("one thread, OpenMP with 4: %s\n",
           memcmp(out[0], out[2], sizeof out[0]) ? "DIFFERENT" : "the same bits");
    return 0;
}
