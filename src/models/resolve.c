/* SPDX-License-Identifier: MIT
 *
 * resolve.c - every tensor of a checkpoint to its place in the model, and nothing left over.
 *
 * One pass over the names in the files (match.c says what a name means, place.c where it goes), one
 * over the places of the model.  A tensor that nobody knows and a place that nobody filled are both
 * errors: either would mean other logits than the model's.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "resolve.h"
#include "text.h"

/* ---- memory ---------------------------------------------------------------------------------- */

static int64_t expert_bytes(const cmoei_layer_shape *l)
{
    return l->experts * (CMOEI_ROLES - CMOEI_LAYER_ROLES) * (int64_t)sizeof(cmoei_source);
}

static cmoe_status alloc_zero(cmoe_ctx *ctx, int64_t bytes, void **out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_alloc(ctx, bytes, "table of tensors", out, err));
    memset(*out, 0, (size_t)bytes);
    return CMOE_OK;
}

/* A config can ask for a million experts in a few bytes: what the files cannot hold is not worth a
 * table.  Four bits is the least that a weight takes. */
static cmoe_status check_plausible(const cmoei_decoder *d, const cmoe_checkpoint *files,
                                   cmoe_error *err)
{
    const double always = 64 << 20;
    double table = 0, least = 0;
    for (int64_t i = 0; i < d->layers; i++) {
        const cmoei_layer_shape *l = &d->layer[i];
        table += (double)expert_bytes(l);
        least += 1.5 * (double)l->experts * (double)l->inter * (double)d->hidden;
    }
    if (table <= always || least <= (double)cmoe_checkpoint_bytes(files)) return CMOE_OK;
    return cmoei_fail(
        err, CMOE_ERR_FORMAT,
        "the experts of config.json need at least %.0f bytes, the files have %" PRId64, least,
        cmoe_checkpoint_bytes(files));
}

static cmoe_status alloc_tensors(cmoei_tensors *t, cmoe_ctx *ctx, cmoe_error *err)
{
    const cmoei_decoder *d = t->decoder;
    void *p;
    CMOEI_TRY(alloc_zero(ctx, d->layers * CMOEI_LAYER_ROLES * (int64_t)sizeof *t->layer, &p, err));
    t->layer = p;
    CMOEI_TRY(alloc_zero(ctx, d->layers * (int64_t)sizeof *t->expert, &p, err));
    t->expert = p;
    for (int64_t i = 0; i < d->layers; i++) {
        if (d->layer[i].experts == 0) continue;
        CMOEI_TRY(alloc_zero(ctx, expert_bytes(&d->layer[i]), &p, err));
        t->expert[i] = p;
    }
    return CMOE_OK;
}

void cmoei_tensors_free(cmoei_tensors *t, cmoe_ctx *ctx)
{
    const cmoei_decoder *d = t->decoder;
    if (d) {
        for (int64_t i = 0; t->expert && i < d->layers; i++)
            cmoei_free(ctx, t->expert[i], expert_bytes(&d->layer[i]));
        cmoei_free(ctx, t->expert, d->layers * (int64_t)sizeof *t->expert);
        cmoei_free(ctx, t->layer, d->layers * CMOEI_LAYER_ROLES * (int64_t)sizeof *t->layer);
    }
    memset(t, 0, sizeof *t);
}

/* ---- tensors of the files -------------------------------------------------------------------- */

/* The role whose wish decides whether a tensor is wanted: that of a fused one is a part's. */
static cmoei_role part_of(cmoei_role role)
{
    switch ((int)role) {
    case CMOEI_FUSED_GATE_UP:
        return CMOEI_EXPERT_GATE;
    case CMOEI_FUSED_DOWN:
        return CMOEI_EXPERT_DOWN;
    case CMOEI_FUSED_GATE_UP_BIAS:
        return CMOEI_EXPERT_GATE_BIAS;
    case CMOEI_FUSED_DOWN_BIAS:
        return CMOEI_EXPERT_DOWN_BIAS;
    case CMOEI_FUSED_QKV:
        return CMOEI_Q;
    default:
        return role;
    }
}

static bool wanted(const cmoei_decoder *d, const cmoei_match *m)
{
    int64_t dims[2];
    return cmoei_role_shape(d, m->layer, part_of(m->role), dims) &&
           (m->expert < 0 || m->expert < d->layer[m->layer].experts);
}

/* What happens with a tensor of the file. */
typedef enum fate { UNKNOWN, IGNORED, USED } fate;

static fate fate_of(const cmoei_decoder *d, const char *name, cmoei_match *m)
{
    if (!cmoei_match_name(d, name, m)) return UNKNOWN;
    if (m->role == CMOEI_IGNORED || (m->role == CMOEI_HEAD && d->tied)) return IGNORED;
    return wanted(d, m) ? USED : UNKNOWN;
}

static const char *const f8_scales = "_scale_inv";

/* Whether `name` is "X_scale_inv"; X is then put into `base`. */
static bool names_f8_scales(const char *name, char base[CMOEI_NAME])
{
    const size_t n = strlen(name), tail = strlen(f8_scales);
    if (n <= tail || n - tail >= CMOEI_NAME || strcmp(name + n - tail, f8_scales) != 0)
        return false;
    memcpy(base, name, n - tail);
    base[n - tail] = '\0';
    return true;
}

/* X_scale_inv is used with X, which must be there and of eight bits. */
static cmoe_status check_f8_base(cmoei_resolver *r, const cmoe_tensor *x, const char *base)
{
    cmoe_tensor owner = {.size = sizeof owner};
    const int64_t i = cmoe_checkpoint_find(r->files, base);
    if (i < 0)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %s is there without %s", x->file, x->name,
                          base);
    CMOEI_TRY(cmoe_checkpoint_tensor(r->files, i, &owner, r->err));
    if (owner.dtype == CMOE_F8E4M3) return CMOE_OK;
    return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                      "%s: %s belongs to F8_E4M3, but %s has the format %s", x->file, x->name, base,
                      cmoe_dtype_name(owner.dtype));
}

static cmoe_status take(cmoei_resolver *r, int64_t i, cmoei_text_list *unknown)
{
    char base[CMOEI_NAME];
    cmoei_match m;
    cmoe_tensor x = {.size = sizeof x};
    CMOEI_TRY(cmoe_checkpoint_tensor(r->files, i, &x, r->err));
    const bool scales = names_f8_scales(x.name, base);
    switch (fate_of(r->d, scales ? base : x.name, &m)) {
    case UNKNOWN:
        cmoei_text_add(unknown, x.name);
        return CMOE_OK;
    case IGNORED:
        r->t->ignored++;
        return CMOE_OK;
    case USED:
        break;
    }
    r->t->used++;
    return scales ? check_f8_base(r, &x, base) : cmoei_place(r, &x, &m);
}

/* ---- places of the model --------------------------------------------------------------------- */

/* Adds what is missing by the name it has in files; a fused tensor only once. */
static void add_missing(cmoei_resolver *r, int64_t layer, cmoei_role role, int64_t expert,
                        cmoei_text_list *missing)
{
    char name[CMOEI_NAME];
    cmoei_match m = {.role = role, .layer = layer, .expert = expert};
    if (cmoei_match_fill(r->d, &m, name)) {
        cmoei_text_add(missing, name);
        return;
    }
    for (int fused = CMOEI_FUSED_GATE_UP; fused <= CMOEI_FUSED_QKV; fused++) {
        m.role = (cmoei_role)fused;
        if (part_of(m.role) == role && expert <= 0 && cmoei_match_fill(r->d, &m, name))
            cmoei_text_add(missing, name);
    }
}

static void find_missing_layer(cmoei_resolver *r, int64_t layer, cmoei_text_list *missing)
{
    int64_t dims[2];
    for (int role = CMOEI_GLOBAL_ROLES; role < CMOEI_LAYER_ROLES; role++)
        if (cmoei_role_shape(r->d, layer, (cmoei_role)role, dims) &&
            !cmoei_place_of(r->t, layer, (cmoei_role)role, -1)->data)
            add_missing(r, layer, (cmoei_role)role, -1, missing);
    for (int64_t e = 0; e < r->d->layer[layer].experts; e++)
        for (int role = CMOEI_LAYER_ROLES; role < CMOEI_ROLES; role++)
            if (cmoei_role_shape(r->d, layer, (cmoei_role)role, dims) &&
                !cmoei_place_of(r->t, layer, (cmoei_role)role, e)->data)
                add_missing(r, layer, (cmoei_role)role, e, missing);
}

static void find_missing(cmoei_resolver *r, cmoei_text_list *missing)
{
    int64_t dims[2];
    for (int role = 0; role < CMOEI_GLOBAL_ROLES; role++)
        if (cmoei_role_shape(r->d, -1, (cmoei_role)role, dims) && !r->t->global[role].data)
            add_missing(r, -1, (cmoei_role)role, -1, missing);
    for (int64_t i = 0; i < r->d->layers; i++)
        find_missing_layer(r, i, missing);
}

static cmoe_status report(cmoei_resolver *r, cmoei_text_list *unknown, cmoei_text_list *missing)
{
    const char *type = r->d->arch->type;
    if (unknown->count && missing->count)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                          "tensors that this %s does not have: %s; and missing: %s", type,
                          cmoei_text_end(unknown), cmoei_text_end(missing));
    if (unknown->count)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "tensors that this %s does not have: %s", type,
                          cmoei_text_end(unknown));
    if (missing->count)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "tensors that this %s needs are missing: %s",
                          type, cmoei_text_end(missing));
    return CMOE_OK;
}

static cmoe_status resolve(cmoei_resolver *r, cmoe_ctx *ctx)
{
    cmoei_text_list unknown = {.between = ", "}, missing = {.between = ", "};
    CMOEI_TRY(check_plausible(r->d, r->files, r->err));
    CMOEI_TRY(alloc_tensors(r->t, ctx, r->err));
    const int64_t count = cmoe_checkpoint_count(r->files);
    for (int64_t i = 0; i < count; i++)
        CMOEI_TRY(take(r, i, &unknown));
    find_missing(r, &missing);
    return report(r, &unknown, &missing);
}

cmoe_status cmoei_tensors_resolve(cmoei_tensors *t, cmoe_ctx *ctx, const cmoei_decoder *d,
                                  const cmoe_checkpoint *c, cmoe_error *err)
{
    memset(t, 0, sizeof *t);
    t->decoder = d;
    cmoei_resolver r = {.t = t, .d = d, .files = c, .err = err};
    const cmoe_status status = resolve(&r, ctx);
    if (status != CMOE_OK) cmoei_tensors_free(t, ctx);
    return status;
}
