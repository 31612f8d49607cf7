/* SPDX-License-Identifier: MIT
 *
 * cache.c - keys and values of all layers, in pages that sequences share.
 *
 *     layer 0: page 0, page 1, ...   layer 1: page 0, ...
 *
 * A page number means the same positions in every layer, so one table per sequence is enough.
 */
#include <inttypes.h>

#include "model.h"

static const cmoe_cache_options defaults = {.size = sizeof defaults};

void cmoe_cache_options_default(cmoe_cache_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

cmoe_kv cmoei_cache_layer(const cmoe_cache *c, int64_t layer)
{
    const cmoei_decoder *d = &c->model->d;
    cmoei_range queries, keys;
    cmoei_share_heads(&c->model->share, d, &queries, &keys);
    return (cmoe_kv){.size = sizeof(cmoe_kv),
                     .heads = keys.count,
                     .key_dim = d->head_dim,
                     .value_dim = d->head_dim,
                     .format = c->format,
                     .base = c->base ? c->base + layer * c->pages * c->layer_bytes : NULL,
                     .pages = c->pages,
                     .page_stride = c->layer_bytes};
}

/* Bytes of one layer's page. */
static cmoe_status page_bytes(const cmoe_cache *c, int64_t *bytes, cmoe_error *err)
{
    const cmoe_kv kv = cmoei_cache_layer(c, 0);
    CMOEI_TRY(cmoe_kv_page_bytes(&kv, bytes, err));
    *bytes = cmoei_round_up(*bytes, CMOEI_ALIGN);
    return CMOE_OK;
}

/* A cache without its memory. */
static cmoe_status measure(cmoe_cache *built, const cmoe_model *m,
                           const cmoe_cache_options *options, cmoe_error *err)
{
    cmoe_cache_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_cache_options", err));
    if (o.pages < 1 || o.pages > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "pages = %" PRId64 ", want 1 to 2147483647 (of %d positions)", o.pages,
                          CMOE_KV_PAGE);
    if (o.format == 0) o.format = m->format == CMOE_F32 ? CMOE_F32 : CMOE_BF16;
    if (o.format != CMOE_F32 && o.format != CMOE_BF16)
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "format %s (%d) not supported, want one of: f32 bf16",
                          cmoe_dtype_name(o.format), o.format);
    *built = (cmoe_cache){.model = m, .pages = o.pages, .format = o.format};
    CMOEI_TRY(page_bytes(built, &built->layer_bytes, err));
    if (!cmoei_mul(built->layer_bytes, m->d.layers, &built->bytes) ||
        !cmoei_mul(built->bytes, o.pages, &built->bytes))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "cache: %" PRId64 " pages exceed 2^63 - 1 bytes",
                          o.pages);
    return CMOE_OK;
}

cmoe_status cmoei_cache_bytes(const cmoe_model *m, const cmoe_cache_options *o, int64_t *bytes,
                              cmoe_error *err)
{
    cmoe_cache built;
    CMOEI_TRY(measure(&built, m, o, err));
    *bytes = built.bytes + (int64_t)sizeof built;
    return CMOE_OK;
}

cmoe_status cmoe_cache_create(cmoe_cache **out, const cmoe_model *m,
                              const cmoe_cache_options *options, cmoe_error *err)
{
    cmoe_cache built, *c;
    if (!out || !m)
        return cmoei_fail(err, CMOE_ERR_ARG, "cache: %s is NULL", out ? "model" : "out");
    CMOEI_TRY(measure(&built, m, options, err));
    CMOEI_TRY(cmoei_alloc(m->ctx, (int64_t)sizeof *c, "cache", (void **)&c, err));
    *c = built;
    const cmoe_status status =
        cmoei_alloc(m->ctx, c->bytes, "keys and values", (void **)&c->base, err);
    if (status != CMOE_OK) {
        cmoe_cache_free(c);
        return status;
    }
    *out = c;
    return CMOE_OK;
}

void cmoe_cache_free(cmoe_cache *c)
{
    if (!c) return;
    cmoei_free(c->model->ctx, c->base, c->bytes);
    cmoei_free(c->model->ctx, c, (int64_t)sizeof *c);
}

int64_t cmoe_cache_page_bytes(const cmoe_cache *c)
{
    return c ? c->layer_bytes * c->model->d.layers : 0;
}
