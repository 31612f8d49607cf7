/* SPDX-License-Identifier: MIT
 *
 * epilogue.h - what becomes of the sums of one tile: scales, bias, activation, weight, rounding.
 *
 * Element by element and in a written order of roundings: all rows of the table give equal bits.
 */
#ifndef CMOE_EPILOGUE_H
#define CMOE_EPILOGUE_H

#include "core/kernel.h"

/* How the sums of gate and up become h.  The rounding points are options because the systems that
 * weights come from differ in them. */
typedef struct cmoei_activation {
    int32_t kind;       /* CMOE_ACT_ */
    bool gated;         /* columns [0, width) are gate, [width, 2 width) up */
    bool round_gate_up; /* to bf16, before the activation */
    bool round_act;     /* act(gate) to bf16, before it meets up */
    bool round_out;     /* h to bf16 */
    float limit;        /* > 0: g = min(g, limit), u = clamp(u, +-limit) */
    float alpha;        /* of swiglu_oss */
} cmoei_activation;

typedef struct cmoei_epilogue {
    const void *acc; /* [rows, panel] float32, or int32 when col_scale is given */
    int32_t rows, panel;
    const float *row_scale; /* [rows] */
    const float *col_scale; /* [panel], or NULL: acc is float32 */
    const float *bias;      /* [panel] or NULL */
    const float *weight;    /* finish: [rows] or NULL */
    bool round_out;         /* finish: to bf16 */
    const cmoei_activation *activation;
    void *out; /* activate: [rows, width], finish: [rows, panel]; float32, double in the oracle
                  build */
} cmoei_epilogue;

typedef struct cmoei_epilogue_kernel {
    cmoei_variant v;
    /* out = act(gate) * up; without a gate out = act(column). */
    void (*activate)(const cmoei_epilogue *e);
    /* out = (sum + bias) * weight. */
    void (*finish)(const cmoei_epilogue *e);
} cmoei_epilogue_kernel;

extern const cmoei_table cmoei_epilogue_table;

void cmoei_activate_avx512(const cmoei_epilogue *e);
void cmoei_finish_avx512(const cmoei_epilogue *e);
void cmoei_activate_avx2(const cmoei_epilogue *e);
void cmoei_finish_avx2(const cmoei_epilogue *e);
void cmoei_activate_ref(const cmoei_epilogue *e);
void cmoei_finish_ref(const cmoei_epilogue *e);
void cmoei_activate_f64(const cmoei_epilogue *e);
void cmoei_finish_f64(const cmoei_epilogue *e);

#endif
