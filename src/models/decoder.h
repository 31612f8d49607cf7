/* SPDX-License-Identifier: MIT
 *
 * decoder.h - one decoder with switches: every architecture is a setting of them.
 *
 *     h = embedding[ids] * embedding_scale
 *     each layer:  h += residual_scale * mixer(norm1(h))            post-norm: h += norm1(mixer(h))
 *                  h += residual_scale * feed_forward(norm2(h))                h += norm2(ff(h))
 *     logits = head(final_norm(h)) * logits_scale
 *
 * An architecture is one file: it reads its config.json into a cmoei_decoder, and lists the names
 * that its tensors have in files.  Nothing else knows it.  docs/adding-a-model.md walks through one.
 */
#ifndef CMOE_MODELS_DECODER_H
#define CMOE_MODELS_DECODER_H

#include "cmoe/experts.h"
#include "cmoe/model.h"
#include "cmoe/ops.h"
#include "cmoe/route.h"
#include "weights/source.h"

/* ---- shape ----------------------------------------------------------------------------------- */

/* What mixes tokens in a layer.  Kinds with other weights, caches and states come to stand here. */
typedef enum cmoei_mixer {
    CMOEI_MIXER_ATTENTION = 0,
} cmoei_mixer;

typedef enum cmoei_qk_norm {
    CMOEI_QK_NONE = 0,
    CMOEI_QK_HEAD, /* RMS over each head, weight [head_dim] */
    CMOEI_QK_FULL  /* RMS over all heads of q, of k: weight [heads * head_dim] */
} cmoei_qk_norm;

/* One layer; experts == 0: a dense MLP of width `inter`. */
typedef struct cmoei_layer_shape {
    cmoei_mixer mixer;
    int64_t window;        /* 0: none */
    int64_t experts, topk; /* E, K */
    int64_t inter;         /* of one expert, or of the dense MLP */
    int64_t shared_inter;  /* of the shared expert; 0: none */
} cmoei_layer_shape;

typedef struct cmoei_decoder {
    const struct cmoei_arch *arch;
    uint64_t sum; /* of the text of config.json: what it says decides what is packed */
    int64_t layers, hidden, vocab;
    int64_t heads, kv_heads, head_dim;
    int64_t context;          /* max_position_embeddings */
    cmoei_layer_shape *layer; /* [layers] */

    /* norms */
    float eps;
    bool layer_norm; /* LayerNorm with bias instead of RMS */
    bool post_norm;  /* norms behind mixer and feed-forward, none before */

    /* attention */
    bool qkv_bias, o_bias, sinks;
    cmoei_qk_norm qk_norm;
    bool qk_norm_after_rope;
    float clip_qkv;         /* 0: none */
    float attention_scale;  /* 0: 1 / sqrt(head_dim) */
    cmoe_rope_options rope; /* its factor arrays belong to the decoder: factors */
    bool rope_interleaved;
    float *factors;     /* longrope: short [r/2], long [r/2]; or NULL */
    int32_t mask;       /* CMOE_MASK_CAUSAL, CMOE_MASK_FULL, or a block */
    int64_t mask_token; /* -1: none */

    /* feed-forward */
    bool mlp_bias;      /* dense, shared and routed experts: biases on gate, up and down */
    bool expert_bias;   /* routed experts only */
    bool router_bias;   /* part of the logits */
    bool choice_bias;   /* added for the choice only */
    bool shared_gate;   /* the shared expert is weighted by a sigmoid */
    int32_t activation; /* CMOE_ACT_ of routed experts; dense and shared: SiLU */
    float swiglu_limit, swiglu_alpha; /* of routed experts */
    cmoe_route_options route;         /* all but topk, which the layers say */

    /* ends */
    bool tied, head_bias;
    float embedding_scale, residual_scale, logits_scale;
    float init_std; /* of weights that are made and not read: initializer_range */

    /* storage */
    int64_t f8_block[2]; /* outputs and inputs that share a scale */
} cmoei_decoder;

/* Reads config.json of a directory and has its architecture fill the decoder. */
cmoe_status cmoei_decoder_open(cmoei_decoder *d, cmoe_ctx *ctx, const char *path, cmoe_error *err);
/* The same from text of `bytes` bytes; `file` stands in error texts. */
cmoe_status cmoei_decoder_parse(cmoei_decoder *d, cmoe_ctx *ctx, const char *text, int64_t bytes,
                                const char *file, cmoe_error *err);
void cmoei_decoder_close(cmoei_decoder *d, cmoe_ctx *ctx);

/* ---- tensors --------------------------------------------------------------------------------- */

/* What a tensor is for.  Those of a layer exist once a layer, EXPERT ones once an expert. */
typedef enum cmoei_role {
    CMOEI_EMBEDDING = 0, /* [vocab, hidden] */
    CMOEI_FINAL_NORM,    /* [hidden] */
    CMOEI_FINAL_NORM_BIAS,
    CMOEI_HEAD, /* [vocab, hidden]; absent when tied */
    CMOEI_HEAD_BIAS,
    CMOEI_GLOBAL_ROLES,

    CMOEI_NORM1 = CMOEI_GLOBAL_ROLES, /* [hidden] */
    CMOEI_NORM1_BIAS,
    CMOEI_NORM2,
    CMOEI_NORM2_BIAS,
    CMOEI_Q, /* [heads * head_dim, hidden] */
    CMOEI_K, /* [kv_heads * head_dim, hidden] */
    CMOEI_V,
    CMOEI_O, /* [hidden, heads * head_dim] */
    CMOEI_Q_BIAS,
    CMOEI_K_BIAS,
    CMOEI_V_BIAS,
    CMOEI_O_BIAS,
    CMOEI_Q_NORM, /* [head_dim] or [heads * head_dim] */
    CMOEI_K_NORM,
    CMOEI_SINKS,       /* [heads] */
    CMOEI_ROUTER,      /* [E, hidden] */
    CMOEI_ROUTER_BIAS, /* [E] */
    CMOEI_CHOICE_BIAS, /* [E] or [1, E] */
    CMOEI_GATE,        /* dense MLP: [inter, hidden] */
    CMOEI_UP,
    CMOEI_DOWN, /* [hidden, inter] */
    CMOEI_GATE_BIAS,
    CMOEI_UP_BIAS,
    CMOEI_DOWN_BIAS,
    CMOEI_SHARED_GATE, /* shared expert, the same */
    CMOEI_SHARED_UP,
    CMOEI_SHARED_DOWN,
    CMOEI_SHARED_GATE_BIAS,
    CMOEI_SHARED_UP_BIAS,
    CMOEI_SHARED_DOWN_BIAS,
    CMOEI_SHARED_WEIGHT, /* [1, hidden]: the shared expert times sigmoid of this . x */
    CMOEI_LAYER_ROLES,

    CMOEI_EXPERT_GATE = CMOEI_LAYER_ROLES, /* [inter, hidden] */
    CMOEI_EXPERT_UP,
    CMOEI_EXPERT_DOWN, /* [hidden, inter] */
    CMOEI_EXPERT_GATE_BIAS,
    CMOEI_EXPERT_UP_BIAS,
    CMOEI_EXPERT_DOWN_BIAS,
    CMOEI_ROLES,

    /* What files also have: several of the above in one tensor. */
    CMOEI_FUSED_GATE_UP =
        CMOEI_ROLES,          /* [E, 2I, hidden] -> EXPERT_GATE, EXPERT_UP of all experts */
    CMOEI_FUSED_DOWN,         /* [E, hidden, I] */
    CMOEI_FUSED_GATE_UP_BIAS, /* [E, 2I] */
    CMOEI_FUSED_DOWN_BIAS,    /* [E, hidden] */
    CMOEI_FUSED_QKV,          /* [(heads + 2 kv_heads) * head_dim, hidden] */
    CMOEI_IGNORED             /* known, and not needed */
} cmoei_role;

/* How a tensor lies in its file. */
enum {
    CMOEI_TRANSPOSED = 1 << 0,  /* fused: [E, hidden, 2I], [E, I, hidden] */
    CMOEI_INTERLEAVED = 1 << 1, /* fused: rows alternate gate, up */
    CMOEI_BLOCKS = 1 << 2,      /* mxfp4: u8 [..., rows, cols / 32, 16], two values a byte */
    CMOEI_SCALES = 1 << 3 /* scales of the tensor with the same role: of f8 blocks, of mxfp4 */
};

/* {l} stands for a layer, {e} for an expert, {*} for anything.  The first name that fits counts. */
typedef struct cmoei_tensor_name {
    const char *pattern;
    cmoei_role role;
    uint32_t how;
} cmoei_tensor_name;

/* Every tensor of a model, by what it is for: vectors are sources of one row. */
typedef struct cmoei_tensors {
    const cmoei_decoder *decoder;
    cmoei_source global[CMOEI_GLOBAL_ROLES];
    cmoei_source *layer;   /* [layers, CMOEI_LAYER_ROLES] (the first GLOBAL_ROLES unused) */
    cmoei_source **expert; /* [layers] -> [CMOEI_ROLES - CMOEI_LAYER_ROLES, E], or NULL */
    int64_t used, ignored; /* tensors of the files */
} cmoei_tensors;

static inline const cmoei_source *cmoei_tensor_of(const cmoei_tensors *t, int64_t layer,
                                                  cmoei_role role)
{
    return &t->layer[layer * CMOEI_LAYER_ROLES + role];
}
static inline const cmoei_source *cmoei_tensor_of_expert(const cmoei_tensors *t, int64_t layer,
                                                         cmoei_role role, int64_t expert)
{
    return &t->expert[layer]
                     [(role - CMOEI_LAYER_ROLES) * t->decoder->layer[layer].experts + expert];
}

/* Says where every tensor of the checkpoint goes.  CMOE_ERR_FORMAT lists what is missing, what nobody
 * knows, and the first one of a wrong shape or format.  Whatever the header of a file says about a
 * tensor has been checked against the decoder afterwards. */
cmoe_status cmoei_tensors_resolve(cmoei_tensors *t, cmoe_ctx *ctx, const cmoei_decoder *d,
                                  const cmoe_checkpoint *c, cmoe_error *err);
void cmoei_tensors_free(cmoei_tensors *t, cmoe_ctx *ctx);

/* Shape of a role in this layer (-1 for the global ones); false when the model has no such tensor.
 * Vectors are [1, n]. */
bool cmoei_role_shape(const cmoei_decoder *d, int64_t layer, cmoei_role role, int64_t dims[2]);

/* ---- architectures --------------------------------------------------------------------------- */

typedef struct cmoei_config cmoei_config; /* config.h */

typedef struct cmoei_arch {
    const char *type; /* model_type */
    /* Sets what differs from cmoei_config_decoder's reading of the common keys. */
    void (*read)(cmoei_config *c, cmoei_decoder *d);
    const cmoei_tensor_name *const *names; /* lists, ending in NULL; earlier ones count first */
} cmoei_arch;

extern const cmoei_arch *const cmoei_archs[]; /* ends in NULL; list.c */

#endif
