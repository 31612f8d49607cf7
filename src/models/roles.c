/* SPDX-License-Identifier: MIT
 *
 * roles.c - which tensors a decoder has, and their shapes.
 */
#include "decoder.h"

static bool shape(int64_t dims[2], int64_t rows, int64_t cols)
{
    dims[0] = rows;
    dims[1] = cols;
    return true;
}

/* "wanted, and then this shape" */
static bool shape_if(bool wanted, int64_t dims[2], int64_t rows, int64_t cols)
{
    return wanted && shape(dims, rows, cols);
}

static bool global_shape(const cmoei_decoder *d, cmoei_role role, int64_t dims[2])
{
    switch (role) {
    case CMOEI_EMBEDDING:
        return shape(dims, d->vocab, d->hidden);
    case CMOEI_FINAL_NORM:
        return shape(dims, 1, d->hidden);
    case CMOEI_FINAL_NORM_BIAS:
        return shape_if(d->layer_norm, dims, 1, d->hidden);
    case CMOEI_HEAD:
        return shape_if(!d->tied, dims, d->vocab, d->hidden);
    case CMOEI_HEAD_BIAS:
        return shape_if(d->head_bias, dims, 1, d->vocab);
    default:
        return false;
    }
}

static bool attention_shape(const cmoei_decoder *d, cmoei_role role, int64_t dims[2])
{
    const int64_t H = d->hidden, q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim;
    const bool normed = d->qk_norm != CMOEI_QK_NONE, full = d->qk_norm == CMOEI_QK_FULL;
    switch (role) {
    case CMOEI_Q:
        return shape(dims, q, H);
    case CMOEI_K:
    case CMOEI_V:
        return shape(dims, kv, H);
    case CMOEI_O:
        return shape(dims, H, q);
    case CMOEI_Q_BIAS:
        return shape_if(d->qkv_bias, dims, 1, q);
    case CMOEI_K_BIAS:
    case CMOEI_V_BIAS:
        return shape_if(d->qkv_bias, dims, 1, kv);
    case CMOEI_O_BIAS:
        return shape_if(d->o_bias, dims, 1, H);
    case CMOEI_Q_NORM:
        return shape_if(normed, dims, 1, full ? q : d->head_dim);
    case CMOEI_K_NORM:
        return shape_if(normed, dims, 1, full ? kv : d->head_dim);
    case CMOEI_SINKS:
        return shape_if(d->sinks, dims, 1, d->heads);
    default:
        return false;
    }
}

/* Gate, up, down and their biases of one MLP, as offsets from the role of its gate: the three MLPs
 * stand alike in cmoei_role. */
_Static_assert(CMOEI_DOWN_BIAS - CMOEI_GATE == 5 && CMOEI_DOWN - CMOEI_GATE == 2, "dense");
_Static_assert(CMOEI_SHARED_DOWN_BIAS - CMOEI_SHARED_GATE == 5, "shared");
_Static_assert(CMOEI_EXPERT_DOWN_BIAS - CMOEI_EXPERT_GATE == 5, "routed");
static bool mlp_shape(int64_t offset, bool bias, int64_t inter, int64_t hidden, int64_t dims[2])
{
    switch (offset) {
    case 0:
    case 1:
        return shape(dims, inter, hidden);
    case 2:
        return shape(dims, hidden, inter);
    case 3:
    case 4:
        return shape_if(bias, dims, 1, inter);
    default:
        return shape_if(bias, dims, 1, hidden);
    }
}

static bool feed_forward_shape(const cmoei_decoder *d, const cmoei_layer_shape *l, cmoei_role role,
                               int64_t dims[2])
{
    const int64_t H = d->hidden;
    const bool moe = l->experts > 0, shared = l->shared_inter > 0;
    switch (role) {
    case CMOEI_ROUTER:
        return shape_if(moe, dims, l->experts, H);
    case CMOEI_ROUTER_BIAS:
        return shape_if(moe && d->router_bias, dims, 1, l->experts);
    case CMOEI_CHOICE_BIAS:
        return shape_if(moe && d->choice_bias, dims, 1, l->experts);
    case CMOEI_SHARED_WEIGHT:
        return shape_if(shared && d->shared_gate, dims, 1, H);
    default:
        break;
    }
    if (role >= CMOEI_GATE && role <= CMOEI_DOWN_BIAS)
        return !moe && mlp_shape(role - CMOEI_GATE, d->mlp_bias, l->inter, H, dims);
    if (role >= CMOEI_SHARED_GATE && role <= CMOEI_SHARED_DOWN_BIAS)
        return shared && mlp_shape(role - CMOEI_SHARED_GATE, d->mlp_bias, l->shared_inter, H, dims);
    return moe && role >= CMOEI_EXPERT_GATE && role <= CMOEI_EXPERT_DOWN_BIAS &&
           mlp_shape(role - CMOEI_EXPERT_GATE, d->mlp_bias || d->expert_bias, l->inter, H, dims);
}

bool cmoei_role_shape(const cmoei_decoder *d, int64_t layer, cmoei_role role, int64_t dims[2])
{
    if (role < CMOEI_GLOBAL_ROLES) return layer == -1 && global_shape(d, role, dims);
    if (layer < 0 || layer >= d->layers) return false;
    const cmoei_layer_shape *l = &d->layer[layer];
    switch (role) {
    case CMOEI_NORM1:
    case CMOEI_NORM2:
        return shape(dims, 1, d->hidden);
    case CMOEI_NORM1_BIAS:
    case CMOEI_NORM2_BIAS:
        return shape_if(d->layer_norm, dims, 1, d->hidden);
    default:
        break;
    }
    if (role >= CMOEI_Q && role <= CMOEI_SINKS)
        return l->mixer == CMOEI_MIXER_ATTENTION && attention_shape(d, role, dims);
    return feed_forward_shape(d, l, role, dims);
}
