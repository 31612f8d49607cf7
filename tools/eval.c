/* SPDX-License-Identifier: MIT
 *
 * eval.c - `cmoe eval`: how well a model foretells a text.
 *
 * The text goes through in windows as long as the context.  Each next window begins `stride` tokens
 * later and only its tokens that no window has scored yet count, each with as much before it as the
 * window holds; the first token of the text is not scored, for nothing is before it.  Bits per byte
 * do not depend on the tokenizer, so models can be compared by them; perplexity is per token.
 *
 * A token's score is logits[token] - log sum exp, from the row of the position before.  A model of
 * block diffusion sees the whole block, the token itself included, so no such score exists for it.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "crew.h"
#include "files.h"
#include "forward.h"
#include "report.h"
#include "text.h"
#include "verbs.h"

typedef struct eval_options {
    model_flags model;
    const char *file;
    int64_t stride, limit;
    common_options common;
} eval_options;

#define AT(field) offsetof(eval_options, field)

static const option options[] = {
    OPTION_MODEL(eval_options, true),
    {.name = "file",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = AT(file),
     .required = true,
     .help = "the text, UTF-8 (-: stdin)"},
    {.name = "stride",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(stride),
     .initial = "0",
     .most = 1099511627776.0,
     .help = "tokens between the beginnings of two windows; 0: half a window"},
    {.name = "max-tokens",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(limit),
     .initial = "0",
     .most = 1099511627776.0,
     .help = "only so many tokens of the text; 0: all"},
    OPTIONS_MODEL(eval_options, "auto", "none"),
    OPTIONS_COMMON(eval_options),
};

const option_verb eval_verb = {
    .name = "eval",
    .group = "Look inside",
    .summary = "bits per byte and perplexity of a text",
    .examples = "  cmoe eval MODEL --file book.txt\n"
                "  cmoe eval MODEL --file book.txt --context 2048 --dtype int8 --json\n",
    .text = "Windows of --context tokens (0: 2048, or what the model takes if that is less), each "
            "--stride behind the last one; every token but the first is scored once. A token that "
            "the tokenizer adds in front, such as bos, stands before the text and is not scored. "
            "--json: {\"tokens\", \"bytes\", \"scored\", \"nats\", \"bits_per_byte\", "
            "\"perplexity\", \"window\", \"stride\", \"dtype\", \"seconds\"}.",
    .options = options,
};

enum { WINDOW = 2048, CHUNK = 256 };

typedef struct run {
    const eval_options *o;
    tool_session session;
    cmoe_model_info info;
    cmoe_tokenizer *tokenizer;
    cmoe_model *model;
    forward forward;
    int64_t *ids; /* [n] */
    int64_t n, added, bytes, window, stride, scored;
    float *logits; /* [CHUNK, vocab] */
    double nats;   /* sum of -log p */
    double load_seconds, seconds;
} run;

/* ---- the text -------------------------------------------------------------------------------- */

/* How many ids stand before those of the text itself. */
static int64_t added_in_front(const run *r, const int32_t *ids, int64_t n)
{
    const int64_t bos = cmoe_tokenizer_bos(r->tokenizer);
    return n > 0 && bos >= 0 && ids[0] == bos ? 1 : 0;
}

/* Bytes of the first n ids' text: what was cut off by --max-tokens does not count. */
static int count_bytes(run *r, const int32_t *ids)
{
    int64_t bytes;
    char *text = text_decode(r->tokenizer, ids + r->added, r->n - r->added, false, &bytes);
    if (!text) return EXIT_ERROR;
    free(text);
    r->bytes = bytes;
    return 0;
}

static int read_text(run *r)
{
    const eval_options *o = r->o;
    size_t bytes;
    int32_t *ids = NULL;
    cmoe_encode_options e;
    cmoe_encode_options_default(&e, sizeof e);
    e.parse_special = 0; /* it is data */
    int status = text_open(&r->session, o->model.path, &r->tokenizer);
    if (status) return status;
    char *text = files_read(o->file, &bytes);
    if (!text) return report_fail(EXIT_FILE, o->file, "%s", strerror(errno));
    status = text_encode(r->tokenizer, &e, text, bytes, o->file, EXIT_FILE, &ids, &r->n);
    free(text);
    if (status) return status;
    r->added = added_in_front(r, ids, r->n);
    r->bytes = (int64_t)bytes;
    if (o->limit > 0 && o->limit < r->n) {
        r->n = o->limit;
        status = count_bytes(r, ids);
    }
    r->ids = malloc((size_t)(r->n + 1) * sizeof *r->ids);
    if (!r->ids) status = report_fail(EXIT_MEMORY, o->file, "no memory for its tokens");
    for (int64_t i = 0; i < r->n && r->ids; i++)
        r->ids[i] = ids[i];
    if (status == 0) status = text_check_vocab(o->model.path, &r->info, ids, r->n);
    free(ids);
    if (status == 0 && (r->n < 2 || r->bytes == 0))
        status =
            report_fail(EXIT_FILE, o->file, "has %lld tokens, want at least 2", (long long)r->n);
    return status;
}

static int prepare(run *r)
{
    const eval_options *o = r->o;
    model_flags flags = o->model;
    machine m;
    int status = model_plan(&r->session, &flags, model_format(flags.dtype), &r->info);
    if (status) return status;
    if (r->info.mask != CMOE_MASK_CAUSAL)
        return report_fail(
            EXIT_USAGE, o->model.path,
            "its tokens see what stands behind them, so there is nothing to foretell: "
            "want a causal model");
    status = read_text(r);
    if (status) return status;
    r->window = r->info.context;
    if (flags.context == 0 && r->window > WINDOW) r->window = WINDOW;
    if (r->window > r->n) r->window = r->n;
    r->stride = o->stride ? o->stride : (r->window + 1) / 2;
    if (r->window < 2)
        return report_fail(EXIT_USAGE, "--context", "\"1\" is too short, want at least 2");
    if (r->stride >= r->window && r->n > r->window)
        return report_fail(EXIT_USAGE, "--stride",
                           "\"%lld\" is out of range, want 1 to %lld (less "
                           "than the window)",
                           (long long)r->stride, (long long)r->window - 1);
    machine_read(&m);
    const model_needs n = model_needs_of(&r->info, r->window, CHUNK, CHUNK * r->info.vocab * 4);
    status = model_check_memory(&r->session, &flags, &r->info, &n, m.available_bytes);
    if (status) return status;
    const double start = crew_now();
    const int64_t limit = m.available_bytes > 0 ? m.available_bytes - (n.total - n.weights) : 0;
    status = model_load(&r->session, &flags, &r->info, limit, false, o->common.quiet, &r->model);
    r->load_seconds = crew_now() - start;
    return status;
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* -log p of one token, in double. */
static double surprise(const float *logits, int64_t vocab, int64_t id)
{
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < vocab; i++)
        most = fmax(most, (double)logits[i]);
    for (int64_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - most);
    return log(sum) + most - (double)logits[id];
}

/* A window [begin, begin + n); tokens below `scored_to` have been scored. */
static int score_window(run *r, int64_t begin, int64_t n, int64_t scored_to)
{
    const int64_t V = r->info.vocab;
    for (int64_t at = 0; at < n; at += r->forward.chunk) {
        const int64_t m = n - at < r->forward.chunk ? n - at : r->forward.chunk;
        report_progress(r->o->common.quiet, "%lld of %lld tokens", (long long)(begin + at),
                        (long long)r->n);
        /* The row of token t tells of token t + 1. */
        const bool wanted = begin + at + m >= scored_to;
        const int status = forward_tokens(&r->forward, r->ids + begin + at, at, m, NULL, NULL,
                                          wanted ? r->logits : NULL, "eval");
        if (status) return status;
        for (int64_t i = 0; i < m && wanted; i++) {
            const int64_t next = begin + at + i + 1;
            if (next >= begin + n || next < scored_to) continue;
            r->nats += surprise(r->logits + i * V, V, r->ids[next]);
            r->scored++;
        }
    }
    return 0;
}

static int score(run *r)
{
    const int64_t chunk = forward_chunk(&r->info, r->window, CHUNK);
    int status = forward_open(&r->forward, &r->session, r->model, r->window, chunk, "eval");
    if (status) return status;
    r->logits = malloc((size_t)(chunk * r->info.vocab) * sizeof *r->logits);
    if (!r->logits) return report_fail(EXIT_MEMORY, "eval", "no memory for logits");
    const double start = crew_now();
    int64_t scored_to = r->added > 1 ? r->added : 1;
    for (int64_t begin = 0; status == 0 && scored_to < r->n; begin += r->stride) {
        const int64_t end = begin + r->window < r->n ? begin + r->window : r->n;
        status = score_window(r, begin, end - begin, scored_to);
        scored_to = end;
    }
    r->seconds = crew_now() - start;
    return status;
}

/* ---- output ---------------------------------------------------------------------------------- */

static int print(const run *r)
{
    const double bits = r->nats / log(2) / (double)r->bytes;
    const double perplexity = exp(r->nats / (double)r->scored);
    const char *dtype = model_format_name(r->info.format);
    if (r->o->common.json)
        return report_json(json_pack("{sI sI sI sf sf sf sI sI ss s{sf sf}}", "tokens",
                                     (json_int_t)r->n, "bytes", (json_int_t)r->bytes, "scored",
                                     (json_int_t)r->scored, "nats", r->nats, "bits_per_byte", bits,
                                     "perplexity", perplexity, "window", (json_int_t)r->window,
                                     "stride", (json_int_t)r->stride, "dtype", dtype, "seconds",
                                     "load", r->load_seconds, "forward", r->seconds));
    report out;
    const int status = report_begin(&out);
    if (status) return status;
    fprintf(out.to,
            "bits per byte  %.4f\nperplexity     %.4f of a token\n"
            "%lld tokens, %lld bytes, windows of %lld, stride %lld, as %s, %.1f tokens/s\n",
            bits, perplexity, (long long)r->n, (long long)r->bytes, (long long)r->window,
            (long long)r->stride, dtype, (double)r->scored / r->seconds);
    return report_end(&out, 0);
}

int eval_main(int argc, char **argv)
{
    eval_options o = {0};
    run r = {.o = &o};
    int status = options_parse(&eval_verb, argc, argv, &o);
    if (status == 0) {
        report_catch_signals();
        status = session_open(&r.session, &o.common);
    }
    if (status == 0) status = prepare(&r);
    if (status == 0) status = score(&r);
    if (status == 0 && !isfinite(r.nats))
        status = report_fail(EXIT_ERROR, o.model.path, "gives a token no finite probability");
    if (status == 0) status = print(&r);
    free(r.logits);
    free(r.ids);
    forward_close(&r.forward);
    cmoe_model_free(r.model);
    cmoe_tokenizer_free(r.tokenizer);
    session_close(&r.session);
    return status;
}
