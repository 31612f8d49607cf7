/* SPDX-License-Identifier: MIT
 *
 * trainable.c - cmoe_trainable: sizes and memory.
 */
#include "trainable.h"

#include <inttypes.h>
#include <string.h>

static const cmoe_trainable_options defaults = {.size = sizeof defaults, .format = CMOE_F32};

void cmoe_trainable_options_default(cmoe_trainable_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

static cmoe_status check(const cmoe_trainable_options *o, int64_t experts, int64_t outputs,
                         int64_t inputs, cmoe_error *err)
{
    if (o->format != CMOE_F32 && o->format != CMOE_BF16)
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "format %s (%d) not supported, want one of: f32 bf16",
                          cmoe_dtype_name(o->format), o->format);
    CMOEI_TRY(cmoei_check_flag(o->borrow, "borrow", err));
    const int64_t sizes[] = {experts, outputs, inputs};
    static const char *const names[] = {"experts", "outputs", "inputs"};
    for (int i = 0; i < 3; i++) {
        if (sizes[i] < 1 || sizes[i] > INT32_MAX)
            return cmoei_fail(err, CMOE_ERR_SHAPE, "%s = %" PRId64 ", want 1 to 2^31 - 1", names[i],
                              sizes[i]);
    }
    if (o->rank < 0 || o->rank > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "rank = %" PRId64 ", want 0 to 2^31 - 1", o->rank);
    return CMOE_OK;
}

/* Memory for packing panels from rows on every thread. */
static cmoe_status allocate_pack(cmoe_trainable *t, cmoe_error *err)
{
    const int64_t longest = CMOEI_MAX(t->forward.inputs, t->backward.inputs);
    int64_t bytes;
    if (t->o.borrow) return CMOE_OK;
    if (!cmoei_pack_elements(longest, &t->pack_elements) ||
        !cmoei_mul(t->pack_elements, t->ctx->threads * (int64_t)sizeof *t->pack, &bytes))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "weights: rows of %" PRId64 " values are too long",
                          longest);
    CMOEI_TRY(cmoei_alloc(t->ctx, bytes, "packing rows", (void **)&t->pack, err));
    t->pack_bytes = bytes;
    return CMOE_OK;
}

static cmoe_status build(cmoe_trainable *t, cmoe_error *err)
{
    const int64_t E = t->experts, N = t->outputs, K = t->inputs, rank = t->o.rank;
    const int64_t forward[] = {E, N, K + rank}, backward[] = {E, K, N + rank};
    const int64_t down_x[] = {E, rank, K}, down_dy[] = {E, rank, N};
    const bool borrow = t->o.borrow != 0;
    const int32_t format = t->o.format;
    CMOEI_TRY(
        cmoei_matrix_init(&t->forward, t->ctx, format, forward, true, borrow, "weights", err));
    t->bias = t->forward.bias;
    CMOEI_TRY(
        cmoei_matrix_init(&t->backward, t->ctx, format, backward, false, borrow, "weights", err));
    if (rank > 0) {
        CMOEI_TRY(cmoei_matrix_init(&t->down_x, t->ctx, format, down_x, false, borrow, "a", err));
        CMOEI_TRY(cmoei_matrix_init(&t->down_dy, t->ctx, format, down_dy, false, borrow, "b", err));
    }
    cmoe_matrix *matrices[] = {&t->forward, &t->backward, &t->down_x, &t->down_dy};
    const cmoei_rows rows[] = {cmoei_forward_rows, cmoei_backward_rows, cmoei_down_x_rows,
                               cmoei_down_dy_rows};
    for (int i = 0; i < 4; i++) {
        matrices[i]->rows = rows[i];
        matrices[i]->rows.user = t;
    }
    return allocate_pack(t, err);
}

cmoe_status cmoe_trainable_create(cmoe_trainable **out, cmoe_ctx *ctx,
                                  const cmoe_trainable_options *options, int64_t experts,
                                  int64_t outputs, int64_t inputs, cmoe_error *err)
{
    cmoe_trainable_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_trainable_options", err));
    if (!out || !ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "trainable: %s is NULL", out ? "ctx" : "out");
    CMOEI_TRY(check(&o, experts, outputs, inputs, err));
    cmoe_trainable *t = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *t, "trainable", (void **)&t, err));
    *t = (cmoe_trainable){
        .ctx = ctx, .o = o, .experts = experts, .outputs = outputs, .inputs = inputs};
    const cmoe_status status = build(t, err);
    if (status != CMOE_OK) {
        cmoe_trainable_free(t);
        return status;
    }
    *out = t;
    return CMOE_OK;
}

void cmoe_trainable_free(cmoe_trainable *t)
{
    if (!t) return;
    t->forward.bias = t->bias;
    cmoe_matrix *matrices[] = {&t->forward, &t->backward, &t->down_x, &t->down_dy};
    for (int i = 0; i < 4; i++) {
        if (matrices[i]->ctx) cmoei_matrix_clear(matrices[i]);
    }
    cmoei_free(t->ctx, t->pack, t->pack_bytes);
    cmoei_free(t->ctx, t, (int64_t)sizeof *t);
}

cmoe_status cmoe_trainable_describe(const cmoe_trainable *t, cmoe_trainable_info *info,
                                    cmoe_error *err)
{
    if (!t || !info)
        return cmoei_fail(err, CMOE_ERR_ARG, "trainable_describe: %s is NULL",
                          t ? "info" : "trainable");
    cmoe_trainable_info all = {.size = sizeof all,
                               .experts = t->experts,
                               .outputs = t->outputs,
                               .inputs = t->inputs,
                               .rank = t->o.rank,
                               .parts = t->count,
                               .format = t->o.format,
                               .borrow = t->o.borrow};
    if (!t->o.borrow)
        all.packed_bytes = t->forward.packed_bytes + t->backward.packed_bytes +
                           t->down_x.packed_bytes + t->down_dy.packed_bytes;
    if (info->size < sizeof(size_t))
        return cmoei_fail(err, CMOE_ERR_ARG, "cmoe_trainable_info: size = %zu, want %zu",
                          info->size, sizeof all);
    cmoei_options_write(info, info->size, &all, sizeof all);
    return CMOE_OK;
}

/* ---- checks of every call -------------------------------------------------------------------- */

cmoe_status cmoei_trainable_check(const cmoe_stream *s, const cmoe_trainable *t, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!t || t->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "trainable is %s, want one made from the stream's context",
                          t ? "of another context" : "NULL");
    if (!t->count)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "trainable has no contents, want cmoe_trainable_fill first");
    return CMOE_OK;
}

cmoe_status cmoei_trainable_check_rows(const cmoe_trainable *t, const cmoe_view *x,
                                       const char *name, int32_t grouped, const char *flag,
                                       const cmoe_groups *g, int64_t width, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_flag(grouped, flag, err));
    if (!g && t->experts != 1)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "groups is NULL and the trainable has %" PRId64 " experts, want groups",
                          t->experts);
    if (g) CMOEI_TRY(cmoei_groups_check(g, t->experts, err));
    const cmoei_want want = {name,
                             0,
                             2,
                             {g && !grouped ? g->tokens : -1, width},
                             {g && grouped ? "rows" : "tokens",
                              width == t->inputs && name[0] == 'x' ? "inputs" : "outputs"}};
    CMOEI_TRY(cmoei_check_rows(x, &want, err));
    if (x->dims[0] > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[0] = %" PRId64 ", want at most 2^31 - 1 rows",
                          cmoei_name(x->name, name), x->dims[0]);
    return g && grouped ? cmoei_check_filled(x, name, g->first[g->experts], err) : CMOE_OK;
}

cmoe_status cmoei_trainable_apart(const cmoe_view_mut *out, const char *name,
                                  const cmoe_trainable *t, cmoe_error *err)
{
    for (int64_t p = 0; p < t->count && t->o.borrow; p++) {
        const cmoe_part *part = &t->parts[p];
        const cmoe_view *views[] = {&part->w, &part->scale, &part->a, &part->b};
        static const char *const names[] = {"w", "scale", "a", "b"};
        for (int i = 0; i < 4; i++)
            CMOEI_TRY(cmoei_check_apart(out, name, views[i], names[i], err));
    }
    return CMOE_OK;
}
