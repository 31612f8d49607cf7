/* SPDX-License-Identifier: MIT
 *
 * model.c - planning, checking and loading a model for the verbs that take one.
 *
 * Nothing is loaded before the headers of all files have been checked and what the run needs has
 * been compared with what the machine can give: a wrong file or too small a machine is known within
 * milliseconds, not after minutes.
 */
#include "model.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapters.h"
#include "cmoe/weights.h"
#include "crew.h"
#include "files.h"
#include "keep.h"
#include "report.h"

const char *const model_dtypes[] = {"auto", "f32", "bf16", "int8", NULL};
const char *const model_dtypes_later[] = {"f16",     "f8",    "int8g128", "int8g64",
                                          "int8g32", "int4",  "int4g128", "int4g64",
                                          "int4g32", "mxfp4", NULL};
static const int32_t formats[] = {0, CMOE_F32, CMOE_BF16, CMOE_I8};

int32_t model_format(const char *word)
{
    int i = 0;
    while (strcmp(model_dtypes[i], word) != 0)
        i++;
    return formats[i];
}

const char *model_format_name(int32_t format)
{
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (formats[i] == format) return model_dtypes[i];
    }
    return cmoe_dtype_name(format);
}

const char *model_mask_name(int32_t mask, char text[32])
{
    if (mask == CMOE_MASK_CAUSAL) return "causal";
    if (mask == CMOE_MASK_FULL) return "full";
    snprintf(text, 32, "block-causal, blocks of %d", (int)mask);
    return text;
}

size_text size_of(int64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_text text;
    double size = (double)bytes;
    int unit = 0;
    for (; size >= 1024 && unit < 5; unit++)
        size /= 1024;
    snprintf(text.s, sizeof text.s, unit ? "%.1f %s" : "%.0f %s", size, units[unit]);
    return text;
}

/* ---- errors ---------------------------------------------------------------------------------- */

static int exit_of(cmoe_status status)
{
    switch (status) {
    case CMOE_OK:
        return 0;
    case CMOE_ERR_IO:
    case CMOE_ERR_FORMAT:
    case CMOE_ERR_SHAPE:
    case CMOE_ERR_DTYPE:
    case CMOE_ERR_UNSUPPORTED:
        return EXIT_FILE;
    case CMOE_ERR_ARG:
    case CMOE_ERR_RANGE:
        return EXIT_USAGE;
    case CMOE_ERR_MEMORY:
        return EXIT_MEMORY;
    case CMOE_ERR_CANCELLED:
        return EXIT_CANCELLED;
    default:
        return EXIT_ERROR;
    }
}

int model_fail(cmoe_status status, const char *path, const cmoe_error *err)
{
    return status == CMOE_OK ? 0 : report_error(exit_of(status), path, status, err);
}

int model_refuse(cmoe_status status, const char *what, const cmoe_error *err)
{
    if (status == CMOE_OK) return 0;
    return report_error(status == CMOE_ERR_MEMORY ? EXIT_MEMORY : EXIT_USAGE, what, status, err);
}

int model_check_length(const char *path, const cmoe_model_info *info, int64_t n, const char *flag)
{
    if (n <= info->context) return 0;
    return report_fail(EXIT_USAGE, flag, "%lld tokens, want at most %lld (context of %s)",
                       (long long)n, (long long)info->context, path);
}

int model_check_ids(const char *path, const cmoe_model_info *info, const int64_t *ids, int64_t n,
                    const char *flag)
{
    for (int64_t i = 0; i < n; i++) {
        char what[64];
        if (ids[i] >= 0 && ids[i] < info->vocab) continue;
        snprintf(what, sizeof what, "ids[%lld] = %lld", (long long)i, (long long)ids[i]);
        return report_fail(EXIT_USAGE, what, "want 0 <= id < %lld (vocab of %s)",
                           (long long)info->vocab, path);
    }
    return model_check_length(path, info, n, flag);
}

#define WANTED "want a directory with config.json and *.safetensors"

int model_check_path(const char *path)
{
    struct stat st;
    char config[4096];
    if (stat(path, &st) != 0)
        return report_fail(EXIT_FILE, path[0] ? path : "MODEL", "%s, " WANTED, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return report_fail(EXIT_FILE, path, "is not a directory, " WANTED);
    const int length = snprintf(config, sizeof config, "%s/config.json", path);
    if (length < 0 || (size_t)length >= sizeof config)
        return report_fail(EXIT_FILE, "MODEL", "its path is too long, want less than 4000 bytes");
    if (access(config, R_OK) != 0)
        return report_fail(EXIT_FILE, path, "config.json: %s, " WANTED, strerror(errno));
    return 0;
}

/* ---- plan ------------------------------------------------------------------------------------ */

static cmoe_model_options options_of(const model_flags *flags, int32_t format)
{
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = format;
    o.context = flags->context;
    o.mask_block = (int32_t)flags->block_length;
    return o;
}

static void use_adapters(cmoe_model_options *o, const adapters *a)
{
    o->adapters = a->list;
    o->adapter_scales = a->scales;
    o->adapter_count = a->n;
}

static int plan_with(const tool_session *session, const model_flags *flags, int32_t format,
                     const adapters *a, cmoe_model_info *info)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_model_options o = options_of(flags, format);
    use_adapters(&o, a);
    /* With the model's own context first: only then is it known whether --context is too long. */
    o.context = 0;
    *info = (cmoe_model_info){.size = sizeof *info};
    cmoe_status status = cmoe_model_plan(session->ctx, flags->path, &o, info, &err);
    if (status != CMOE_OK) return model_fail(status, flags->path, &err);
    if (flags->context == 0) return 0;
    if (flags->context > info->context)
        return report_fail(EXIT_USAGE, "--context",
                           "\"%lld\" is out of range, want 1 to %lld (positions of %s)",
                           (long long)flags->context, (long long)info->context, flags->path);
    o.context = flags->context;
    *info = (cmoe_model_info){.size = sizeof *info};
    status = cmoe_model_plan(session->ctx, flags->path, &o, info, &err);
    return model_fail(status, flags->path, &err);
}

int model_plan(const tool_session *session, const model_flags *flags, int32_t format,
               cmoe_model_info *info)
{
    adapters a;
    int status = model_check_path(flags->path);
    if (status) return status;
    status = adapters_open(&a, session->ctx, &flags->adapters);
    if (status == 0) status = plan_with(session, flags, format, &a, info);
    adapters_close(&a);
    return status;
}

bool model_can_be(const tool_session *session, const model_flags *flags, int32_t format)
{
    cmoe_model_info info = {.size = sizeof info};
    const cmoe_model_options o = options_of(flags, format);
    return cmoe_model_plan(session->ctx, flags->path, &o, &info, NULL) == CMOE_OK;
}

int model_outline(const tool_session *session, const model_flags *flags, cmoe_model **out)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_model_options o = options_of(flags, model_format(flags->dtype));
    o.describe_only = 1;
    return model_fail(cmoe_model_load(out, session->ctx, flags->path, &o, &err), flags->path, &err);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static int64_t times(int64_t a, int64_t b)
{
    int64_t c;
    return __builtin_mul_overflow(a, b, &c) ? INT64_MAX / 8 : c < INT64_MAX / 8 ? c : INT64_MAX / 8;
}

/* Width of a layer's experts or dense MLP, times how many of them meet a token. */
static int64_t inter_of(const cmoe_model_info *info)
{
    const int64_t weight = info->format == CMOE_I8 ? 1 : cmoe_dtype_bytes(info->format);
    const int64_t dense = info->layers - info->moe_layers, each = 3 * weight * info->hidden;
    int64_t inter = 0;
    if (each <= 0) return 0;
    if (info->moe_layers > 0 && info->experts > 0)
        inter = info->bytes.experts / info->moe_layers / info->experts / each * info->topk;
    if (dense > 0 && info->bytes.dense / dense / each > inter)
        inter = info->bytes.dense / dense / each;
    return inter;
}

model_needs model_needs_of(const cmoe_model_info *info, int64_t positions, int64_t chunk,
                           int64_t output)
{
    /* Arena of a forward: a dozen rows of hidden size a token, its heads, and the rows of its
     * experts.  The exact number needs the loaded model. */
    const int64_t heads = info->heads + 2 * info->kv_heads;
    const int64_t floats = 12 * info->hidden + 2 * heads * info->head_dim +
                           4 * (info->topk + 1) * info->hidden + 2 * inter_of(info);
    const int64_t pages = (positions + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE;
    model_needs n = {.weights = info->bytes.total, .output = output};
    n.cache = times(pages * CMOE_KV_PAGE, info->bytes.cache_per_token);
    n.work = times(chunk, 4 * floats);
    n.total = n.weights + n.cache + n.work + n.output;
    return n;
}

/* The first smaller format that fits, in words; empty when none does. */
static void smaller_format(const tool_session *session, const model_flags *flags,
                           const model_needs *needs, int64_t available, char *text, size_t size)
{
    static const int32_t smaller[] = {CMOE_BF16, CMOE_I8};
    text[0] = '\0';
    for (size_t i = 0; i < sizeof smaller / sizeof smaller[0]; i++) {
        cmoe_error err = {.size = sizeof err};
        cmoe_model_info info = {.size = sizeof info};
        const cmoe_model_options o = options_of(flags, smaller[i]);
        if (cmoe_model_plan(session->ctx, flags->path, &o, &info, &err) != CMOE_OK) continue;
        const int64_t total = needs->total - needs->weights + info.bytes.total;
        if (total >= needs->total || total > available) continue;
        snprintf(text, size, "--dtype %s (%s) or ", model_format_name(smaller[i]),
                 size_of(total).s);
        return;
    }
}

int model_check_memory(const tool_session *session, const model_flags *flags,
                       const cmoe_model_info *info, const model_needs *needs, int64_t available)
{
    char format[64];
    if (available <= 0 || needs->total <= available) return 0; /* 0: not known here */
    smaller_format(session, flags, needs, available, format, sizeof format);
    const bool tokens = needs->cache + needs->output > needs->total / 4;
    return report_fail(EXIT_MEMORY, flags->path,
                       "needs %s as %s (weights %s, cache %s, results and work %s), %s are there: "
                       "try %s%sa machine with more memory",
                       size_of(needs->total).s, model_format_name(info->format),
                       size_of(needs->weights).s, size_of(needs->cache).s,
                       size_of(needs->output + needs->work).s, size_of(available).s, format,
                       tokens ? "fewer tokens or " : "");
}

/* ---- load ------------------------------------------------------------------------------------ */

typedef struct loading {
    const char *path;
    bool quiet;
    double start, shown; /* seconds */
} loading;

static int32_t on_progress(void *user, int64_t done, int64_t total)
{
    enum { BAR = 30 };
    loading *l = user;
    const double now = crew_now();
    if (report_cancelled()) return 1;
    if (now - l->shown < 0.1) return 0;
    l->shown = now;
    const double share = total > 0 ? (double)done / (double)total : 1;
    const int full = (int)(share * BAR);
    report_progress(l->quiet, "loading %.*s%.*s %3.0f%% of %s, %.2f GB/s", full,
                    "##############################", BAR - full, "..............................",
                    100 * share, size_of(total).s, (double)done / 1e9 / (now - l->start + 1e-9));
    return 0;
}

int model_load(const tool_session *session, const model_flags *flags,
               const cmoe_model_info *planned, int64_t limit, bool later, bool quiet,
               cmoe_model **out)
{
    cmoe_error err = {.size = sizeof err};
    loading l = {.path = flags->path, .quiet = quiet, .start = crew_now()};
    cmoe_model_options o = options_of(flags, model_format(flags->dtype));
    char room[KEEP_PATH];
    bool read_only;
    const int bad =
        keep_folder(flags->cache_dir, planned->bytes.total, room, &o.cache_dir, &read_only);
    if (bad) return bad;
    o.cache_read_only = read_only;
    o.cache_later = later;
    o.memory_limit = limit;
    o.progress = on_progress;
    o.progress_user = &l;
    adapters a;
    const int unread = adapters_open(&a, session->ctx, &flags->adapters);
    use_adapters(&o, &a);
    const cmoe_status status =
        unread ? CMOE_OK : cmoe_model_load(out, session->ctx, flags->path, &o, &err);
    adapters_close(&a);
    if (unread) return unread;
    report_progress(quiet, "%s", "");
    if (status == CMOE_ERR_CANCELLED) return report_fail(EXIT_CANCELLED, flags->path, "cancelled");
    return model_fail(status, flags->path, &err);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

json_t *model_bytes_json(const cmoe_model_bytes *b)
{
    return json_pack("{sI sI sI sI sI sI sI sI sI sI sI}", "experts", (json_int_t)b->experts,
                     "shared", (json_int_t)b->shared, "dense", (json_int_t)b->dense, "attention",
                     (json_int_t)b->attention, "router", (json_int_t)b->router, "embedding",
                     (json_int_t)b->embedding, "head", (json_int_t)b->head, "small",
                     (json_int_t)b->small, "total", (json_int_t)b->total, "per_token",
                     (json_int_t)b->per_token, "cache_per_token", (json_int_t)b->cache_per_token);
}

json_t *model_ranks_json(const cmoe_model_info *info)
{
    return json_pack("[{si s[iI] sI}]", "rank", 0, "experts", 0, (json_int_t)info->experts,
                     "weight_bytes", (json_int_t)info->bytes.total);
}

/* ---- outputs --------------------------------------------------------------------------------- */

/* `path` is where the model has a file of this name. */
static bool is_of_model(const model_flags *flags, const char *path, const char *name)
{
    char own[4096];
    const int n = snprintf(own, sizeof own, "%s/%s", flags->path, name);
    return n > 0 && n < (int)sizeof own && files_same(own, path);
}

int model_check_output(const tool_session *session, const model_flags *flags, const char *flag,
                       const char *path)
{
    static const char *const read[] = {"config.json",
                                       "model.safetensors",
                                       "model.safetensors.index.json",
                                       "generation_config.json",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "chat_template.jinja"};
    cmoe_checkpoint *files = NULL;
    cmoe_error err = {.size = sizeof err};
    int status = files_check_writable(flag, path);
    if (status) return status;
    bool used = false;
    for (size_t i = 0; i < sizeof read / sizeof read[0]; i++)
        used = used || is_of_model(flags, path, read[i]);
    status = model_fail(cmoe_checkpoint_open(&files, session->ctx, flags->path, &err), flags->path,
                        &err);
    for (int64_t i = 0; status == 0 && i < cmoe_checkpoint_count(files) && !used; i++) {
        cmoe_tensor t = {.size = sizeof t};
        used = cmoe_checkpoint_tensor(files, i, &t, &err) == CMOE_OK &&
               is_of_model(flags, path, t.file);
    }
    cmoe_checkpoint_free(files);
    if (status == 0 && used)
        status = report_fail(EXIT_USAGE, flag, "\"%s\" is a file of the model", path);
    return status;
}
