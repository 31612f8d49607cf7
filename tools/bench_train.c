/* SPDX-License-Identifier: MIT
 *
 * bench_train.c - `cmoe bench train`: one layer forwards and backwards, or whole steps of a training.
 */
#include "bench_train.h"

#include "bench.h"
#include "model.h"
#include "report.h"
#include "training.h"
#include "verbs.h"

#define ROW(part, flag, arg, kind, field_, usual, lowest, highest, text)                  \
    {                                                                                     \
        .name = flag, .group = part, .argument = arg, .type = kind,                       \
        .offset = offsetof(bench_train_flags, field_), .initial = usual, .least = lowest, \
        .most = highest, .help = text                                                     \
    }
/* One whose presence counts. */
#define GIVEN(part, flag, arg, kind, field_, usual, lowest, highest, text)                \
    {                                                                                     \
        .name = flag, .group = part, .argument = arg, .type = kind,                       \
        .offset = offsetof(bench_train_flags, field_), .initial = usual, .least = lowest, \
        .most = highest, .help = text, .given = offsetof(bench_train_flags, has_##field_) \
    }
#define LAYER_GROUP "One layer (without CONFIG)"
#define STEPS_GROUP "Whole steps (of CONFIG)"

static const option options[] = {
    {.name = "CONFIG",
     .argument = "a config.json",
     .type = OPTION_TEXT,
     .offset = offsetof(bench_train_flags, config),
     .positional = true,
     .help = "config.json of a model, or a directory that holds one; its weights are made up. "
             "Without it, one layer is timed"},
    {.name = "dtype",
     .argument = "FORMAT",
     .type = OPTION_CHOICE,
     .offset = offsetof(bench_train_flags, dtype),
     .choices = training_dtypes,
     .initial = "f32",
     .help = "format that products are computed in; sums and gradients are float32"},
    ROW(NULL, "units", "U", OPTION_INT, units, "0", 0, CMOE_UNITS_MOST,
        "parts of a step whose gradients are added in a fixed order, a power of two; 0: 1 of a "
        "layer, 8 of whole steps"),
    ROW(NULL, "repeat", "N", OPTION_INT, repeat, "9", 5, 1000000,
        "repetitions; medians are printed"),
    ROW(NULL, "seed", "S", OPTION_INT, seed, "0", 0, 9007199254740992.0,
        "another one makes other weights and tokens"),
    GIVEN(LAYER_GROUP, "hidden", "H", OPTION_INT, hidden, NULL, 1, 65536, "size of a token"),
    GIVEN(LAYER_GROUP, "inter", "I", OPTION_INT, inter, NULL, 1, 65536, "size inside an expert"),
    GIVEN(LAYER_GROUP, "experts", "E", OPTION_INT, experts, NULL, 1, 4096, "number of experts"),
    GIVEN(LAYER_GROUP, "topk", "K", OPTION_INT, topk, NULL, 1, 256,
          "experts a token goes to; at most E"),
    GIVEN(LAYER_GROUP, "tokens", "T[,T...]", OPTION_INTS, tokens, NULL, 1, 1048576,
          "tokens of a step; each number becomes one point"),
    GIVEN(STEPS_GROUP, "sequences", "N", OPTION_INT, sequences, "1", 1, 1048576,
          "sequences of a unit"),
    GIVEN(STEPS_GROUP, "length", "N", OPTION_INT, length, "256", 1, 1048576,
          "tokens of a sequence"),
    {.name = "optimizer",
     .group = STEPS_GROUP,
     .argument = "NAME",
     .type = OPTION_CHOICE,
     .offset = offsetof(bench_train_flags, optimizer),
     .given = offsetof(bench_train_flags, has_optimizer),
     .choices = training_optimizers,
     .initial = "adamw",
     .help = "how weights follow gradients"},
    OPTIONS_COMMON(bench_train_flags),
};

const option_verb bench_train_verb = {
    .name = "bench train",
    .group = "Measure",
    .summary = "time a layer both ways, or whole steps of a training",
    .examples = "  cmoe bench train --hidden 1024 --inter 512 --experts 32 --topk 4 \\\n"
                "                   --tokens 512,2048\n"
                "  cmoe bench train --hidden 2048 --inter 768 --experts 128 --topk 8 \\\n"
                "                   --tokens 2048 --dtype bf16 --json\n"
                "  cmoe bench train config.json --units 4 --length 512 --optimizer muon\n",
    .text =
        "One layer: forward, and backward with the gradients of the tokens, the gate and all "
        "experts. The layer's own random gate decides where tokens go; weights and tokens are "
        "random, other tokens at every repetition, and repetitions of all points alternate. Before "
        "the clock starts, output and every gradient are checked against a double computation, "
        "with a gradient that comes from three tokens.\n"
        "\n"
        "gflops = 18 H I K T operations (6 forward, 12 backward) / median time; of_limit = that / "
        "the peak of this CPU's best float32 instruction, whatever --dtype is, which is probed "
        "before every repetition.\n"
        "\n"
        "Whole steps: what `cmoe train` does in a step, on random ids, from random weights: "
        "forward, backward, optimizer, packing. The loss of a first step, which is not counted, "
        "must be finite.\n"
        "\n"
        "spread = (third quartile - first quartile) / median of the times. peak_rss_mb: the most "
        "memory that the process had (VmHWM), in 2^20 bytes: weights as they are kept and as they "
        "are packed, gradients, rows.",
    .options = options,
};

/* ---- what goes together ---------------------------------------------------------------------- */

static int stray(const char *flag, const char *why)
{
    return report_fail(EXIT_USAGE, flag, "means nothing %s CONFIG", why);
}

static int check_flags(const bench_train_flags *f)
{
    const struct {
        const char *flag, *want;
        bool given, layer;
    } all[] = {{"--hidden", "1 to 65536", f->has_hidden, true},
               {"--inter", "1 to 65536", f->has_inter, true},
               {"--experts", "1 to 4096", f->has_experts, true},
               {"--topk", "1 to 256", f->has_topk, true},
               {"--tokens", "1 to 1048576, separated by commas", f->has_tokens, true},
               {"--sequences", "", f->has_sequences, false},
               {"--length", "", f->has_length, false},
               {"--optimizer", "", f->has_optimizer, false}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (f->config && all[i].layer && all[i].given) return stray(all[i].flag, "with");
        if (!f->config && !all[i].layer && all[i].given) return stray(all[i].flag, "without");
        if (!f->config && all[i].layer && !all[i].given)
            return report_fail(EXIT_USAGE, all[i].flag, "is needed without CONFIG, want %s",
                               all[i].want);
    }
    if (f->units & (f->units - 1))
        return report_fail(EXIT_USAGE, "--units", "\"%lld\" is not a power of two, or 0",
                           (long long)f->units);
    if (!f->config && f->topk > f->experts)
        return report_fail(EXIT_USAGE, "--topk",
                           "\"%lld\" is out of range, want 1 to %lld (--experts)",
                           (long long)f->topk, (long long)f->experts);
    return 0;
}

/* ---- output ---------------------------------------------------------------------------------- */

/* The machine and the limit of one run, and what is measured of the process. */
typedef struct surroundings {
    const bench_train_flags *f;
    const tool_session *session;
    machine m;
    limits l;
    double peak_mb;
} surroundings;

/* Bandwidth is probed on a large buffer, so it comes when the peak of memory has been read. */
static int read_end(surroundings *s)
{
    limits read;
    s->peak_mb = (double)machine_peak_bytes() / 0x1p20;
    if (!s->f->common.json) return 0;
    const int status = limits_open_read(&read, &s->m, s->l.threads);
    if (status) return status;
    s->l.read_gbps = read.read_gbps;
    limits_close(&read);
    return 0;
}

static double of_limit(const surroundings *s, const train_point *p)
{
    return p->gflops / s->l.gflops[LIMIT_F32];
}

static json_t *point_json(const surroundings *s, const train_point *p)
{
    const bench_train_flags *f = s->f;
    return json_pack(
        "{sI sI sI sI sI ss sI si sI sf sf sf sf sf sf sf sf}", "hidden", (json_int_t)f->hidden,
        "inter", (json_int_t)f->inter, "experts", (json_int_t)f->experts, "topk",
        (json_int_t)f->topk, "tokens", (json_int_t)p->tokens, "dtype", f->dtype, "units",
        (json_int_t)(f->units ? f->units : 1), "threads", (int)s->l.threads, "repeat",
        (json_int_t)f->repeat, "us_forward", p->us_forward, "us_backward", p->us_backward,
        "us_median", p->us_median, "us_min", p->us_min, "gflops", p->gflops, "of_limit",
        of_limit(s, p), "spread", p->spread, "peak_rss_mb", s->peak_mb);
}

static int print_json(const surroundings *s, json_t *results)
{
    return report_json(json_pack("{so so so}", "machine", machine_json(&s->m, s->session->ctx),
                                 "limits", limits_json(&s->l), "results", results));
}

static int print_points(const surroundings *s, const train_point *points)
{
    const bench_train_flags *f = s->f;
    if (f->common.json) {
        json_t *results = json_array();
        for (int64_t i = 0; i < f->tokens.n; i++)
            json_array_append_new(results, point_json(s, &points[i]));
        return print_json(s, results);
    }
    const report_style style = report_style_of_stdout();
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    fprintf(r.to,
            "%sOne MoE layer, trained%s: hidden %lld, inter %lld, %lld experts, top %lld, %s\n",
            style.bold, style.off, (long long)f->hidden, (long long)f->inter, (long long)f->experts,
            (long long)f->topk, f->dtype);
    fprintf(r.to, "%s, %d threads, f32 peak %.0f Gop/s (%s)\nmemory at most %.0f MiB\n\n", s->m.cpu,
            (int)s->l.threads, s->l.gflops[LIMIT_F32], s->l.instruction[LIMIT_F32], s->peak_mb);
    fprintf(r.to, "%s tokens   forward us  backward us    median us  spread  GFLOP/s  limit%s\n",
            style.bold, style.off);
    for (int64_t i = 0; i < f->tokens.n; i++) {
        const train_point *p = &points[i];
        fprintf(r.to, "%7lld %12.1f %12.1f %12.1f %6.1f%% %8.1f %5.0f%%\n", (long long)p->tokens,
                p->us_forward, p->us_backward, p->us_median, 100 * p->spread, p->gflops,
                100 * of_limit(s, p));
    }
    return report_end(&r, 0);
}

static int print_steps(const surroundings *s, const train_steps *t)
{
    const bench_train_flags *f = s->f;
    const int64_t units = f->units ? f->units : 8;
    if (f->common.json) {
        json_t *result = json_pack(
            "{so ss sI sI sI sI sI sI ss ss si sI sf sf sf sf sf sf}", "config",
            report_json_text(f->config), "type", t->type, "parameters", (json_int_t)t->parameters,
            "active", (json_int_t)t->active, "units", (json_int_t)units, "sequences",
            (json_int_t)f->sequences, "length", (json_int_t)f->length, "tokens",
            (json_int_t)t->tokens, "dtype", f->dtype, "optimizer", f->optimizer, "threads",
            (int)s->l.threads, "repeat", (json_int_t)f->repeat, "ms_median", t->ms_median, "ms_min",
            t->ms_min, "spread", t->spread, "tokens_per_second", t->tokens_per_second, "loss",
            t->loss, "peak_rss_mb", s->peak_mb);
        return print_json(s, json_pack("[o]", result));
    }
    const report_style style = report_style_of_stdout();
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    fprintf(r.to, "%s%s%s, %.4g M weights, %.4g M of them active, %s, %s\n", style.bold, t->type,
            style.off, (double)t->parameters / 1e6, (double)t->active / 1e6, f->dtype,
            f->optimizer);
    fprintf(r.to, "%s, %d threads\n", s->m.cpu, (int)s->l.threads);
    fprintf(r.to, "steps of %lld tokens: %lld units x %lld sequences x %lld\n\n",
            (long long)t->tokens, (long long)units, (long long)f->sequences, (long long)f->length);
    fprintf(r.to, "%s median ms     min ms  spread   tokens/s   memory%s\n", style.bold, style.off);
    fprintf(r.to, "%10.1f %10.1f %6.1f%% %10.1f %5.0f MiB\n", t->ms_median, t->ms_min,
            100 * t->spread, t->tokens_per_second, s->peak_mb);
    return report_end(&r, 0);
}

/* ---- the verb -------------------------------------------------------------------------------- */

static int run_layer(surroundings *s)
{
    const bench_train_flags *f = s->f;
    train_point points[OPTION_INTS_MAX];
    train_layer l;
    int64_t most = 1;
    for (int64_t i = 0; i < f->tokens.n; i++)
        most = f->tokens.v[i] > most ? f->tokens.v[i] : most;
    int status = train_layer_open(&l, f, s->session, &s->m, most);
    if (status) return status;
    status = train_layer_measure(&l, f, &s->l, points);
    train_layer_close(&l);
    if (status == 0) status = read_end(s);
    return status ? status : print_points(s, points);
}

static int run_steps(surroundings *s)
{
    train_steps t;
    int status = train_steps_measure(s->f, &s->m, &s->l, &t);
    if (status == 0) status = read_end(s);
    return status ? status : print_steps(s, &t);
}

int bench_train_main(int argc, char **argv)
{
    bench_train_flags f = {0};
    tool_session session;
    int status = options_parse(&bench_train_verb, argc, argv, &f);
    if (status == 0) status = check_flags(&f);
    if (status) return status;
    report_catch_signals();
    status = session_open(&session, &f.common);
    if (status) return status;
    surroundings s = {.f = &f, .session = &session};
    machine_read(&s.m);
    s.l.threads = cmoe_ctx_threads(session.ctx);
    report_progress(f.common.quiet, "measuring this machine's limits");
    for (int i = 0; i < LIMIT_FORMATS; i++)
        limits_peak(&s.l, i);
    status = f.config ? run_steps(&s) : run_layer(&s);
    session_close(&session);
    return status;
}
