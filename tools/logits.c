/* SPDX-License-Identifier: MIT
 *
 * logits.c - `cmoe logits`: token ids through a model, logits of every position into a file.
 *
 * The prompt goes through in chunks, so that memory is bounded by what is kept (the logits, the
 * cache) and not by the activations; a token's logits do not depend on how it was cut.  Chunks of
 * a block-causal model end where blocks do, because a token sees the whole of its block.
 */
#include <stdlib.h>
#include <string.h>

#include "cmoe/weights.h"
#include "crew.h"
#include "files.h"
#include "forward.h"
#include "model.h"
#include "report.h"
#include "routing.h"
#include "verbs.h"

typedef struct logits_options {
    model_flags model;
    option_list ids;
    const char *out;
    routing_flags routing;
    int64_t chunk, mask_token;
    common_options common;
} logits_options;

#define AT(field) offsetof(logits_options, field)

static const option options[] = {
    OPTION_MODEL(logits_options, true),
    {.name = "ids",
     .argument = "IDS",
     .type = OPTION_LIST,
     .offset = AT(ids),
     .required = true,
     .help = "the tokens: 1,2,3 or @FILE, which holds such a list (@- reads stdin)"},
    {.name = "out",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = AT(out),
     .required = true,
     .help = "safetensors file to write: \"logits\" float32 [tokens, vocab]; whole or not at all"},
    OPTIONS_MODEL(logits_options, "f32", "none"),
    {.name = "block-length",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(model.block_length),
     .initial = "0",
     .most = 1048576,
     .help = "block-causal mask with blocks of N tokens; 0: the model's own mask"},
    {.name = "mask-token-id",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(mask_token),
     .initial = "-1",
     .least = -1,
     .most = 2147483647,
     .help = "the token that stands for a masked one; -1: the model's own"},
    {.name = "chunk",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(chunk),
     .initial = "512",
     .least = 1,
     .most = 1048576,
     .help = "tokens of a forward, rounded up to whole blocks; the result does not depend on it"},
    OPTIONS_ROUTING(logits_options),
    OPTIONS_COMMON(logits_options),
};

const option_verb logits_verb = {
    .name = "logits",
    .group = "Look inside",
    .summary = "logits of token ids, into a safetensors file",
    .examples = "  cmoe logits MODEL --ids 1,2,3 --out logits.safetensors\n"
                "  cmoe logits MODEL --ids @ids.txt --out l.safetensors --dtype bf16 --json\n"
                "  cmoe logits MODEL --ids 1,2,3 --out l.safetensors \\\n"
                "                    --capture-routing r.safetensors\n",
    .text =
        "Computes in float32 from the stored weights unless --dtype says otherwise, with the "
        "model's own mask. The file holds the same bits for any --threads and --chunk.\n"
        "\n"
        "A routing file holds layers.<i>.topk_ids int32 [tokens, topk] and layers.<i>.topk_weights "
        "float32 [tokens, topk] for each layer i that has experts. Replaying one forces the "
        "choice of experts; it must fit the model and the number of tokens.\n"
        "\n"
        "Nothing is loaded when the run would not fit into memory: exit status 4, with what to "
        "try.",
    .options = options,
};

/* A run: T tokens, V vocabulary */
typedef struct run {
    const logits_options *o;
    tool_session session;
    cmoe_model_info info;
    cmoe_model *model;
    forward forward;
    routing captured, replayed;
    float *logits; /* [T, V] */
    int64_t chunk, output_bytes;
    double load_seconds, forward_seconds;
} run;

/* ---- before loading -------------------------------------------------------------------------- */

static int check_ids(const run *r)
{
    const option_list *ids = &r->o->ids;
    const int status = model_check_ids(r->o->model.path, &r->info, ids->v, ids->n, "--ids");
    if (status) return status;
    if (r->o->mask_token >= r->info.vocab)
        return report_fail(
            EXIT_USAGE, "--mask-token-id", "\"%lld\" is out of range, want 0 to %lld (vocab of %s)",
            (long long)r->o->mask_token, (long long)r->info.vocab - 1, r->o->model.path);
    return 0;
}

/* What can be wrong with flags that name files. */
static int check_files(const run *r)
{
    const logits_options *o = r->o;
    const char *capture = o->routing.capture;
    int status = model_check_output(&r->session, &o->model, "--out", o->out);
    if (status == 0 && capture)
        status = model_check_output(&r->session, &o->model, "--capture-routing", capture);
    if (status) return status;
    if (capture && files_same(capture, o->out))
        return report_fail(EXIT_USAGE, "--capture-routing", "\"%s\" is --out, too", capture);
    return routing_check_flags(&o->routing, &r->info, o->model.path);
}

static int prepare(run *r)
{
    const logits_options *o = r->o;
    machine m;
    int status = model_plan(&r->session, &o->model, model_format(o->model.dtype), &r->info);
    if (status == 0) status = check_ids(r);
    if (status == 0) status = check_files(r);
    if (status) return status;
    r->chunk = forward_chunk(&r->info, o->ids.n, o->chunk);
    if (__builtin_mul_overflow(o->ids.n * 4, r->info.vocab, &r->output_bytes))
        return report_fail(EXIT_MEMORY, "logits", "[%lld, %lld] is too large", (long long)o->ids.n,
                           (long long)r->info.vocab);
    machine_read(&m);
    const model_needs n = model_needs_of(&r->info, o->ids.n, r->chunk, r->output_bytes);
    status = model_check_memory(&r->session, &o->model, &r->info, &n, m.available_bytes);
    if (status) return status;
    const int64_t limit = m.available_bytes > 0 ? m.available_bytes - (n.total - n.weights) : 0;
    /* Rotary rules that depend on the length (longrope) get that of the prompt, as in transformers. */
    model_flags flags = o->model;
    if (flags.context == 0) flags.context = o->ids.n;
    const double start = crew_now();
    status = model_load(&r->session, &flags, &r->info, limit, false, o->common.quiet, &r->model);
    r->load_seconds = crew_now() - start;
    return status;
}

/* ---- forward --------------------------------------------------------------------------------- */

/* All chunks. */
static int compute_logits(run *r)
{
    const logits_options *o = r->o;
    const int64_t T = o->ids.n;
    int status = forward_open(&r->forward, &r->session, r->model, T, r->chunk, "logits");
    if (status) return status;
    r->logits = malloc((size_t)r->output_bytes);
    if (!r->logits)
        return report_fail(EXIT_MEMORY, "logits", "no memory for %s of results",
                           size_of(r->output_bytes).s);
    const double start = crew_now();
    for (int64_t at = 0; at < T && status == 0; at += r->chunk) {
        const int64_t n = T - at < r->chunk ? T - at : r->chunk;
        const cmoe_routing *capture = NULL, *replay = NULL;
        report_progress(o->common.quiet, "%lld of %lld tokens", (long long)at, (long long)T);
        if (o->routing.capture) capture = routing_rows(&r->captured, at, n, true);
        if (o->routing.replay)
            replay = routing_rows(&r->replayed, at, n, o->routing.replay_weights);
        status = forward_tokens(&r->forward, o->ids.v + at, at, n, capture, replay,
                                r->logits + at * r->info.vocab, "logits");
    }
    r->forward_seconds = crew_now() - start;
    return status;
}

static int compute(run *r)
{
    const logits_options *o = r->o;
    int status = 0;
    if (o->routing.capture) status = routing_create(&r->captured, r->model, o->ids.n);
    if (status == 0 && o->routing.replay) {
        status = routing_create(&r->replayed, r->model, o->ids.n);
        if (status == 0)
            status = routing_read(&r->replayed, r->session.ctx, o->routing.replay,
                                  o->routing.replay_weights);
    }
    return status ? status : compute_logits(r);
}

/* ---- output ---------------------------------------------------------------------------------- */

static int write_files(const run *r)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    cmoe_error err = {.size = sizeof err};
    cmoe_view view = cmoe_view_2d(r->logits, CMOE_F32, r->o->ids.n, r->info.vocab);
    view.name = "logits";
    const cmoe_status status = cmoe_safetensors_write(r->o->out, &view, 1, metadata, &err);
    if (status != CMOE_OK) return report_status(status, r->o->out, &err);
    return r->o->routing.capture ? routing_write(&r->captured, r->o->routing.capture) : 0;
}

static int print(const run *r)
{
    const char *dtype = model_format_name(r->info.format);
    if (r->o->common.json)
        return report_json(
            json_pack("{sI sI so ss ss s{sf sf} so}", "tokens", (json_int_t)r->o->ids.n, "vocab",
                      (json_int_t)r->info.vocab, "out", report_json_text(r->o->out), "dtype", dtype,
                      "architecture", r->info.type, "seconds", "load", r->load_seconds, "forward",
                      r->forward_seconds, "ranks", model_ranks_json(&r->info)));
    report out;
    const int status = report_begin(&out);
    if (status) return status;
    fprintf(out.to,
            "%s: logits float32 [%lld, %lld] of %s as %s, loaded in %.2f s, computed in %.2f s\n",
            r->o->out, (long long)r->o->ids.n, (long long)r->info.vocab, r->info.type, dtype,
            r->load_seconds, r->forward_seconds);
    return report_end(&out, 0);
}

int logits_main(int argc, char **argv)
{
    logits_options o = {0};
    run r = {.o = &o};
    int status = options_parse(&logits_verb, argc, argv, &o);
    if (status == 0) {
        report_catch_signals();
        status = session_open(&r.session, &o.common);
    }
    if (status == 0) status = prepare(&r);
    if (status == 0) status = compute(&r);
    if (status == 0) status = write_files(&r);
    if (status == 0) status = print(&r);
    forward_close(&r.forward);
    free(r.logits);
    routing_free(&r.captured);
    routing_free(&r.replayed);
    cmoe_model_free(r.model);
    session_close(&r.session);
    free(o.ids.v);
    return status;
}
