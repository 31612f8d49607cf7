/* SPDX-License-Identifier: MIT
 *
 * units.c - checks of the arguments that every backward step has.
 */
#include "core/units.h"

#include <inttypes.h>

cmoe_status cmoei_units_check(const cmoe_units *units, int64_t tokens, cmoe_units *out,
                              int64_t one[2], cmoe_error *err)
{
    if (!units) {
        one[0] = 0, one[1] = tokens;
        *out = (cmoe_units){1, one};
        return CMOE_OK;
    }
    const int64_t n = units->count, *first = units->first;
    if (n < 1 || n > CMOE_UNITS_MOST || (n & (n - 1)))
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "units: count = %" PRId64 ", want a power of two from 1 to %d", n,
                          CMOE_UNITS_MOST);
    if (!first)
        return cmoei_fail(err, CMOE_ERR_ARG, "units: first is NULL, want %" PRId64 " numbers",
                          n + 1);
    if (first[0] != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "units: first[0] = %" PRId64 ", want 0", first[0]);
    for (int64_t u = 1; u <= n; u++) {
        if (first[u] < first[u - 1])
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "units: first[%" PRId64 "] = %" PRId64
                              ", want at least first[%" PRId64 "] = %" PRId64,
                              u, first[u], u - 1, first[u - 1]);
    }
    if (first[n] != tokens)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "units: first[%" PRId64 "] = %" PRId64 ", want %" PRId64 " (tokens)", n,
                          first[n], tokens);
    *out = *units;
    return CMOE_OK;
}

static cmoe_status check_contiguous(const cmoe_view *v, const char *name, cmoe_error *err)
{
    const int32_t last = v->rank - 1;
    if (last < 0 || v->dims[last] <= 1 || v->strides[last] == 1) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: strides[%d] = %" PRId64 ", want 1 (contiguous)",
                      cmoei_name(v->name, name), last, v->strides[last]);
}

cmoe_status cmoei_check_rows(const cmoe_view *v, const cmoei_want *want, cmoe_error *err)
{
    cmoei_want w = *want;
    w.dtypes = CMOEI_DTYPE(CMOE_F32);
    CMOEI_TRY(cmoei_check_in(v, &w, err));
    return check_contiguous(v, w.name, err);
}

cmoe_status cmoei_check_rows_out(const cmoe_view_mut *v, const cmoei_want *want, cmoe_error *err)
{
    const cmoe_view in = cmoe_view_of(*v);
    cmoei_want w = *want;
    w.dtypes = CMOEI_DTYPE(CMOE_F32);
    CMOEI_TRY(cmoei_check_out(v, &w, err));
    return check_contiguous(&in, w.name, err);
}
