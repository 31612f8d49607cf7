/* SPDX-License-Identifier: MIT
 *
 * compare.c - a case's files, and its logits and routing against the golden ones.
 *
 * Bounds are those of the published values: float32 in another order of sums stays within 2e-4 of the
 * logits and 1e-5 of the weights of these small models, and no router choice is closer than 1e-4.
 */
#include "models.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double LOGIT_BOUND = 2e-4, TOP1_GAP = 4e-4, WEIGHT_BOUND = 1e-5;

/* ---- checks ---------------------------------------------------------------------------------- */

void golden_check(golden_case *g, bool ok, const char *format, ...)
{
    if (ok) {
        g->passed++;
        return;
    }
    g->failed++;
    va_list args;
    va_start(args, format);
    printf("%s: ", g->name);
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

bool golden_call(golden_case *g, bool ok, const cmoe_error *err, const char *what)
{
    if (!ok) golden_check(g, false, "%s: %s", what, err->text);
    return ok;
}

float *golden_room(const golden_case *g, int64_t tokens)
{
    return run_memory(tokens * g->vocab * 4);
}

/* ---- files ----------------------------------------------------------------------------------- */

/* A tensor of golden.safetensors in memory of its own; NULL when it is not there or not so. */
static void *tensor(const golden_case *g, const char *name, int32_t dtype, int32_t rank,
                    int64_t dims[2])
{
    cmoe_tensor t = {.size = sizeof t};
    const int64_t i = cmoe_checkpoint_find(g->golden, name);
    if (i < 0 || cmoe_checkpoint_tensor(g->golden, i, &t, NULL) != CMOE_OK || t.dtype != dtype ||
        t.rank != rank)
        return NULL;
    for (int32_t d = 0; d < rank; d++)
        dims[d] = t.dims[d];
    void *copy = run_memory(t.bytes);
    memcpy(copy, t.data, (size_t)t.bytes);
    return copy;
}

static bool open_prompt(golden_case *g, int p)
{
    char name[32];
    int64_t dims[2] = {0};
    snprintf(name, sizeof name, "p%d.input_ids", p);
    int64_t *ids = tensor(g, name, CMOE_I64, 1, dims);
    if (!ids) return false;
    g->tokens[p] = dims[0];
    g->ids[p] = run_memory(dims[0] * 4);
    for (int64_t t = 0; t < dims[0]; t++)
        g->ids[p][t] = (int32_t)ids[t];
    free(ids);
    snprintf(name, sizeof name, "p%d.logits", p);
    g->logits[p] = tensor(g, name, CMOE_F32, 2, dims);
    g->vocab = dims[1];
    return g->logits[p] && dims[0] == g->tokens[p];
}

static float deviation(const float *x, int64_t n)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    return (float)sqrt(squares / (double)n - sum / (double)n * (sum / (double)n));
}

bool golden_open(golden_case *g, cmoe_ctx *ctx, const char *name, const char *folder)
{
    *g = (golden_case){.name = name, .folder = folder};
    cmoe_error err = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/golden.safetensors", folder);
    if (!golden_call(g, cmoe_checkpoint_open(&g->golden, ctx, path, &err) == CMOE_OK, &err, "open"))
        return false;
    for (int p = 0; p < PROMPTS; p++) {
        if (!open_prompt(g, p)) {
            golden_check(g, false, "golden.safetensors lacks input_ids and logits of p%d", p);
            return false;
        }
    }
    g->deviation = deviation(g->logits[1], g->tokens[1] * g->vocab);
    for (int t = 0; t < LONG_TOKENS; t++)
        g->long_ids[t] = (int32_t)(cmoe_random_u64(1, (uint64_t)t, 0) % (uint64_t)(g->vocab - 8));
    return true;
}

void golden_close(golden_case *g)
{
    for (int p = 0; p < PROMPTS; p++) {
        free(g->ids[p]);
        free(g->logits[p]);
    }
    if (g->golden) cmoe_checkpoint_free(g->golden);
}

/* ---- logits ---------------------------------------------------------------------------------- */

static int64_t best(const float *x, int64_t n)
{
    int64_t at = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[at]) at = i;
    return at;
}

static double gap(const float *x, int64_t n)
{
    const int64_t top = best(x, n);
    double second = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (i != top && x[i] > second) second = x[i];
    return x[top] - second;
}

static void compare_logits(golden_case *g, int p, const float *got)
{
    const int64_t V = g->vocab;
    double worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < g->tokens[p] * V; i++) {
        const double d = fabs((double)got[i] - g->logits[p][i]);
        if (!(d <= worst)) { /* NaN too */
            worst = d;
            at = i;
        }
    }
    if (!(worst <= g->logit)) g->logit = worst;
    g->positions += g->tokens[p];
    golden_check(g, worst <= LOGIT_BOUND, "p%d logits[%lld, %lld] = %.6f, want %.6f within %.0e", p,
                 (long long)(at / V), (long long)(at % V), (double)got[at],
                 (double)g->logits[p][at], LOGIT_BOUND);
    for (int64_t t = 0; t < g->tokens[p]; t++) {
        const float *want = g->logits[p] + t * V;
        if (gap(want, V) <= TOP1_GAP) continue;
        if (best(got + t * V, V) != best(want, V)) {
            golden_check(g, false, "p%d: the best token at position %lld is %lld, want %lld", p,
                         (long long)t, (long long)best(got + t * V, V), (long long)best(want, V));
            return;
        }
    }
    golden_check(g, true, "best tokens");
}

/* ---- routing --------------------------------------------------------------------------------- */

typedef struct choice {
    int32_t id;
    float weight;
} choice;

static int by_id(const void *a, const void *b)
{
    const int32_t x = ((const choice *)a)->id, y = ((const choice *)b)->id;
    return (x > y) - (x < y);
}

static choice *choices(const int32_t *ids, const float *weights, int64_t tokens, int64_t k)
{
    choice *c = run_memory(tokens * k * (int64_t)sizeof *c);
    for (int64_t i = 0; i < tokens * k; i++)
        c[i] = (choice){ids[i], weights[i]};
    for (int64_t t = 0; t < tokens; t++)
        qsort(c + t * k, (size_t)k, sizeof *c, by_id);
    return c;
}

static void compare_choices(golden_case *g, int p, int64_t layer, int64_t k, const choice *got,
                            const choice *want)
{
    double worst = 0;
    for (int64_t i = 0; i < g->tokens[p] * k; i++) {
        if (got[i].id != want[i].id) {
            golden_check(g, false, "p%d layer %lld: token %lld goes to expert %d, want %d", p,
                         (long long)layer, (long long)(i / k), got[i].id, want[i].id);
            return;
        }
        const double d = fabs((double)got[i].weight - want[i].weight);
        if (!(d <= worst)) worst = d;
    }
    golden_check(g, worst <= WEIGHT_BOUND,
                 "p%d layer %lld: router weights differ by %.1e, want %.0e", p, (long long)layer,
                 worst, WEIGHT_BOUND);
    if (!(worst <= g->weight)) g->weight = worst;
}

static void compare_layer(golden_case *g, int p, int64_t layer, int64_t k, const cmoe_routing *got)
{
    char ids_name[48], weights_name[48];
    int64_t dims[2] = {0}, same[2] = {0};
    snprintf(ids_name, sizeof ids_name, "p%d.layer%d.router_ids", p, (int)layer);
    snprintf(weights_name, sizeof weights_name, "p%d.layer%d.router_weights", p, (int)layer);
    int32_t *ids = tensor(g, ids_name, CMOE_I32, 2, dims);
    float *weights = tensor(g, weights_name, CMOE_F32, 2, same);
    const bool there = ids && weights;
    if (k == 0) {
        golden_check(g, !there, "layer %lld has experts, and the model says it is dense",
                     (long long)layer);
    } else if (!there || dims[0] != g->tokens[p] || dims[1] != k || same[1] != k) {
        golden_check(g, false, "layer %lld: %lld experts a token, want %lld", (long long)layer,
                     (long long)k, (long long)dims[1]);
    } else {
        choice *a = choices(got->ids.data, got->weights.data, dims[0], k);
        choice *b = choices(ids, weights, dims[0], k);
        compare_choices(g, p, layer, k, a, b);
        free(a);
        free(b);
    }
    free(ids);
    free(weights);
}

void golden_compare(golden_case *g, run_model *m)
{
    golden_check(g, m->info.vocab == g->vocab, "vocab = %lld, want %lld", (long long)m->info.vocab,
                 (long long)g->vocab);
    for (int p = 0; p < PROMPTS && m->info.vocab == g->vocab; p++) {
        cmoe_error err = {0};
        float *logits = golden_room(g, g->tokens[p]);
        run_routing routing = run_routing_make(m, g->tokens[p]);
        const run_sequence s = {g->ids[p], g->tokens[p], logits};
        if (golden_call(g, run_logits(m, &s, 1, &(run_options){.capture = &routing}, &err), &err,
                        "forward")) {
            compare_logits(g, p, logits);
            for (int64_t i = 0; i < m->info.layers; i++)
                compare_layer(g, p, i, m->topk[i], &routing.layer[i]);
        }
        run_routing_free(&routing);
        free(logits);
    }
}
