/* SPDX-License-Identifier: MIT
 *
 * demo.c - `cmoe demo`: one small layer at work.  A picture of its routing, proof that the numbers
 * are right and do not depend on batch or threads, and how close a real layer's size comes to what
 * this machine can do.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "check.h"
#include "report.h"
#include "verbs.h"

typedef struct demo_options {
    int64_t seed;
    bool quick;
    common_options common;
} demo_options;

static const option options[] = {
    {.name = "seed",
     .argument = "S",
     .type = OPTION_INT,
     .offset = offsetof(demo_options, seed),
     .initial = "0",
     .most = 9007199254740992.0,
     .help = "another one makes another layer"},
    {.name = "quick",
     .type = OPTION_FLAG,
     .offset = offsetof(demo_options, quick),
     .help = "leave out the layer of real size and its timing"},
    OPTIONS_COMMON(demo_options),
};

const option_verb demo_verb = {
    .name = "demo",
    .group = "This machine",
    .summary = "see a layer work: its routing, its checks, its speed",
    .examples = "  cmoe demo\n"
                "  cmoe demo --seed 7 --quick\n",
    .text = "Takes about ten seconds. Everything is made up from the seed; nothing is read or "
            "written.",
    .options = options,
};

/* The layer of the picture. */
enum { TOKENS = 16, HIDDEN = 512, INTER = 256, EXPERTS = 32, TOPK = 4 };

typedef struct picture {
    synth s;
    void *x;
    int32_t ids[TOKENS * TOPK];
    float weights[TOKENS * TOPK];
    float out[TOKENS * HIDDEN]; /* bf16 takes half of it */
} picture;

typedef struct proofs {
    int64_t elements;    /* compared with double */
    int alone, threaded; /* tokens, and thread counts, that gave the same bits */
} proofs;

/* ---- proofs ---------------------------------------------------------------------------------- */

static int64_t row_bytes(const picture *p)
{
    return HIDDEN * cmoe_dtype_bytes(synth_x_dtype(&p->s));
}

/* Every token against a double computation. */
static int prove_values(const picture *p, proofs *done)
{
    char why[160];
    for (int64_t t = 0; t < TOKENS; t++) {
        if (!check_token(&p->s, 0, (const char *)p->x + t * row_bytes(p), p->ids + t * TOPK,
                         p->weights + t * TOPK, (const char *)p->out + t * row_bytes(p), why,
                         sizeof why))
            return report_fail(EXIT_ERROR, "demo", "token %lld: %s", (long long)t, why);
        done->elements += HIDDEN;
    }
    return 0;
}

/* Each token alone gives the bits it gave in the batch. */
static int prove_alone(const picture *p, const tool_session *session, const cmoe_experts *experts,
                       proofs *done)
{
    float out[HIDDEN];
    for (int64_t t = 0; t < TOKENS; t++) {
        const int status = check_run(&p->s, session, experts, (const char *)p->x + t * row_bytes(p),
                                     1, p->ids + t * TOPK, p->weights + t * TOPK, out);
        if (status) return status;
        if (memcmp(out, (const char *)p->out + t * row_bytes(p), (size_t)row_bytes(p)) != 0)
            return report_fail(EXIT_ERROR, "demo", "token %lld alone differs from the batch",
                               (long long)t);
        done->alone++;
    }
    return 0;
}

/* Other numbers of threads give the same bits. */
static int prove_threads(const picture *p, const common_options *common, proofs *done)
{
    static const int64_t counts[] = {1, 2, 3, 8};
    float out[TOKENS * HIDDEN];
    int status = 0;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0] && status == 0; i++) {
        const common_options other = {.threads = counts[i], .isa = common->isa};
        tool_session session;
        cmoe_experts *experts = NULL;
        status = session_open(&session, &other);
        if (status) return status;
        status = synth_experts(&p->s, 0, &session, &experts);
        if (status == 0)
            status = check_run(&p->s, &session, experts, p->x, TOKENS, p->ids, p->weights, out);
        if (status == 0 && memcmp(out, p->out, (size_t)(TOKENS * row_bytes(p))) != 0)
            status = report_fail(EXIT_ERROR, "demo", "%lld threads give other bits",
                                 (long long)counts[i]);
        cmoe_experts_free(experts);
        session_close(&session);
        done->threaded++;
    }
    return status;
}

static int make_picture(picture *p, const demo_options *o, const tool_session *session,
                        proofs *done)
{
    cmoe_experts *experts = NULL;
    p->s = (synth){.hidden = HIDDEN,
                   .inter = INTER,
                   .experts = EXPERTS,
                   .topk = TOPK,
                   .format = CMOE_BF16,
                   .seed = (uint64_t)o->seed};
    int status = synth_tokens(&p->s, TOKENS, session, &p->x);
    if (status == 0) status = synth_routing(&p->s, TOKENS, 0, 0.6f, session, p->ids, p->weights);
    if (status == 0) status = synth_experts(&p->s, 0, session, &experts);
    if (status == 0)
        status = check_run(&p->s, session, experts, p->x, TOKENS, p->ids, p->weights, p->out);
    if (status == 0) status = prove_values(p, done);
    if (status == 0) status = prove_alone(p, session, experts, done);
    if (status == 0) status = prove_threads(p, &o->common, done);
    cmoe_experts_free(experts);
    return status;
}

/* ---- the picture ----------------------------------------------------------------------------- */

static const char *const heat_blocks[] = {"░", "▒", "▓", "█"}, *const heat_plain[] = {".", "o", "O",
                                                                                      "@"};
static const char *const bar_blocks[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};

/* One line per token, one column per expert; the darker, the more weight. */
static void print_heat(FILE *to, const picture *p, report_style style)
{
    for (int64_t t = 0; t < TOKENS; t++) {
        float row[EXPERTS] = {0};
        fprintf(to, "  token %2lld |", (long long)t);
        for (int k = 0; k < TOPK; k++)
            row[p->ids[t * TOPK + k]] = p->weights[t * TOPK + k];
        for (int e = 0; e < EXPERTS; e++) {
            int level = (int)(row[e] * 8); /* an eighth, a quarter, three eighths */
            if (level > 3) level = 3;
            fputs(row[e] == 0 ? " " : style.utf8 ? heat_blocks[level] : heat_plain[level], to);
        }
        fprintf(to, "|");
        for (int k = 0; k < TOPK; k++)
            fprintf(to, "  %2d %.2f", p->ids[t * TOPK + k], (double)p->weights[t * TOPK + k]);
        fputc('\n', to);
    }
}

/* How many tokens each expert got. */
static void print_load(FILE *to, const picture *p, report_style style)
{
    int load[EXPERTS] = {0}, most = 0, idle = 0, busiest = 0;
    for (int i = 0; i < TOKENS * TOPK; i++)
        load[p->ids[i]]++;
    for (int e = 0; e < EXPERTS; e++) {
        idle += load[e] == 0;
        if (load[e] > most) {
            most = load[e];
            busiest = e;
        }
    }
    fprintf(to, "      load |");
    for (int e = 0; e < EXPERTS; e++) {
        if (style.utf8)
            fputs(bar_blocks[load[e] ? (load[e] * 8 + most - 1) / most : 0], to);
        else
            fputc(load[e] == 0 ? ' ' : load[e] < 10 ? '0' + load[e] : '+', to);
    }
    fprintf(to, "|\n  Expert %d got %d tokens (%.1f times the mean), %d got none.\n", busiest, most,
            (double)most * EXPERTS / (TOKENS * TOPK), idle);
}

/* ---- speed ----------------------------------------------------------------------------------- */

static const int64_t speed_tokens[] = {1, 16, 128};
enum { SPEEDS = sizeof speed_tokens / sizeof speed_tokens[0] };

typedef struct speed {
    machine m;
    limits l;
    synth s;
    char variant[48];
    bench_point points[SPEEDS];
    int n; /* points measured */
} speed;

/* A layer of Qwen3-30B-A3B, or a part of its experts where memory is short. */
static int measure_speed(speed *v, const demo_options *o, const tool_session *session)
{
    bench b;
    v->s = (synth){.hidden = 2048,
                   .inter = 768,
                   .experts = 128,
                   .topk = 8,
                   .format = CMOE_BF16,
                   .seed = (uint64_t)o->seed};
    while (v->s.experts > 16 && v->m.available_bytes < 4 * synth_weight_bytes(&v->s, v->s.experts))
        v->s.experts /= 2;
    report_progress(o->common.quiet, "measuring this machine's limits");
    int status = limits_open(&v->l, &v->m, cmoe_ctx_threads(session->ctx));
    if (status) return status;
    status =
        bench_open(&b, &v->s, session, &v->m, &v->l, speed_tokens[SPEEDS - 1], o->common.quiet);
    if (status == 0) {
        snprintf(v->variant, sizeof v->variant, "%s", b.info.variant);
        for (int i = 0; i < SPEEDS && status == 0; i++)
            status = bench_measure(&b, speed_tokens[i], 0.7, 0, &v->points[v->n++]);
        bench_close(&b);
    }
    limits_close(&v->l);
    return status;
}

static void print_speed(FILE *to, const speed *v, report_style style)
{
    fprintf(
        to,
        "\n%sA layer of real size%s: hidden %lld, inter %lld, %lld experts, top %lld, bf16, %s\n"
        "%s; reads %.1f GB/s, computes %.0f Gop/s\n\n",
        style.bold, style.off, (long long)v->s.hidden, (long long)v->s.inter,
        (long long)v->s.experts, (long long)v->s.topk, v->variant, v->m.cpu, v->l.read_gbps,
        v->l.gflops[LIMIT_BF16]);
    for (int i = 0; i < v->n; i++) {
        const bench_point *p = &v->points[i];
        char bar[128] = "";
        int cells = (int)(p->of_limit * 30 + 0.5);
        if (cells > 30) cells = 30;
        for (int c = 0; c < 30; c++)
            strcat(bar, c < cells ? (style.utf8 ? "█" : "#") : (style.utf8 ? "░" : "."));
        fprintf(to, "  %4lld %-6s %9.2f ms  %s  %3.0f%% of the limit\n", (long long)p->tokens,
                p->tokens == 1 ? "token" : "tokens", p->us_median / 1e3, bar, 100 * p->of_limit);
    }
}

/* ---- the verb -------------------------------------------------------------------------------- */

static void print_demo(FILE *to, const picture *p, const proofs *done, const speed *v,
                       report_style style)
{
    fprintf(to, "%sWhere %d tokens go%s: %d experts, top %d, darker is more weight\n\n", style.bold,
            TOKENS, style.off, EXPERTS, TOPK);
    print_heat(to, p, style);
    print_load(to, p, style);
    fprintf(to, "\n%sIs it right?%s\n", style.bold, style.off);
    fprintf(to, "  %sright%s  %lld outputs lie within the bound of a double computation\n",
            style.good, style.off, (long long)done->elements);
    fprintf(to, "  %ssame%s   %d tokens alone give the bits they gave in the batch\n", style.good,
            style.off, done->alone);
    fprintf(to, "  %ssame%s   1, 2, 3 and 8 threads give the same bits\n", style.good, style.off);
    if (v->n) print_speed(to, v, style);
    fprintf(to,
            "\n%sNext%s\n"
            "  build/cmoe doctor                what this machine has, and whether all is well\n"
            "  build/cmoe bench layer --help    time a layer of any shape and format\n"
            "  make test                        everything that is promised, proved\n",
            style.bold, style.off);
}

static json_t *demo_json(const picture *p, const proofs *done, const speed *v,
                         const tool_session *s)
{
    json_t *ids = json_array(), *points = json_array();
    for (int t = 0; t < TOKENS; t++) {
        json_t *row = json_array();
        for (int k = 0; k < TOPK; k++)
            json_array_append_new(row, json_integer(p->ids[t * TOPK + k]));
        json_array_append_new(ids, row);
    }
    for (int i = 0; i < v->n; i++)
        json_array_append_new(
            points, json_pack("{sI sf sf}", "tokens", (json_int_t)v->points[i].tokens, "us_median",
                              v->points[i].us_median, "of_limit", v->points[i].of_limit));
    return json_pack("{so so sI si si so}", "machine", machine_json(&v->m, s->ctx), "topk_ids", ids,
                     "right", (json_int_t)done->elements, "same_alone", done->alone, "same_threads",
                     done->threaded, "speed", points);
}

static int show(const demo_options *o, const tool_session *session, picture *p, speed *v)
{
    proofs done = {0};
    report r;
    machine_read(&v->m);
    report_progress(o->common.quiet, "checking a small layer");
    int status = make_picture(p, o, session, &done);
    if (status == 0 && !o->quick) status = measure_speed(v, o, session);
    if (status) return status;
    if (o->common.json) return report_json(demo_json(p, &done, v, session));
    status = report_begin(&r);
    if (status) return status;
    print_demo(r.to, p, &done, v, report_style_of_stdout());
    return report_end(&r, 0);
}

int demo_main(int argc, char **argv)
{
    demo_options o = {0};
    tool_session session;
    int status = options_parse(&demo_verb, argc, argv, &o);
    if (status) return status;
    report_catch_signals();
    status = session_open(&session, &o.common);
    if (status) return status;
    picture *p = calloc(1, sizeof *p);
    speed *v = calloc(1, sizeof *v);
    status = p && v ? show(&o, &session, p, v) : report_fail(EXIT_MEMORY, "demo", "no memory");
    if (p) free(p->x);
    free(p);
    free(v);
    session_close(&session);
    return status;
}
