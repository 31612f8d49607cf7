/* SPDX-License-Identifier: MIT
 *
 * params.h - the weights of a decoder that is trained.
 *
 * What an optimizer moves lies in one array of float32, `values`, so a gradient or a moment of all of it is
 * another array of the same length, and cmoei_params_in finds the place of one in the other.  Matrices that
 * are multiplied together (q, k, v; gate and up; the experts of a layer) are one weight of several parts.
 * Under LoRA the factors are trained and everything else is fixed, in a format of its own.
 */
#ifndef CMOE_TRAIN_PARAMS_H
#define CMOE_TRAIN_PARAMS_H

#include "cmoe/train.h"
#include "cmoe/trainable.h"
#include "models/decoder.h"
#include "optimizer.h"

enum { CMOEI_WEIGHT_PARTS = 3 };

/* One parameter of a weight, or one per expert: rows [at, at + rows).  With a low-rank term gate and up of
 * experts are one part, CMOEI_FUSED_GATE_UP, because PEFT has one pair of factors for both. */
typedef struct cmoei_weight_part {
    cmoei_role role, bias_role;
    int64_t at, rows;
    int64_t rank; /* of its low-rank term; 0: none */
    float *a, *b; /* [E, rank, K], [E, rows, rank] */
} cmoei_weight_part;

typedef struct cmoei_weight {
    cmoe_trainable *trainable;        /* NULL: the decoder has no such weight */
    int64_t experts, outputs, inputs; /* E, N, K */
    float *value;                     /* [E, N, K] trained; NULL: fixed */
    void *fixed;                      /* [E, N, K] of dtype */
    float *scale;                     /* [E, N] of fixed int8 */
    float *bias;                      /* [E, N] or NULL; trained where value is */
    int32_t format, dtype;
    bool exact; /* float32 whatever the others are: routers */
    int32_t parts;
    cmoei_weight_part part[CMOEI_WEIGHT_PARTS];
} cmoei_weight;

/* The weights of a layer. */
typedef enum cmoei_weight_kind {
    CMOEI_W_QKV = 0,
    CMOEI_W_O,
    CMOEI_W_ROUTER,
    CMOEI_W_13, /* of experts, or of the dense MLP */
    CMOEI_W_2,
    CMOEI_W_SHARED_13,
    CMOEI_W_SHARED_2,
    CMOEI_W_SHARED_GATE,
    CMOEI_W_KINDS
} cmoei_weight_kind;

typedef struct cmoei_layer_params {
    cmoei_weight weight[CMOEI_W_KINDS];
    float *norm1, *norm1_bias, *norm2, *norm2_bias; /* [D] or NULL */
    float *q_norm, *k_norm, *sinks;
    float *choice_bias; /* [E] or NULL; moved by load, never by a gradient */
} cmoei_layer_params;

typedef struct cmoei_params {
    cmoe_ctx *ctx;
    const cmoei_decoder *d;
    cmoe_train_options o;
    bool lora;
    float lora_scale;
    float *values; /* [count] */
    int64_t count, values_bytes;
    int64_t
        extra; /* floats behind the others of a gradient: the embedding's part, where it is the head */
    char *fixed;
    int64_t fixed_bytes;
    float *embedding, *final_norm, *final_norm_bias;
    cmoei_weight head; /* outputs: vocab; tied: its value is the embedding */
    cmoei_layer_params *layer;
    int64_t layer_bytes;
    int64_t parameters, active; /* numbers of weights of the model */
} cmoei_params;

/* Memory for a decoder, which must outlive it.  CMOE_ERR_UNSUPPORTED: something that has no backward. */
cmoe_status cmoei_params_create(cmoei_params *p, cmoe_ctx *ctx, const cmoei_decoder *d,
                                const cmoe_train_options *o, cmoe_error *err);
void cmoei_params_free(cmoei_params *p);
/* Of memory, packed weights included. */
int64_t cmoei_params_bytes(const cmoei_params *p);

/* Contents: random numbers by seed, or what files hold; factors A random and B zero in either case. */
cmoe_status cmoei_params_random(cmoei_params *p, cmoe_error *err);
cmoe_status cmoei_params_read(cmoei_params *p, const cmoei_tensors *t, cmoe_error *err);

/* Packs every weight again.  Fixed ones only when `all`. */
cmoe_status cmoei_params_fill(cmoei_params *p, cmoe_stream *s, bool all, cmoe_error *err);

/* Where a trained value's counterpart lies in another array of the same length; NULL for fixed ones. */
static inline float *cmoei_params_in(const cmoei_params *p, float *array, const float *value)
{
    return value && value >= p->values && value < p->values + p->count ? array + (value - p->values)
                                                                       : NULL;
}

/* An array of gradients has count + extra floats.  Adds what stands behind to where it belongs, once the gradients
 * of all passes have been added: so the sum does not depend on how many there were. */
cmoe_status cmoei_params_close(const cmoei_params *p, cmoe_stream *s, float *gradient,
                               cmoe_error *err);

/* Views of the gradients of a weight's parts in an array like values. */
void cmoei_params_gradients(const cmoei_params *p, const cmoei_weight *w, float *array,
                            cmoe_part_gradient out[CMOEI_WEIGHT_PARTS]);

/* Everything that is trained, in a fixed order: called with each tensor [rows, cols], by matrix when
 * `apart` (an expert at a time), else by weight. */
typedef cmoe_status (*cmoei_params_fn)(void *user, const char *name, float *value, int64_t rows,
                                       int64_t cols, bool decay, bool hidden);
cmoe_status cmoei_params_each(const cmoei_params *p, bool apart, cmoei_params_fn fn, void *user);

/* The view of a parameter's values by role, as files have it; not given when the decoder has none or it is
 * fixed. */
cmoe_view cmoei_params_role(const cmoei_params *p, int64_t layer, cmoei_role role, int64_t expert);

#endif
