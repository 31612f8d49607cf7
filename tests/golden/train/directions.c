/* SPDX-License-Identifier: MIT
 *
 * directions.c - gradients of whole models, of every architecture there is.
 *
 *     golden_directions MODELS [NAME...]
 *
 * For every tensor that is trained, the loss is taken a little way along its gradient g and as far against it:
 * the difference must be |g| times that way, which a gradient that is wrong anywhere along itself cannot give.
 * The way is 1/400 of the loss at most, so that float32 shows it to about a thousandth.  Where something jumps
 * on the way (a token changes its experts, phimoe's router takes another set into account), a quarter
 * of it is tried, three times; a tensor along which experts still change is left out and counted.
 *
 * Also: passes of fewer units, layers computed again instead of kept, and any number of threads give the same
 * gradients to the last bit.
 */
#include <dirent.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/trainer.h"

enum { UNITS = 4, LENGTH = 24 };

static long long passed, failed, moved;
static char where[300];

static void must(cmoe_status status, const cmoe_error *err)
{
    if (status == CMOE_OK) return;
    printf("%s: %s\ndirections: %lld passed, %lld failed\n", where, err->text, passed, failed + 1);
    exit(1);
}

static void check(bool ok, const char *what, double got, double want)
{
    if (ok)
        passed++;
    else if (failed++ < 40)
        printf("%s: %s: got %.6g, want %.6g\n", where, what, got, want);
}

/* ---- one trainer ------------------------------------------------------------------------------- */

typedef struct world {
    cmoe_ctx *ctx;
    cmoe_dataset *data;
    cmoe_trainer *t;
} world;

static void open_world(world *w, const char *path, const cmoe_train_options *o, int32_t threads)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_ctx_options co;
    cmoe_trainer_info info = {.size = sizeof info};
    int32_t ids[UNITS * LENGTH * 3];
    cmoe_ctx_options_default(&co, sizeof co);
    co.threads = threads;
    must(cmoe_ctx_create(&w->ctx, &co, &err), &err);
    must(cmoe_trainer_create(&w->t, w->ctx, path, o, &err), &err);
    must(cmoe_trainer_describe(w->t, &info, &err), &err);
    for (int64_t i = 0; i < UNITS * LENGTH * 3; i++)
        ids[i] = (int32_t)(cmoe_random_u64(7, (uint64_t)i, 0) % (uint64_t)info.vocab);
    must(cmoe_dataset_make(&w->data, w->ctx, cmoe_view_1d(ids, CMOE_I32, UNITS * LENGTH * 3),
                           cmoe_view_none(), cmoe_view_none(), &err),
         &err);
    const int64_t at[UNITS] = {0, LENGTH, 2 * LENGTH + 5, 7 * LENGTH};
    cmoei_batch_fill(&w->t->batch, w->data, at, UNITS, LENGTH, 0);
}

static void close_world(world *w)
{
    cmoe_trainer_free(w->t);
    cmoe_dataset_free(w->data);
    cmoe_ctx_free(w->ctx);
}

/* The weighted loss of the batch, with what routers add; with `gradient` its gradient too. */
static double run(world *w, float *gradient, int64_t *load)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_trainer *t = w->t;
    int64_t edges[UNITS + 1];
    const int64_t rows = t->batch.rows;
    double loss = 0;
    for (int64_t u = 0; u <= UNITS; u++)
        edges[u] = u * rows;
    const cmoei_net_call call = {.tokens = UNITS * rows,
                                 .ids = t->batch.ids,
                                 .positions = t->batch.positions,
                                 .see = t->batch.see,
                                 .targets = t->batch.targets,
                                 .scale = t->batch.scale,
                                 .units = {UNITS, edges},
                                 .router_scale = 1.0f / UNITS,
                                 .gradient = gradient};
    cmoei_net_result r = {.loss = t->loss, .load = load};
    memset(load, 0, (size_t)(t->moe_layers * t->most_experts) * sizeof *load);
    must(cmoei_net_run(t->net, t->stream, &call, &r, &err), &err);
    if (gradient) must(cmoei_params_close(&t->params, t->stream, gradient, &err), &err);
    for (int64_t i = 0; i < UNITS * rows; i++)
        loss += (double)t->loss[i] * t->batch.scale[i];
    return loss;
}

/* ---- along the gradient ------------------------------------------------------------------------ */

static void along(world *w, const cmoei_trained *x, double loss, const int64_t *before)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_trainer *t = w->t;
    const int64_t n = x->rows * x->cols, loads = t->moe_layers * t->most_experts;
    float *kept = malloc((size_t)n * sizeof *kept), *g = malloc((size_t)n * sizeof *g);
    int64_t *load = malloc((size_t)(loads + 1) * sizeof *load);
    double square = 0, got[2];
    bool same = true;
    memcpy(kept, x->value, (size_t)n * sizeof *kept);
    memcpy(g, x->gradient, (size_t)n * sizeof *g);
    for (int64_t i = 0; i < n; i++)
        square += (double)g[i] * g[i];
    const double norm = sqrt(square);
    double way = fmin(loss / 400 / (norm + 1e-9), 0.02), slope = 0;
    bool near = false;
    for (int attempt = 0; attempt < 4 && !near; attempt++, way /= 4) {
        same = true;
        for (int k = 0; k < 2; k++) {
            for (int64_t i = 0; i < n; i++)
                x->value[i] = kept[i] + (float)((k ? -way : way) * g[i] / (norm + 1e-30));
            must(cmoei_params_fill(&t->params, t->stream, false, &err), &err);
            got[k] = run(w, NULL, load);
            same = same && memcmp(load, before, (size_t)loads * sizeof *load) == 0;
        }
        slope = (got[0] - got[1]) / (2 * way);
        /* Losses are sums of a hundred numbers that are right to a few 2^-24. */
        near = same && fabs(slope - norm) <= 0.02 * norm + 40 * ldexp(loss, -24) / way;
    }
    memcpy(x->value, kept, (size_t)n * sizeof *kept);
    must(cmoei_params_fill(&t->params, t->stream, false, &err), &err);
    if (same)
        check(near, x->name, slope, norm);
    else
        moved++;
    free(load);
    free(g);
    free(kept);
}

static void compare_all(world *w)
{
    cmoe_trainer *t = w->t;
    const int64_t loads = t->moe_layers * t->most_experts;
    int64_t *load = malloc((size_t)(loads + 1) * sizeof *load);
    const double loss = run(w, t->gradient[0], load);
    float *gradient = malloc((size_t)t->params.values_bytes);
    memcpy(gradient, t->gradient[0], (size_t)t->params.values_bytes);
    for (int64_t i = 0; i < t->trained_count; i++) {
        along(w, &t->trained[i], loss, load);
        memcpy(t->gradient[0], gradient, (size_t)t->params.values_bytes);
    }
    free(gradient);
    free(load);
}

/* ---- the same bits ----------------------------------------------------------------------------- */

static float *gradients_of(const char *path, cmoe_train_options o, int32_t threads, int64_t pass,
                           int32_t recompute, int64_t *count)
{
    world w;
    cmoe_error err = {.size = sizeof err};
    o.pass = pass;
    o.recompute = recompute;
    o.optimizer = CMOE_OPTIMIZER_SGD;
    o.lr = o.final_lr = 0;
    o.schedule = CMOE_SCHEDULE_CONSTANT;
    o.weight_decay = 0;
    o.bias_rate = 0;
    open_world(&w, path, &o, threads);
    must(cmoe_trainer_step(w.t, w.data, NULL, &err), &err);
    *count = w.t->params.values_bytes;
    float *out = malloc((size_t)*count);
    memcpy(out, w.t->gradient[0], (size_t)*count);
    close_world(&w);
    return out;
}

static void compare_bits(const char *path, const cmoe_train_options *o)
{
    static const struct {
        const char *name;
        int32_t threads, recompute;
        int64_t pass;
    } ways[] = {{"3 threads", 3, 0, UNITS},
                {"2 units at a time", 2, 0, 2},
                {"1 unit at a time", 2, 0, 1},
                {"layers computed again", 1, 1, UNITS}};
    int64_t count, other;
    float *want = gradients_of(path, *o, 1, UNITS, 0, &count);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        float *got =
            gradients_of(path, *o, ways[i].threads, ways[i].pass, ways[i].recompute, &other);
        check(other == count && memcmp(want, got, (size_t)count) == 0, ways[i].name, 0, 0);
        free(got);
    }
    free(want);
}

/* ---- every model ------------------------------------------------------------------------------- */

static void one(const char *folder, const char *name, int32_t what, int32_t objective)
{
    char path[400];
    world w;
    cmoe_train_options o;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(where, sizeof where, "%s%s%s", name, what == CMOE_TRAIN_LORA ? " lora" : "",
             objective == CMOE_OBJECTIVE_DIFFUSION ? " diffusion" : "");
    cmoe_train_options_default(&o, sizeof o);
    o.units = UNITS;
    o.length = LENGTH;
    o.what = what;
    o.objective = objective;
    o.rank = 3;
    o.balance = o.z_loss = 0; /* the loss that is looked at is the tokens' alone */
    open_world(&w, path, &o, 2);
    if (what == CMOE_TRAIN_LORA) { /* B is zero, and so would be the gradient of A */
        for (int64_t i = 0; i < w.t->params.count; i++)
            if (w.t->params.values[i] == 0)
                w.t->params.values[i] = 0.05f * cmoe_random_normal(3, (uint64_t)i, 1);
        cmoe_error err = {.size = sizeof err};
        must(cmoei_params_fill(&w.t->params, w.t->stream, false, &err), &err);
    }
    compare_all(&w);
    close_world(&w);
    o.balance = 0.01f;
    o.z_loss = 0.001f;
    compare_bits(path, &o);
}

static bool wanted(const char *name, int argc, char **argv)
{
    bool found = argc == 2;
    for (int i = 2; i < argc; i++)
        found = found || strcmp(argv[i], name) == 0;
    return found;
}

int main(int argc, char **argv)
{
    static const char *const models[] = {
        "qwen3_moe", "qwen2_moe",    "mixtral",    "mixtral_window",    "olmoe",
        "flex_olmo", "phimoe",       "granitemoe", "minimax_m2",        "glm4_moe",
        "dots1",     "ernie4_5_moe", "gpt_oss",    "hunyuan_v1_moe",    "sdar_moe",
        "llama",     "qwen2_window", "qwen3",      "ernie4_5_moe_bias", "qwen3_moe_yarn"};
    if (argc < 2) return 2;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (!wanted(models[i], argc, argv)) continue;
        one(argv[1], models[i], CMOE_TRAIN_ALL, CMOE_OBJECTIVE_NEXT);
        if (i % 3 == 0) one(argv[1], models[i], CMOE_TRAIN_LORA, CMOE_OBJECTIVE_NEXT);
        if (strncmp(models[i], "sdar", 4) == 0)
            one(argv[1], models[i], CMOE_TRAIN_ALL, CMOE_OBJECTIVE_DIFFUSION);
    }
    printf("directions: %lld passed, %lld failed (%lld left out: experts changed on the way)\n",
           passed, failed, moved);
    return failed > 0;
}
