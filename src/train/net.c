/* SPDX-License-Identifier: MIT
 *
 * net.c - memory of a pass, and its course: embedding, layers, head, and back.
 */
#include "net.h"

#include <inttypes.h>
#include <string.h>

#include "net_state.h"

enum { LOGITS_BYTES = 256 << 20 }; /* most that one chunk of logits takes */

/* ---- memory ------------------------------------------------------------------------------------ */

static bool keeps_raw(const cmoei_decoder *d)
{
    return d->qk_norm != CMOEI_QK_NONE;
}

/* What the feed-forward of layer i keeps, and its scratch. */
static cmoe_status feed_bytes(const cmoei_net *n, int64_t i, int64_t *keep, int64_t *scratch,
                              cmoe_error *err)
{
    const cmoei_layer_params *l = &n->p->layer[i];
    if (n->moe[i]) return cmoe_layer_train_bytes(n->moe[i], n->tokens, keep, scratch, NULL, err);
    const cmoe_experts_weights w = {l->weight[CMOEI_W_13].trainable,
                                    l->weight[CMOEI_W_2].trainable};
    return cmoe_experts_train_bytes(NULL, &w, n->tokens, 1, keep, scratch, NULL, err);
}

static void carve_kept(const cmoei_net *n, cmoei_carver *c, cmoei_kept *k, int64_t keep)
{
    const cmoei_decoder *d = n->d;
    const int64_t t = n->tokens, f = sizeof(float), w = cmoei_qkv_width(d);
    k->raw = keeps_raw(d) ? cmoei_carve_array(c, t, w * f) : NULL;
    k->qkv = cmoei_carve_array(c, t, w * f);
    k->heads = cmoei_carve_array(c, t, d->heads * d->head_dim * f);
    k->lse = cmoei_carve_array(c, t, d->heads * f);
    k->mixed = d->post_norm ? cmoei_carve_array(c, t, d->hidden * f) : NULL;
    k->fed = d->post_norm ? cmoei_carve_array(c, t, d->hidden * f) : NULL;
    k->arena = cmoe_arena_make(cmoei_carve(c, keep), keep);
}

/* `keep` [L]. */
static void carve(cmoei_net *n, cmoei_carver *c, const int64_t *keep, int64_t scratch)
{
    const cmoei_decoder *d = n->d;
    const int64_t t = n->tokens, f = sizeof(float), L = d->layers;
    int64_t most = 0;
    cmoei_kept one = {0};
    n->before = cmoei_carve_array(c, L + 1, sizeof *n->before);
    n->between = cmoei_carve_array(c, L + 1, sizeof *n->between);
    n->kept = cmoei_carve_array(c, L + 1, sizeof *n->kept);
    float *shared = cmoei_carve_array(c, t, d->hidden * f);
    for (int64_t i = 0; i < L; i++)
        most = CMOEI_MAX(most, keep[i]);
    if (n->recompute) carve_kept(n, c, &one, most);
    for (int64_t i = 0; i <= L; i++) {
        float *before = cmoei_carve_array(c, t, d->hidden * f), *between = shared;
        cmoei_kept kept = one;
        if (!n->recompute && i < L) {
            between = cmoei_carve_array(c, t, d->hidden * f);
            carve_kept(n, c, &kept, keep[i]);
        }
        if (!n->before || !before) continue;
        n->before[i] = before;
        n->between[i] = between;
        n->kept[i] = kept;
    }
    n->x = cmoei_carve_array(c, t, d->hidden * f);
    n->y = cmoei_carve_array(c, t, d->hidden * f);
    n->cos = cmoei_carve_array(c, t, d->rope.dim / 2 * f);
    n->sin = cmoei_carve_array(c, t, d->rope.dim / 2 * f);
    n->logits = cmoei_carve_array(c, n->chunk, d->vocab * f);
    n->dh = cmoei_carve_array(c, t, d->hidden * f);
    n->dx = cmoei_carve_array(c, t, d->hidden * f);
    n->dqkv = cmoei_carve_array(c, t, cmoei_qkv_width(d) * f);
    n->dheads = cmoei_carve_array(c, t, d->heads * d->head_dim * f);
    n->dchoice = cmoei_carve_array(c, t, f);
    n->ones = cmoei_carve_array(c, t, f);
    n->zeros = cmoei_carve_array(c, t, sizeof *n->zeros);
    n->windowed = cmoei_carve_array(c, t, 4 * sizeof *n->windowed);
    n->frequencies = cmoei_carve_array(c, CMOEI_MAX(d->rope.dim / 2, 1), f);
    n->scratch = cmoe_arena_make(cmoei_carve(c, scratch), scratch);
}

/* The most scratch of any step. */
static cmoe_status scratch_bytes(const cmoei_net *n, int64_t *keep, int64_t *most, cmoe_error *err)
{
    const cmoei_decoder *d = n->d;
    cmoe_ctx *ctx = n->p->ctx;
    const cmoe_attention_rows_options o = cmoei_net_attention(d);
    int64_t bytes;
    CMOEI_TRY(cmoe_attention_rows_bytes(ctx, &o, n->tokens, d->head_dim, most, NULL, err));
    CMOEI_TRY(cmoe_embedding_backward_bytes(ctx, n->tokens, d->vocab, &bytes, NULL, err));
    *most = CMOEI_MAX(*most, bytes);
    const int64_t rows = n->tokens * CMOEI_MAX(d->heads, 1);
    CMOEI_TRY(cmoe_rms_norm_backward_bytes(ctx, rows, CMOEI_MAX(d->hidden, d->heads * d->head_dim),
                                           &bytes, NULL, err));
    *most = CMOEI_MAX(*most, bytes);
    CMOEI_TRY(cmoe_layer_norm_backward_bytes(ctx, n->tokens, d->hidden, &bytes, NULL, err));
    *most = CMOEI_MAX(*most, bytes);
    CMOEI_TRY(cmoe_trainable_bytes(n->p->head.trainable, n->tokens, n->tokens, &bytes, NULL, err));
    *most = CMOEI_MAX(*most, bytes);
    for (int64_t i = 0; i < d->layers; i++) {
        const cmoei_weight *w = n->p->layer[i].weight;
        CMOEI_TRY(feed_bytes(n, i, &keep[i], &bytes, err));
        *most = CMOEI_MAX(*most, bytes);
        CMOEI_TRY(cmoe_trainable_bytes(w[CMOEI_W_QKV].trainable, n->tokens, n->tokens, &bytes, NULL,
                                       err));
        *most = CMOEI_MAX(*most, bytes);
        CMOEI_TRY(
            cmoe_trainable_bytes(w[CMOEI_W_O].trainable, n->tokens, n->tokens, &bytes, NULL, err));
        *most = CMOEI_MAX(*most, bytes);
    }
    return CMOE_OK;
}

static cmoe_status take_memory(cmoei_net *n, int64_t *keep, cmoe_error *err)
{
    int64_t scratch;
    CMOEI_TRY(scratch_bytes(n, keep, &scratch, err));
    cmoei_carver c = cmoei_carver_dry();
    carve(n, &c, keep, scratch);
    CMOEI_TRY(cmoei_carver_check(&c, "activations", err));
    n->memory_bytes = cmoei_carver_bytes(&c);
    CMOEI_TRY(cmoei_alloc(n->p->ctx, n->memory_bytes, "activations", (void **)&n->memory, err));
    const cmoe_arena arena = cmoe_arena_make(n->memory, n->memory_bytes);
    c = cmoei_carver_open(&arena);
    carve(n, &c, keep, scratch);
    CMOEI_TRY(cmoei_carver_check(&c, "activations", err));
    for (int64_t t = 0; t < n->tokens; t++) {
        n->ones[t] = 1;
        n->zeros[t] = 0;
    }
    return cmoe_rope_frequencies(&n->d->rope, n->frequencies, &n->amplitude, err);
}

/* ---- layers of experts ------------------------------------------------------------------------- */

static cmoe_status create_moe(cmoei_net *n, int64_t i, cmoe_error *err)
{
    const cmoei_decoder *d = n->d;
    const cmoei_layer_params *l = &n->p->layer[i];
    cmoe_route_options route = d->route;
    cmoe_experts_options experts;
    cmoe_layer_train_options o;
    if (d->layer[i].experts == 0) return CMOE_OK;
    cmoe_experts_options_default(&experts, sizeof experts);
    cmoe_layer_train_options_default(&o, sizeof o);
    route.topk = d->layer[i].topk;
    experts.activation = d->activation;
    experts.swiglu_limit = d->swiglu_limit;
    experts.alpha = d->swiglu_alpha;
    o.route = &route;
    o.experts = &experts;
    o.gate = l->weight[CMOEI_W_ROUTER].trainable;
    o.w13 = l->weight[CMOEI_W_13].trainable;
    o.w2 = l->weight[CMOEI_W_2].trainable;
    o.shared13 = l->weight[CMOEI_W_SHARED_13].trainable;
    o.shared2 = l->weight[CMOEI_W_SHARED_2].trainable;
    o.shared_gate = l->weight[CMOEI_W_SHARED_GATE].trainable;
    o.bias = cmoei_vec(l->choice_bias, d->layer[i].experts);
    return cmoe_layer_train_create(&n->moe[i], n->p->ctx, &o, err);
}

static cmoe_status fill_net(cmoei_net *n, cmoe_error *err)
{
    cmoe_ctx *ctx = n->p->ctx;
    int64_t *keep;
    const int64_t L = CMOEI_MAX(n->d->layers, 1), bytes = L * (int64_t)sizeof *keep;
    CMOEI_TRY(cmoei_alloc(ctx, L * (int64_t)sizeof *n->moe, "layers", (void **)&n->moe, err));
    memset(n->moe, 0, (size_t)L * sizeof *n->moe);
    for (int64_t i = 0; i < n->d->layers; i++)
        CMOEI_TRY(create_moe(n, i, err));
    CMOEI_TRY(cmoei_alloc(ctx, bytes, "layers", (void **)&keep, err));
    const cmoe_status status = take_memory(n, keep, err);
    cmoei_free(ctx, keep, bytes);
    return status;
}

cmoe_status cmoei_net_create(cmoei_net **out, cmoei_params *p, int64_t tokens, int64_t units,
                             cmoe_error *err)
{
    cmoei_net *n;
    const int64_t row = p->d->vocab * (int64_t)sizeof(float);
    CMOEI_TRY(cmoei_alloc(p->ctx, sizeof *n, "net", (void **)&n, err));
    *n = (cmoei_net){.p = p,
                     .d = p->d,
                     .tokens = tokens,
                     .units = units,
                     .recompute = p->o.recompute,
                     .chunk = tokens};
    /* Chunks of a sum must be parts of one unit. */
    if (units == 1 && tokens > LOGITS_BYTES / row) n->chunk = CMOEI_MAX(LOGITS_BYTES / row, 1);
    const cmoe_status status = fill_net(n, err);
    if (status != CMOE_OK) {
        cmoei_net_free(n);
        return status;
    }
    *out = n;
    return CMOE_OK;
}

void cmoei_net_free(cmoei_net *n)
{
    if (!n) return;
    cmoe_ctx *ctx = n->p->ctx;
    for (int64_t i = 0; n->moe && i < n->d->layers; i++)
        cmoe_layer_train_free(n->moe[i]);
    if (n->moe) cmoei_free(ctx, n->moe, CMOEI_MAX(n->d->layers, 1) * (int64_t)sizeof *n->moe);
    if (n->memory) cmoei_free(ctx, n->memory, n->memory_bytes);
    cmoei_free(ctx, n, sizeof *n);
}

int64_t cmoei_net_bytes(const cmoei_net *n)
{
    return n->memory_bytes;
}

/* ---- a pass ------------------------------------------------------------------------------------ */

static cmoe_status embed(cmoei_pass *p)
{
    const cmoei_decoder *d = p->d;
    cmoei_net *n = p->n;
    const int64_t half = d->rope.dim / 2;
    if (half > 0)
        CMOEI_TRY(cmoe_rope_table(p->s, cmoe_view_1d(p->c->positions, CMOE_I64, p->tokens),
                                  cmoei_vec(n->frequencies, half), n->amplitude,
                                  cmoei_out(n->cos, p->tokens, half),
                                  cmoei_out(n->sin, p->tokens, half), p->err));
    CMOEI_TRY(cmoe_embedding(p->s, cmoe_view_1d(p->c->ids, CMOE_I32, p->tokens),
                             cmoei_in(p->p->embedding, d->vocab, d->hidden), d->embedding_scale,
                             cmoei_out(n->before[0], p->tokens, d->hidden), p->err));
    cmoei_net_dropout(p, n->before[0], 0);
    return CMOE_OK;
}

/* The gradient of the embedding; behind the others where the head has written into its place. */
static cmoe_status embed_backward(cmoei_pass *p)
{
    const cmoei_decoder *d = p->d;
    cmoei_net *n = p->n;
    float *out = cmoei_params_in(p->p, p->c->gradient, p->p->embedding);
    if (!out) return CMOE_OK;
    if (p->p->extra > 0) out = p->c->gradient + p->p->count;
    cmoei_net_dropout(p, n->dh, 0);
    return cmoe_embedding_backward(
        p->s, cmoe_view_1d(p->c->ids, CMOE_I32, p->tokens), cmoei_in(n->dh, p->tokens, d->hidden),
        d->embedding_scale, &p->c->units, cmoei_out(out, d->vocab, d->hidden), &n->scratch, p->err);
}

cmoe_status cmoei_net_run(cmoei_net *n, cmoe_stream *s, const cmoei_net_call *call,
                          cmoei_net_result *result, cmoe_error *err)
{
    cmoei_pass p = {n, n->p, n->d, s, call, result, call->tokens, err};
    const int64_t layers = n->d->layers;
    if (call->tokens > n->tokens || call->units.count > n->units)
        return cmoei_fail(err, CMOE_ERR_INTERNAL,
                          "a pass of %" PRId64 " tokens in memory for %" PRId64, call->tokens,
                          n->tokens);
    result->balance_loss = result->z_loss = 0;
    CMOEI_TRY(embed(&p));
    for (int64_t i = 0; i < layers; i++)
        CMOEI_TRY(cmoei_net_layer_forward(&p, i));
    CMOEI_TRY(cmoei_net_head(&p));
    if (!call->gradient) return CMOE_OK;
    for (int64_t i = layers - 1; i >= 0; i--) {
        if (n->recompute && i < layers - 1) {
            int64_t *load = result->load; /* counted the first time */
            result->load = NULL;
            CMOEI_TRY(cmoei_net_layer_forward(&p, i));
            result->load = load;
        }
        CMOEI_TRY(cmoei_net_layer_backward(&p, i));
    }
    return embed_backward(&p);
}
