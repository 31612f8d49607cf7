/* SPDX-License-Identifier: MIT
 *
 * cmoe/model.h - whole models: a directory in the Hugging Face layout, and logits of token ids.
 *
 *     cmoe_model_load          config.json and *.safetensors -> packed weights
 *     cmoe_cache_create        room for the keys and values of so many positions
 *     cmoe_model_forward       tokens of any number of sequences -> logits, cache filled on the way
 *
 * A token's logits do not depend on the batch, on how its sequence was cut into calls, nor on the
 * number of threads.  Part of libcmoe_engine.
 */
#ifndef CMOE_MODEL_H
#define CMOE_MODEL_H

#include "cmoe/attention.h"
#include "cmoe/base.h"
#include "cmoe/lora.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- which models there are ------------------------------------------------------------------ */

CMOE_API int64_t cmoe_model_types(void);              /* how many */
CMOE_API const char *cmoe_model_type_name(int64_t i); /* "qwen3_moe"; NULL outside */

/* ---- load ------------------------------------------------------------------------------------ */

typedef struct cmoe_model_options {
    size_t size;
    int32_t format;     /* of weights and activations: CMOE_F32, CMOE_BF16, CMOE_I8; 0 (default): as
                             stored, everything of 16 bits and less as bf16 */
    int32_t mask_block; /* B > 0: block-causal in blocks of B; 0 (default): as the model says */
    int64_t context;    /* positions of one sequence; 0: max_position_embeddings of the model */
    int64_t memory_limit; /* bytes that weights may take; 0: any.  More is CMOE_ERR_MEMORY, before
                             anything is read */
    int64_t first_expert, experts; /* expert parallel: routed experts [first, first + experts) are
                                      kept; experts 0 (default): all */
    int32_t tensor_rank, tensor_ranks; /* tensor parallel: this rank's share of every matrix's
                                          outputs; ranks 0 (default) or 1: all */
    int32_t keep_page_cache; /* 1: read files stay in the page cache; 0 (default): they go */
    int32_t describe_only;   /* 1: every check, no weights: to be described, not to be run */
    /* A folder in which packed weights are kept, to be mapped by the next load of the same files in the
     * same format; NULL (default): they are packed every time.  There is one file for each `path` and
     * format: what is made of files that have changed takes its place.  One that is broken is said to
     * the log and made anew; so is that nothing could be written. */
    const char *cache_dir;
    int32_t cache_read_only; /* 1: nothing is written there */
    int32_t cache_later;     /* 1: nothing is written there before cmoe_model_keep */
    /* Called now and then, by one thread at a time; another value than 0 gives CMOE_ERR_CANCELLED. */
    int32_t (*progress)(void *user, int64_t done_bytes, int64_t total_bytes);
    void *progress_user;
    /* Adapters (cmoe/lora.h) that are folded into the weights while these are packed, in float32; scale
     * NULL: 1 each.  Needed until load returns.  With adapters nothing is kept in cache_dir. */
    const cmoe_adapter *const *adapters;
    const float *adapter_scales;
    int64_t adapter_count;
} cmoe_model_options;

CMOE_API void cmoe_model_options_default(cmoe_model_options *o, size_t size);

/* Immutable, shared by threads; freed after its caches and before its context. */
typedef struct cmoe_model cmoe_model;

/* `path`: the directory.  CMOE_ERR_IO, CMOE_ERR_FORMAT, CMOE_ERR_UNSUPPORTED: the directory is not
 * what it should be; the text names file, key or tensor, the value, and what is accepted. */
CMOE_API cmoe_status cmoe_model_load(cmoe_model **out, cmoe_ctx *ctx, const char *path,
                                     const cmoe_model_options *o, cmoe_error *err);
CMOE_API void cmoe_model_free(cmoe_model *m);

/* Of a model loaded with cache_later: writes what was packed into its cache_dir, once; nothing when it
 * was found there.  May run beside forwards of other threads, so that nobody waits for the disk.
 * `progress` is as in the options, or NULL; when it stops the writing, nothing is left. */
CMOE_API cmoe_status cmoe_model_keep(cmoe_model *m,
                                     int32_t (*progress)(void *user, int64_t done_bytes,
                                                         int64_t total_bytes),
                                     void *progress_user, cmoe_error *err);

/* Bytes, by what they are for. */
typedef struct cmoe_model_bytes {
    int64_t experts;   /* routed, of this rank */
    int64_t shared;    /* shared experts */
    int64_t dense;     /* MLPs of layers without experts */
    int64_t attention; /* projections */
    int64_t router;
    int64_t embedding, head;
    int64_t small; /* norms, biases, sinks */
    int64_t total;
    int64_t per_token;       /* read for one token of a single sequence, without its cache */
    int64_t cache_per_token; /* keys and values of one position, all layers */
} cmoe_model_bytes;

typedef struct cmoe_model_info {
    size_t size;
    const char *type; /* "qwen3_moe" */
    int64_t layers, hidden, heads, kv_heads, head_dim, vocab;
    int64_t context;                   /* positions of one sequence */
    int64_t moe_layers, experts, topk; /* of the widest layer */
    int64_t parameters, active_parameters;
    int32_t mask;                  /* CMOE_MASK_CAUSAL, CMOE_MASK_FULL, or B > 0 */
    int32_t format;                /* of the packed weights */
    int64_t mask_token;            /* of diffusion models; -1: none */
    int64_t window, window_layers; /* the widest; how many layers have one; 0: none */
    int32_t tied;                  /* the head is the embedding */
    int32_t cached;                /* the weights were found packed */
    int64_t tensors, ignored;      /* of the files: used, and not */
    int64_t file_bytes;
    cmoe_model_bytes bytes; /* last: it may come to know more kinds */
} cmoe_model_info;

CMOE_API void cmoe_model_info_default(cmoe_model_info *info, size_t size);

CMOE_API cmoe_status cmoe_model_describe(const cmoe_model *m, cmoe_model_info *info,
                                         cmoe_error *err);
/* The same from the headers of the files alone: a load with describe_only, described. */
CMOE_API cmoe_status cmoe_model_plan(cmoe_ctx *ctx, const char *path, const cmoe_model_options *o,
                                     cmoe_model_info *info, cmoe_error *err);

typedef struct cmoe_model_layer {
    size_t size;
    int64_t experts, topk; /* routed; 0: a dense layer */
    int64_t inter, shared_inter;
    int64_t window;    /* 0: none */
    const char *mixer; /* "attention" */
} cmoe_model_layer;

CMOE_API void cmoe_model_layer_default(cmoe_model_layer *layer, size_t size);

CMOE_API cmoe_status cmoe_model_layer_describe(const cmoe_model *m, int64_t layer,
                                               cmoe_model_layer *out, cmoe_error *err);

/* ---- cache ----------------------------------------------------------------------------------- */

typedef struct cmoe_cache_options {
    size_t size;
    int64_t pages;  /* of CMOE_KV_PAGE positions each, shared by all sequences; at least 1 */
    int32_t format; /* CMOE_F32, CMOE_BF16; 0 (default): bf16 for a bf16 or int8 model, else f32 */
    int32_t reserved;
} cmoe_cache_options;

CMOE_API void cmoe_cache_options_default(cmoe_cache_options *o, size_t size);

/* Keys and values of all layers.  Who owns which page is the caller's business.  Belongs to one
 * thread at a time; freed before its model. */
typedef struct cmoe_cache cmoe_cache;

CMOE_API cmoe_status cmoe_cache_create(cmoe_cache **out, const cmoe_model *m,
                                       const cmoe_cache_options *o, cmoe_error *err);
CMOE_API void cmoe_cache_free(cmoe_cache *c);
CMOE_API int64_t cmoe_cache_page_bytes(const cmoe_cache *c); /* of one page, all layers */

/* ---- forward --------------------------------------------------------------------------------- */

/* Routing of one MoE layer, T tokens of the call. */
typedef struct cmoe_routing {
    cmoe_view_mut ids;     /* int32 [T, topk] */
    cmoe_view_mut weights; /* float32 [T, topk], as multiplied onto the expert outputs; optional */
} cmoe_routing;

typedef struct cmoe_model_call {
    size_t size;
    const cmoe_batch *batch; /* tokens, positions and pages of every sequence */
    cmoe_view ids;           /* int32 or int64 [T] */
    cmoe_cache *cache;
    cmoe_view
        rows; /* int32 or int64 [R]: tokens whose logits are wanted, ascending; not given: all */
    const cmoe_routing *capture; /* [layers]: written where a layer has experts; or NULL */
    const cmoe_routing
        *replay; /* [layers]: ids are forced; weights too where they are given; or NULL */
} cmoe_model_call;

CMOE_API void cmoe_model_call_default(cmoe_model_call *c, size_t size);

/* Arena bytes for a call of so many tokens, sequences and rows of logits, all that it needs. */
CMOE_API cmoe_status cmoe_model_forward_bytes(const cmoe_model *m, int64_t tokens,
                                              int64_t sequences, int64_t rows, int64_t *host,
                                              int64_t *device, cmoe_error *err);

/* logits float32 [R, vocab].  Tokens of a block-causal model see the whole of their block as far as
 * it is given, so calls end where blocks do, or at the end of the prompt. */
CMOE_API cmoe_status cmoe_model_forward(cmoe_stream *s, const cmoe_model *m,
                                        const cmoe_model_call *call, cmoe_view_mut logits,
                                        cmoe_arena *scratch, cmoe_error *err);

/* ---- merge ----------------------------------------------------------------------------------- */

/* Writes the model with its adapters folded in, W + sum of scale * s B A in float32, rounded once to
 * `dtype` (CMOE_F32, CMOE_BF16, 0: as stored), as a directory; config and tokenizer files are copied.
 * scales [count] or NULL: 1. */
CMOE_API cmoe_status cmoe_model_merge(cmoe_ctx *ctx, const char *model,
                                      const cmoe_adapter *const *adapters, const float *scales,
                                      int64_t count, int32_t dtype, const char *out_dir,
                                      cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
