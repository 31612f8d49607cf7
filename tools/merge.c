/* SPDX-License-Identifier: MIT
 *
 * merge.c - `cmoe merge`: a model and its adapters, written as one model, and compared.
 *
 * The check runs a few tokens through the model with the adapters folded in while it is loaded, and through
 * what was written, experts as the first chose them.  From a file in float32 the same weights come back, so
 * the same bits must; a file of 16 bits has rounded once more what the first keeps in float32.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters.h"
#include "crew.h"
#include "forward.h"
#include "model.h"
#include "report.h"
#include "routing.h"
#include "verbs.h"

enum { TOKENS = 16 };

typedef struct merge_options {
    model_flags model;
    const char *adapter, *out, *dtype;
    option_texts more;
    bool unchecked;
    common_options common;
} merge_options;

#define AT(field) offsetof(merge_options, field)

static const char *const dtypes[] = {"stored", "f32", "bf16", NULL};

static const option options[] = {
    OPTION_MODEL(merge_options, true),
    {.name = "ADAPTER",
     .argument = "a directory as PEFT saves it, and :SCALE",
     .type = OPTION_TEXT,
     .offset = AT(adapter),
     .required = true,
     .positional = true,
     .help = "directory with adapter_config.json and adapter_model.safetensors; DIR:SCALE "
             "multiplies what it adds"},
    {.name = "OUT",
     .argument = "a directory that is not there, or empty",
     .type = OPTION_TEXT,
     .offset = AT(out),
     .required = true,
     .positional = true,
     .help = "directory to write; whole or not at all"},
    {.name = "adapter",
     .argument = "DIR[:SCALE]",
     .type = OPTION_TEXTS,
     .offset = AT(more),
     .help = "another adapter beside ADAPTER; may be given several times"},
    {.name = "dtype",
     .argument = "FORMAT",
     .type = OPTION_CHOICE,
     .offset = AT(dtype),
     .choices = dtypes,
     .initial = "stored",
     .help = "format of what is written; stored: as the files of the model have it"},
    {.name = "no-check",
     .type = OPTION_FLAG,
     .offset = AT(unchecked),
     .help = "do not load both and compare their logits"},
    OPTIONS_COMMON(merge_options),
};

const option_verb merge_verb = {
    .name = "merge",
    .group = "Training",
    .summary = "fold adapters into a model, and write it",
    .examples = "  cmoe merge MODEL my-adapter merged\n"
                "  cmoe merge MODEL my-adapter:0.5 merged --dtype bf16\n"
                "  cmoe merge MODEL style merged --adapter task:0.8\n",
    .text = "Weights become W + scale * B A, added in float32 and rounded once; names, shapes and "
            "all tensors that no adapter changes stay as they are, and config and tokenizer files "
            "are copied. Weights of 8 and 4 bits cannot be changed in place: --dtype bf16 writes "
            "the model without them.\n"
            "\n"
            "The result is loaded and compared with the adapters on the model: exit status 1 when "
            "logits differ by more than the bound that is printed.",
    .options = options,
};

typedef struct run {
    const merge_options *o;
    tool_session session;
    option_texts texts;
    cmoe_model_info info;
    routing routed;
    int64_t tokens;
    float *logits[2]; /* [tokens, vocab]: of the adapters on the model, and of what was written */
    double off, bound, largest;
    double merge_seconds;
} run;

static int32_t written(const run *r)
{
    return strcmp(r->o->dtype, "stored") == 0 ? 0 : model_format(r->o->dtype);
}

/* ---- check ----------------------------------------------------------------------------------- */

/* Logits of a model in the format that the source would be loaded in; `first` keeps what was routed. */
static int compute(run *r, const char *path, const option_texts *adapted, float *logits, bool first)
{
    forward f = {0};
    cmoe_model *m = NULL;
    int64_t ids[TOKENS];
    cmoe_model_info info;
    model_flags flags = {.path = path,
                         .dtype = model_format_name(r->info.format),
                         .cache_dir = "none",
                         .context = r->tokens};
    if (adapted) flags.adapters = *adapted;
    for (int64_t i = 0; i < r->tokens; i++)
        ids[i] = (i * 7919 + 11) % r->info.vocab;
    int status = model_plan(&r->session, &flags, r->info.format, &info);
    if (status == 0)
        status = model_load(&r->session, &flags, &info, 0, false, r->o->common.quiet, &m);
    if (status == 0 && first) status = routing_create(&r->routed, m, r->tokens);
    if (status == 0) status = forward_open(&f, &r->session, m, r->tokens, r->tokens, "merge");
    if (status == 0) {
        const cmoe_routing *rows = routing_rows(&r->routed, 0, r->tokens, first);
        status = forward_tokens(&f, ids, 0, r->tokens, first ? rows : NULL, first ? NULL : rows,
                                logits, "merge");
    }
    forward_close(&f);
    cmoe_model_free(m);
    return status;
}

/* A file of 16 bits: every matrix and norm on the way to a logit may be off by half a unit of bf16, 2^-9
 * relative, and so may then each of what they make: 8 in a layer, 4 at the ends. */
static void compare(run *r)
{
    const int64_t n = r->tokens * r->info.vocab;
    const int32_t dtype = written(r);
    const bool exact = dtype == CMOE_F32 || (dtype == 0 && r->info.format == CMOE_F32);
    for (int64_t i = 0; i < n; i++) {
        const double a = r->logits[0][i], b = r->logits[1][i];
        r->largest = fmax(r->largest, fabs(a));
        r->off = fabs(a - b) >= r->off || a != a || b != b ? fabs(a - b) : r->off;
    }
    r->bound = exact ? 0 : (double)(8 * r->info.layers + 4) * ldexp(1, -9) * r->largest;
}

static int check(run *r)
{
    option_texts none = {0};
    r->tokens = r->info.context < TOKENS ? r->info.context : TOKENS;
    for (int i = 0; i < 2; i++) {
        r->logits[i] = malloc((size_t)(r->tokens * r->info.vocab) * sizeof(float));
        if (!r->logits[i]) return report_fail(EXIT_MEMORY, "merge", "no memory for logits");
    }
    int status = compute(r, r->o->model.path, &r->texts, r->logits[0], true);
    if (status == 0) status = compute(r, r->o->out, &none, r->logits[1], false);
    if (status) return status;
    compare(r);
    if (r->off <= r->bound) return 0;
    return report_fail(EXIT_ERROR, r->o->out,
                       "logits differ by %g from those of the adapters on the model, want at most "
                       "%g",
                       r->off, r->bound);
}

/* ---- merge ----------------------------------------------------------------------------------- */

static int merge(run *r)
{
    adapters a;
    cmoe_error err = {.size = sizeof err};
    int status = adapters_open(&a, r->session.ctx, &r->texts);
    if (status == 0) {
        const double start = crew_now();
        report_progress(r->o->common.quiet, "writing %s", r->o->out);
        const cmoe_status bad = cmoe_model_merge(r->session.ctx, r->o->model.path, a.list, a.scales,
                                                 a.n, written(r), r->o->out, &err);
        report_progress(r->o->common.quiet, "%s", "");
        status = model_fail(bad, r->o->model.path, &err);
        r->merge_seconds = crew_now() - start;
    }
    adapters_close(&a);
    return status;
}

static int prepare(run *r)
{
    machine m;
    model_flags flags = {.path = r->o->model.path, .dtype = "auto", .cache_dir = "none"};
    r->texts = r->o->more;
    if (r->texts.n == OPTION_TEXTS_MAX)
        return report_fail(EXIT_USAGE, "--adapter", "more than 15 beside ADAPTER");
    memmove(r->texts.v + 1, r->texts.v, (size_t)r->texts.n * sizeof *r->texts.v);
    r->texts.v[0] = r->o->adapter;
    r->texts.n++;
    flags.adapters = r->texts;
    const int status = model_plan(&r->session, &flags, 0, &r->info);
    if (status || r->o->unchecked) return status;
    machine_read(&m);
    const int64_t output = 2 * TOKENS * r->info.vocab * (int64_t)sizeof(float);
    const model_needs n = model_needs_of(&r->info, TOKENS, TOKENS, output);
    return model_check_memory(&r->session, &flags, &r->info, &n, m.available_bytes);
}

static int print(const run *r)
{
    const merge_options *o = r->o;
    if (o->common.json && o->unchecked)
        return report_json(json_pack("{so sI sb sf}", "out", report_json_text(o->out), "adapters",
                                     (json_int_t)r->texts.n, "checked", 0, "seconds",
                                     r->merge_seconds));
    if (o->common.json)
        return report_json(json_pack("{so sI sb sf sf sf sf}", "out", report_json_text(o->out),
                                     "adapters", (json_int_t)r->texts.n, "checked", 1, "seconds",
                                     r->merge_seconds, "off", r->off, "bound", r->bound, "largest",
                                     r->largest));
    report out;
    const int status = report_begin(&out);
    if (status) return status;
    fprintf(out.to, "%s: %s with %lld adapter%s, written in %.2f s\n", o->out, r->info.type,
            (long long)r->texts.n, r->texts.n > 1 ? "s" : "", r->merge_seconds);
    if (!o->unchecked)
        fprintf(out.to,
                "checked: logits of %lld tokens differ by %.3g from those of the adapters on the "
                "model, at most %.3g may be (largest logit %.3g)\n",
                (long long)r->tokens, r->off, r->bound, r->largest);
    return report_end(&out, 0);
}

int merge_main(int argc, char **argv)
{
    merge_options o = {0};
    run r = {.o = &o};
    int status = options_parse(&merge_verb, argc, argv, &o);
    if (status == 0) {
        report_catch_signals();
        status = session_open(&r.session, &o.common);
    }
    if (status == 0) status = prepare(&r);
    if (status == 0) status = merge(&r);
    if (status == 0 && !o.unchecked) status = check(&r);
    if (status == 0) status = print(&r);
    free(r.logits[0]);
    free(r.logits[1]);
    routing_free(&r.routed);
    session_close(&r.session);
    return status;
}
