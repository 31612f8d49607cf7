/* SPDX-License-Identifier: MIT
 *
 * variants.c - all kernel tables of libcmoe in one list.
 */
#include "align/combine.h"
#include "cmoe/layer.h"
#include "matmul/epilogue.h"
#include "matmul/matmul.h"
#include "ops/attention_kernel.h"
#include "ops/elementwise.h"
#include "ops/gates.h"
#include "ops/gdn_pack.h"
#include "ops/layer_norm.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "quant/quantize.h"
#include "route/route_kernel.h"

int64_t cmoe_variants(cmoe_variant *out, int64_t capacity)
{
    const cmoei_table *tables[] = {
        &cmoei_route_table,       &cmoei_matmul_table,
        &cmoei_epilogue_table,    &cmoei_combine_table,
        &cmoei_quantize_table,    &cmoei_norm_table,
        &cmoei_sigmoid_mul_table, &cmoei_add_shared_expert_table,
        &cmoei_silu_mul_table,    &cmoei_attention_table,
        &cmoei_layer_norm_table,  &cmoei_rope_table_table,
        &cmoei_rope_rotate_table, &cmoei_scaled_add_table,
        &cmoei_clip_table,        &cmoei_gdn_conv_table,
    };
    int64_t n = 0;
    for (int64_t t = 0; t < CMOEI_COUNT(tables); t++) {
        for (int64_t i = 0; i < tables[t]->count; i++, n++) {
            const cmoei_variant *v = cmoei_table_row(tables[t], i);
            if (out && n < capacity)
                out[n] = (cmoe_variant){tables[t]->op, v->name, v->dtype, v->needs};
        }
    }
    return n;
}
