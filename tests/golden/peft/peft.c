/* SPDX-License-Identifier: MIT
 *
 * peft.c - adapters that PEFT made, in every layout: logits as PEFT's, merged models the same bits as folded
 * ones, and what is written read again.
 *
 *     golden_peft FOLDER MODELS [KEEP]     KEEP: adapters and logits stay there, for read_ours.py
 *
 * The bound: both sides are float32 in another order of sums.  The longest path from an embedding to a logit
 * has, in each of 2 layers, 4 products of at most 32 terms, a softmax over at most 20, 2 norms of 32 and the
 * terms of the adapter, and one product at the end: less than 500 roundings of 2^-24, each relative to
 * something no larger than the largest logit once norms have divided by what they multiply.
 */
#include <dirent.h>
#include <float.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../unit/unit.h"
#include "../models/run.h"
#include "lora/peft.h"

enum { TOKENS = 20, VOCAB = 64, PATH = 4096, CASES = 16 };

static const char *folder, *models, *keep;
static unit_env env;

static const struct {
    const char *base, *name;
} cases[CASES] = {
    {"wide", "rank_3"},
    {"wide", "rank_4"},
    {"wide", "rslora"},
    {"wide", "patterns"},
    {"wide", "attention"},
    {"wide", "gate_up"},
    {"wide", "down"},
    {"wide", "peft_0191"},
    {"wide", "peft_0190"},
    {"wide", "peft_0181"},
    {"wide", "peft_0181_rank_4"},
    {"wide", "per_expert"},
    {"wide", "per_expert_some"},
    {"square", "rank_3"},
    {"square", "gate_up"},
    {"square", "peft_0181"},
};

/* ---- files ----------------------------------------------------------------------------------- */

static const char *path_of(const char *base, const char *name)
{
    static char path[4][PATH];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, PATH, "%s/%s/%s", folder, base, name);
    return p;
}

static void tensor(const char *file, const char *name, void *out, int64_t bytes)
{
    cmoe_checkpoint *c = NULL;
    cmoe_tensor t = {.size = sizeof t};
    UNIT_OK(cmoe_checkpoint_open(&c, env.ctx, file, &err));
    UNIT_OK(cmoe_checkpoint_tensor(c, cmoe_checkpoint_find(c, name), &t, &err));
    assert_int_equal(t.bytes, bytes);
    memcpy(out, t.data, (size_t)bytes);
    cmoe_checkpoint_free(c);
}

static cmoe_adapter *adapter(const char *base, const char *name)
{
    cmoe_adapter *a = NULL;
    UNIT_OK(cmoe_adapter_open(&a, env.ctx, path_of(base, name), CMOE_PEFT_AUTO, &err));
    return a;
}

static void remove_folder(const char *dir)
{
    char path[PATH];
    DIR *list = opendir(dir);
    assert_non_null(list);
    for (struct dirent *e; (e = readdir(list));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.') assert_int_equal(unlink(path), 0);
    }
    closedir(list);
    assert_int_equal(rmdir(dir), 0);
}

/* ---- logits ---------------------------------------------------------------------------------- */

static float out[2][TOKENS * VOCAB];

static cmoe_model_options with(int32_t format, const cmoe_adapter *const *adapters,
                               const float *scales, int64_t count)
{
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = format;
    o.adapters = adapters;
    o.adapter_scales = scales;
    o.adapter_count = count;
    return o;
}

static void logits_of(const char *dir, int32_t threads, const cmoe_model_options *o,
                      const int32_t *ids, int64_t tokens, float *to)
{
    run_model m;
    cmoe_error err = {0};
    const run_options all = {0};
    const run_sequence s = {ids, tokens, to};
    if (!run_open_options(&m, dir, threads, o, &err) || !run_logits(&m, &s, 1, &all, &err))
        fail_msg("%s: %s", dir, err.text);
    run_close(&m);
}

/* Of a base of this folder with at most one adapter. */
static void logits(const char *base, const cmoe_adapter *a, float scale, int32_t format, float *to)
{
    int32_t ids[TOKENS];
    const cmoe_model_options o = with(format, &a, &scale, a ? 1 : 0);
    tensor(path_of(base, "golden.safetensors"), "ids", ids, sizeof ids);
    logits_of(path_of(base, ""), 2, &o, ids, TOKENS, to);
}

static void near(const char *name, const char *what, const float *got, const float *want)
{
    double most = 0, worst = 0;
    for (int64_t i = 0; i < TOKENS * VOCAB; i++) {
        most = fmax(most, fabs((double)want[i]));
        worst = fmax(worst, fabs((double)got[i] - want[i]));
    }
    const double bound = 500 * (FLT_EPSILON / 2) * most;
    if (!(worst <= bound)) fail_msg("%s %s: off by %g, want at most %g", name, what, worst, bound);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void bases(void **state)
{
    (void)state;
    float want[TOKENS * VOCAB];
    const char *const names[] = {"wide", "square"};
    for (int i = 0; i < 2; i++) {
        tensor(path_of(names[i], "golden.safetensors"), "logits", want, sizeof want);
        logits(names[i], NULL, 1, 0, out[0]);
        near(names[i], "alone", out[0], want);
    }
}

static void adapters(void **state)
{
    (void)state;
    char file[PATH];
    float want[TOKENS * VOCAB];
    for (int i = 0; i < CASES; i++) {
        cmoe_adapter *a = adapter(cases[i].base, cases[i].name);
        snprintf(file, sizeof file, "%s/golden.safetensors", path_of(cases[i].base, cases[i].name));
        logits(cases[i].base, a, 1, 0, out[0]);
        tensor(file, "logits", want, sizeof want);
        near(cases[i].name, "with PEFT", out[0], want);
        tensor(file, "merged", want, sizeof want);
        near(cases[i].name, "merged by PEFT", out[0], want);
        cmoe_adapter_free(a);
    }
}

/* gate_up of H = 2 I alone: the recorded version decides, and without it nobody can. */
static void ambiguous(void **state)
{
    (void)state;
    char file[PATH];
    float want[TOKENS * VOCAB];
    cmoe_adapter *a = adapter("square", "peft_0181_gate_up");
    snprintf(file, sizeof file, "%s/golden.safetensors", path_of("square", "peft_0181_gate_up"));
    tensor(file, "logits", want, sizeof want);
    logits("square", a, 1, 0, out[0]);
    near("peft_0181_gate_up", "with PEFT", out[0], want);
    cmoe_adapter_free(a);

    a = adapter("square", "peft_0181_gate_up");
    a->info.layout = CMOE_PEFT_AUTO; /* as if no version were recorded */
    const cmoe_adapter *const list[] = {a};
    const cmoe_model_options o = with(0, list, NULL, 1);
    cmoe_model_info info = {.size = sizeof info};
    UNIT_FAILS(cmoe_model_plan(env.ctx, path_of("square", ""), &o, &info, &err), CMOE_ERR_FORMAT,
               "records no peft_version");
    cmoe_adapter_free(a);
}

/* Without a recorded version shapes decide, of one parameter for all of them. */
static void by_shape(void **state)
{
    (void)state;
    const char *const names[] = {"peft_0181", "rank_3"};
    for (int i = 0; i < 4; i++) {
        const char *base = i < 2 ? "wide" : "square";
        char file[PATH];
        float want[TOKENS * VOCAB];
        cmoe_adapter *a = NULL;
        UNIT_OK(cmoe_adapter_open(&a, env.ctx, path_of(base, names[i % 2]), CMOE_PEFT_AUTO, &err));
        if (a->info.layout == CMOE_PEFT_SINCE_0_19) { /* not kept both ways: nothing to decide */
            cmoe_adapter_free(a);
            continue;
        }
        a->info.layout = CMOE_PEFT_AUTO;
        snprintf(file, sizeof file, "%s/golden.safetensors", path_of(base, names[i % 2]));
        tensor(file, "logits", want, sizeof want);
        logits(base, a, 1, 0, out[0]);
        near(names[i % 2], "by shape", out[0], want);
        cmoe_adapter_free(a);
    }
}

/* Folded while loading and folded into a file: the same bits in every format. */
static void merged(void **state)
{
    (void)state;
    const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};
    char dir[64];
    snprintf(dir, sizeof dir, "golden_peft.%ld", (long)getpid());
    for (int i = 0; i < CASES; i++) {
        int32_t ids[TOKENS];
        cmoe_adapter *a = adapter(cases[i].base, cases[i].name);
        const cmoe_adapter *const list[] = {a};
        const float scale = 0.75f;
        tensor(path_of(cases[i].base, "golden.safetensors"), "ids", ids, sizeof ids);
        UNIT_OK(
            cmoe_model_merge(env.ctx, path_of(cases[i].base, ""), list, &scale, 1, 0, dir, &err));
        for (int f = 0; f < 3; f++) {
            const cmoe_model_options o = with(formats[f], NULL, NULL, 0);
            logits(cases[i].base, a, scale, formats[f], out[0]);
            logits_of(dir, 3, &o, ids, TOKENS, out[1]);
            assert_memory_equal(out[0], out[1], sizeof out[0]);
        }
        UNIT_FAILS(
            cmoe_model_merge(env.ctx, path_of(cases[i].base, ""), list, NULL, 1, 0, dir, &err),
            CMOE_ERR_IO, "is there already");
        cmoe_adapter_free(a);
        remove_folder(dir);
    }
}

/* A scale of 0 is the base, bit for bit; two adapters add up; half twice is one. */
static void scales(void **state)
{
    (void)state;
    cmoe_adapter *a = adapter("wide", "rank_3"), *b = adapter("wide", "per_expert");
    int32_t ids[TOKENS];
    float want[TOKENS * VOCAB];
    tensor(path_of("wide", "golden.safetensors"), "ids", ids, sizeof ids);
    logits("wide", NULL, 1, CMOE_BF16, out[0]);
    logits("wide", a, 0, CMOE_BF16, out[1]);
    assert_memory_equal(out[0], out[1], sizeof out[0]);

    const cmoe_adapter *const twice[] = {a, a}, *const both[] = {a, b};
    const float halves[] = {0.5f, 0.5f}, one[] = {0, 1};
    cmoe_model_options o = with(CMOE_F32, twice, halves, 2);
    logits("wide", a, 1, CMOE_F32, want);
    logits_of(path_of("wide", ""), 1, &o, ids, TOKENS, out[0]);
    near("halves", "added", out[0], want);
    o = with(CMOE_F32, both, one, 2);
    logits("wide", b, 1, CMOE_F32, out[1]);
    logits_of(path_of("wide", ""), 1, &o, ids, TOKENS, out[0]);
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    cmoe_adapter_free(a);
    cmoe_adapter_free(b);
}

/* Packed weights that are kept are those of the model alone. */
static void kept(void **state)
{
    (void)state;
    char dir[64];
    int32_t ids[TOKENS];
    cmoe_adapter *a = adapter("wide", "rank_3"), *b = adapter("wide", "rank_4");
    const cmoe_adapter *const lists[][1] = {{a}, {a}, {b}};
    const float scale[][1] = {{1}, {0.5f}, {1}};
    snprintf(dir, sizeof dir, "golden_kept.%ld", (long)getpid());
    assert_int_equal(mkdir(dir, 0777), 0);
    tensor(path_of("wide", "golden.safetensors"), "ids", ids, sizeof ids);
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < 4; i++) {
            cmoe_model_options o =
                with(CMOE_F32, i < 3 ? lists[i] : NULL, i < 3 ? scale[i] : NULL, i < 3);
            logits_of(path_of("wide", ""), 2, &o, ids, TOKENS, out[0]);
            o.cache_dir = dir;
            logits_of(path_of("wide", ""), 2, &o, ids, TOKENS, out[1]);
            assert_memory_equal(out[0], out[1], sizeof out[0]);
        }
    int files = 0;
    DIR *list = opendir(dir);
    for (struct dirent *e; (e = readdir(list));)
        files += e->d_name[0] != '.';
    closedir(list);
    assert_int_equal(files, 1); /* of the model alone */
    remove_folder(dir);
    cmoe_adapter_free(a);
    cmoe_adapter_free(b);
}

static char *whole(const char *dir, const char *name, int64_t *n)
{
    char path[PATH];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    char *data = malloc(1 << 20);
    *n = (int64_t)fread(data, 1, 1 << 20, in);
    fclose(in);
    return data;
}

static void same_file(const char *a, const char *b, const char *name)
{
    int64_t n, m;
    char *x = whole(a, name, &n), *y = whole(b, name, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

/* Terms that were read, put into the layout of today, are written, read and written again. */
static void round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        char dirs[2][64];
        cmoe_adapter *a = adapter(cases[i].base, cases[i].name), *b = NULL;
        for (int64_t k = 0; k < a->count; k++) {
            cmoei_lora_term *t = &a->terms[k];
            if (t->stacked && a->info.layout == CMOE_PEFT_BEFORE_0_19)
                UNIT_OK(cmoei_lora_orient(a, t, CMOE_PEFT_BEFORE_0_19, t->experts, t->inputs,
                                          t->outputs, t, &err));
        }
        for (int k = 0; k < 2; k++) {
            snprintf(dirs[k], sizeof dirs[k], "golden_peft_%d.%ld", k, (long)getpid());
            assert_int_equal(mkdir(dirs[k], 0777), 0);
            const cmoei_peft_write_options o = {dirs[k], "base", 3, 6, false, false};
            UNIT_OK(cmoei_peft_write(env.ctx, &o, k ? b->terms : a->terms, a->count, &err));
            if (k == 0) UNIT_OK(cmoe_adapter_open(&b, env.ctx, dirs[0], CMOE_PEFT_AUTO, &err));
        }
        assert_int_equal(a->count, b->count);
        same_file(dirs[0], dirs[1], "adapter_config.json");
        same_file(dirs[0], dirs[1], "adapter_model.safetensors");
        logits(cases[i].base, b, 1, CMOE_F32, out[1]);
        cmoe_adapter_free(a);
        a = adapter(cases[i].base, cases[i].name);
        logits(cases[i].base, a, 1, CMOE_F32, out[0]);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        cmoe_adapter_free(a);
        cmoe_adapter_free(b);
        remove_folder(dirs[0]);
        remove_folder(dirs[1]);
    }
}

/* ---- models of every kind, whose files have fused, turned and packed experts ------------------ */

static const char *const kinds[] = {"mixtral",   "glm4_moe",   "gpt_oss",       "qwen3_moe_fp8",
                                    "qwen2_moe", "granitemoe", "gpt_oss_mxfp4", "llama"};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

typedef struct made {
    cmoei_lora_term terms[64];
    float *values[128];
    int64_t count, used;
} made;

static float *numbers(made *x, int64_t n)
{
    float *v = malloc((size_t)n * sizeof *v);
    for (int64_t i = 0; i < n; i++)
        v[i] = 0.1f * cmoe_random_normal(7, (uint64_t)x->used, (uint64_t)i);
    return x->values[x->used++] = v;
}

static void add(made *x, const char *module, int64_t layer, int64_t experts, int64_t outputs,
                int64_t inputs)
{
    cmoei_lora_term *t = &x->terms[x->count++];
    const int64_t E = experts > 0 ? experts : 1, r = 3;
    *t = (cmoei_lora_term){.experts = E,
                           .stacked = experts > 0,
                           .rank = r,
                           .inputs = inputs,
                           .outputs = outputs,
                           .scale = 2};
    snprintf(t->module, sizeof t->module, "model.layers.%d.%s", (int)layer, module);
    t->a = numbers(x, E * r * inputs);
    t->b = numbers(x, E * outputs * r);
}

static void make_terms(made *x, const cmoe_model *m, const cmoe_model_info *info, const char *kind)
{
    const bool router = !strcmp(kind, "gpt_oss") || !strcmp(kind, "gpt_oss_mxfp4");
    const bool granite = !strcmp(kind, "granitemoe");
    for (int64_t i = 0; i < info->layers; i++) {
        cmoe_model_layer l = {.size = sizeof l};
        UNIT_OK(cmoe_model_layer_describe(m, i, &l, &err));
        add(x, "self_attn.q_proj", i, 0, info->heads * info->head_dim, info->hidden);
        add(x, "self_attn.o_proj", i, 0, info->hidden, info->heads * info->head_dim);
        if (l.experts == 0) {
            add(x, "mlp.up_proj", i, 0, l.inter, info->hidden);
            continue;
        }
        add(x, granite ? "block_sparse_moe.experts.gate_up_proj" : "mlp.experts.gate_up_proj", i,
            l.experts, 2 * l.inter, info->hidden);
        add(x, granite ? "block_sparse_moe.experts.down_proj" : "mlp.experts.down_proj", i,
            l.experts, info->hidden, l.inter);
        add(x,
            granite  ? "block_sparse_moe.router"
            : router ? "mlp.router"
                     : "mlp.gate",
            i, 0, l.experts, info->hidden);
        if (!strcmp(kind, "qwen2_moe"))
            add(x, "mlp.shared_expert.down_proj", i, 0, info->hidden, l.shared_inter);
        if (!strcmp(kind, "glm4_moe"))
            add(x, "mlp.shared_experts.gate_proj", i, 0, l.shared_inter, info->hidden);
    }
}

static void kind_merges(const char *kind)
{
    char dir[PATH], out_dir[64], adapter_dir[PATH - 32];
    static const int32_t ids[] = {1, 5, 3, 2, 7, 11, 4, 9};
    enum { N = 8 };
    made x = {0};
    cmoe_model *m = NULL;
    cmoe_adapter *a = NULL;
    cmoe_model_info info = {.size = sizeof info};
    snprintf(dir, sizeof dir, "%s/%s", models, kind);
    snprintf(out_dir, sizeof out_dir, "golden_kind.%ld", (long)getpid());
    snprintf(adapter_dir, sizeof adapter_dir, "golden_kind_a.%ld", (long)getpid());
    if (keep) snprintf(adapter_dir, sizeof adapter_dir, "%s/%s", keep, kind);
    cmoe_model_options o = with(0, NULL, NULL, 0);
    o.describe_only = 1;
    UNIT_OK(cmoe_model_load(&m, env.ctx, dir, &o, &err));
    UNIT_OK(cmoe_model_describe(m, &info, &err));
    make_terms(&x, m, &info, kind);
    cmoe_model_free(m);
    assert_int_equal(mkdir(adapter_dir, 0777), 0);
    const cmoei_peft_write_options w = {adapter_dir, kind, 3, 6, false, true};
    UNIT_OK(cmoei_peft_write(env.ctx, &w, x.terms, x.count, &err));
    UNIT_OK(cmoe_adapter_open(&a, env.ctx, adapter_dir, CMOE_PEFT_AUTO, &err));

    const cmoe_adapter *const list[] = {a};
    float *got[3];
    for (int i = 0; i < 3; i++)
        got[i] = malloc((size_t)(N * info.vocab) * sizeof **got);
    if (keep) {
        char file[PATH];
        const cmoe_model_options folded = with(CMOE_F32, list, NULL, 1);
        logits_of(dir, 2, &folded, ids, N, got[0]);
        cmoe_view v = cmoe_view_2d(got[0], CMOE_F32, N, info.vocab);
        v.name = "logits";
        snprintf(file, sizeof file, "%s/ours.safetensors", adapter_dir);
        UNIT_OK(cmoe_safetensors_write(file, &v, 1, NULL, &err));
    }
    const bool packed = !strcmp(kind, "gpt_oss_mxfp4") || !strcmp(kind, "qwen3_moe_fp8");
    if (packed)
        UNIT_FAILS(cmoe_model_merge(env.ctx, dir, list, NULL, 1, 0, out_dir, &err),
                   CMOE_ERR_UNSUPPORTED, "want another format for the merged model");
    UNIT_OK(cmoe_model_merge(env.ctx, dir, list, NULL, 1, CMOE_F32, out_dir, &err));
    for (int format = 0; format < 3; format++) {
        static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};
        const cmoe_model_options folded = with(formats[format], list, NULL, 1),
                                 plain = with(formats[format], NULL, NULL, 0);
        logits_of(dir, 2, &folded, ids, N, got[0]);
        logits_of(out_dir, 2, &plain, ids, N, got[1]);
        logits_of(dir, 2, &plain, ids, N, got[2]);
        if (memcmp(got[0], got[1], (size_t)(N * info.vocab) * 4) != 0)
            fail_msg("%s: merged is not folded", kind);
        assert_memory_not_equal(got[0], got[2], N * info.vocab * 4);
    }
    for (int i = 0; i < 3; i++)
        free(got[i]);
    for (int64_t i = 0; i < x.used; i++)
        free(x.values[i]);
    cmoe_adapter_free(a);
    if (!keep) remove_folder(adapter_dir);
    remove_folder(out_dir);
}

static void every_kind(void **state)
{
    (void)state;
    for (int i = 0; i < KINDS; i++)
        kind_merges(kinds[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bases),    cmocka_unit_test(adapters),   cmocka_unit_test(ambiguous),
        cmocka_unit_test(by_shape), cmocka_unit_test(merged),     cmocka_unit_test(scales),
        cmocka_unit_test(kept),     cmocka_unit_test(round_trip), cmocka_unit_test(every_kind),
    };
    if (argc < 3) return 2;
    folder = argv[1];
    models = argv[2];
    keep = argc > 3 ? argv[3] : NULL;
    env = unit_open(2);
    const int failed = UNIT_RUN("golden_peft", tests);
    unit_close(&env);
    return failed;
}
