/* SPDX-License-Identifier: MIT
 *
 * inspect.c - `cmoe inspect`: what a model directory holds, from the headers of its files.
 */
#include <stdlib.h>
#include <string.h>

#include "cmoe/weights.h"
#include "model.h"
#include "report.h"
#include "verbs.h"

typedef struct inspect_options {
    model_flags model;
    bool tensors;
    common_options common;
} inspect_options;

static const option options[] = {
    OPTION_MODEL(inspect_options, true),
    {.name = "tensors",
     .type = OPTION_FLAG,
     .offset = offsetof(inspect_options, tensors),
     .help = "list every tensor of the files: name, format, shape, bytes, file"},
    OPTIONS_MODEL(inspect_options, "auto", "none"),
    OPTIONS_COMMON(inspect_options),
};

const option_verb inspect_verb = {
    .name = "inspect",
    .group = "Look inside",
    .summary = "architecture, tensors and sizes of a model",
    .examples = "  cmoe inspect MODEL\n"
                "  cmoe inspect MODEL --tensors\n"
                "  cmoe inspect MODEL --dtype int8 --json     sizes once loaded as int8\n",
    .text = "Reads config.json and the headers of all files, checks them as loading would, and "
            "loads nothing. Exit status 3 when the model is not what it should be.",
    .options = options,
};

/* ---- findings -------------------------------------------------------------------------------- */

enum { MOST_FORMATS = 32, PATTERN_SIZE = 256 };

typedef struct stored_format {
    char name[16];
    int64_t tensors, bytes;
} stored_format;

typedef struct findings {
    const char *path;
    cmoe_model_info info;
    cmoe_checkpoint *files;
    stored_format formats[MOST_FORMATS];
    int n_formats;
    char pattern[PATTERN_SIZE]; /* of its layers: "sliding_attention x2, ..." */
    char architecture[64];      /* of config.json's architectures; may be empty */
} findings;

static void count_format(findings *f, const cmoe_tensor *t)
{
    int i = 0;
    while (i < f->n_formats && strcmp(f->formats[i].name, t->stored) != 0)
        i++;
    if (i == MOST_FORMATS) return;
    if (i == f->n_formats)
        snprintf(f->formats[f->n_formats++].name, sizeof f->formats[i].name, "%s", t->stored);
    f->formats[i].tensors++;
    f->formats[i].bytes += t->bytes;
}

static cmoe_tensor tensor_at(const findings *f, int64_t i)
{
    cmoe_tensor t = {.size = sizeof t};
    if (cmoe_checkpoint_tensor(f->files, i, &t, NULL) != CMOE_OK) /* i is in range */
        t = (cmoe_tensor){.name = "", .file = "", .stored = ""};
    return t;
}

/* What a layer mixes its tokens with, in the words of configurations. */
static const char *word_of(const cmoe_model_layer *l)
{
    if (strcmp(l->mixer, "attention") != 0) return l->mixer;
    return l->window > 0 ? "sliding_attention" : "full_attention";
}

/* "sliding_attention, full_attention; 12 times", or just "full_attention x24". */
static void describe_pattern(const char *const *words, size_t n, char *text)
{
    size_t period = 1, used = 0;
    for (; period < n; period++) {
        size_t i = period;
        while (i < n && !strcmp(words[i], words[i - period]))
            i++;
        if (i == n) break;
    }
    for (size_t i = 0, run; i < period && used < PATTERN_SIZE; i += run) {
        for (run = 1; i + run < period && !strcmp(words[i], words[i + run]); run++)
            ;
        const size_t times = period == 1 ? n : run;
        used += (size_t)snprintf(text + used, PATTERN_SIZE - used, times > 1 ? "%s%s x%zu" : "%s%s",
                                 used ? ", " : "", words[i], times);
    }
    if (period > 1 && period < n && used < PATTERN_SIZE)
        snprintf(text + used, PATTERN_SIZE - used,
                 n % period ? "; %zu times, and a part of it" : "; %zu times", n / period);
}

/* The layers as loading would build them. */
static cmoe_status read_layers(findings *f, const cmoe_model *m, cmoe_error *err)
{
    const size_t n = (size_t)f->info.layers;
    const char **words = calloc(n + 1, sizeof *words);
    cmoe_status status = words ? CMOE_OK : CMOE_ERR_MEMORY;
    for (size_t i = 0; i < n && status == CMOE_OK; i++) {
        cmoe_model_layer l = {.size = sizeof l};
        status = cmoe_model_layer_describe(m, (int64_t)i, &l, err);
        if (status != CMOE_OK) break;
        words[i] = word_of(&l);
    }
    if (status == CMOE_OK && n > 0) describe_pattern(words, n, f->pattern);
    free(words);
    return status;
}

/* The name of the class that wrote the model: a label, nothing is decided by it. */
static void read_architecture(findings *f)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/config.json", f->path);
    json_t *config = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
    const char *name =
        json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    if (name) snprintf(f->architecture, sizeof f->architecture, "%s", name);
    json_decref(config);
}

static int look(const inspect_options *o, const tool_session *session, findings *f)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_model *m = NULL;
    f->path = o->model.path;
    int status = model_plan(session, &o->model, model_format(o->model.dtype), &f->info);
    if (status) return status;
    status =
        model_fail(cmoe_checkpoint_open(&f->files, session->ctx, f->path, &err), f->path, &err);
    if (status) return status;
    for (int64_t i = 0; i < cmoe_checkpoint_count(f->files); i++) {
        const cmoe_tensor t = tensor_at(f, i);
        count_format(f, &t);
    }
    read_architecture(f);
    status = model_outline(session, &o->model, &m);
    if (status == 0) status = model_fail(read_layers(f, m, &err), f->path, &err);
    cmoe_model_free(m);
    return status;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static json_t *tensors_json(const findings *f)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < cmoe_checkpoint_count(f->files); i++) {
        const cmoe_tensor t = tensor_at(f, i);
        json_t *shape = json_array();
        for (int32_t d = 0; d < t.rank; d++)
            json_array_append_new(shape, json_integer((json_int_t)t.dims[d]));
        json_array_append_new(list, json_pack("{ss ss so sI ss}", "name", t.name, "dtype", t.stored,
                                              "shape", shape, "bytes", (json_int_t)t.bytes, "file",
                                              t.file));
    }
    return list;
}

static int print_json(const inspect_options *o, const findings *f)
{
    const cmoe_model_info *i = &f->info;
    char mask[32];
    json_t *formats = json_object();
    for (int k = 0; k < f->n_formats; k++)
        json_object_set_new(formats, f->formats[k].name,
                            json_pack("{sI sI}", "tensors", (json_int_t)f->formats[k].tensors,
                                      "bytes", (json_int_t)f->formats[k].bytes));
    json_t *object = json_pack(
        "{so ss so sI sI sI sI sI sI sI sI sI sI sI sI ss sI sI sb ss so sI sI sI so}", "model",
        report_json_text(f->path), "type", i->type, "architecture",
        report_json_text(f->architecture), "layers", (json_int_t)i->layers, "hidden",
        (json_int_t)i->hidden, "heads", (json_int_t)i->heads, "kv_heads", (json_int_t)i->kv_heads,
        "head_dim", (json_int_t)i->head_dim, "vocab", (json_int_t)i->vocab, "context",
        (json_int_t)i->context, "moe_layers", (json_int_t)i->moe_layers, "experts",
        (json_int_t)i->experts, "topk", (json_int_t)i->topk, "parameters",
        (json_int_t)i->parameters, "active_parameters", (json_int_t)i->active_parameters, "mask",
        model_mask_name(i->mask, mask), "mask_token", (json_int_t)i->mask_token, "window",
        (json_int_t)i->window, "tied", (int)i->tied, "dtype", model_format_name(i->format), "bytes",
        model_bytes_json(&i->bytes), "tensors_used", (json_int_t)i->tensors, "tensors_ignored",
        (json_int_t)i->ignored, "file_bytes", (json_int_t)i->file_bytes, "formats", formats);
    if (object && o->tensors) json_object_set_new(object, "tensors", tensors_json(f));
    return report_json(object);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* "30.5 billion" */
static size_text count_of(int64_t n)
{
    size_text text;
    const double d = (double)n;
    if (d >= 1e9)
        snprintf(text.s, sizeof text.s, "%.1f billion", d / 1e9);
    else if (d >= 1e6)
        snprintf(text.s, sizeof text.s, "%.1f million", d / 1e6);
    else
        snprintf(text.s, sizeof text.s, "%lld", (long long)n);
    return text;
}

static void print_model(FILE *to, const findings *f)
{
    const cmoe_model_info *i = &f->info;
    char mask[32];
    fprintf(to, "type         %s", i->type);
    if (f->architecture[0]) {
        fprintf(to, " (");
        report_plain(to, f->architecture);
        fprintf(to, ")");
    }
    fputc('\n', to);
    fprintf(to, "parameters   %s, %s active for a token\n", count_of(i->parameters).s,
            count_of(i->active_parameters).s);
    fprintf(to, "layers       %lld: %lld with experts, %lld dense\n", (long long)i->layers,
            (long long)i->moe_layers, (long long)(i->layers - i->moe_layers));
    if (i->moe_layers > 0)
        fprintf(to, "experts      %lld, %lld for each token\n", (long long)i->experts,
                (long long)i->topk);
    fprintf(to, "hidden       %lld, vocab %lld, head %s\n", (long long)i->hidden,
            (long long)i->vocab, i->tied ? "tied to the embedding" : "of its own");
    fprintf(to, "attention    %lld heads of %lld, %lld of keys and values, mask %s\n",
            (long long)i->heads, (long long)i->head_dim, (long long)i->kv_heads,
            model_mask_name(i->mask, mask));
    if (i->window > 0)
        fprintf(to, "window       %lld positions, in %lld of %lld layers\n", (long long)i->window,
                (long long)i->window_layers, (long long)i->layers);
    if (f->pattern[0]) {
        fprintf(to, "layer types  ");
        options_wrap(to, f->pattern, 13, 13);
    }
    if (i->mask_token >= 0) fprintf(to, "mask token   %lld\n", (long long)i->mask_token);
    fprintf(to, "context      %lld positions, %s of cache each\n", (long long)i->context,
            size_of(i->bytes.cache_per_token).s);
}

static void print_files(FILE *to, const findings *f)
{
    const cmoe_model_info *i = &f->info;
    fprintf(to, "%lld tensors used, %lld ignored, %s\n", (long long)i->tensors,
            (long long)i->ignored, size_of(i->file_bytes).s);
    for (int k = 0; k < f->n_formats; k++)
        fprintf(to, "%-11s %8lld tensors %12s\n", f->formats[k].name,
                (long long)f->formats[k].tensors, size_of(f->formats[k].bytes).s);
}

static void print_bytes(FILE *to, const cmoe_model_bytes *b)
{
    const struct {
        const char *name;
        int64_t bytes;
    } rows[] = {{"experts", b->experts},  {"shared experts", b->shared},
                {"dense MLPs", b->dense}, {"attention", b->attention},
                {"router", b->router},    {"embedding", b->embedding},
                {"head", b->head},        {"norms, biases", b->small},
                {"all", b->total},        {"read for a token", b->per_token}};
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        if (rows[k].bytes > 0) fprintf(to, "%-18s %14s\n", rows[k].name, size_of(rows[k].bytes).s);
    }
}

static void print_tensors(FILE *to, const findings *f)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(f->files); i++) {
        const cmoe_tensor t = tensor_at(f, i);
        char shape[128] = "[";
        size_t used = 1;
        for (int32_t d = 0; d < t.rank; d++)
            used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", d ? ", " : "",
                                     (long long)t.dims[d]);
        snprintf(shape + used, sizeof shape - used, "]");
        fprintf(to, "%-8s %-20s %12lld  ", t.stored, shape, (long long)t.bytes);
        report_plain(to, t.name);
        fprintf(to, "  ");
        report_plain(to, t.file);
        fputc('\n', to);
    }
}

static int print_text(const inspect_options *o, const findings *f)
{
    const report_style style = report_style_of_stdout();
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    fprintf(r.to, "%sModel%s\n", style.bold, style.off);
    print_model(r.to, f);
    fprintf(r.to, "\n%sFiles%s\n", style.bold, style.off);
    print_files(r.to, f);
    fprintf(r.to, "\n%sIn memory as %s%s\n", style.bold, model_format_name(f->info.format),
            style.off);
    print_bytes(r.to, &f->info.bytes);
    if (o->tensors) {
        fprintf(r.to, "\n%sTensors%s: format, shape, bytes, name, file\n", style.bold, style.off);
        print_tensors(r.to, f);
    }
    return report_end(&r, 0);
}

int inspect_main(int argc, char **argv)
{
    inspect_options o = {0};
    findings f = {0};
    tool_session session = {0};
    int status = options_parse(&inspect_verb, argc, argv, &o);
    if (status) return status;
    status = session_open(&session, &o.common);
    if (status == 0) status = look(&o, &session, &f);
    if (status == 0) status = o.common.json ? print_json(&o, &f) : print_text(&o, &f);
    cmoe_checkpoint_free(f.files);
    session_close(&session);
    return status;
}
