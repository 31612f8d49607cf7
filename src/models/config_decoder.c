/* SPDX-License-Identifier: MIT
 *
 * config_decoder.c - the keys that nearly all architectures have in common, and what must hold of a
 * decoder whatever its architecture is.
 */
#include <inttypes.h>
#include <string.h>

#include "config.h"
#include "text.h"

/* ---- quantisation ---------------------------------------------------------------------------- */

#define METHODS "fp8 (e4m3 with block scales) or mxfp4"

static void read_block(cmoei_config *q, cmoei_decoder *d)
{
    const json_t *list = json_object_get(q->root, "weight_block_size");
    if (!list || json_is_null(list)) return;
    for (size_t i = 0; i < 2; i++) {
        const json_t *n = json_array_get(list, i);
        const int64_t block = json_integer_value(n);
        if (json_array_size(list) != 2 || !json_is_integer(n) || block < 1 ||
            block > CMOEI_MOST_WIDTH) {
            cmoei_config_fail(q, CMOE_ERR_FORMAT,
                              "weight_block_size: want a list of 2 integers "
                              "from 1 to %d, as [128, 128]",
                              CMOEI_MOST_WIDTH);
            return;
        }
        d->f8_block[i] = block;
    }
}

/* Whether a tensor is quantised is decided by its format in the file; this says only whether it is
 * done in a way that is known here. */
static void read_quantisation(cmoei_config *c, cmoei_decoder *d)
{
    d->f8_block[0] = d->f8_block[1] = 128;
    cmoei_config whole = *c;
    whole.root = c->outer;
    const char *key = cmoei_config_has(c, "quantization_config") ? "quantization_config" : NULL;
    const char *outer = cmoei_config_has(&whole, "quantization_config") ? "quantization_config"
                                                                        : "compression_config";
    cmoei_config q = cmoei_config_section(key ? c : &whole, key ? key : outer);
    if (q.root) {
        const char *method = cmoei_config_text(&q, "quant_method", "");
        const char *fmt = cmoei_config_text(&q, "fmt", "e4m3");
        char clean[64];
        cmoei_text_clean(clean, sizeof clean, method);
        if (strcmp(method, "fp8") == 0) {
            read_block(&q, d);
            if (strcmp(fmt, "e4m3") != 0 && strcmp(fmt, "float8_e4m3fn") != 0) {
                cmoei_text_clean(clean, sizeof clean, fmt);
                cmoei_config_fail(&q, CMOE_ERR_UNSUPPORTED, "fmt = \"%s\", want e4m3", clean);
            }
        } else if (strcmp(method, "mxfp4") != 0) {
            cmoei_config_fail(&q, CMOE_ERR_UNSUPPORTED, "quant_method = \"%s\", want %s", clean,
                              METHODS);
        }
    }
    cmoei_config_leave(c, &q);
}

/* ---- common keys ----------------------------------------------------------------------------- */

static void read_sizes(cmoei_config *c, cmoei_decoder *d)
{
    const int64_t required = CMOEI_REQUIRED;
    d->layers = cmoei_config_int(c, "num_hidden_layers", 1, CMOEI_MOST_LAYERS, required);
    d->hidden = cmoei_config_int(c, "hidden_size", 1, CMOEI_MOST_WIDTH, required);
    d->vocab = cmoei_config_int(c, "vocab_size", 1, CMOEI_MOST_VOCAB, required);
    d->context = cmoei_config_int(c, "max_position_embeddings", 1, INT32_MAX, required);
    d->heads = cmoei_config_int(c, "num_attention_heads", 1, CMOEI_MOST_HEADS, required);
    d->kv_heads = cmoei_config_int(c, "num_key_value_heads", 1, CMOEI_MOST_HEADS, d->heads);
    const char *key = "head_dim|attention_head_dim";
    d->head_dim = cmoei_config_int(c, key, 2, CMOEI_MOST_HEAD_DIM, d->hidden / d->heads);
    if (!cmoei_config_has(c, key) && d->hidden % d->heads)
        cmoei_config_fail(c, CMOE_ERR_FORMAT,
                          "hidden_size = %" PRId64
                          ", want a multiple of num_attention_heads = %" PRId64
                          " where there is no head_dim",
                          d->hidden, d->heads);
    if (d->head_dim < 2 || d->head_dim > CMOEI_MOST_HEAD_DIM || d->head_dim % 2)
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "head_dim = %" PRId64 ", want an even one up to %d",
                          d->head_dim, CMOEI_MOST_HEAD_DIM);
    if (d->heads % d->kv_heads)
        cmoei_config_fail(c, CMOE_ERR_FORMAT,
                          "num_key_value_heads = %" PRId64
                          ", want a divisor of num_attention_heads = %" PRId64,
                          d->kv_heads, d->heads);
}

static void read_activation(cmoei_config *c)
{
    const char *act = cmoei_config_text(c, "hidden_act|hidden_activation", "silu");
    const bool known = strcmp(act, "silu") == 0 || strcmp(act, "swish") == 0 ||
                       strcmp(act, "swiglu") == 0; /* three names of the same */
    char clean[64];
    cmoei_text_clean(clean, sizeof clean, act);
    if (!known)
        cmoei_config_fail(c, CMOE_ERR_UNSUPPORTED,
                          "hidden_act = \"%s\", want one of: silu swish swiglu", clean);
}

void cmoei_config_eps(cmoei_config *c, cmoei_decoder *d, double eps)
{
    d->eps = (float)cmoei_config_real(c, "rms_norm_eps|layer_norm_eps|norm_eps", 0, 1, eps);
}

static void read_layers(cmoei_config *c, cmoei_decoder *d)
{
    const int64_t inter = cmoei_config_int(c, "intermediate_size", 1, CMOEI_MOST_WIDTH, 0);
    void *layer;
    if (c->status != CMOE_OK) return;
    const int64_t bytes = d->layers * (int64_t)sizeof *d->layer;
    c->status = cmoei_alloc(c->ctx, bytes, "layers of the decoder", &layer, c->err);
    if (c->status != CMOE_OK) return;
    d->layer = memset(layer, 0, (size_t)bytes);
    for (int64_t i = 0; i < d->layers; i++)
        d->layer[i].inter = inter;
}

void cmoei_config_decoder(cmoei_config *c, cmoei_decoder *d)
{
    const char *tied = "tie_word_embeddings|tie_embedding|weight_tying";
    cmoei_config outer = *c;
    outer.root = c->outer;
    d->embedding_scale = d->residual_scale = d->logits_scale = 1;
    d->init_std = (float)cmoei_config_real(c, "initializer_range", 0, 10, 0.02);
    d->mask_token = -1;
    cmoe_route_options_default(&d->route, sizeof d->route);
    read_sizes(c, d);
    cmoei_config_eps(c, d, 1e-6);
    read_activation(c);
    d->tied = cmoei_config_has(c, tied) ? cmoei_config_bool(c, tied, false)
                                        : cmoei_config_bool(&outer, tied, false);
    if (c->status == CMOE_OK) c->status = outer.status;
    read_quantisation(c, d);
    cmoei_config_rope(c, d, 10000, 1);
    read_layers(c, d);
}

/* ---- what must hold -------------------------------------------------------------------------- */

/* Parameters of the whole, in floating point: products of sizes as large as the getters let through
 * would not fit in an int64_t. */
static double parameters(const cmoei_decoder *d)
{
    const double H = (double)d->hidden;
    double sum = 2.0 * (double)d->vocab * H;
    for (int64_t i = 0; i < d->layers; i++) {
        const cmoei_layer_shape *l = &d->layer[i];
        sum += 2.0 * (double)(d->heads + d->kv_heads) * (double)d->head_dim * H;
        sum += 3.0 * (double)CMOEI_MAX(l->experts, 1) * (double)l->inter * H;
        sum += 3.0 * (double)l->shared_inter * H + (double)l->experts * H;
    }
    return sum;
}

static void check_layer(cmoei_config *c, const cmoei_decoder *d, int64_t i)
{
    const cmoei_layer_shape *l = &d->layer[i];
    const cmoe_route_options *r = &d->route;
    if (l->inter < 1)
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "intermediate_size is missing (of layer %" PRId64 ")",
                          i);
    if (l->experts == 0) return;
    if (r->scoring == CMOE_SCORE_SPARSEMIXER && l->topk != 2)
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "num_experts_per_tok = %" PRId64 ", want 2", l->topk);
    if (r->groups == 1) return;
    if (l->experts % r->groups || l->experts / r->groups < 2)
        cmoei_config_fail(c, CMOE_ERR_FORMAT,
                          "n_group = %" PRId64 ", want a divisor of the %" PRId64
                          " experts that leaves 2 or more in a group",
                          r->groups, l->experts);
    else if (r->topk_groups && l->topk > l->experts / r->groups * r->topk_groups)
        cmoei_config_fail(c, CMOE_ERR_FORMAT,
                          "num_experts_per_tok = %" PRId64 ", want at most %" PRId64
                          " (experts of topk_group groups)",
                          l->topk, l->experts / r->groups * r->topk_groups);
}

void cmoei_config_check(cmoei_config *c, cmoei_decoder *d)
{
    enum { MOST_BITS = 50 };
    float frequencies[CMOEI_MOST_HEAD_DIM / 2], amplitude;
    cmoe_error why = {.size = sizeof why};
    for (int64_t i = 0; i < d->layers && c->status == CMOE_OK; i++)
        check_layer(c, d, i);
    if (c->status != CMOE_OK) return;
    if (parameters(d) > (double)(1ll << MOST_BITS)) {
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "the sizes make %.3g parameters, want at most 2^%d",
                          parameters(d), MOST_BITS);
        return;
    }
    if (cmoe_rope_frequencies(&d->rope, frequencies, &amplitude, &why) != CMOE_OK)
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "rotary positions: %s", why.text);
}
