/* SPDX-License-Identifier: MIT
 *
 * plan.c - `cmoe plan`: what a model would take on this machine, and how fast it could be, before
 * anything is loaded.
 *
 * Decoding one sequence reads the weights of the chosen experts and all others once a token, so the
 * read bandwidth of memory bounds its speed: tokens a second = bandwidth / bytes of a token, here
 * with the cache half full.
 */
#include <string.h>

#include "limits.h"
#include "model.h"
#include "report.h"
#include "verbs.h"

typedef struct plan_options {
    model_flags model;
    common_options common;
} plan_options;

static const option options[] = {
    OPTION_MODEL(plan_options, true),
    OPTIONS_MODEL(plan_options, "auto", "none"),
    OPTIONS_COMMON(plan_options),
};

const option_verb plan_verb = {
    .name = "plan",
    .group = "Look inside",
    .summary = "what would be placed where, bytes, speed; loads nothing",
    .examples = "  cmoe plan MODEL\n"
                "  cmoe plan MODEL --dtype int8 --context 8192\n"
                "  cmoe plan MODEL --json\n",
    .text = "Bytes come from the headers of the files; what is there is the smaller one of the "
            "machine's available memory and the limit of this process's control group. Speed is "
            "the measured read bandwidth / (bytes read for a token + half the cache): one "
            "sequence, the best that decoding can reach. Exit status 0 also when it does not fit: "
            "the answer says so, and what to try.",
    .options = options,
};

enum { CHUNK = 512, FORMATS = 4 };

/* What the model would take in one format. */
typedef struct candidate {
    const char *word; /* of --dtype */
    bool chosen, fits;
    int64_t context;
    cmoe_model_info info;
    model_needs needs;
    double tokens_per_second;
} candidate;

typedef struct planning {
    const plan_options *o;
    candidate list[FORMATS]; /* the chosen one first */
    int n;
    int64_t available, fitting_context; /* the longest that fits in the chosen format; 0: none */
    double read_gbps;
} planning;

/* ---- figures --------------------------------------------------------------------------------- */

static int add(planning *p, const tool_session *session, const char *word)
{
    candidate *c = &p->list[p->n];
    *c = (candidate){.word = word, .chosen = p->n == 0};
    const int status = model_plan(session, &p->o->model, model_format(word), &c->info);
    if (status) return status;
    /* Of one forward at a time only a few rows of logits are kept. */
    c->context = c->info.context;
    c->needs = model_needs_of(&c->info, c->context, c->context < CHUNK ? c->context : CHUNK,
                              4 * c->info.vocab);
    c->fits = p->available <= 0 || c->needs.total <= p->available;
    const double bytes = (double)c->info.bytes.per_token + (double)c->needs.cache / 2;
    c->tokens_per_second = bytes > 0 ? p->read_gbps * 1e9 / bytes : 0;
    p->n++;
    return 0;
}

/* The chosen format and, to compare, the others that the model can have. */
static int add_all(planning *p, const tool_session *session)
{
    int status = add(p, session, p->o->model.dtype);
    for (int i = 0; model_dtypes[i] && status == 0; i++) {
        bool have = model_format(model_dtypes[i]) == 0;
        for (int k = 0; k < p->n && !have; k++)
            have = p->list[k].info.format == model_format(model_dtypes[i]);
        if (have || !model_can_be(session, &p->o->model, model_format(model_dtypes[i]))) continue;
        status = add(p, session, model_dtypes[i]);
    }
    const candidate *c = &p->list[0];
    const int64_t rest = p->available - (c->needs.total - c->needs.cache);
    if (status == 0 && !c->fits && rest > 0 && c->info.bytes.cache_per_token > 0)
        p->fitting_context = rest / c->info.bytes.cache_per_token / CMOE_KV_PAGE * CMOE_KV_PAGE;
    return status;
}

/* The first smaller format that fits, or NULL. */
static const candidate *smaller(const planning *p)
{
    for (int i = 1; i < p->n; i++) {
        if (p->list[i].fits && p->list[i].needs.total < p->list[0].needs.total) return &p->list[i];
    }
    return NULL;
}

/* ---- output ---------------------------------------------------------------------------------- */

static void advice(const planning *p, char *text, size_t size)
{
    const candidate *c = smaller(p);
    size_t used = 0;
    text[0] = '\0';
    if (p->list[0].fits) return;
    if (c)
        used = (size_t)snprintf(text, size, "--dtype %s (%s) or ",
                                model_format_name(c->info.format), size_of(c->needs.total).s);
    if (p->fitting_context > 0)
        used += (size_t)snprintf(text + used, size - used, "--context %lld or ",
                                 (long long)p->fitting_context);
    snprintf(text + used, size - used, "a machine with more memory");
}

static json_t *candidate_json(const candidate *c)
{
    return json_pack(
        "{ss sI sI sI sI sb sf}", "dtype", model_format_name(c->info.format), "weight_bytes",
        (json_int_t)c->needs.weights, "cache_bytes", (json_int_t)c->needs.cache, "work_bytes",
        (json_int_t)(c->needs.work + c->needs.output), "needed_bytes", (json_int_t)c->needs.total,
        "fits", (int)c->fits, "tokens_per_second", c->tokens_per_second);
}

static int print_json(const planning *p)
{
    const candidate *c = &p->list[0];
    char text[256];
    json_t *formats = json_array();
    advice(p, text, sizeof text);
    for (int i = 0; i < p->n; i++)
        json_array_append_new(formats, candidate_json(&p->list[i]));
    return report_json(json_pack(
        "{so ss ss ss sI so sI sI sI sI sI sb ss? sf sf so so}", "model",
        report_json_text(p->o->model.path), "type", c->info.type, "device", p->o->common.device,
        "dtype", model_format_name(c->info.format), "context", (json_int_t)c->context, "bytes",
        model_bytes_json(&c->info.bytes), "weight_bytes", (json_int_t)c->needs.weights,
        "cache_bytes", (json_int_t)c->needs.cache, "work_bytes",
        (json_int_t)(c->needs.work + c->needs.output), "needed_bytes", (json_int_t)c->needs.total,
        "available_bytes", (json_int_t)p->available, "fits", (int)c->fits, "try",
        text[0] ? text : NULL, "read_gbps", p->read_gbps, "tokens_per_second", c->tokens_per_second,
        "formats", formats, "ranks", model_ranks_json(&c->info)));
}

static void print_placement(FILE *to, const planning *p)
{
    const candidate *c = &p->list[0];
    const cmoe_model_bytes *b = &c->info.bytes;
    const struct {
        const char *name;
        int64_t bytes;
        const char *note;
    } rows[] = {{"experts", b->experts, "routed"},
                {"shared experts", b->shared, ""},
                {"dense MLPs", b->dense, ""},
                {"attention", b->attention, ""},
                {"router", b->router, ""},
                {"embedding", b->embedding, ""},
                {"head", b->head, ""},
                {"norms, biases", b->small, ""},
                {"cache", c->needs.cache, "keys and values of the whole context"},
                {"work", c->needs.work + c->needs.output, "activations of 512 tokens, about"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].bytes > 0)
            fprintf(to, "%-16s %12s  memory%s%s\n", rows[i].name, size_of(rows[i].bytes).s,
                    rows[i].note[0] ? "  " : "", rows[i].note);
    }
    fprintf(to, "%-16s %12s\n%-16s %12s\n", "needed", size_of(c->needs.total).s, "there",
            p->available > 0 ? size_of(p->available).s : "not known");
}

static void print_formats(FILE *to, const planning *p, report_style style)
{
    fprintf(to, "%sdtype         weights        cache       needed       fits   tokens/s%s\n",
            style.bold, style.off);
    for (int i = 0; i < p->n; i++) {
        const candidate *c = &p->list[i];
        fprintf(to, "%-8s %12s %12s %12s %s%10s%s %10.1f%s\n", model_format_name(c->info.format),
                size_of(c->needs.weights).s, size_of(c->needs.cache).s, size_of(c->needs.total).s,
                c->fits ? style.good : style.bad, c->fits ? "yes" : "no", style.off,
                c->tokens_per_second, c->chosen ? "  <-" : "");
    }
}

static int print_text(const planning *p, const tool_session *session)
{
    const report_style style = report_style_of_stdout();
    const candidate *c = &p->list[0];
    char text[256];
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    fprintf(r.to, "%s%s%s as %s, context %lld, on %s with %d threads\n\n", style.bold, c->info.type,
            style.off, model_format_name(c->info.format), (long long)c->context,
            p->o->common.device, (int)cmoe_ctx_threads(session->ctx));
    print_placement(r.to, p);
    fputc('\n', r.to);
    print_formats(r.to, p, style);
    fprintf(r.to, "\nRead bandwidth %.1f GB/s; %s of weights are read for a token.\n", p->read_gbps,
            size_of(c->info.bytes.per_token).s);
    advice(p, text, sizeof text);
    if (c->fits)
        fprintf(r.to, "%sIt fits.%s\n", style.good, style.off);
    else
        fprintf(r.to, "%sIt does not fit.%s Try %s.\n", style.bad, style.off, text);
    return report_end(&r, 0);
}

static int run(const plan_options *o, const tool_session *session)
{
    planning p = {.o = o};
    cmoe_model_info info;
    machine m;
    limits l;
    /* A bad model is known before anything is measured. */
    int status = model_plan(session, &o->model, model_format(o->model.dtype), &info);
    if (status) return status;
    machine_read(&m);
    p.available = m.available_bytes;
    report_progress(o->common.quiet, "measuring read bandwidth");
    status = limits_open_read(&l, &m, cmoe_ctx_threads(session->ctx));
    if (status) return status;
    p.read_gbps = l.read_gbps;
    limits_close(&l);
    status = add_all(&p, session);
    if (status) return status;
    return o->common.json ? print_json(&p) : print_text(&p, session);
}

int plan_main(int argc, char **argv)
{
    plan_options o = {0};
    tool_session session = {0};
    int status = options_parse(&plan_verb, argc, argv, &o);
    if (status) return status;
    status = session_open(&session, &o.common);
    if (status == 0) status = run(&o, &session);
    session_close(&session);
    return status;
}
