/* SPDX-License-Identifier: MIT
 *
 * config_parts.c - parts of architectures that several of them have.
 *
 * transformers has given the same number many names over the years, and rewrites some of them when
 * it saves: all spellings are accepted for all models.
 */
#include <inttypes.h>
#include <string.h>

#include "config.h"
#include "text.h"

/* ---- experts --------------------------------------------------------------------------------- */

void cmoei_config_experts(cmoei_config *c, cmoei_decoder *d, const char *inter_key)
{
    const char *topk = "num_experts_per_tok|moe_k|moe_topk|top_k_experts|experts_per_token|"
                       "moe_top_k|top_k";
    const int64_t experts =
        cmoei_config_int(c, "num_experts|num_local_experts|n_routed_experts|moe_num_experts", 1,
                         CMOEI_MOST_EXPERTS, CMOEI_REQUIRED);
    for (int64_t i = 0; i < d->layers && c->status == CMOE_OK; i++) {
        cmoei_layer_shape *l = &d->layer[i];
        l->experts = experts;
        l->topk = cmoei_config_int_of(c, topk, i, 1, experts, CMOEI_REQUIRED);
        l->inter = cmoei_config_int_of(c, inter_key, i, 1, CMOEI_MOST_WIDTH, CMOEI_REQUIRED);
    }
}

void cmoei_layer_dense(cmoei_config *c, cmoei_decoder *d, int64_t layer)
{
    cmoei_layer_shape *l = &d->layer[layer];
    l->experts = l->topk = l->shared_inter = 0;
    l->inter = cmoei_config_int(c, "intermediate_size", 1, CMOEI_MOST_WIDTH, CMOEI_REQUIRED);
}

void cmoei_config_sparse_step(cmoei_config *c, cmoei_decoder *d)
{
    const json_t *only = json_object_get(c->root, "mlp_only_layers");
    const int64_t step = cmoei_config_int(c, "decoder_sparse_step", 1, INT32_MAX, 1);
    for (int64_t i = 0; i < d->layers; i++)
        if ((i + 1) % step != 0) cmoei_layer_dense(c, d, i);
    if (!only || json_is_null(only)) return;
    if (!json_is_array(only))
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "mlp_only_layers: want a list of layers");
    for (size_t i = 0; i < json_array_size(only); i++) {
        const json_t *layer = json_array_get(only, i);
        const int64_t at = json_integer_value(layer);
        if (!json_is_integer(layer) || at < 0) {
            cmoei_config_fail(c, CMOE_ERR_FORMAT,
                              "mlp_only_layers[%zu]: want a layer, 0 to %" PRId64, i,
                              d->layers - 1);
            return;
        }
        if (at < d->layers) cmoei_layer_dense(c, d, at);
    }
}

void cmoei_config_dense_first(cmoei_config *c, cmoei_decoder *d, int64_t n)
{
    for (int64_t i = 0; i < CMOEI_MIN(n, d->layers); i++)
        cmoei_layer_dense(c, d, i);
}

void cmoei_config_shared(cmoei_config *c, cmoei_decoder *d, const char *count_key, int64_t fallback)
{
    enum { MOST_SHARED = 256 };
    for (int64_t i = 0; i < d->layers; i++) {
        cmoei_layer_shape *l = &d->layer[i];
        l->shared_inter = l->inter * cmoei_config_int_of(c, count_key, i, 0, MOST_SHARED, fallback);
    }
}

/* ---- routers --------------------------------------------------------------------------------- */

void cmoei_config_softmax(cmoei_config *c, cmoei_decoder *d, bool renormalize)
{
    d->route.scoring = CMOE_SCORE_SOFTMAX;
    d->route.renormalize =
        cmoei_config_bool(c, "norm_topk_prob", renormalize) ? CMOE_RENORM_SUM : CMOE_RENORM_NONE;
}

void cmoei_config_sigmoid_groups(cmoei_config *c, cmoei_decoder *d)
{
    cmoe_route_options *r = &d->route;
    cmoei_config_softmax(c, d, true);
    r->scoring = CMOE_SCORE_SIGMOID;
    r->eps_rule = CMOE_EPS_ADD;
    r->eps = 1e-20f;
    r->groups = cmoei_config_int(c, "n_group", 1, CMOEI_MOST_EXPERTS, 1);
    r->topk_groups = cmoei_config_int(c, "topk_group", 1, r->groups, r->groups);
    r->group_mask = CMOE_MASK_MINUS_INF;
    r->group_score = CMOE_GROUP_TOP2;
    r->scale = (float)cmoei_config_real(c, "routed_scaling_factor", 1e-6, 1e6, 1);
    d->choice_bias = true;
}

/* ---- attention ------------------------------------------------------------------------------- */

void cmoei_config_attention_bias(cmoei_config *c, cmoei_decoder *d, bool fallback)
{
    d->qkv_bias = d->o_bias = cmoei_config_bool(c, "attention_bias", fallback);
}

/* Whether this layer's entry says sliding_attention. */
static bool slides(cmoei_config *c, const json_t *types, int64_t layer)
{
    const json_t *entry = json_array_get(types, (size_t)layer);
    const char *type = json_string_value(entry);
    char clean[64];
    if (type && strcmp(type, "sliding_attention") == 0) return true;
    if (type && strcmp(type, "full_attention") == 0) return false;
    cmoei_text_clean(clean, sizeof clean, type ? type : entry ? "no string" : "missing");
    cmoei_config_fail(c, CMOE_ERR_UNSUPPORTED,
                      "layer_types[%" PRId64 "] is %s, want full_attention or sliding_attention",
                      layer, clean);
    return false;
}

/* Of the layers that slide; without a list, those from `first` on. */
static void set_windows(cmoei_config *c, cmoei_decoder *d, int64_t first)
{
    const char *key = "sliding_window";
    const json_t *types = json_object_get(c->root, "layer_types");
    const int64_t window = cmoei_config_int(c, key, 0, INT32_MAX, 0);
    const bool listed = types && !json_is_null(types);
    for (int64_t i = 0; i < d->layers && c->status == CMOE_OK; i++) {
        if (!(listed ? slides(c, types, i) : i >= first)) continue;
        d->layer[i].window = window;
        if (listed && window == 0)
            cmoei_config_fail(c, CMOE_ERR_FORMAT, "%s is missing, and layer %" PRId64 " slides",
                              key, i);
    }
}

void cmoei_config_window(cmoei_config *c, cmoei_decoder *d)
{
    set_windows(c, d, 0);
}

void cmoei_config_window_from(cmoei_config *c, cmoei_decoder *d)
{
    const int64_t first = cmoei_config_int(c, "max_window_layers", 0, INT32_MAX, 28);
    if (cmoei_config_bool(c, "use_sliding_window", false)) set_windows(c, d, first);
}
