/* SPDX-License-Identifier: MIT
 *
 * bench_layer.c - `cmoe bench layer`: one MoE layer against the machine's limit.
 */
#include <math.h>
#include <string.h>

#include "bench.h"
#include "model.h"
#include "report.h"
#include "verbs.h"

typedef struct bench_layer_options {
    int64_t hidden, inter, experts, topk, repeat, seed;
    option_ints tokens;
    const char *dtype;
    double budget;
    common_options common;
} bench_layer_options;

/* The words of --dtype, and the formats in the same order. */
static const char *const dtype_names[] = {"f32", "bf16", "int8", NULL};
static const int32_t dtypes[] = {CMOE_F32, CMOE_BF16, CMOE_I8};

#define AT(field) offsetof(bench_layer_options, field)

static const option options[] = {
    {.name = "hidden",
     .argument = "H",
     .type = OPTION_INT,
     .offset = AT(hidden),
     .least = 1,
     .most = 65536,
     .required = true,
     .help = "size of a token"},
    {.name = "inter",
     .argument = "I",
     .type = OPTION_INT,
     .offset = AT(inter),
     .least = 1,
     .most = 65536,
     .required = true,
     .help = "size inside an expert"},
    {.name = "experts",
     .argument = "E",
     .type = OPTION_INT,
     .offset = AT(experts),
     .least = 1,
     .most = 4096,
     .required = true,
     .help = "number of experts"},
    {.name = "topk",
     .argument = "K",
     .type = OPTION_INT,
     .offset = AT(topk),
     .least = 1,
     .most = 256,
     .required = true,
     .help = "experts a token goes to; at most E"},
    {.name = "tokens",
     .argument = "M[,M...]",
     .type = OPTION_INTS,
     .offset = AT(tokens),
     .least = 1,
     .most = 65536,
     .required = true,
     .help = "batch sizes; each becomes one point"},
    {.name = "dtype",
     .argument = "FORMAT",
     .type = OPTION_CHOICE,
     .offset = AT(dtype),
     .choices = dtype_names,
     .later = model_dtypes_later,
     .initial = "bf16",
     .help = "format of the weights"},
    {.name = "repeat",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(repeat),
     .initial = "0",
     .most = 1000000,
     .help = "repetitions of a point; 0: as many as the budget allows"},
    {.name = "budget",
     .argument = "SECONDS",
     .type = OPTION_FLOAT,
     .offset = AT(budget),
     .initial = "2",
     .least = 0.001,
     .most = 3600,
     .help = "time for the repetitions of a point"},
    {.name = "seed",
     .argument = "S",
     .type = OPTION_INT,
     .offset = AT(seed),
     .initial = "0",
     .most = 9007199254740992.0,
     .help = "another one makes other weights, tokens and routings"},
    OPTIONS_COMMON(bench_layer_options),
};

const option_verb bench_layer_verb = {
    .name = "bench layer",
    .group = "Measure",
    .summary = "time one MoE layer and compare with the machine's limit",
    .examples = "  cmoe bench layer --hidden 2048 --inter 768 --experts 128 --topk 8 \\\n"
                "                   --tokens 1,16,256                      # Qwen3-30B-A3B\n"
                "  cmoe bench layer --hidden 512 --inter 256 --experts 32 --topk 4 \\\n"
                "                   --tokens 64 --dtype int8 --json\n",
    .text =
        "The result is checked against a double computation before the clock starts. Every "
        "repetition takes another routing (the top-k of normal logits) and other tokens; weights "
        "are random, different for every expert, and at least 4 times as large as the last-level "
        "cache (several copies of the layer are taken in turn if need be), else the result says "
        "\"cached\".\n"
        "\n"
        "of_limit = max(bytes of the weights that were touched / read bandwidth, operations / peak "
        "of this CPU's best instruction for the format) / median time. Bandwidth is probed "
        "directly before and after each point; a point whose two probes differ by more than 10 % "
        "is repeated, at most 5 times. ops = 6 H I K M; bytes = weights of the experts that were "
        "hit; spread = (third quartile - first quartile) / median of the times.",
    .options = options,
};

static int32_t dtype_of(const char *name)
{
    int i = 0;
    while (strcmp(dtype_names[i], name) != 0)
        i++;
    return dtypes[i];
}

/* ---- output ---------------------------------------------------------------------------------- */

static void print_machine(FILE *to, const bench_layer_options *o, const bench *b, const machine *m,
                          report_style style)
{
    const limits *l = b->limits;
    const int f = limits_format(b->s->format);
    fprintf(to, "%sOne MoE layer%s: hidden %lld, inter %lld, %lld experts, top %lld, %s\n",
            style.bold, style.off, (long long)o->hidden, (long long)o->inter, (long long)o->experts,
            (long long)o->topk, o->dtype);
    fprintf(to, "%s, %d of %d cores, last-level cache %.0f MiB\n", m->cpu, (int)l->threads,
            (int)m->cores, (double)m->llc_bytes / 0x1p20);
    fprintf(to, "limits    read %.1f GB/s, %s %.0f Gop/s (%s)\n", l->read_gbps, o->dtype,
            l->gflops[f], l->instruction[f]);
    fprintf(to, "weights   %.2f GB x %lld %s%s\n\n",
            (double)synth_weight_bytes(b->s, b->s->experts) / 1e9, (long long)b->n_copies,
            b->n_copies == 1 ? "copy" : "copies",
            b->cached ? ", less than 4 last-level caches: cached" : "");
}

static void print_points(FILE *to, const bench *b, const bench_point *points, int64_t n,
                         report_style style)
{
    fprintf(to, "%stokens  variant       median us     min us  GFLOP/s   GB/s  limit  experts%s\n",
            style.bold, style.off);
    for (int64_t i = 0; i < n; i++) {
        const bench_point *p = &points[i];
        fprintf(to, "%6lld  %-12s %10.1f %10.1f %8.1f %6.1f %5.0f%% %8.1f\n", (long long)p->tokens,
                b->info.variant, p->us_median, p->us_min, p->gflops, p->gbps, 100 * p->of_limit,
                p->experts_hit);
    }
}

static json_t *point_json(const bench_layer_options *o, const bench *b, const bench_point *p)
{
    return json_pack("{sI sI sI sI sI ss si ss ss sf sf sf sf sf sf sI sI sf sf sf sb}", "hidden",
                     (json_int_t)o->hidden, "inter", (json_int_t)o->inter, "experts",
                     (json_int_t)o->experts, "topk", (json_int_t)o->topk, "tokens",
                     (json_int_t)p->tokens, "dtype", o->dtype, "threads", (int)b->limits->threads,
                     "device", o->common.device, "variant", b->info.variant, "us_median",
                     p->us_median, "us_min", p->us_min, "gflops", p->gflops, "gbps", p->gbps,
                     "of_limit", p->of_limit, "experts_hit", p->experts_hit, "bytes",
                     (json_int_t)llround(p->bytes), "ops", (json_int_t)llround(p->ops),
                     "read_gbps_before", p->read_before, "read_gbps_after", p->read_after, "spread",
                     p->spread, "cached", (int)b->cached);
}

static int print_json(const bench_layer_options *o, const bench *b, const machine *m,
                      const bench_point *points, int64_t n)
{
    json_t *results = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(results, point_json(o, b, &points[i]));
    return report_json(json_pack("{so so so}", "machine", machine_json(m, b->session->ctx),
                                 "limits", limits_json(b->limits), "results", results));
}

/* ---- the verb -------------------------------------------------------------------------------- */

static int run_points(const bench_layer_options *o, bench *b, const machine *m)
{
    bench_point points[OPTION_INTS_MAX];
    const report_style style = report_style_of_stdout();
    for (int64_t i = 0; i < o->tokens.n; i++) {
        const int status = bench_measure(b, o->tokens.v[i], o->budget, o->repeat, &points[i]);
        if (status) return status;
    }
    if (o->common.json) return print_json(o, b, m, points, o->tokens.n);
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    print_machine(r.to, o, b, m, style);
    print_points(r.to, b, points, o->tokens.n, style);
    return report_end(&r, 0);
}

static int run(const bench_layer_options *o, const tool_session *session)
{
    machine m;
    limits l;
    bench b;
    const synth s = {.hidden = o->hidden,
                     .inter = o->inter,
                     .experts = o->experts,
                     .topk = o->topk,
                     .format = dtype_of(o->dtype),
                     .seed = (uint64_t)o->seed};
    int64_t most = 1;
    for (int64_t i = 0; i < o->tokens.n; i++)
        most = o->tokens.v[i] > most ? o->tokens.v[i] : most;
    machine_read(&m);
    report_progress(o->common.quiet, "measuring this machine's limits");
    int status = limits_open(&l, &m, cmoe_ctx_threads(session->ctx));
    if (status) return status;
    status = bench_open(&b, &s, session, &m, &l, most, o->common.quiet);
    if (status == 0) {
        status = run_points(o, &b, &m);
        bench_close(&b);
    }
    limits_close(&l);
    return status;
}

int bench_layer_main(int argc, char **argv)
{
    bench_layer_options o = {0};
    tool_session session;
    int status = options_parse(&bench_layer_verb, argc, argv, &o);
    if (status) return status;
    if (o.topk > o.experts)
        return report_fail(EXIT_USAGE, "--topk",
                           "\"%lld\" is out of range, want 1 to %lld (--experts)",
                           (long long)o.topk, (long long)o.experts);
    report_catch_signals();
    status = session_open(&session, &o.common);
    if (status) return status;
    status = run(&o, &session);
    session_close(&session);
    return status;
}
