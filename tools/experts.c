/* SPDX-License-Identifier: MIT
 *
 * experts.c - `cmoe experts`: which experts a text goes to.
 *
 * Counts come from the routing of one pass over the prompt.  Two experts are together more often than
 * chance by the factor `lift`: tokens that went to both, over what counts alone would give,
 * count_a count_b / tokens.
 */
#include <stdlib.h>
#include <string.h>

#include "crew.h"
#include "files.h"
#include "forward.h"
#include "heatmap.h"
#include "report.h"
#include "routing.h"
#include "text.h"
#include "verbs.h"

typedef struct experts_options {
    model_flags model;
    prompt_flags prompt;
    const char *svg;
    common_options common;
} experts_options;

static const option options[] = {
    OPTION_MODEL(experts_options, true),
    OPTIONS_PROMPT(experts_options),
    {.name = "svg",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = offsetof(experts_options, svg),
     .help = "write a heat map: layers down, experts across"},
    OPTIONS_MODEL(experts_options, "auto", "none"),
    OPTIONS_COMMON(experts_options),
};

const option_verb experts_verb = {
    .name = "experts",
    .group = "Look inside",
    .summary = "which experts a text goes to, and how evenly",
    .examples = "  cmoe experts MODEL --prompt-file book.txt\n"
                "  cmoe experts MODEL --prompt-file book.txt --svg experts.svg\n"
                "  cmoe experts MODEL --ids 1,2,3 --json\n",
    .text =
        "For each layer with experts: how many were used, how many never (dead), the load of the "
        "busiest over the mean load, and the two that are most often chosen for the same token, "
        "with the factor by which that is more than chance. --json has all counts, and the five "
        "most frequent pairs.",
    .options = options,
};

enum { CHUNK = 256, PAIRS = 5 };

typedef struct pair {
    int64_t a, b, count;
} pair;

/* E experts */
typedef struct layer_load {
    int64_t layer, experts, topk;
    int64_t *counts; /* [E] */
    int64_t busiest, dead;
    double mean, imbalance;
    pair pairs[PAIRS]; /* by falling count */
    int n_pairs;
} layer_load;

typedef struct run {
    const experts_options *o;
    tool_session session;
    cmoe_model_info info;
    cmoe_tokenizer *tokenizer;
    cmoe_model *model;
    forward forward;
    routing routing;
    int32_t *ids; /* [n] */
    int64_t n;
    layer_load *layers; /* [n_layers] those with experts */
    int64_t n_layers;
} run;

/* ---- the pass -------------------------------------------------------------------------------- */

static int prepare(run *r)
{
    const experts_options *o = r->o;
    machine m;
    int status = text_check_prompt(&o->prompt);
    if (status == 0)
        status = model_plan(&r->session, &o->model, model_format(o->model.dtype), &r->info);
    if (status) return status;
    if (r->info.moe_layers == 0) return report_fail(EXIT_FILE, o->model.path, "has no experts");
    if (o->svg) status = model_check_output(&r->session, &o->model, "--svg", o->svg);
    if (status == 0)
        status = text_prompt(&r->session, &o->prompt, o->model.path, &r->info, &r->tokenizer,
                             &r->ids, &r->n);
    if (status) return status;
    machine_read(&m);
    const model_needs n = model_needs_of(&r->info, r->n, CHUNK, CHUNK * r->info.vocab * 4);
    status = model_check_memory(&r->session, &o->model, &r->info, &n, m.available_bytes);
    const int64_t limit = m.available_bytes > 0 ? m.available_bytes - (n.total - n.weights) : 0;
    return status ? status
                  : model_load(&r->session, &o->model, &r->info, limit, false, o->common.quiet,
                               &r->model);
}

static int pass(run *r)
{
    const int64_t chunk = forward_chunk(&r->info, r->n, CHUNK);
    int64_t *ids = malloc((size_t)r->n * sizeof *ids);
    int status =
        ids ? routing_create(&r->routing, r->model, r->n)
            : report_fail(EXIT_MEMORY, "experts", "no memory for %lld ids", (long long)r->n);
    for (int64_t i = 0; i < r->n && ids; i++)
        ids[i] = r->ids[i];
    if (status == 0)
        status = forward_open(&r->forward, &r->session, r->model, r->n, chunk, "experts");
    for (int64_t at = 0; at < r->n && status == 0; at += chunk) {
        const int64_t m = r->n - at < chunk ? r->n - at : chunk;
        report_progress(r->o->common.quiet, "%lld of %lld tokens", (long long)at, (long long)r->n);
        status = forward_tokens(&r->forward, ids + at, at, m,
                                routing_rows(&r->routing, at, m, true), NULL, NULL, "experts");
    }
    free(ids);
    return status;
}

/* ---- counting -------------------------------------------------------------------------------- */

static void keep_pair(layer_load *l, pair p)
{
    if (l->n_pairs == PAIRS && l->pairs[PAIRS - 1].count >= p.count) return;
    int at = l->n_pairs < PAIRS ? l->n_pairs++ : PAIRS - 1;
    for (; at > 0 && l->pairs[at - 1].count < p.count; at--)
        l->pairs[at] = l->pairs[at - 1];
    l->pairs[at] = p;
}

/* together [E, E], zeros: how many tokens went to both. */
static void count_pairs(layer_load *l, const int32_t *ids, int64_t T, int64_t *together)
{
    const int64_t E = l->experts, K = l->topk;
    for (int64_t t = 0; t < T; t++) {
        for (int64_t i = 0; i < K; i++) {
            for (int64_t j = 0; j < i; j++) {
                const int64_t x = ids[t * K + i], y = ids[t * K + j];
                together[(x < y ? x : y) * E + (x < y ? y : x)]++;
            }
        }
    }
    for (int64_t a = 0; a < E; a++) {
        for (int64_t b = a + 1; b < E; b++) {
            if (together[a * E + b] > 0) keep_pair(l, (pair){a, b, together[a * E + b]});
        }
    }
}

static int count_layer(layer_load *l, const routing_layer *from, int64_t T)
{
    const int64_t E = l->experts, K = l->topk;
    l->counts = calloc((size_t)E, sizeof *l->counts);
    int64_t *together = calloc((size_t)(E * E), sizeof *together);
    if (!l->counts || !together) {
        free(together);
        return report_fail(EXIT_MEMORY, "experts", "no memory for counts of %lld experts",
                           (long long)E);
    }
    for (int64_t i = 0; i < T * K; i++)
        l->counts[from->ids[i]]++;
    for (int64_t e = 0; e < E; e++) {
        l->dead += l->counts[e] == 0;
        if (l->counts[e] > l->counts[l->busiest]) l->busiest = e;
    }
    l->mean = (double)(T * K) / (double)E;
    l->imbalance = (double)l->counts[l->busiest] / l->mean;
    count_pairs(l, from->ids, T, together);
    free(together);
    return 0;
}

static int count(run *r)
{
    r->layers = calloc((size_t)r->info.moe_layers, sizeof *r->layers);
    if (!r->layers) return report_fail(EXIT_MEMORY, "experts", "no memory");
    for (int64_t i = 0; i < r->routing.layers; i++) {
        const routing_layer *from = &r->routing.layer[i];
        if (from->topk == 0) continue;
        layer_load *l = &r->layers[r->n_layers++];
        *l = (layer_load){.layer = i, .experts = from->experts, .topk = from->topk};
        const int status = count_layer(l, from, r->n);
        if (status) return status;
    }
    return 0;
}

static double lift(const run *r, const layer_load *l, const pair *p)
{
    return (double)p->count * (double)r->n / ((double)l->counts[p->a] * (double)l->counts[p->b]);
}

/* ---- output ---------------------------------------------------------------------------------- */

static json_t *layer_json(const run *r, const layer_load *l)
{
    json_t *counts = json_array(), *dead = json_array(), *pairs = json_array();
    for (int64_t e = 0; e < l->experts; e++) {
        json_array_append_new(counts, json_integer((json_int_t)l->counts[e]));
        if (l->counts[e] == 0) json_array_append_new(dead, json_integer((json_int_t)e));
    }
    for (int i = 0; i < l->n_pairs; i++) {
        const pair *p = &l->pairs[i];
        json_array_append_new(pairs, json_pack("{s[II] sI sf}", "experts", (json_int_t)p->a,
                                               (json_int_t)p->b, "count", (json_int_t)p->count,
                                               "lift", lift(r, l, p)));
    }
    return json_pack("{sI sI sI so so sf so}", "layer", (json_int_t)l->layer, "experts",
                     (json_int_t)l->experts, "topk", (json_int_t)l->topk, "counts", counts, "dead",
                     dead, "imbalance", l->imbalance, "pairs", pairs);
}

static int print_json(const run *r)
{
    json_t *layers = json_array();
    for (int64_t i = 0; i < r->n_layers; i++)
        json_array_append_new(layers, layer_json(r, &r->layers[i]));
    return report_json(json_pack("{so sI so so}", "model", report_json_text(r->o->model.path),
                                 "tokens", (json_int_t)r->n, "layers", layers, "svg",
                                 r->o->svg ? report_json_text(r->o->svg) : json_null()));
}

static int print_text(const run *r)
{
    const report_style style = report_style_of_stdout();
    report out;
    const int status = report_begin(&out);
    if (status) return status;
    fprintf(out.to, "%s%lld tokens%s through %s\n\n", style.bold, (long long)r->n, style.off,
            r->info.type);
    fprintf(out.to,
            "%slayer  experts   used   dead  max/mean  busiest      most often together%s\n",
            style.bold, style.off);
    for (int64_t i = 0; i < r->n_layers; i++) {
        const layer_load *l = &r->layers[i];
        fprintf(out.to, "%5lld  %7lld  %5lld  %5lld  %8.2f  %5lld %4.1f%%", (long long)l->layer,
                (long long)l->experts, (long long)(l->experts - l->dead), (long long)l->dead,
                l->imbalance, (long long)l->busiest,
                100 * (double)l->counts[l->busiest] / (double)r->n);
        if (l->n_pairs > 0)
            fprintf(out.to, "  %4lld + %-4lld %5.1f x chance", (long long)l->pairs[0].a,
                    (long long)l->pairs[0].b, lift(r, l, &l->pairs[0]));
        fputc('\n', out.to);
    }
    if (r->o->svg) fprintf(out.to, "\nheat map: %s\n", r->o->svg);
    return report_end(&out, 0);
}

/* The last part of a path: "models/qwen/" -> "qwen". */
static void name_of(const char *path, char *name, size_t size)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    snprintf(name, size, "%.*s", (int)(end - begin), path + begin);
}

static int write_svg(const run *r)
{
    char name[256];
    char *text = NULL;
    size_t bytes = 0;
    heatmap_row *rows = calloc((size_t)r->n_layers + 1, sizeof *rows);
    FILE *to = rows ? open_memstream(&text, &bytes) : NULL;
    int status = to ? 0 : report_fail(EXIT_MEMORY, r->o->svg, "no memory");
    for (int64_t i = 0; i < r->n_layers && to; i++) {
        const layer_load *l = &r->layers[i];
        rows[i] = (heatmap_row){l->layer, l->experts, l->counts, l->mean, l->imbalance};
    }
    name_of(r->o->model.path, name, sizeof name);
    if (to) heatmap_svg(to, name, r->n, rows, r->n_layers);
    if (to && fclose(to) != 0) status = report_fail(EXIT_MEMORY, r->o->svg, "no memory");
    if (status == 0) status = files_write(r->o->svg, text, bytes);
    free(text);
    free(rows);
    return status;
}

static void release(run *r)
{
    for (int64_t i = 0; i < r->n_layers; i++)
        free(r->layers[i].counts);
    free(r->layers);
    free(r->ids);
    routing_free(&r->routing);
    forward_close(&r->forward);
    cmoe_model_free(r->model);
    cmoe_tokenizer_free(r->tokenizer);
    session_close(&r->session);
}

int experts_main(int argc, char **argv)
{
    experts_options o = {0};
    run r = {.o = &o};
    int status = options_parse(&experts_verb, argc, argv, &o);
    if (status == 0) {
        report_catch_signals();
        status = session_open(&r.session, &o.common);
    }
    if (status == 0) status = prepare(&r);
    if (status == 0) status = pass(&r);
    if (status == 0) status = count(&r);
    if (status == 0 && o.svg) status = write_svg(&r);
    if (status == 0) status = o.common.json ? print_json(&r) : print_text(&r);
    release(&r);
    free(o.prompt.ids.v);
    return status;
}
