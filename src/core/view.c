/* SPDX-License-Identifier: MIT
 *
 * view.c - making tensor views, and checking them at every entry.
 *
 * A view comes from outside, so nothing in it is trusted: dims may be negative, products may
 * overflow, strides may walk anywhere.  After cmoei_check_in / _out all of that is known to be sane
 * and the kernels look at nothing but addresses.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core.h"

static void fill(cmoe_view *v, int32_t dtype, int32_t rank, const int64_t *dims)
{
    memset(v, 0, sizeof *v);
    v->dtype = dtype;
    v->device = CMOE_HOST;
    v->rank = rank;
    uint64_t stride = 1;
    for (int32_t i = rank - 1; i >= 0 && rank <= CMOE_MAX_RANK; i--) {
        v->dims[i] = dims[i];
        v->strides[i] = (int64_t)stride;
        stride *= (uint64_t)dims[i];
    }
}

cmoe_view cmoe_view_make(const void *data, int32_t dtype, int32_t rank, const int64_t *dims)
{
    cmoe_view v;
    fill(&v, dtype, rank, dims);
    v.data = data;
    return v;
}

cmoe_view cmoe_view_1d(const void *data, int32_t dtype, int64_t n)
{
    return cmoe_view_make(data, dtype, 1, &n);
}

cmoe_view cmoe_view_2d(const void *data, int32_t dtype, int64_t rows, int64_t cols)
{
    const int64_t dims[2] = {rows, cols};
    return cmoe_view_make(data, dtype, 2, dims);
}

cmoe_view cmoe_view_3d(const void *data, int32_t dtype, int64_t n, int64_t rows, int64_t cols)
{
    const int64_t dims[3] = {n, rows, cols};
    return cmoe_view_make(data, dtype, 3, dims);
}

cmoe_view cmoe_view_none(void)
{
    cmoe_view v;
    memset(&v, 0, sizeof v);
    return v;
}

cmoe_view cmoe_view_of(cmoe_view_mut m)
{
    cmoe_view v;
    v.data = m.data;
    v.name = m.name;
    v.dtype = m.dtype;
    v.device = m.device;
    v.rank = m.rank;
    v.reserved = m.reserved;
    memcpy(v.dims, m.dims, sizeof v.dims);
    memcpy(v.strides, m.strides, sizeof v.strides);
    return v;
}

cmoe_view_mut cmoe_view_mut_make(void *data, int32_t dtype, int32_t rank, const int64_t *dims)
{
    cmoe_view v;
    cmoe_view_mut m;
    fill(&v, dtype, rank, dims);
    m.data = data;
    m.name = v.name;
    m.dtype = v.dtype;
    m.device = v.device;
    m.rank = v.rank;
    m.reserved = v.reserved;
    memcpy(m.dims, v.dims, sizeof m.dims);
    memcpy(m.strides, v.strides, sizeof m.strides);
    return m;
}

cmoe_view_mut cmoe_view_mut_1d(void *data, int32_t dtype, int64_t n)
{
    return cmoe_view_mut_make(data, dtype, 1, &n);
}

cmoe_view_mut cmoe_view_mut_2d(void *data, int32_t dtype, int64_t rows, int64_t cols)
{
    const int64_t dims[2] = {rows, cols};
    return cmoe_view_mut_make(data, dtype, 2, dims);
}

cmoe_view_mut cmoe_view_mut_none(void)
{
    cmoe_view_mut m;
    memset(&m, 0, sizeof m);
    return m;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static void dtype_list(uint32_t dtypes, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int32_t d = CMOE_F32; d <= CMOE_E2M1X2 && used < size; d++) {
        if (dtypes & CMOEI_DTYPE(d))
            used += (size_t)snprintf(text + used, size - used, "%s%s", used ? " " : "",
                                     cmoe_dtype_name(d));
    }
}

/* "[tokens, hidden]" or, where a size is fixed, "[tokens, hidden = 8]". */
static void shape_list(const cmoei_want *want, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (int32_t i = 0; i < want->rank && used < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%s", i ? ", " : "",
                                 want->dim_names[i] ? want->dim_names[i] : "n");
        if (want->dims[i] >= 0 && used < size)
            used += (size_t)snprintf(text + used, size - used, " = %" PRId64, want->dims[i]);
    }
    if (used < size) snprintf(text + used, size - used, "]");
}

/* Lowest and one past the highest byte of a view; false when that leaves the address space. */
static bool span(const cmoe_view *v, uintptr_t *low, uintptr_t *high)
{
    int64_t below = 0, above = 0;
    const int64_t bytes = cmoe_dtype_bytes(v->dtype);
    for (int32_t i = 0; i < v->rank; i++) {
        if (v->dims[i] < 1 || v->strides[i] == INT64_MIN) return false; /* nobody checked it */
        int64_t reach, step;
        const bool down = v->strides[i] < 0;
        const int64_t stride = down ? -v->strides[i] : v->strides[i];
        /* In bytes a stride fits even where there is one element and nobody steps along it. */
        if (!cmoei_mul(stride, bytes, &step) || !cmoei_mul(v->dims[i] - 1, stride, &reach) ||
            !cmoei_add(down ? below : above, reach, down ? &below : &above))
            return false;
    }
    if (!cmoei_add(above, 1, &above) || !cmoei_mul(above, bytes, &above) ||
        !cmoei_mul(below, bytes, &below))
        return false;
    const uintptr_t at = (uintptr_t)v->data;
    if ((uintptr_t)below > at || (uintptr_t)above > UINTPTR_MAX - at) return false;
    *low = at - (uintptr_t)below;
    *high = at + (uintptr_t)above;
    return true;
}

/* Also of a view that nobody has checked: a rank that is none counts as nothing. */
static bool empty(const cmoe_view *v)
{
    if (v->rank < 0 || v->rank > CMOE_MAX_RANK) return true;
    for (int32_t i = 0; i < v->rank; i++) {
        if (v->dims[i] == 0) return true;
    }
    return false;
}

cmoe_status cmoei_check_in(const cmoe_view *v, const cmoei_want *want, cmoe_error *err)
{
    const char *name = cmoei_name(v->name, want->name);
    char shape[160], types[96]; /* written only when a check fails: this runs for every token */
    if (!cmoei_given(v) && v->rank == 0) {
        shape_list(want, shape, sizeof shape);
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is not given, want a tensor %s", name, shape);
    }
    if (v->rank != want->rank) {
        shape_list(want, shape, sizeof shape);
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: rank %d, want %d %s", name, v->rank, want->rank,
                          shape);
    }
    if (v->dtype < CMOE_F32 || v->dtype > CMOE_E2M1X2 || !(want->dtypes & CMOEI_DTYPE(v->dtype))) {
        dtype_list(want->dtypes, types, sizeof types);
        return cmoei_fail(err, CMOE_ERR_DTYPE, "%s: dtype %s (%d), want one of: %s", name,
                          cmoe_dtype_name(v->dtype), v->dtype, types);
    }
    if (v->device != CMOE_HOST)
        return cmoei_fail(err, CMOE_ERR_DEVICE,
                          "%s: device %d, want -1 (a host tensor on a host stream)", name,
                          v->device);
    if (v->reserved)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s: reserved = %d, want 0", name, v->reserved);
    int64_t n = 1;
    for (int32_t i = 0; i < v->rank; i++) {
        const int64_t far = INT64_MAX / cmoe_dtype_bytes(v->dtype);
        if (v->dims[i] < 0)
            return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: dims[%d] = %" PRId64 ", want >= 0", name, i,
                              v->dims[i]);
        /* Strides are turned into bytes even where there are no elements to step over. */
        if (v->strides[i] > far || v->strides[i] < -far)
            return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: strides reach outside the address space",
                              name);
    }
    for (int32_t i = 0; i < v->rank; i++) {
        if (want->dims[i] >= 0 && v->dims[i] != want->dims[i]) {
            shape_list(want, shape, sizeof shape);
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "%s: dims[%d] = %" PRId64 ", want %" PRId64 " %s", name, i,
                              v->dims[i], want->dims[i], shape);
        }
    }
    if (empty(v)) return CMOE_OK;
    for (int32_t i = 0; i < v->rank; i++) {
        if (!cmoei_mul(n, v->dims[i], &n))
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "%s: dims up to dims[%d] = %" PRId64 " multiply beyond 2^63 - 1",
                              name, i, v->dims[i]);
    }
    if (!cmoei_mul(n, cmoe_dtype_bytes(v->dtype), &n))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: more than 2^63 - 1 bytes", name);
    if (!v->data)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s: data is NULL, want %" PRId64 " bytes", name, n);
    uintptr_t low, high;
    if (!span(v, &low, &high))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: strides reach outside the address space", name);
    return CMOE_OK;
}

/* No two elements of an output may share an address: going from the smallest stride to the largest,
 * each must step over everything that the smaller ones reach. */
static bool elements_apart(const cmoe_view *v)
{
    bool done[CMOE_MAX_RANK] = {false};
    int64_t reach = 1;
    for (int32_t round = 0; round < v->rank; round++) {
        int32_t next = -1;
        for (int32_t i = 0; i < v->rank; i++) {
            if (!done[i] && (next < 0 || v->strides[i] < v->strides[next])) next = i;
        }
        done[next] = true;
        if (v->dims[next] <= 1) continue;
        if (v->strides[next] < reach) return false;
        reach += v->strides[next] * (v->dims[next] - 1); /* fits: span() was checked */
    }
    return true;
}

cmoe_status cmoei_check_out(const cmoe_view_mut *m, const cmoei_want *want, cmoe_error *err)
{
    const cmoe_view v = cmoe_view_of(*m);
    CMOEI_TRY(cmoei_check_in(&v, want, err));
    if (!empty(&v) && !elements_apart(&v))
        return cmoei_fail(
            err, CMOE_ERR_SHAPE,
            "%s: strides are negative or make elements share memory, want an output whose "
            "elements lie apart",
            cmoei_name(v.name, want->name));
    return CMOE_OK;
}

/* Blocks of two tensors that take turns, as the columns of one matrix that two views share out: with one step
 * between blocks, each block of the second lies between two of the first. */
static bool take_turns(const cmoe_view *x, const cmoe_view *y)
{
    cmoe_view one = *x, two = *y;
    uintptr_t a, b, c, d;
    int64_t step;
    if (x->rank < 2 || y->rank < 2 || x->strides[0] != y->strides[0] || x->dtype != y->dtype ||
        !cmoei_mul(x->strides[0], cmoe_dtype_bytes(x->dtype), &step) || step <= 0)
        return false;
    one.dims[0] = two.dims[0] = 1;
    if (!span(&one, &a, &b) || !span(&two, &c, &d)) return false;
    const uintptr_t s = (uintptr_t)step, at = a <= c ? (c - a) % s : s - 1 - (a - c - 1) % s;
    return b - a <= at && at <= s && d - c <= s - at;
}

cmoe_status cmoei_check_apart(const cmoe_view_mut *out, const char *out_name, const cmoe_view *in,
                              const char *in_name, cmoe_error *err)
{
    const cmoe_view o = cmoe_view_of(*out);
    uintptr_t a, b, c, d;
    if (!o.data || !in->data || empty(&o) || empty(in) || !span(&o, &a, &b) || !span(in, &c, &d))
        return CMOE_OK;
    if (a < d && c < b && !take_turns(&o, in))
        return cmoei_fail(err, CMOE_ERR_ARG, "%s overlaps %s in memory, want separate tensors",
                          cmoei_name(o.name, out_name), cmoei_name(in->name, in_name));
    return CMOE_OK;
}

cmoe_status cmoei_check_scratch(const cmoe_arena *scratch, const cmoe_view *v, const char *name,
                                cmoe_error *err)
{
    uintptr_t a, b;
    if (!scratch || !scratch->base || scratch->used < 0 || scratch->used >= scratch->bytes ||
        !v->data || empty(v) || !span(v, &a, &b))
        return CMOE_OK;
    const uintptr_t low = (uintptr_t)scratch->base + (uintptr_t)scratch->used;
    const uintptr_t high = (uintptr_t)scratch->base + (uintptr_t)scratch->bytes;
    if (a < high && low < b)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "%s lies in the free part of the arena, which the call writes over; want "
                          "it below `used` or elsewhere",
                          cmoei_name(v->name, name));
    return CMOE_OK;
}

int64_t cmoei_elements(const cmoe_view *v)
{
    int64_t n = 1;
    if (empty(v)) return 0; /* the other dims may be anything */
    for (int32_t i = 0; i < v->rank; i++)
        n *= v->dims[i];
    return n;
}

static int64_t offset(int32_t rank, const int64_t *strides, int64_t i, int64_t j)
{
    return (rank > 0 ? i * strides[0] : 0) + (rank > 1 ? j * strides[1] : 0);
}

const void *cmoei_at(const cmoe_view *v, int64_t i, int64_t j)
{
    return (const char *)v->data + offset(v->rank, v->strides, i, j) * cmoe_dtype_bytes(v->dtype);
}

void *cmoei_at_mut(const cmoe_view_mut *v, int64_t i, int64_t j)
{
    return (char *)v->data + offset(v->rank, v->strides, i, j) * cmoe_dtype_bytes(v->dtype);
}

cmoe_view cmoei_rows_of(cmoe_view v, int64_t begin, int64_t count)
{
    if (cmoei_given(&v)) {
        v.data = v.data ? cmoei_at(&v, begin, 0) : NULL;
        v.dims[0] = count;
    }
    return v;
}

cmoe_view_mut cmoei_rows_of_mut(cmoe_view_mut v, int64_t begin, int64_t count)
{
    v.data = v.data ? cmoei_at_mut(&v, begin, 0) : NULL;
    v.dims[0] = count;
    return v;
}
