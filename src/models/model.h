/* SPDX-License-Identifier: MIT
 *
 * model.h - a loaded model: the decoder's shape, and its weights packed.
 *
 * Under tensor parallelism every matrix holds a share of its outputs; what is needed whole (norms,
 * router, vectors) is whole everywhere.
 */
#ifndef CMOE_MODELS_MODEL_H
#define CMOE_MODELS_MODEL_H

#include "cmoe/layer.h"
#include "cmoe/model.h"
#include "experts/experts.h"

#include "decoder.h"
#include "tape.h"

/* Rows [first, first + count) of something. */
typedef struct cmoei_range {
    int64_t first, count;
} cmoei_range;

/* What this process keeps of a model. */
typedef struct cmoei_share {
    cmoei_range experts; /* of layers with experts, cut to what a layer has */
    int32_t rank, ranks; /* of tensor parallelism */
} cmoei_share;

cmoei_range cmoei_share_of(const cmoei_share *s, int64_t total);
/* Query heads of this rank, and the heads of keys and values that they read. */
void cmoei_share_heads(const cmoei_share *s, const cmoei_decoder *d, cmoei_range *queries,
                       cmoei_range *keys);
cmoei_range cmoei_share_experts(const cmoei_share *s, int64_t experts);

/* A gated MLP, of one expert or many.  Whole ones are an experts object, which owns the matrices. */
typedef struct cmoei_mlp {
    cmoe_experts *experts; /* NULL under tensor parallelism */
    cmoe_matrix *w13, *w2;
} cmoei_mlp;

/* Float32 [rows, cols] of a router; NULL: there is none. */
typedef struct cmoei_values {
    float *values;
    int64_t rows, cols, bytes;
} cmoei_values;

enum { CMOEI_ROUTER_PARTS = 4 }; /* the gate, its bias, the bias of the choice, the shared gate */

typedef struct cmoei_model_layer {
    float *norm1, *norm1_bias, *norm2, *norm2_bias; /* [hidden] or NULL */
    float *q_norm, *k_norm, *sinks;
    cmoe_matrix *qkv; /* [(heads + 2 kv_heads) * head_dim, hidden] */
    cmoe_matrix *o;   /* [hidden, heads * head_dim] */
    cmoei_mlp experts, shared, dense;
    cmoe_layer *moe; /* router and experts together; NULL in dense layers and in shares */
    cmoei_values router[CMOEI_ROUTER_PARTS]; /* of shares, whole as it is needed everywhere */
} cmoei_model_layer;

typedef struct cmoei_keep cmoei_keep; /* keep.c */

struct cmoe_model {
    cmoe_ctx *ctx;
    cmoei_decoder d;
    cmoei_share share;
    int32_t format;        /* of the packed weights */
    const void *embedding; /* [vocab, hidden] as stored */
    void *own_embedding;   /* the same, or NULL when it lies on the tape */
    int32_t embedding_dtype;
    float *final_norm, *final_norm_bias;
    cmoe_matrix *head; /* [vocab, hidden] */
    cmoei_model_layer *layer;
    float *vectors; /* all of them, one behind the other */
    int64_t vector_bytes, embedding_bytes;
    float *frequencies; /* [rope.dim / 2] */
    float amplitude;
    cmoe_model_info info;
    cmoei_tape tape;  /* whose mapping holds the weights, if it plays */
    cmoei_keep *keep; /* where it is kept; NULL: nowhere */
};

struct cmoe_cache {
    const cmoe_model *model;
    char *base;
    int64_t pages, layer_bytes, bytes; /* layer_bytes: of one page of one layer */
    int32_t format;
};

/* The head decides between tokens: int8 models keep it in bf16. */
static inline int32_t cmoei_head_format(int32_t format)
{
    return format == CMOE_I8 ? CMOE_BF16 : format;
}
/* Part of a model: forward needs the other ranks. */
static inline bool cmoei_model_is_share(const cmoe_model *m)
{
    return m->share.ranks > 1 || m->share.experts.count > 0;
}

void cmoei_model_free_router(cmoe_model *m, int64_t layer);

/* Keys and values of one layer.  Layers lie one behind the other, so that a page of a layer has the
 * same number in all of them. */
cmoe_kv cmoei_cache_layer(const cmoe_cache *c, int64_t layer);
/* What cmoe_cache_create with these options will take. */
cmoe_status cmoei_cache_bytes(const cmoe_model *m, const cmoe_cache_options *o, int64_t *bytes,
                              cmoe_error *err);

/* Sizes of everything a model keeps, by what it is for; fills all of info. */
cmoe_status cmoei_model_measure(cmoe_ctx *ctx, const cmoei_tensors *t, const cmoei_share *share,
                                int32_t format, cmoe_model_info *info, cmoe_error *err);

#endif
