/* SPDX-License-Identifier: MIT
 *
 * variants.c - all kernel tables of libcmoe in one list.
 */
#include "align/combine.h"
#include "align/combine_backward.h"
#include "cmoe/layer.h"
#include "experts/act_backward.h"
#include "matmul/epilogue.h"
#include "matmul/matmul.h"
#include "ops/attention_kernel.h"
#include "ops/attention_rows.h"
#include "ops/columns.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embedding_backward.h"
#include "ops/gates.h"
#include "ops/gates_backward.h"
#include "ops/gdn_pack.h"
#include "ops/layer_norm.h"
#include "ops/norm.h"
#include "ops/norm_backward.h"
#include "ops/optimizer.h"
#include "ops/rope.h"
#include "quant/quantize.h"
#include "route/backward.h"
#include "route/route_kernel.h"

int64_t cmoe_variants(cmoe_variant *out, int64_t capacity)
{
    const cmoei_table *tables[] = {
        &cmoei_route_table,
        &cmoei_matmul_table,
        &cmoei_epilogue_table,
        &cmoei_combine_table,
        &cmoei_quantize_table,
        &cmoei_norm_table,
        &cmoei_sigmoid_mul_table,
        &cmoei_add_shared_expert_table,
        &cmoei_silu_mul_table,
        &cmoei_attention_table,
        &cmoei_layer_norm_table,
        &cmoei_rope_table_table,
        &cmoei_rope_rotate_table,
        &cmoei_scaled_add_table,
        &cmoei_clip_table,
        &cmoei_gdn_conv_table,
        &cmoei_act_backward_table,
        &cmoei_norm_backward_table,
        &cmoei_columns_table,
        &cmoei_sigmoid_mul_backward_table,
        &cmoei_silu_mul_backward_table,
        &cmoei_clip_backward_table,
        &cmoei_embedding_backward_table,
        &cmoei_cross_entropy_table,
        &cmoei_route_back_table,
        &cmoei_combine_back_table,
        &cmoei_attention_rows_table,
        &cmoei_adamw_table,
        &cmoei_sgd_table,
        &cmoei_sum_squares_table,
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
