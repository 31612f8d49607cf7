/* SPDX-License-Identifier: MIT
 *
 * doctor.c - `cmoe doctor`: what this machine has, what cmoe makes of it, and whether a small layer
 * gives the right numbers on every instruction set.  What to paste into a bug report.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dlinfo */
#endif
#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "check.h"
#include "cmoe/layer.h"
#include "cmoe/text.h"
#include "cmoe/weights.h"
#include "limits.h"
#include "model.h"
#include "report.h"
#include "synth.h"
#include "verbs.h"

typedef struct doctor_options {
    model_flags model;
    common_options common;
} doctor_options;

static const option options[] = {OPTION_MODEL(doctor_options, false),
                                 OPTIONS_MODEL(doctor_options, "auto", "none"),
                                 OPTIONS_COMMON(doctor_options)};

const option_verb doctor_verb = {
    .name = "doctor",
    .group = "This machine",
    .summary = "what this machine has, and whether all is well",
    .examples = "  cmoe doctor\n"
                "  cmoe doctor MODEL           is this model complete and right\n"
                "  cmoe doctor --isa avx2      what would be chosen with AVX2 only\n"
                "  cmoe doctor --json\n",
    .text = "Shows the CPU and what of it is used, the kernel variants that are chosen, measured "
            "limits, memory, optional libraries; runs a small layer in every format on every "
            "instruction set and compares it with a double computation. Exit status 0 when all of "
            "them are right, 1 when one is not (the report then goes to stderr).\n"
            "\n"
            "With MODEL it also reads config.json and the headers of all files, and finds a place "
            "for every tensor, and parses tokenizer and chat template if there are any; 3 when "
            "something is wrong there, with a line for each problem.",
    .options = options,
};

/* ---- optional libraries ---------------------------------------------------------------------- */

typedef struct library {
    const char *file, *use;
} library;

static const library libraries[] = {
    {"libcuda.so.1", "planned: NVIDIA GPUs"},
    {"libnccl.so.2", "planned: expert parallelism over GPUs"},
    {"libmpi.so.40", "planned: expert parallelism over Open MPI"},
    {"libmpich.so.12", "planned: expert parallelism over MPICH"},
    {"libevent-2.1.so.7", "planned: the HTTP server"},
};
enum { LIBRARIES = sizeof libraries / sizeof libraries[0], PATH_SIZE = 256 };

/* Where the library was found; false when it was not. */
static bool find_library(const char *file, char path[PATH_SIZE])
{
    struct link_map *map = NULL;
    void *handle = dlopen(file, RTLD_LAZY | RTLD_LOCAL);
    if (!handle) return false;
    if (dlinfo(handle, RTLD_DI_LINKMAP, (void *)&map) != 0) map = NULL;
    snprintf(path, PATH_SIZE, "%s", map && map->l_name[0] ? map->l_name : file);
    dlclose(handle);
    return true;
}

/* ---- self check ------------------------------------------------------------------------------ */

typedef struct checkup {
    const char *level, *dtype;
    char variant[48], why[160]; /* why it is wrong; empty when right */
} checkup;

static const struct {
    int32_t dtype;
    const char *name;
} formats[] = {{CMOE_F32, "f32"}, {CMOE_BF16, "bf16"}, {CMOE_I8, "int8"}};
enum { FORMATS = 3, MOST_CHECKUPS = 64 };

/* Sizes that no tile divides, and more tokens than a tile has rows. */
enum { CHECK_TOKENS = 37, CHECK_HIDDEN = 75, CHECK_INTER = 41, CHECK_EXPERTS = 5, CHECK_TOPK = 2 };

/* All tokens of a small layer; 0 when it could be run, right or not. */
static int check_layer(const synth *s, const tool_session *session, checkup *c)
{
    enum { T = CHECK_TOKENS, H = CHECK_HIDDEN, K = CHECK_TOPK };
    int32_t ids[T * K];
    float weights[T * K], out[T * H]; /* large enough for bf16 too */
    cmoe_experts *experts = NULL;
    cmoe_experts_info info = {.size = sizeof info};
    void *x = NULL;
    const int64_t row = H * cmoe_dtype_bytes(synth_x_dtype(s));
    int status = synth_tokens(s, T, session, &x);
    if (status == 0) status = synth_routing(s, T, 0, 0, session, ids, weights);
    if (status == 0) status = synth_experts(s, 0, session, &experts);
    if (status == 0) status = check_run(s, session, experts, x, T, ids, weights, out);
    if (status == 0 && cmoe_experts_describe(experts, &info, NULL) == CMOE_OK)
        snprintf(c->variant, sizeof c->variant, "%s", info.variant);
    c->why[0] = '\0';
    for (int64_t t = 0; t < T && status == 0 && !c->why[0]; t++) {
        char why[128];
        if (!check_token(s, 0, (char *)x + t * row, ids + t * K, weights + t * K,
                         (char *)out + t * row, why, sizeof why))
            snprintf(c->why, sizeof c->why, "token %lld: %s", (long long)t, why);
    }
    cmoe_experts_free(experts);
    free(x);
    return status;
}

/* Every level this CPU has, and every format on it.  *wrong counts what is not right. */
static int check_all(const doctor_options *o, checkup *list, int *n, int *wrong)
{
    int status = 0;
    for (int32_t level = 0; level < cmoe_isa_levels() && status == 0; level++) {
        uint32_t mask;
        common_options common = {.threads = o->common.threads, .isa = cmoe_isa_level_name(level)};
        tool_session session;
        if (cmoe_isa_mask(common.isa, &mask, NULL) != CMOE_OK || (mask & ~cmoe_cpu_features()))
            continue;
        status = session_open(&session, &common);
        for (int f = 0; f < FORMATS && status == 0 && *n < MOST_CHECKUPS; f++) {
            const synth s = {.hidden = CHECK_HIDDEN,
                             .inter = CHECK_INTER,
                             .experts = CHECK_EXPERTS,
                             .topk = CHECK_TOPK,
                             .format = formats[f].dtype};
            checkup *c = &list[(*n)++];
            *c = (checkup){.level = common.isa, .dtype = formats[f].name};
            status = check_layer(&s, &session, c);
            *wrong += c->why[0] != '\0';
        }
        session_close(&session);
    }
    return status;
}

/* ---- variants -------------------------------------------------------------------------------- */

enum { MOST_VARIANTS = 256 };

/* The list of variants, reduced to the first of each (op, dtype) that the context may use. */
static int64_t chosen_variants(const cmoe_ctx *ctx, cmoe_variant *list)
{
    int64_t n = cmoe_variants(list, MOST_VARIANTS), kept = 0;
    if (n > MOST_VARIANTS) n = MOST_VARIANTS;
    for (int64_t i = 0; i < n; i++) {
        bool have = (list[i].needs & ~cmoe_ctx_features(ctx)) != 0;
        for (int64_t j = 0; j < kept && !have; j++)
            have = !strcmp(list[j].op, list[i].op) && list[j].dtype == list[i].dtype;
        if (!have) list[kept++] = list[i];
    }
    return kept;
}

/* Our word for a variant's format. */
static const char *format_name(int32_t dtype)
{
    for (int f = 0; f < FORMATS; f++) {
        if (formats[f].dtype == dtype) return formats[f].name;
    }
    return dtype ? cmoe_dtype_name(dtype) : "any";
}

/* ---- a model --------------------------------------------------------------------------------- */

/* The files by themselves, then the model that they make up: a line for each problem. */
static int check_model(const doctor_options *o, const tool_session *session, cmoe_model_info *info)
{
    cmoe_error files = {.size = sizeof files}, whole = {.size = sizeof whole};
    cmoe_checkpoint *c = NULL;
    const char *path = o->model.path;
    *info = (cmoe_model_info){.size = sizeof *info};
    if (!path) return 0;
    struct stat st;
    int status = model_check_path(path);
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) return status;
    const cmoe_status opened = cmoe_checkpoint_open(&c, session->ctx, path, &files);
    cmoe_checkpoint_free(c);
    if (opened == CMOE_OK)
        return status ? status : model_plan(session, &o->model, model_format(o->model.dtype), info);
    /* config.json may be wrong as well; the same text twice helps nobody. */
    cmoe_model_options m;
    cmoe_model_options_default(&m, sizeof m);
    const cmoe_status bad = cmoe_model_plan(session->ctx, path, &m, info, &whole);
    if (status == 0 && bad != CMOE_OK && strcmp(files.text, whole.text) != 0)
        model_fail(bad, path, &whole);
    return model_fail(opened, path, &files);
}

/* Tokenizer and chat template: what is there must be right, but a model need not have them. */
typedef struct text_files {
    int64_t tokens; /* of the tokenizer; -1: there is none */
    bool chats;
} text_files;

static bool has_file(const char *folder, const char *name)
{
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return stat(path, &st) == 0;
}

static int check_text(const char *path, const tool_session *session, text_files *t)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_tokenizer *tokenizer = NULL;
    cmoe_template *template = NULL;
    *t = (text_files){.tokens = -1};
    if (!path) return 0;
    if (has_file(path, "tokenizer.json")) {
        const cmoe_status status = cmoe_tokenizer_open(&tokenizer, session->ctx, path, &err);
        if (status != CMOE_OK) return model_fail(status, path, &err);
        t->tokens = cmoe_tokenizer_size(tokenizer);
        cmoe_tokenizer_free(tokenizer);
    }
    const cmoe_status status = cmoe_template_open(&template, session->ctx, path, NULL, &err);
    t->chats = status == CMOE_OK;
    cmoe_template_free(template);
    return status == CMOE_ERR_IO ? 0 : model_fail(status, path, &err);
}

/* ---- the report ------------------------------------------------------------------------------ */

typedef struct findings {
    machine m;
    limits l;
    const cmoe_ctx *ctx;
    const char *path; /* of the model, or NULL */
    cmoe_model_info info;
    text_files text;
    cmoe_variant variants[MOST_VARIANTS];
    checkup checks[MOST_CHECKUPS];
    int64_t n_variants;
    int n_checks, wrong;
} findings;

static json_t *variants_json(const findings *f)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < f->n_variants; i++) {
        const cmoe_variant *v = &f->variants[i];
        json_array_append_new(list, json_pack("{ss ss ss}", "op", v->op, "dtype",
                                              format_name(v->dtype), "name", v->name));
    }
    return list;
}

static json_t *libraries_json(void)
{
    json_t *list = json_array();
    for (int i = 0; i < LIBRARIES; i++) {
        char path[PATH_SIZE];
        const bool found = find_library(libraries[i].file, path);
        json_array_append_new(list, json_pack("{ss ss sb ss?}", "file", libraries[i].file, "use",
                                              libraries[i].use, "found", (int)found, "path",
                                              found ? path : NULL));
    }
    return list;
}

static json_t *checks_json(const findings *f)
{
    json_t *list = json_array();
    for (int i = 0; i < f->n_checks; i++) {
        const checkup *c = &f->checks[i];
        json_array_append_new(list, json_pack("{ss ss ss sb ss?}", "isa", c->level, "dtype",
                                              c->dtype, "variant", c->variant, "right",
                                              (int)!c->why[0], "why", c->why[0] ? c->why : NULL));
    }
    return list;
}

static json_t *model_json(const findings *f)
{
    const cmoe_model_info *i = &f->info;
    json_t *tokenizer = f->text.tokens < 0 ? json_null() : json_integer(f->text.tokens);
    return json_pack("{so ss sI sI sI so so sb}", "path", report_json_text(f->path), "type",
                     i->type, "tensors", (json_int_t)i->tensors, "ignored", (json_int_t)i->ignored,
                     "file_bytes", (json_int_t)i->file_bytes, "bytes", model_bytes_json(&i->bytes),
                     "tokenizer", tokenizer, "chat_template", (int)f->text.chats);
}

static json_t *report_object(const findings *f)
{
    json_t *object =
        json_pack("{so so so so so sb}", "machine", machine_json(&f->m, f->ctx), "limits",
                  limits_json(&f->l), "variants", variants_json(f), "libraries", libraries_json(),
                  "checks", checks_json(f), "ok", (int)(f->wrong == 0));
    if (object && f->path) json_object_set_new(object, "model", model_json(f));
    return object;
}

static void print_size(FILE *to, const char *name, int64_t bytes)
{
    if (bytes >= 1 << 20)
        fprintf(to, "%s %.3g MiB", name, (double)bytes / 0x1p20);
    else
        fprintf(to, "%s %.0f KiB", name, (double)bytes / 0x1p10);
}

static void print_machine(FILE *to, const findings *f)
{
    const machine *m = &f->m;
    char has[96], may[96];
    machine_features(cmoe_cpu_features(), has, sizeof has);
    machine_features(cmoe_ctx_features(f->ctx), may, sizeof may);
    fprintf(to, "cmoe        %s\nsystem      %s\ncpu         %s\n", cmoe_version(), m->os, m->cpu);
    fprintf(to, "cores       %d, %d CPUs usable, %d threads\ncaches      ", (int)m->cores,
            (int)m->cpus, (int)cmoe_ctx_threads(f->ctx));
    print_size(to, "L1", m->l1_bytes);
    print_size(to, ", L2", m->l2_bytes);
    print_size(to, ", last level", m->llc_bytes);
    fprintf(to, "\nmemory      %.1f GiB, %.1f GiB available, huge pages: %s\n",
            (double)m->memory_bytes / 0x1p30, (double)m->available_bytes / 0x1p30, m->huge_pages);
    fprintf(to, "features    %s\n", has);
    if (strcmp(has, may) != 0) fprintf(to, "used        %s\n", may);
    const uint32_t bf16 = CMOE_CPU_AVX512_BF16 | CMOE_CPU_BF16_FIRST;
    if ((cmoe_ctx_features(f->ctx) & bf16) == CMOE_CPU_AVX512_BF16)
        fprintf(to, "            bf16 dot products are slower here than float multiply-adds\n");
}

static void print_limits(FILE *to, const limits *l)
{
    fprintf(to, "read        %.1f GB/s\n", l->read_gbps);
    for (int i = 0; i < LIMIT_FORMATS; i++)
        fprintf(to, "%-11s %.1f Gop/s, %s\n", formats[i].name, l->gflops[i], l->instruction[i]);
}

static void print_variants(FILE *to, const findings *f)
{
    for (int64_t i = 0; i < f->n_variants; i++) {
        const cmoe_variant *v = &f->variants[i];
        fprintf(to, "%-18s %-6s %s\n", v->op, format_name(v->dtype), v->name);
    }
}

static void print_checks(FILE *to, const findings *f, report_style style)
{
    for (int i = 0; i < f->n_checks; i++) {
        const checkup *c = &f->checks[i];
        fprintf(to, "%-11s %-6s %-14s %s%s%s%s%s\n", c->level, c->dtype, c->variant,
                c->why[0] ? style.bad : style.good, c->why[0] ? "WRONG" : "right", style.off,
                c->why[0] ? ": " : "", c->why);
    }
}

static void print_model(FILE *to, const findings *f, report_style style)
{
    fprintf(to,
            "\n%sModel%s\n%s: %lld tensors used, %lld ignored, %s of files, %s in memory as %s: "
            "%sright%s\n",
            style.bold, style.off, f->info.type, (long long)f->info.tensors,
            (long long)f->info.ignored, size_of(f->info.file_bytes).s,
            size_of(f->info.bytes.total).s, model_format_name(f->info.format), style.good,
            style.off);
    if (f->text.tokens < 0)
        fputs("no tokenizer.json: chat, tokenize, eval and --prompt will not work, --ids will\n",
              to);
    else
        fprintf(to, "tokenizer of %lld tokens: %sright%s\n", (long long)f->text.tokens, style.good,
                style.off);
    if (f->text.chats)
        fprintf(to, "chat template: %sright%s\n", style.good, style.off);
    else
        fputs("no chat template: chat and render want --chat-template F\n", to);
}

static void print_report(FILE *to, const findings *f, report_style style)
{
    fprintf(to, "%sMachine%s\n", style.bold, style.off);
    print_machine(to, f);
    fprintf(to, "\n%sLimits, measured with %d threads%s\n", style.bold, (int)f->l.threads,
            style.off);
    print_limits(to, &f->l);
    fprintf(to, "\n%sVariants chosen%s\n", style.bold, style.off);
    print_variants(to, f);
    fprintf(to, "\n%sOptional libraries%s\n", style.bold, style.off);
    for (int i = 0; i < LIBRARIES; i++) {
        char path[PATH_SIZE];
        const bool found = find_library(libraries[i].file, path);
        fprintf(to, "%-18s %-9s %s\n", libraries[i].file, found ? "found" : "not found",
                libraries[i].use);
    }
    fprintf(to, "\n%sSelf check: a layer against double, %d tokens each%s\n", style.bold,
            CHECK_TOKENS, style.off);
    print_checks(to, f, style);
    if (f->path) print_model(to, f, style);
    if (f->wrong) return;
    if (f->path && f->text.tokens < 0)
        fprintf(to, "\n%sAll is well for --ids; text needs a tokenizer.%s\n", style.good,
                style.off);
    else
        fprintf(to, "\n%sAll is well.%s\n", style.good, style.off);
}

/* On stdout when all is well; else on stderr, because stdout stays empty on failure. */
static int print_findings(const findings *f, bool json)
{
    if (json && f->wrong == 0) return report_json(report_object(f));
    if (json) {
        json_t *object = report_object(f);
        json_dumpf(object, stderr, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
        fputc('\n', stderr);
        json_decref(object);
    } else if (f->wrong == 0) {
        report r;
        const int status = report_begin(&r);
        if (status) return status;
        print_report(r.to, f, report_style_of_stdout());
        return report_end(&r, 0);
    } else {
        print_report(stderr, f, (report_style){.bold = "", .good = "", .bad = "", .off = ""});
    }
    return report_fail(EXIT_ERROR, "doctor", "%d of %d self checks gave wrong numbers", f->wrong,
                       f->n_checks);
}

int doctor_main(int argc, char **argv)
{
    doctor_options o = {0};
    tool_session session;
    int status = options_parse(&doctor_verb, argc, argv, &o);
    if (status) return status;
    status = session_open(&session, &o.common);
    if (status) return status;
    findings *f = calloc(1, sizeof *f);
    if (!f) {
        session_close(&session);
        return report_fail(EXIT_MEMORY, "doctor", "no memory");
    }
    f->ctx = session.ctx;
    f->path = o.model.path;
    status = check_model(&o, &session, &f->info);
    if (status == 0) status = check_text(o.model.path, &session, &f->text);
    machine_read(&f->m);
    f->n_variants = chosen_variants(session.ctx, f->variants);
    report_progress(o.common.quiet, "measuring this machine's limits");
    if (status == 0) status = limits_open(&f->l, &f->m, cmoe_ctx_threads(session.ctx));
    report_progress(o.common.quiet, "checking every instruction set");
    if (status == 0) status = check_all(&o, f->checks, &f->n_checks, &f->wrong);
    if (status == 0) status = print_findings(f, o.common.json);
    limits_close(&f->l);
    free(f);
    session_close(&session);
    return status;
}
