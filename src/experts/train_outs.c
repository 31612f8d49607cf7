/* SPDX-License-Identifier: MIT
 *
 * train_outs.c - see train_outs.h.
 */
#include "train_outs.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/units.h"

static bool given_mut(const cmoe_view_mut *v)
{
    return v->dtype != 0 || v->data != NULL;
}

void cmoei_outs_input(cmoei_outs *o, cmoe_view v, const char *name)
{
    CMOE_ASSERT(o->inputs < CMOEI_OUTS_INPUTS);
    if (!cmoei_given(&v)) return;
    o->in[o->inputs].v = v;
    o->in[o->inputs++].name = name;
}

static void put(cmoei_outs *o, const cmoe_view_mut *v, const char *name)
{
    CMOE_ASSERT(o->count < CMOEI_OUTS_MOST);
    o->out[o->count].v = v;
    snprintf(o->out[o->count++].name, sizeof o->out[0].name, "%s", name);
}

cmoe_status cmoei_outs_add(cmoei_outs *o, const cmoe_view_mut *v, const char *name, int64_t n,
                           const char *n_name, int64_t m, const char *m_name, cmoe_error *err)
{
    const cmoei_want want = {name, CMOEI_DTYPE(CMOE_F32), 2, {n, m}, {n_name, m_name}};
    if (!given_mut(v)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_rows_out(v, &want, err));
    put(o, v, name);
    return CMOE_OK;
}

/* Sizes of the four gradients of part p: w, bias, a, b. */
static void part_wants(const cmoe_trainable *t, int64_t p, cmoei_want want[4])
{
    const int64_t E = t->experts, n = cmoei_part_outputs(t, p), K = t->inputs,
                  r = t->rank_at[p + 1] - t->rank_at[p];
    const uint32_t f32 = CMOEI_DTYPE(CMOE_F32);
    want[0] = (cmoei_want){NULL, f32, 3, {E, n, K}, {"experts", "outputs", "inputs"}};
    want[1] = (cmoei_want){NULL, f32, 2, {E, n}, {"experts", "outputs"}};
    want[2] = (cmoei_want){NULL, f32, 3, {E, r, K}, {"experts", "rank", "inputs"}};
    want[3] = (cmoei_want){NULL, f32, 3, {E, n, r}, {"experts", "outputs", "rank"}};
}

static cmoe_status add_part(cmoei_outs *o, const cmoe_trainable *t, const char *name, int64_t p,
                            const cmoe_part_gradient *g, cmoe_error *err)
{
    static const char *const fields[] = {"w", "bias", "a", "b"};
    const cmoe_view_mut *v[] = {&g->w, &g->bias, &g->a, &g->b};
    cmoei_want want[4];
    char text[64];
    part_wants(t, p, want);
    for (int i = 0; i < 4; i++) {
        if (!given_mut(v[i])) continue;
        snprintf(text, sizeof text, "%s[%" PRId64 "].%s", name, p, fields[i]);
        if (i >= 2 && t->rank_at[p + 1] == t->rank_at[p])
            return cmoei_fail(err, CMOE_ERR_ARG,
                              "%s is asked for, but that part has no low-rank term",
                              cmoei_name(v[i]->name, text));
        want[i].name = text;
        CMOEI_TRY(cmoei_check_out(v[i], &want[i], err));
        put(o, v[i], text);
    }
    return CMOE_OK;
}

cmoe_status cmoei_outs_add_parts(cmoei_outs *o, const cmoe_trainable *t, const char *name,
                                 const cmoe_part_gradient *parts, cmoe_error *err)
{
    CMOE_ASSERT(o->trainables < CMOEI_OUTS_TRAINABLES);
    if (t) o->t[o->trainables++] = t;
    if (!parts) return CMOE_OK;
    for (int64_t p = 0; p < t->count; p++)
        CMOEI_TRY(add_part(o, t, name, p, &parts[p], err));
    return CMOE_OK;
}

cmoe_status cmoei_outs_check(const cmoei_outs *o, const cmoe_arena *scratch, cmoe_error *err)
{
    for (int64_t i = 0; i < o->inputs; i++)
        CMOEI_TRY(cmoei_check_scratch(scratch, &o->in[i].v, o->in[i].name, err));
    for (int64_t i = 0; i < o->count; i++) {
        const cmoe_view_mut *v = o->out[i].v;
        const cmoe_view place = cmoe_view_of(*v);
        const char *name = o->out[i].name;
        CMOEI_TRY(cmoei_check_scratch(scratch, &place, name, err));
        for (int64_t k = 0; k < o->inputs; k++)
            CMOEI_TRY(cmoei_check_apart(v, name, &o->in[k].v, o->in[k].name, err));
        for (int64_t k = 0; k < o->trainables; k++)
            CMOEI_TRY(cmoei_trainable_apart(v, name, o->t[k], err));
        for (int64_t k = 0; k < i; k++) {
            const cmoe_view other = cmoe_view_of(*o->out[k].v);
            CMOEI_TRY(cmoei_check_apart(v, name, &other, o->out[k].name, err));
        }
    }
    return CMOE_OK;
}
