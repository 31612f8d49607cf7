/* SPDX-License-Identifier: MIT
 *
 * adapt.c - modules of adapters -> roles of the decoder.
 *
 * PEFT names modules as transformers does, which is mostly how files name tensors, but transformers 5 has
 * moved some: Mixtral's experts lie in files under block_sparse_moe and in the class under mlp.  Both
 * spellings are understood.  A term whose place the model does not have, or has in another shape, is an
 * error: the adapter was made for another model.
 */
#include "adapt.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "resolve.h"

/* ---- names ----------------------------------------------------------------------------------- */

#define LAYER "model.layers.{l}."
static const cmoei_tensor_name modules[] = {
    {LAYER "mlp.experts.gate_up_proj", CMOEI_FUSED_GATE_UP, 0},
    {LAYER "mlp.experts.down_proj", CMOEI_FUSED_DOWN, 0},
    {LAYER "block_sparse_moe.experts.gate_up_proj", CMOEI_FUSED_GATE_UP, 0},
    {LAYER "block_sparse_moe.experts.down_proj", CMOEI_FUSED_DOWN, 0},
    {LAYER "mlp.experts.{e}.gate_proj", CMOEI_EXPERT_GATE, 0},
    {LAYER "mlp.experts.{e}.up_proj", CMOEI_EXPERT_UP, 0},
    {LAYER "mlp.experts.{e}.down_proj", CMOEI_EXPERT_DOWN, 0},
    {LAYER "mlp.experts.{e}.w1", CMOEI_EXPERT_GATE, 0},
    {LAYER "mlp.experts.{e}.w3", CMOEI_EXPERT_UP, 0},
    {LAYER "mlp.experts.{e}.w2", CMOEI_EXPERT_DOWN, 0},
    {LAYER "mlp.gate", CMOEI_ROUTER, 0},
    {LAYER "mlp.router", CMOEI_ROUTER, 0},
    {LAYER "block_sparse_moe.gate", CMOEI_ROUTER, 0},
    {LAYER "block_sparse_moe.router", CMOEI_ROUTER, 0},
    {NULL, CMOEI_IGNORED, 0},
};

/* Its files have it alike, unless they are packed. */
uint32_t cmoei_adapt_how(const cmoei_decoder *d, cmoei_role role)
{
    for (const cmoei_tensor_name *const *list = d->arch->names; *list; list++)
        for (const cmoei_tensor_name *n = *list; n->pattern; n++)
            if (n->role == role && !(n->how & (CMOEI_BLOCKS | CMOEI_SCALES))) return n->how;
    return 0;
}

static bool takes_terms(cmoei_role role)
{
    return (role >= CMOEI_Q && role <= CMOEI_O) || role == CMOEI_ROUTER ||
           (role >= CMOEI_GATE && role <= CMOEI_DOWN) ||
           (role >= CMOEI_SHARED_GATE && role <= CMOEI_SHARED_DOWN) ||
           role == CMOEI_SHARED_WEIGHT ||
           (role >= CMOEI_EXPERT_GATE && role <= CMOEI_EXPERT_DOWN) ||
           role == CMOEI_FUSED_GATE_UP || role == CMOEI_FUSED_DOWN || role == CMOEI_FUSED_QKV;
}

/* Where transformers 5 has experts and router, if not in mlp.experts and mlp.gate. */
static const struct {
    const char *type, *block, *router;
} classes[] = {{"granitemoe", "block_sparse_moe", "router"},
               {"gpt_oss", "mlp", "router"},
               {"phimoe", "mlp", "router"},
               {"hunyuan_v1_moe", "mlp", "gate.wg"}};

bool cmoei_adapt_module(const cmoei_decoder *d, int64_t layer, cmoei_role role, char *name,
                        size_t size)
{
    char full[CMOEI_NAME];
    const char *block = "mlp", *router = "gate";
    const bool up = role == CMOEI_FUSED_GATE_UP;
    const cmoei_match m = {.role = role, .layer = layer, .expert = -1};
    for (int64_t i = 0; i < CMOEI_COUNT(classes); i++) {
        if (strcmp(classes[i].type, d->arch->type) != 0) continue;
        block = classes[i].block;
        router = classes[i].router;
    }
    if (up || role == CMOEI_EXPERT_DOWN || role == CMOEI_ROUTER) {
        snprintf(name, size, "model.layers.%" PRId64 ".%s.%s", layer, block,
                 up                          ? "experts.gate_up_proj"
                 : role == CMOEI_EXPERT_DOWN ? "experts.down_proj"
                                             : router);
        return true;
    }
    if (!takes_terms(role) || !cmoei_match_fill(d, &m, full)) return false;
    const size_t n = strlen(full), tail = strlen(".weight");
    if (n <= tail || strcmp(full + n - tail, ".weight") != 0) return false;
    snprintf(name, size, "%.*s", (int)(n - tail), full);
    return true;
}

/* ---- one term -------------------------------------------------------------------------------- */

typedef struct maker {
    cmoei_folds *f;
    const cmoei_decoder *d;
    const cmoe_adapter *a;
    int64_t adapter;
    float scale;
    int32_t layout;
    bool dry; /* count only */
    cmoe_error *err;
} maker;

/* Shape of what a term changes, for one expert; false: the model has nothing like it. */
static bool shape_of(const cmoei_decoder *d, const cmoei_match *m, int64_t dims[2])
{
    int64_t kv[2];
    switch ((int)m->role) {
    case CMOEI_FUSED_GATE_UP:
        if (!cmoei_role_shape(d, m->layer, CMOEI_EXPERT_GATE, dims)) return false;
        dims[0] *= 2;
        return true;
    case CMOEI_FUSED_DOWN:
        return cmoei_role_shape(d, m->layer, CMOEI_EXPERT_DOWN, dims);
    case CMOEI_FUSED_QKV:
        if (!cmoei_role_shape(d, m->layer, CMOEI_Q, dims) ||
            !cmoei_role_shape(d, m->layer, CMOEI_K, kv))
            return false;
        dims[0] += 2 * kv[0];
        return true;
    default:
        return cmoei_role_shape(d, m->layer, m->role, dims);
    }
}

static cmoe_status refuse(const maker *k, const cmoei_lora_term *t, const char *why)
{
    return cmoei_fail(k->err, CMOE_ERR_FORMAT, "%s: %s: %s: an adapter for another model",
                      k->a->path, t->module, why);
}

/* Where a term belongs: one that is there, and takes one. */
static cmoe_status find_place(const maker *k, const cmoei_lora_term *t, cmoei_match *m,
                              int64_t dims[2])
{
    char name[sizeof t->module + 8], why[160];
    const cmoei_decoder *d = k->d;
    snprintf(name, sizeof name, "%s%s", t->module, t->stacked ? "" : ".weight");
    if (!cmoei_match_in(modules, t->module, m) && !cmoei_match_name(d, name, m)) {
        snprintf(why, sizeof why, "is no module of this %s", d->arch->type);
        return refuse(k, t, why);
    }
    if (m->layer >= d->layers) {
        snprintf(why, sizeof why, "the model has %" PRId64 " layers", d->layers);
        return refuse(k, t, why);
    }
    if (!takes_terms(m->role))
        return cmoei_fail(k->err, CMOE_ERR_UNSUPPORTED,
                          "%s: %s: terms are taken for attention, MLPs, experts and routers only",
                          k->a->path, t->module);
    const bool fused = m->role == CMOEI_FUSED_GATE_UP || m->role == CMOEI_FUSED_DOWN;
    if (fused != t->stacked || !shape_of(d, m, dims)) {
        snprintf(why, sizeof why, "layer %" PRId64 " of this %s has nothing of that name", m->layer,
                 d->arch->type);
        return refuse(k, t, why);
    }
    if (m->expert >= d->layer[m->layer].experts) {
        snprintf(why, sizeof why, "layer %" PRId64 " has %" PRId64 " experts", m->layer,
                 d->layer[m->layer].experts);
        return refuse(k, t, why);
    }
    return CMOE_OK;
}

/* ---- layout ---------------------------------------------------------------------------------- */

static const char ambiguous[] =
    "%s: %s fits as PEFT wrote it before 0.19.1 and since (both factors have %" PRId64
    " and %" PRId64 " rows and columns alike), and adapter_config.json records no peft_version: "
    "add the one that wrote "
    "it";

/* By the shapes of all terms together where the adapter does not say.  A parameter that the class keeps
 * transposed was never exchanged. */
static cmoe_status decide_layout(maker *k)
{
    int32_t fits_all = CMOEI_LORA_FITS_OLD | CMOEI_LORA_FITS_NEW;
    const cmoei_lora_term *open = NULL;
    k->layout = k->a->info.layout;
    if (k->layout != CMOE_PEFT_AUTO) return CMOE_OK;
    for (int64_t i = 0; i < k->a->count; i++) {
        const cmoei_lora_term *t = &k->a->terms[i];
        cmoei_match m;
        int64_t dims[2];
        if (!t->stacked) continue;
        CMOEI_TRY(find_place(k, t, &m, dims));
        if (cmoei_adapt_how(k->d, m.role) & CMOEI_TRANSPOSED) continue;
        const int32_t fits = cmoei_lora_fits(t, k->d->layer[m.layer].experts, dims[0], dims[1]);
        if (fits == (CMOEI_LORA_FITS_OLD | CMOEI_LORA_FITS_NEW)) open = t;
        fits_all &= fits;
    }
    /* 0: no layout fits all, which the first that does not fit will be told. */
    k->layout = fits_all == CMOEI_LORA_FITS_OLD ? CMOE_PEFT_BEFORE_0_19 : CMOE_PEFT_SINCE_0_19;
    if (fits_all != (CMOEI_LORA_FITS_OLD | CMOEI_LORA_FITS_NEW) || !open) return CMOE_OK;
    return cmoei_fail(k->err, CMOE_ERR_FORMAT, ambiguous, k->a->path, open->module, open->outputs,
                      open->inputs);
}

cmoe_status cmoei_adapter_layout(const cmoe_adapter *a, const cmoei_decoder *d, int32_t *layout,
                                 cmoe_error *err)
{
    maker k = {.d = d, .a = a, .dry = true, .err = err};
    CMOEI_TRY(decide_layout(&k));
    *layout = k.layout;
    return CMOE_OK;
}

/* ---- folds ----------------------------------------------------------------------------------- */

static void add(maker *k, const cmoei_lora_term *t, const char *module, const cmoei_match *m,
                cmoei_role role, int64_t expert, int64_t first, int64_t step)
{
    cmoei_folds *f = k->f;
    const int64_t e = t->stacked ? expert : 0;
    if (!k->dry)
        f->list[f->count] = (cmoei_fold){.layer = m->layer,
                                         .expert = CMOEI_MAX(expert, 0),
                                         .adapter = k->adapter,
                                         .role = role,
                                         .module = module,
                                         .a = t->a + e * t->rank * t->inputs,
                                         .b = t->b + e * t->outputs * t->rank,
                                         .rank = t->rank,
                                         .inputs = t->inputs,
                                         .first = first,
                                         .step = step,
                                         .scale = k->scale * t->scale};
    f->count++;
}

static void add_experts(maker *k, const cmoei_lora_term *t, const char *module,
                        const cmoei_match *m)
{
    const bool mixed = cmoei_adapt_how(k->d, m->role) & CMOEI_INTERLEAVED;
    const int64_t I = k->d->layer[m->layer].inter;
    for (int64_t e = 0; e < t->experts; e++) {
        if (m->role == CMOEI_FUSED_DOWN) {
            add(k, t, module, m, CMOEI_EXPERT_DOWN, e, 0, 1);
            continue;
        }
        add(k, t, module, m, CMOEI_EXPERT_GATE, e, 0, mixed ? 2 : 1);
        add(k, t, module, m, CMOEI_EXPERT_UP, e, mixed ? 1 : I, mixed ? 2 : 1);
    }
}

static void add_qkv(maker *k, const cmoei_lora_term *t, const char *module, const cmoei_match *m)
{
    const int64_t q = k->d->heads * k->d->head_dim, kv = k->d->kv_heads * k->d->head_dim;
    add(k, t, module, m, CMOEI_Q, -1, 0, 1);
    add(k, t, module, m, CMOEI_K, -1, q, 1);
    add(k, t, module, m, CMOEI_V, -1, q + kv, 1);
}

static cmoe_status add_term(maker *k, const cmoei_lora_term *t)
{
    cmoei_match m;
    int64_t dims[2];
    cmoei_lora_term turned;
    CMOEI_TRY(find_place(k, t, &m, dims));
    const bool plain = !t->stacked || (cmoei_adapt_how(k->d, m.role) & CMOEI_TRANSPOSED);
    CMOEI_TRY(cmoei_lora_orient(k->a, t, plain ? CMOE_PEFT_SINCE_0_19 : k->layout,
                                t->stacked ? k->d->layer[m.layer].experts : 1, dims[0], dims[1],
                                &turned, k->err));
    if (t->stacked)
        add_experts(k, &turned, t->module, &m);
    else if (m.role == CMOEI_FUSED_QKV)
        add_qkv(k, &turned, t->module, &m);
    else
        add(k, &turned, t->module, &m, m.role, m.expert, 0, 1);
    return CMOE_OK;
}

static cmoe_status add_all(cmoei_folds *f, const cmoe_adapter *const *adapters, const float *scales,
                           int64_t count, bool dry, cmoe_error *err)
{
    f->count = 0;
    for (int64_t i = 0; i < count; i++) {
        maker k = {.f = f,
                   .d = f->d,
                   .a = adapters[i],
                   .adapter = i,
                   .scale = scales ? scales[i] : 1,
                   .dry = dry,
                   .err = err};
        CMOEI_TRY(decide_layout(&k));
        for (int64_t j = 0; j < k.a->count; j++)
            CMOEI_TRY(add_term(&k, &k.a->terms[j]));
    }
    return CMOE_OK;
}

/* ---- order ----------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
    const cmoei_fold *x = a, *y = b;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    if (x->role != y->role) return x->role < y->role ? -1 : 1;
    if (x->expert != y->expert) return x->expert < y->expert ? -1 : 1;
    return (x->adapter > y->adapter) - (x->adapter < y->adapter);
}

static cmoe_status sort(cmoei_folds *f, const cmoe_adapter *const *adapters, cmoe_error *err)
{
    int64_t at = 0;
    qsort(f->list, (size_t)f->count, sizeof *f->list, by_place);
    for (int64_t i = 1; i < f->count; i++)
        if (by_place(&f->list[i - 1], &f->list[i]) == 0)
            return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: %s and %s are terms of one weight",
                              adapters[f->list[i].adapter]->path, f->list[i - 1].module,
                              f->list[i].module);
    for (int64_t p = 0; p <= f->d->layers * CMOEI_ROLES; p++) {
        while (at < f->count && f->list[at].layer * CMOEI_ROLES + (int64_t)f->list[at].role < p)
            at++;
        f->first[p] = at;
    }
    return CMOE_OK;
}

static cmoe_status check(const cmoe_adapter *const *adapters, const float *scales, int64_t count,
                         cmoe_error *err)
{
    if (count < 0 || count > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "adapter_count = %" PRId64 ", want 0 or more",
                          count);
    if (count > 0 && !adapters)
        return cmoei_fail(err, CMOE_ERR_ARG, "adapters is NULL, adapter_count = %" PRId64, count);
    for (int64_t i = 0; i < count; i++) {
        if (!adapters[i]) return cmoei_fail(err, CMOE_ERR_ARG, "adapters[%" PRId64 "] is NULL", i);
        if (scales && !isfinite(scales[i]))
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "adapter_scales[%" PRId64 "] = %g, want a number", i,
                              (double)scales[i]);
    }
    return CMOE_OK;
}

static cmoe_status make(cmoei_folds *f, const cmoe_adapter *const *adapters, const float *scales,
                        int64_t count, cmoe_error *err)
{
    CMOEI_TRY(add_all(f, adapters, scales, count, true, err));
    f->list_bytes = f->count * (int64_t)sizeof *f->list;
    f->first_bytes = (f->d->layers * CMOEI_ROLES + 1) * (int64_t)sizeof *f->first;
    CMOEI_TRY(cmoei_alloc(f->ctx, f->list_bytes, "terms of adapters", (void **)&f->list, err));
    CMOEI_TRY(cmoei_alloc(f->ctx, f->first_bytes, "terms of adapters", (void **)&f->first, err));
    CMOEI_TRY(add_all(f, adapters, scales, count, false, err));
    return sort(f, adapters, err);
}

cmoe_status cmoei_folds_make(cmoei_folds *f, cmoe_ctx *ctx, const cmoei_decoder *d,
                             const cmoe_adapter *const *adapters, const float *scales,
                             int64_t count, cmoe_error *err)
{
    *f = (cmoei_folds){.ctx = ctx, .d = d};
    CMOEI_TRY(check(adapters, scales, count, err));
    if (count == 0) return CMOE_OK;
    const cmoe_status status = make(f, adapters, scales, count, err);
    if (status != CMOE_OK) cmoei_folds_free(f);
    return status;
}

void cmoei_folds_free(cmoei_folds *f)
{
    if (f->list) cmoei_free(f->ctx, f->list, f->list_bytes);
    if (f->first) cmoei_free(f->ctx, f->first, f->first_bytes);
    *f = (cmoei_folds){0};
}

/* ---- rows ------------------------------------------------------------------------------------ */

bool cmoei_folds_touch(const cmoei_folds *f, int64_t layer, cmoei_role role)
{
    if (!f || f->count == 0 || layer < 0 || role >= CMOEI_ROLES) return false;
    const int64_t *first = f->first + layer * CMOEI_ROLES + (int64_t)role;
    return first[0] < first[1];
}

/* The first of [begin, end) that is not before this expert. */
static int64_t search(const cmoei_fold *list, int64_t begin, int64_t end, int64_t expert)
{
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (list[middle].expert < expert)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

static void fold(const cmoei_fold *x, int64_t n, float *row)
{
    enum { PART = 512 };
    float sum[PART];
    const float *b = x->b + (x->first + n * x->step) * x->rank;
    for (int64_t k = 0; k < x->inputs; k += PART) {
        const int64_t count = CMOEI_MIN(PART, x->inputs - k);
        memset(sum, 0, sizeof sum);
        for (int64_t p = 0; p < x->rank; p++) {
            const float *a = x->a + p * x->inputs + k, factor = b[p];
            for (int64_t i = 0; i < count; i++)
                sum[i] += factor * a[i];
        }
        /* What adds nothing leaves -0 alone: a zero adapter gives the bits of none. */
        for (int64_t i = 0; i < count; i++) {
            const float delta = x->scale * sum[i];
            row[k + i] = delta == 0 ? row[k + i] : row[k + i] + delta;
        }
    }
}

void cmoei_fold_row(const cmoei_folds *f, int64_t layer, cmoei_role role, int64_t expert, int64_t n,
                    float *row)
{
    if (!cmoei_folds_touch(f, layer, role)) return;
    const int64_t *first = f->first + layer * CMOEI_ROLES + (int64_t)role;
    int64_t i = search(f->list, first[0], first[1], expert);
    for (; i < first[1] && f->list[i].expert == expert; i++)
        fold(&f->list[i], n, row);
}
