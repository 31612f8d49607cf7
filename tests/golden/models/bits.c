/* SPDX-License-Identifier: MIT
 *
 * bits.c - what must not change a bit of the logits: chunks, threads, neighbours, pages, instruction
 * sets, capture, replay, selected rows, the spelling of config.json.  And the coarser formats.
 */
#include "models.h"

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The two golden prompts and a longer one; `want` is what each gives alone, whole, on one thread. */
enum { ALL = PROMPTS + 1, LONG = PROMPTS };

typedef struct trial {
    golden_case *g;
    run_model *m;
    run_sequence got[ALL];
    float *want[ALL];
} trial;

static void trial_make(trial *t, golden_case *g, run_model *m)
{
    *t = (trial){.g = g, .m = m};
    for (int i = 0; i < ALL; i++) {
        const int64_t tokens = i == LONG ? LONG_TOKENS : g->tokens[i];
        t->got[i] =
            (run_sequence){i == LONG ? g->long_ids : g->ids[i], tokens, golden_room(g, tokens)};
        t->want[i] = golden_room(g, tokens);
    }
}

static void trial_free(trial *t)
{
    for (int i = 0; i < ALL; i++) {
        free(t->got[i].logits);
        free(t->want[i]);
    }
}

static bool trial_reference(trial *t)
{
    for (int i = 0; i < ALL; i++) {
        cmoe_error err = {0};
        run_sequence s = t->got[i];
        s.logits = t->want[i];
        if (!golden_call(t->g, run_logits(t->m, &s, 1, &(run_options){0}, &err), &err, "whole"))
            return false;
    }
    return true;
}

static void same(golden_case *g, const float *got, const float *want, int64_t tokens,
                 const char *what)
{
    const int64_t n = tokens * g->vocab;
    int64_t i = 0;
    while (i < n && memcmp(got + i, want + i, 4) == 0)
        i++;
    golden_check(g, i == n, "%s: logits[%lld, %lld] = %.9g, want %.9g", what,
                 (long long)(i / g->vocab), (long long)(i % g->vocab), (double)(i < n ? got[i] : 0),
                 (double)(i < n ? want[i] : 0));
}

/* Sequences first .. first + n - 1 with these options on model m give the same bits. */
static void check_same(trial *t, run_model *m, int first, int n, const run_options *o,
                       const char *what)
{
    cmoe_error err = {0};
    for (int i = first; i < first + n; i++)
        memset(t->got[i].logits, 0xff, (size_t)(t->got[i].tokens * t->g->vocab) * 4);
    if (!golden_call(t->g, run_logits(m, t->got + first, n, o, &err), &err, what)) return;
    for (int i = first; i < first + n; i++)
        same(t->g, t->got[i].logits, t->want[i], t->got[i].tokens, what);
}

/* Up to whole blocks where the mask is made of them. */
static int64_t chunk_of(const run_model *m, int64_t chunk)
{
    const int64_t block = m->info.mask > 0 ? m->info.mask : 1;
    return (chunk + block - 1) / block * block;
}

static void check_chunks(trial *t)
{
    static const int64_t chunks[] = {1, 7, 64};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        char what[48];
        const int64_t chunk = chunk_of(t->m, chunks[i]);
        snprintf(what, sizeof what, "in chunks of %d", (int)chunk);
        check_same(t, t->m, LONG, 1, &(run_options){.chunk = chunk}, what);
    }
}

static void check_batches(trial *t, run_model *m, const char *how)
{
    char what[64];
    snprintf(what, sizeof what, "side by side%s", how);
    check_same(t, m, 0, ALL, &(run_options){0}, what);
    snprintf(what, sizeof what, "side by side in chunks%s", how);
    check_same(t, m, 0, ALL, &(run_options){.chunk = chunk_of(m, 7)}, what);
}

static void check_threads(trial *t)
{
    for (int32_t threads = 2; threads <= 3; threads++) {
        cmoe_error err = {0};
        run_model m;
        char how[32];
        snprintf(how, sizeof how, " on %d threads", (int)threads);
        if (golden_call(t->g, run_open(&m, t->g->folder, threads, NULL, CMOE_F32, &err), &err,
                        how)) {
            check_same(t, &m, LONG, 1, &(run_options){0}, how);
            check_batches(t, &m, how);
        }
        run_close(&m);
    }
}

static void check_isas(trial *t)
{
    for (int32_t i = 0; i < cmoe_isa_levels(); i++) {
        const char *level = cmoe_isa_level_name(i);
        uint32_t mask = 0;
        cmoe_error err = {0};
        if (cmoe_isa_mask(level, &mask, &err) != CMOE_OK || (mask & ~cmoe_cpu_features()) != 0)
            continue;
        run_model m;
        if (golden_call(t->g, run_open(&m, t->g->folder, 1, level, CMOE_F32, &err), &err, level))
            check_same(t, &m, LONG, 1, &(run_options){0}, level);
        run_close(&m);
    }
}

static bool has_experts(const run_model *m)
{
    for (int64_t i = 0; i < m->info.layers; i++)
        if (m->topk[i] > 0) return true;
    return false;
}

/* Ids alone, then ids and weights; and other ids must be noticed, or replay does nothing. */
static void check_replay(trial *t)
{
    golden_case *g = t->g;
    run_routing r = run_routing_make(t->m, LONG_TOKENS), ids = {.layers = r.layers};
    check_same(t, t->m, LONG, 1, &(run_options){.capture = &r}, "with capture");
    check_same(t, t->m, LONG, 1, &(run_options){.replay = &r}, "replayed");
    ids.layer = run_memory(r.layers * (int64_t)sizeof *ids.layer);
    for (int64_t i = 0; i < r.layers; i++)
        ids.layer[i] = (cmoe_routing){r.layer[i].ids, cmoe_view_mut_none()};
    check_same(t, t->m, LONG, 1, &(run_options){.replay = &ids}, "replayed by ids");
    run_routing again = run_routing_make(t->m, LONG_TOKENS);
    check_same(t, t->m, LONG, 1, &(run_options){.capture = &again, .replay = &r},
               "replayed with capture");
    for (int64_t i = 0; i < r.layers; i++) {
        const size_t bytes = (size_t)(LONG_TOKENS * t->m->topk[i]) * 4;
        golden_check(g,
                     bytes == 0 ||
                         (memcmp(r.layer[i].ids.data, again.layer[i].ids.data, bytes) == 0 &&
                          memcmp(r.layer[i].weights.data, again.layer[i].weights.data, bytes) == 0),
                     "layer %lld: what was replayed is not what is captured", (long long)i);
    }
    if (has_experts(t->m)) {
        for (int64_t i = 0; i < r.layers; i++)
            if (t->m->topk[i] > 0) ((float *)r.layer[i].weights.data)[0] *= 0.5f;
        cmoe_error err = {0};
        const bool ran = run_logits(t->m, &t->got[LONG], 1, &(run_options){.replay = &r}, &err);
        if (golden_call(g, ran, &err, "other weights"))
            golden_check(g, memcmp(t->got[LONG].logits, t->want[LONG], (size_t)g->vocab * 4) != 0,
                         "replay of other weights changes nothing");
    }
    run_routing_free(&again);
    run_routing_free(&r);
    free(ids.layer);
}

static void check_rows(trial *t)
{
    enum { EVERY = 3 };
    golden_case *g = t->g;
    cmoe_error err = {0};
    const run_options o = {.every = EVERY, .chunk = chunk_of(t->m, 64)};
    if (!golden_call(g, run_logits(t->m, t->got, ALL, &o, &err), &err, "selected rows")) return;
    for (int i = 0; i < ALL; i++)
        for (int64_t at = 0; at < t->got[i].tokens; at += EVERY)
            same(g, t->got[i].logits + at * g->vocab, t->want[i] + at * g->vocab, 1,
                 "selected rows");
}

/* ---- the other config.json ------------------------------------------------------------------- */

/* Links to the files of the case, config_v5.json in place of config.json; or removes them. */
static bool other_folder(const golden_case *g, const char *to, bool make)
{
    char whole[PATH_MAX];
    DIR *dir = opendir(g->folder);
    if (!dir) return false;
    bool ok = realpath(g->folder, whole) != NULL; /* links do not start from here */
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        char from[2 * PATH_MAX], link[PATH_MAX];
        const char *name = strcmp(e->d_name, "config_v5.json") == 0 ? "config.json" : e->d_name;
        if (e->d_name[0] == '.' || strcmp(e->d_name, "config.json") == 0) continue;
        snprintf(from, sizeof from, "%s/%s", whole, e->d_name);
        snprintf(link, sizeof link, "%s/%s", to, name);
        ok = (make ? symlink(from, link) : unlink(link)) == 0 && ok;
    }
    closedir(dir);
    return (make || rmdir(to) == 0) && ok;
}

static void check_other_config(trial *t)
{
    char path[4096], folder[PATH_MAX];
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/cmoe_golden_XXXXXX", temporary ? temporary : P_tmpdir);
    snprintf(path, sizeof path, "%s/config_v5.json", t->g->folder);
    if (access(path, R_OK) != 0) return;
    if (!mkdtemp(folder) || !other_folder(t->g, folder, true)) {
        golden_check(t->g, false, "no links in %s", folder);
        return;
    }
    cmoe_error err = {0};
    run_model m;
    if (golden_call(t->g, run_open(&m, folder, 1, NULL, CMOE_F32, &err), &err, "config_v5.json"))
        check_same(t, &m, LONG, 1, &(run_options){0}, "config_v5.json");
    run_close(&m);
    golden_check(t->g, other_folder(t->g, folder, false), "%s stays behind", folder);
}

void golden_bits(golden_case *g, run_model *m)
{
    trial t;
    trial_make(&t, g, m);
    if (trial_reference(&t)) {
        check_chunks(&t);
        check_batches(&t, m, "");
        check_threads(&t);
        check_isas(&t);
        check_replay(&t);
        check_rows(&t);
        check_other_config(&t);
    }
    trial_free(&t);
}

/* ---- coarser formats ------------------------------------------------------------------------- */

/* Routing is forced to that of float32, so that only rounding differs.  Root of the mean square and
 * largest difference over all logits, in deviations of the logits. */
static void distance(const golden_case *g, const trial *t, double *mean, double *most)
{
    double squares = 0, worst = 0;
    const int64_t n = LONG_TOKENS * g->vocab;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)t->got[LONG].logits[i] - t->want[LONG][i]);
        squares += d * d;
        if (!(d <= worst)) worst = d;
    }
    *mean = sqrt(squares / (double)n) / g->deviation;
    *most = worst / g->deviation;
}

static void check_format(trial *f32, const run_routing *routing, int32_t format, double *mean)
{
    static const double bound = 0.1;
    golden_case *g = f32->g;
    cmoe_error err = {0};
    run_model m;
    const char *name = cmoe_dtype_name(format);
    const run_options o = {.replay = routing};
    if (golden_call(g, run_open(&m, g->folder, 1, NULL, format, &err), &err, name) &&
        golden_call(g, run_logits(&m, &f32->got[LONG], 1, &o, &err), &err, name)) {
        double most;
        distance(g, f32, mean, &most);
        golden_check(g, *mean <= bound && isfinite(most),
                     "%s: logits %.3f deviations from float32 (at most %.3f), want %.2f", name,
                     *mean, most, bound);
        trial t;
        char how[16];
        snprintf(how, sizeof how, " in %s", name);
        trial_make(&t, g, &m);
        if (trial_reference(&t)) check_batches(&t, &m, how);
        trial_free(&t);
    }
    run_close(&m);
}

void golden_formats(golden_case *g, run_model *m)
{
    trial t;
    trial_make(&t, g, m);
    run_routing routing = run_routing_make(m, LONG_TOKENS);
    cmoe_error err = {0};
    run_sequence s = t.got[LONG];
    s.logits = t.want[LONG];
    if (golden_call(g, run_logits(m, &s, 1, &(run_options){.capture = &routing}, &err), &err,
                    "whole")) {
        check_format(&t, &routing, CMOE_BF16, &g->bf16);
        check_format(&t, &routing, CMOE_I8, &g->int8);
    }
    run_routing_free(&routing);
    trial_free(&t);
}
