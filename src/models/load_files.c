/* SPDX-License-Identifier: MIT
 *
 * load_files.c - which bytes of the files a layer reads, so that they can be read ahead and dropped.
 */
#include <stdlib.h>

#include "load.h"
#include "weights/checkpoint.h"

/* Bytes [data, data + bytes) of the mapping. */
typedef struct extent {
    const char *data;
    int64_t bytes;
} extent;

static extent extent_of(const cmoei_source *s)
{
    const int64_t size = s->dtype == CMOE_E2M1X2 ? 1 : cmoe_dtype_bytes(s->dtype);
    const int64_t cols = s->dtype == CMOE_E2M1X2 ? cmoei_ceil_div(s->cols, 2) : s->cols;
    const bool any = s->data && s->rows > 0 && cols > 0;
    return (extent){s->data, any ? ((s->rows - 1) * s->row + (cols - 1) * s->col + 1) * size : 0};
}

static int by_address(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    return x->data < y->data ? -1 : x->data > y->data;
}

static int64_t collect(const cmoei_loader *l, int64_t layer, extent *list)
{
    int64_t n = 0;
    for (int32_t r = CMOEI_GLOBAL_ROLES; r < CMOEI_LAYER_ROLES; r++)
        list[n++] = extent_of(cmoei_tensor_of(l->t, layer, (cmoei_role)r));
    const cmoei_range kept = cmoei_share_experts(&l->m->share, l->m->d.layer[layer].experts);
    for (int32_t r = CMOEI_LAYER_ROLES; r < CMOEI_ROLES; r++) {
        for (int64_t e = kept.first; e < kept.first + kept.count; e++)
            list[n++] = extent_of(cmoei_tensor_of_expert(l->t, layer, (cmoei_role)r, e));
    }
    return n;
}

/* Calls fn for what a layer reads, neighbours together: a call to the kernel costs as much as
 * reading half a megabyte, and a layer has hundreds of tensors side by side. */
cmoe_status cmoei_load_extents(const cmoei_loader *l, int64_t layer, cmoei_extent_fn fn)
{
    enum { GAP = 65536 };
    const int64_t most =
        CMOEI_ROLES + (CMOEI_ROLES - CMOEI_LAYER_ROLES) * l->m->d.layer[layer].experts;
    const int64_t bytes = most * (int64_t)sizeof(extent);
    extent *list;
    CMOEI_TRY(cmoei_alloc(l->m->ctx, bytes, "extents of a layer", (void **)&list, l->err));
    const int64_t n = collect(l, layer, list);
    qsort(list, (size_t)n, sizeof *list, by_address);
    for (int64_t i = 0, next; i < n; i = next) {
        const char *end = list[i].data + list[i].bytes;
        for (next = i + 1; next < n && list[next].data - end <= GAP; next++)
            end = CMOEI_MAX(end, list[next].data + list[next].bytes);
        if (list[i].bytes > 0) fn(l->c, list[i].data, end - list[i].data);
    }
    cmoei_free(l->m->ctx, list, bytes);
    return CMOE_OK;
}

void cmoei_load_drop_global(const cmoei_loader *l)
{
    for (int32_t r = 0; r < CMOEI_GLOBAL_ROLES; r++) {
        const extent x = extent_of(&l->t->global[r]);
        if (x.bytes > 0) cmoei_checkpoint_drop(l->c, x.data, x.bytes);
    }
}
