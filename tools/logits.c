/* SPDX-License-Identifier: MIT
 *
 * logits.c - `cmoe logits`: token ids through a model, logits of every position into a file.
 *
 * The prompt goes through in chunks, so that memory is bounded by what is kept (the logits, the
 * cache) and not by the activations; a token's logits do not depend on how it was cut.  Chunks of
 * a block-causal model end where blocks do, because a token sees the whole of its block.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmoe/weights.h"
#include "crew.h"
#include "model.h"
#include "report.h"
#include "routing.h"
#include "verbs.h"

typedef struct logits_options {
    model_flags model;
    option_list ids;
    const char *out, *capture, *replay;
    bool replay_weights;
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
    OPTIONS_MODEL(logits_options, "f32"),
    {.name = "capture-routing",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = AT(capture),
     .help = "write which experts every token went to, and their weights"},
    {.name = "replay-routing",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = AT(replay),
     .help = "send tokens to the experts of this file; weights come from the live scores"},
    {.name = "replay-weights",
     .type = OPTION_FLAG,
     .offset = AT(replay_weights),
     .help = "take the weights from the file, too"},
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
    OPTIONS_COMMON(logits_options),
};

const option_verb logits_verb = {
    .name = "logits",
    .summary = "logits of token ids, into a safetensors file",
    .examples = "  cmoe logits MODEL --ids 1,2,3 --out logits.safetensors\n"
                "  cmoe logits MODEL --ids @ids.txt --out l.safetensors --dtype bf16 --json\n"
                "  cmoe logits MODEL --ids 1,2,3 --out l.safetensors \\\n"
                "                    --capture-routing r.safetensors\n",
    .text =
        "Computes in float32 from the stored weights unless --dtype says otherwise, with the "
        "model's own mask. The file holds the same bits for any --threads and --chunk. Positions "
        "that are scaled by length (longrope) are scaled for the prompt, or for --context.\n"
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
    cmoe_cache *cache;
    routing captured, replayed;
    float *logits;  /* [T, V] */
    int32_t *pages; /* [ceil(T / CMOE_KV_PAGE)] 0, 1, 2, ... */
    void *work;
    int64_t chunk, output_bytes;
    double load_seconds, forward_seconds;
} run;

/* ---- before loading -------------------------------------------------------------------------- */

static int check_ids(const run *r)
{
    const option_list *ids = &r->o->ids;
    for (int64_t i = 0; i < ids->n; i++) {
        char what[64];
        if (ids->v[i] >= 0 && ids->v[i] < r->info.vocab) continue;
        snprintf(what, sizeof what, "ids[%lld] = %lld", (long long)i, (long long)ids->v[i]);
        return report_fail(EXIT_USAGE, what, "want 0 <= id < %lld (vocab of %s)",
                           (long long)r->info.vocab, r->o->model.path);
    }
    if (ids->n > r->info.context)
        return report_fail(EXIT_USAGE, "--ids", "%lld tokens, want at most %lld (context of %s)",
                           (long long)ids->n, (long long)r->info.context, r->o->model.path);
    if (r->o->mask_token >= r->info.vocab)
        return report_fail(
            EXIT_USAGE, "--mask-token-id", "\"%lld\" is out of range, want 0 to %lld (vocab of %s)",
            (long long)r->o->mask_token, (long long)r->info.vocab - 1, r->o->model.path);
    return 0;
}

/* Where a file is or will be: its folder, by whatever path, and its name there. */
typedef struct place {
    struct stat folder;
    const char *name;
} place;

static bool same_folder(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Whether a file can be made there: known now, not after the work. */
static int check_writable(const char *flag, const char *path, place *at)
{
    struct stat st;
    char folder[4096];
    const char *slash = strrchr(path, '/');
    const size_t length = slash ? (size_t)(slash - path) : 0;
    at->name = slash ? slash + 1 : path;
    if (!*path) return report_fail(EXIT_USAGE, flag, "\"\" is no file name");
    if (length >= sizeof folder) return report_fail(EXIT_ERROR, path, "%s", strerror(ENAMETOOLONG));
    snprintf(folder, sizeof folder, "%.*s", (int)length, path);
    if (!slash) snprintf(folder, sizeof folder, ".");
    if (slash == path) snprintf(folder, sizeof folder, "/");
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return report_fail(EXIT_ERROR, path, "cannot be written: it is there and not a file");
    const bool there = stat(folder, &at->folder) == 0;
    if (there && !S_ISDIR(at->folder.st_mode))
        return report_fail(EXIT_ERROR, path, "cannot be written: %s: %s", folder,
                           strerror(ENOTDIR));
    if (!there || access(folder, W_OK | X_OK) != 0)
        return report_fail(EXIT_ERROR, path, "cannot be written: %s: %s", folder, strerror(errno));
    return 0;
}

/* Whether the model is read from files of this name: they would be replaced by what it gave. */
static int check_not_of_model(const run *r, const char *flag, const char *path, const place *at)
{
    static const char *const read[] = {"config.json", "model.safetensors",
                                       "model.safetensors.index.json"};
    struct stat model;
    cmoe_checkpoint *files = NULL;
    cmoe_error err = {.size = sizeof err};
    bool used = false;
    if (stat(r->o->model.path, &model) != 0 || !same_folder(&model, &at->folder)) return 0;
    for (size_t i = 0; i < sizeof read / sizeof read[0]; i++)
        used = used || !strcmp(read[i], at->name);
    int status = model_fail(cmoe_checkpoint_open(&files, r->session.ctx, r->o->model.path, &err),
                            r->o->model.path, &err);
    for (int64_t i = 0; i < cmoe_checkpoint_count(files) && !used; i++) {
        cmoe_tensor t = {.size = sizeof t};
        used = cmoe_checkpoint_tensor(files, i, &t, &err) == CMOE_OK && !strcmp(t.file, at->name);
    }
    cmoe_checkpoint_free(files);
    if (status == 0 && used)
        status = report_fail(EXIT_USAGE, flag, "\"%s\" is a file of the model", path);
    return status;
}

static int check_output(const run *r, const char *flag, const char *path, place *at)
{
    const int status = check_writable(flag, path, at);
    return status ? status : check_not_of_model(r, flag, path, at);
}

/* What can be wrong with flags that name files. */
static int check_files(const run *r)
{
    const logits_options *o = r->o;
    place out = {0}, capture = {0};
    int status = check_output(r, "--out", o->out, &out);
    if (status == 0 && o->capture)
        status = check_output(r, "--capture-routing", o->capture, &capture);
    if (status) return status;
    if (o->capture && same_folder(&out.folder, &capture.folder) && !strcmp(out.name, capture.name))
        return report_fail(EXIT_USAGE, "--capture-routing", "\"%s\" is --out, too", o->capture);
    if ((o->capture || o->replay) && r->info.moe_layers == 0)
        return report_fail(EXIT_USAGE, o->capture ? "--capture-routing" : "--replay-routing",
                           "%s has no experts", o->model.path);
    if (o->replay_weights && !o->replay)
        return report_fail(EXIT_USAGE, "--replay-weights", "needs --replay-routing F");
    return o->replay && access(o->replay, R_OK) != 0
               ? report_fail(EXIT_FILE, o->replay, "%s", strerror(errno))
               : 0;
}

/* Tokens of a forward: whole blocks, and all of them where all see each other. */
static int64_t chunk_of(const run *r)
{
    const int64_t T = r->o->ids.n, B = r->info.mask;
    int64_t chunk = r->o->chunk;
    if (B == CMOE_MASK_FULL) return T;
    if (B > 0) chunk = (chunk + B - 1) / B * B;
    return chunk < T ? chunk : T;
}

static int prepare(run *r)
{
    const logits_options *o = r->o;
    machine m;
    int status = model_plan(&r->session, &o->model, model_format(o->model.dtype), &r->info);
    if (status == 0) status = check_ids(r);
    if (status == 0) status = check_files(r);
    if (status) return status;
    r->chunk = chunk_of(r);
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
    status = model_load(&r->session, &flags, limit, o->common.quiet, &r->model);
    r->load_seconds = crew_now() - start;
    return status;
}

/* ---- forward --------------------------------------------------------------------------------- */

static int take_memory(run *r, cmoe_arena *arena)
{
    const int64_t T = r->o->ids.n, pages = (T + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE;
    cmoe_error err = {.size = sizeof err};
    cmoe_cache_options c;
    int64_t host = 0, device = 0;
    cmoe_cache_options_default(&c, sizeof c);
    c.pages = pages;
    cmoe_status status = cmoe_cache_create(&r->cache, r->model, &c, &err);
    if (status == CMOE_OK)
        status = cmoe_model_forward_bytes(r->model, r->chunk, 1, r->chunk, &host, &device, &err);
    if (status != CMOE_OK) return report_status(status, "logits", &err);
    r->logits = malloc((size_t)r->output_bytes);
    r->pages = malloc((size_t)pages * sizeof *r->pages);
    /* The arena begins at a cache line; nothing depends on it but speed. */
    r->work = aligned_alloc(64, ((size_t)host + 127) / 64 * 64);
    if (!r->logits || !r->pages || !r->work)
        return report_fail(EXIT_MEMORY, "logits", "no memory for %s of results and %s of work",
                           size_of(r->output_bytes).s, size_of(host).s);
    for (int64_t i = 0; i < pages; i++)
        r->pages[i] = (int32_t)i;
    *arena = cmoe_arena_make(r->work, host);
    return 0;
}

/* Tokens [at, at + n). */
static cmoe_status forward_chunk(run *r, int64_t at, int64_t n, cmoe_arena *arena, cmoe_error *err)
{
    const logits_options *o = r->o;
    const int64_t first[2] = {0, n}, start[1] = {at};
    cmoe_model_call call;
    cmoe_model_call_default(&call, sizeof call);
    const cmoe_batch batch = {.size = sizeof batch,
                              .sequences = 1,
                              .first = first,
                              .start = start,
                              .pages = r->pages,
                              .page_columns = (o->ids.n + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE};
    call.batch = &batch;
    call.ids = cmoe_view_1d(o->ids.v + at, CMOE_I64, n);
    call.cache = r->cache;
    if (o->capture) call.capture = routing_rows(&r->captured, at, n, true);
    if (o->replay) call.replay = routing_rows(&r->replayed, at, n, o->replay_weights);
    return cmoe_model_forward(
        r->session.stream, r->model, &call,
        cmoe_view_mut_2d(r->logits + at * r->info.vocab, CMOE_F32, n, r->info.vocab), arena, err);
}

static int forward(run *r)
{
    const int64_t T = r->o->ids.n;
    cmoe_error err = {.size = sizeof err};
    cmoe_arena arena = {0};
    int status = take_memory(r, &arena);
    const double start = crew_now();
    for (int64_t at = 0; at < T && status == 0; at += r->chunk) {
        const int64_t n = T - at < r->chunk ? T - at : r->chunk;
        if (report_cancelled()) return report_fail(EXIT_CANCELLED, "logits", "cancelled");
        report_progress(r->o->common.quiet, "%lld of %lld tokens", (long long)at, (long long)T);
        status = report_status(forward_chunk(r, at, n, &arena, &err), "logits", &err);
    }
    r->forward_seconds = crew_now() - start;
    return status;
}

static int compute(run *r)
{
    const logits_options *o = r->o;
    int status = 0;
    if (o->capture) status = routing_create(&r->captured, r->model, o->ids.n);
    if (status == 0 && o->replay) {
        status = routing_create(&r->replayed, r->model, o->ids.n);
        if (status == 0)
            status = routing_read(&r->replayed, r->session.ctx, o->replay, o->replay_weights);
    }
    return status ? status : forward(r);
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
    return r->o->capture ? routing_write(&r->captured, r->o->capture) : 0;
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
    free(r.work);
    free(r.pages);
    free(r.logits);
    routing_free(&r.captured);
    routing_free(&r.replayed);
    cmoe_cache_free(r.cache);
    cmoe_model_free(r.model);
    session_close(&r.session);
    free(o.ids.v);
    return status;
}
