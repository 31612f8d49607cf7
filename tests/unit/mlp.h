/* SPDX-License-Identifier: MIT
 *
 * mlp.h - random grouped MLPs: logical values as doubles, and the same values laid out in memory in
 * every way that cmoe_experts takes.
 *
 * T tokens, K slots, E experts of the object, H hidden, I inter.  Gate and up are kept apart here;
 * only lay_w13 knows about orders, interleaving and transposing.
 */
#ifndef CMOE_TEST_MLP_H
#define CMOE_TEST_MLP_H

#include <math.h>
#include <stdbool.h>

#include "unit.h"

#include "core/core.h"

enum { MLP_BLOCKS = 32 };

typedef struct mlp {
    uint64_t seed, draws;
    int64_t T, K, E, H, I;
    cmoe_experts_options o;
    int32_t x_dtype, w_dtype, w2_dtype, bias_dtype, weight_dtype, out_dtype, id_dtype;
    int32_t odd, pad;            /* bytes past an aligned address, elements between rows */
    double *x;                   /* [T, H] */
    double *gate, *up, *down;    /* [E, I, H], or up NULL; [E, H, I] */
    double *bgate, *bup, *bdown; /* [E, I], [E, H], or NULL */
    double *sgate, *sup, *sdown; /* scales of i8 weights, or NULL */
    double *weights, *shared;    /* [T, K]; [T, H] or NULL */
    int64_t *ids;                /* [T, K] */
    void *block[MLP_BLOCKS];
    int blocks;
} mlp;

/* ---- values ---------------------------------------------------------------------------------- */

/* v with `bits` significant bits, half to even, no finer than 2^least. */
static inline double mlp_round(double v, int bits, int least)
{
    int e;
    if (v == 0 || v - v != 0) return v;
    frexp(v, &e);
    const double quantum = ldexp(1, e - bits > least ? e - bits : least);
    return nearbyint(v / quantum) * quantum;
}

static inline double mlp_bf16(double v)
{
    return mlp_round(v, 8, -133);
}

/* What a tensor of this format holds when v is put in; v far from overflow. */
static inline double mlp_stored(double v, int32_t dtype)
{
    switch (dtype) {
    case CMOE_F32:
        return (float)v;
    case CMOE_F16:
        return mlp_round(v, 11, -24);
    case CMOE_BF16:
        return mlp_bf16(v);
    case CMOE_F8E4M3:
        return mlp_round(v, 4, -9);
    default:
        return v;
    }
}

static inline void *mlp_get(mlp *m, int64_t bytes)
{
    void *p = malloc((size_t)(bytes > 0 ? bytes : 1));
    assert_true(p && m->blocks < MLP_BLOCKS);
    return m->block[m->blocks++] = p;
}

static inline void mlp_free(mlp *m)
{
    while (m->blocks > 0)
        free(m->block[--m->blocks]);
}

static inline int64_t mlp_draw(mlp *m, int64_t low, int64_t high)
{
    return low + (int64_t)(cmoe_random_u64(m->seed, m->draws++, 1) % (uint64_t)(high - low + 1));
}

static inline double *mlp_normals(mlp *m, int64_t n, double scale, int32_t dtype)
{
    double *p = mlp_get(m, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++) {
        const double v = scale * (double)cmoe_random_normal(m->seed, m->draws++, 2);
        /* Digits that float32 has not, where the format has. */
        p[i] = mlp_stored(dtype == CMOE_F64 ? v * (1 + 0x1p-30) : v, dtype);
    }
    return p;
}

static inline double *mlp_integers(mlp *m, int64_t n)
{
    double *p = mlp_get(m, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = mlp_draw(m, 0, 3) ? (double)mlp_draw(m, -128, 127) : -128;
    return p;
}

static inline double *mlp_scales(mlp *m, int64_t n)
{
    double *p = mlp_get(m, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = (float)(0.001 * (1 + (double)mlp_draw(m, 0, 1000) / 1000));
    return p;
}

/* Fills in all values for sizes, options and formats that are set. */
static inline void mlp_fill(mlp *m, bool bias, bool shared)
{
    const int64_t E = m->E, H = m->H, I = m->I;
    const bool ready = m->w_dtype == CMOE_I8;
    const double wide = 1 / sqrt((double)(H > 0 ? H : 1));
    m->x = mlp_normals(m, m->T * H, 1, m->x_dtype);
    m->gate = ready ? mlp_integers(m, E * I * H) : mlp_normals(m, E * I * H, 2 * wide, m->w_dtype);
    m->down = ready ? mlp_integers(m, E * H * I) : mlp_normals(m, E * H * I, 0.3, m->w2_dtype);
    if (ready) {
        m->sgate = mlp_scales(m, E * I);
        m->sdown = mlp_scales(m, E * H);
    }
    if (!m->o.ungated) {
        m->up =
            ready ? mlp_integers(m, E * I * H) : mlp_normals(m, E * I * H, 2 * wide, m->w_dtype);
        if (ready) m->sup = mlp_scales(m, E * I);
    }
    if (bias) {
        m->bgate = mlp_normals(m, E * I, 0.5, m->bias_dtype);
        m->bup = m->o.ungated ? NULL : mlp_normals(m, E * I, 0.5, m->bias_dtype);
        m->bdown = mlp_normals(m, E * H, 0.5, m->bias_dtype);
    }
    if (shared) m->shared = mlp_normals(m, m->T * H, 1, m->x_dtype);
    m->weights = mlp_normals(m, m->T * m->K, 1, m->weight_dtype);
    m->ids = mlp_get(m, m->T * m->K * (int64_t)sizeof *m->ids);
    for (int64_t i = 0; i < m->T * m->K; i++) /* own experts, those of others, nobody's */
        m->ids[i] = m->o.first_expert + mlp_draw(m, -1, m->E);
}

/* ---- layouts --------------------------------------------------------------------------------- */

static inline void mlp_put(char *at, int32_t dtype, double v)
{
    const float f = (float)v;
    if (dtype == CMOE_F64)
        memcpy(at, &v, sizeof v);
    else
        cmoei_store_f32(at, dtype, 1, &f, 1); /* exact: v is a value of the format */
}

/* values [n, rows, cols] -> a view of rank 3 at an odd address with gaps; `turned` swaps the last
 * two dimensions. */
static inline cmoe_view mlp_lay(mlp *m, const double *values, int32_t dtype, int64_t n,
                                int64_t rows, int64_t cols, bool turned)
{
    const int64_t bytes = cmoe_dtype_bytes(dtype);
    const int64_t inner = (turned ? rows : cols) + m->pad, outer = turned ? cols : rows;
    char *p = mlp_get(m, (n * outer * inner) * bytes + m->odd);
    memset(p, 0x7b, (size_t)((n * outer * inner) * bytes + m->odd));
    p += m->odd;
    cmoe_view v =
        turned ? cmoe_view_3d(p, dtype, n, cols, rows) : cmoe_view_3d(p, dtype, n, rows, cols);
    v.strides[0] = outer * inner;
    v.strides[1] = inner;
    for (int64_t e = 0; e < n; e++) {
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = 0; c < cols; c++) {
                const int64_t at = e * outer * inner + (turned ? c * inner + r : r * inner + c);
                mlp_put(p + at * bytes, dtype, values[(e * rows + r) * cols + c]);
            }
        }
    }
    return v;
}

/* The last two dimensions of a view with one matrix. */
static inline cmoe_view mlp_flat(cmoe_view v)
{
    v.rank = 2;
    v.dims[0] = v.dims[1];
    v.dims[1] = v.dims[2];
    v.strides[0] = v.strides[1];
    v.strides[1] = v.strides[2];
    v.dims[2] = v.strides[2] = 0;
    return v;
}

static inline cmoe_view mlp_lay_2d(mlp *m, const double *values, int32_t dtype, int64_t rows,
                                   int64_t cols)
{
    return values ? mlp_flat(mlp_lay(m, values, dtype, 1, rows, cols, false)) : cmoe_view_none();
}

/* Rows of gate and up [E, I, n] in the order that the options name: [E, 2I, n]. */
static inline double *mlp_join(mlp *m, const double *gate, const double *up, int64_t n)
{
    const int64_t E = m->E, I = m->I, parts = up ? 2 : 1;
    double *all = mlp_get(m, E * parts * I * n * (int64_t)sizeof *all);
    for (int64_t e = 0; e < E; e++) {
        for (int64_t part = 0; part < parts; part++) {
            const double *src = part ? up : gate; /* part 1: up */
            const int64_t place = up && m->o.up_first ? 1 - part : part;
            for (int64_t i = 0; i < I; i++) {
                const int64_t row = up && m->o.interleaved ? 2 * i + place : place * I + i;
                memcpy(all + (e * parts * I + row) * n, src + (e * I + i) * n,
                       (size_t)n * sizeof *all);
            }
        }
    }
    return all;
}

static inline cmoe_status mlp_create(mlp *m, cmoe_ctx *ctx, cmoe_experts **out, cmoe_error *err)
{
    const int64_t E = m->E, H = m->H, I = m->I, both = m->up ? 2 * I : I;
    const bool turned = m->o.transposed != 0;
    const double *w13 = mlp_join(m, m->gate, m->up, H);
    const cmoe_view none = cmoe_view_none();
    const cmoe_view v13 = mlp_lay(m, w13, m->w_dtype, E, both, H, turned);
    const cmoe_view v2 = mlp_lay(m, m->down, m->w2_dtype, E, H, I, turned);
    cmoe_view b13 = none, b2 = none;
    if (m->bgate) {
        b13 = mlp_lay_2d(m, mlp_join(m, m->bgate, m->bup, 1), m->bias_dtype, E, both);
        b2 = mlp_lay_2d(m, m->bdown, m->bias_dtype, E, H);
    }
    cmoe_experts_options o = m->o;
    if (m->sgate) {
        o.scale13 = mlp_lay_2d(m, mlp_join(m, m->sgate, m->sup, 1), CMOE_F32, E, both);
        o.scale2 = mlp_lay_2d(m, m->sdown, CMOE_F32, E, H);
    }
    return cmoe_experts_create(out, ctx, &o, v13, v2, b13, b2, err);
}

static inline cmoe_view mlp_ids(mlp *m)
{
    const int64_t n = m->T * m->K;
    if (m->id_dtype == CMOE_I64) return cmoe_view_2d(m->ids, CMOE_I64, m->T, m->K);
    int32_t *p = mlp_get(m, n * 4);
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)m->ids[i];
    return cmoe_view_2d(p, CMOE_I32, m->T, m->K);
}

/* ---- running --------------------------------------------------------------------------------- */

/* cmoe_experts_run in an arena of exactly the size asked for; out [T, H] as doubles, which hold
 * what any format does. */
static inline void mlp_run(mlp *m, const unit_env *e, double *out)
{
    const int blocks = m->blocks;
    const int64_t bytes = cmoe_dtype_bytes(m->out_dtype), row = m->H + m->pad;
    cmoe_experts *x = NULL;
    UNIT_OK(mlp_create(m, e->ctx, &x, &err));
    int64_t need = -1;
    UNIT_OK(cmoe_experts_bytes(x, m->T, m->K, &need, NULL, &err));
    cmoe_arena arena = unit_arena(need);
    char *p = mlp_get(m, m->T * row * bytes + m->odd);
    memset(p, 0x7b, (size_t)(m->T * row * bytes + m->odd));
    cmoe_view_mut o = cmoe_view_mut_2d(p + m->odd, m->out_dtype, m->T, m->H);
    o.strides[0] = row;
    UNIT_OK(cmoe_experts_run(e->stream, x, mlp_lay_2d(m, m->x, m->x_dtype, m->T, m->H), mlp_ids(m),
                             mlp_lay_2d(m, m->weights, m->weight_dtype, m->T, m->K),
                             mlp_lay_2d(m, m->shared, m->x_dtype, m->T, m->H), o, &arena, &err));
    assert_int_equal(arena.used, 0);
    for (int64_t t = 0; t < m->T; t++) {
        for (int64_t h = 0; h < row; h++) {
            const char *at = p + m->odd + (t * row + h) * bytes;
            if (h >= m->H) { /* gaps between rows stay */
                for (int64_t b = 0; b < bytes; b++)
                    assert_int_equal(at[b], 0x7b);
                continue;
            }
            float f;
            cmoei_load_f32(&f, at, m->out_dtype, 1, 1);
            out[t * m->H + h] = f;
            if (m->out_dtype == CMOE_F64) memcpy(&out[t * m->H + h], at, sizeof *out);
        }
    }
    free(arena.base);
    cmoe_experts_free(x);
    while (m->blocks > blocks)
        free(m->block[--m->blocks]);
}

static inline const char *mlp_title(const mlp *m, char text[400])
{
    snprintf(text, 400,
             "seed %llu %s T=%d K=%d E=%d H=%d I=%d %s%s%s%s%s%s limit=%g alpha=%g round=%d%d "
             "rows=%s at=%d first=%d x=%s w=%s,%s out=%s%s%s chunk=%d",
             (unsigned long long)m->seed, cmoe_dtype_name(m->o.format), (int)m->T, (int)m->K,
             (int)m->E, (int)m->H, (int)m->I, cmoe_activation_name(m->o.activation),
             m->o.ungated ? " ungated" : "", m->o.up_first ? " up_first" : "",
             m->o.interleaved ? " interleaved" : "", m->o.transposed ? " transposed" : "",
             m->o.borrow ? " borrow" : "", (double)m->o.swiglu_limit, (double)m->o.alpha,
             m->o.round_gate_up, m->o.round_act, cmoe_dtype_name(m->o.row_dtype), m->o.weight_at,
             (int)m->o.first_expert, cmoe_dtype_name(m->x_dtype), cmoe_dtype_name(m->w_dtype),
             cmoe_dtype_name(m->w2_dtype), cmoe_dtype_name(m->out_dtype), m->bgate ? " bias" : "",
             m->shared ? " shared" : "", (int)m->o.chunk);
    return text;
}

#endif
