/* SPDX-License-Identifier: MIT
 *
 * config.h - reading config.json: typed, ranged, with the other spellings of a key, and with one
 * error that sticks.
 *
 * A key is given with its aliases, "num_experts|num_local_experts": the first that is there and not
 * null counts, and is the one that error texts name.  After the first error every getter returns its
 * fallback, so that architectures read on without asking.
 */
#ifndef CMOE_MODELS_CONFIG_H
#define CMOE_MODELS_CONFIG_H

#include <jansson.h>

#include "decoder.h"

struct cmoei_config {
    cmoe_ctx *ctx;
    const char *file;    /* for texts */
    const char *section; /* key of the object that `root` is, for texts; NULL: the file itself */
    json_t *root;        /* the object that has the keys: text_config where there is one */
    json_t *outer;       /* the whole file, where wrappers keep the tie and the quantisation */
    cmoe_status status;
    cmoe_error *err;
};

/* Limits, so that no product of two of them comes near 2^63; cmoei_config_check bounds the whole. */
enum {
    CMOEI_MOST_LAYERS = 1000,
    CMOEI_MOST_WIDTH = 1 << 20, /* hidden, intermediate */
    CMOEI_MOST_VOCAB = 1 << 24,
    CMOEI_MOST_HEADS = 1 << 16,
    CMOEI_MOST_HEAD_DIM = 4096,
    CMOEI_MOST_EXPERTS = 1 << 16
};

bool cmoei_config_has(const cmoei_config *c, const char *keys); /* there and not null */
/* least <= value <= most, else the error.  CMOEI_REQUIRED as fallback: the key must be there. */
#define CMOEI_REQUIRED INT64_MIN
int64_t cmoei_config_int(cmoei_config *c, const char *keys, int64_t least, int64_t most,
                         int64_t fallback);
double cmoei_config_real(cmoei_config *c, const char *keys, double least, double most,
                         double fallback);
bool cmoei_config_bool(cmoei_config *c, const char *keys, bool fallback);
const char *cmoei_config_text(cmoei_config *c, const char *keys, const char *fallback);
/* An entry for layer i of a list, or the number itself where the key holds one for all. */
int64_t cmoei_config_int_of(cmoei_config *c, const char *keys, int64_t layer, int64_t least,
                            int64_t most, int64_t fallback);
/* The object behind a key, to be read with the same getters; empty when there is none.  Its status is
 * its own: cmoei_config_leave hands it back. */
cmoei_config cmoei_config_section(cmoei_config *c, const char *key);
void cmoei_config_leave(cmoei_config *c, const cmoei_config *section);
/* For conditions that a getter cannot express: "config.json: key = ..., want ...". */
void cmoei_config_fail(cmoei_config *c, cmoe_status status, const char *format, ...)
    CMOEI_PRINTF(3, 4);

/* The keys that nearly all have in common: sizes, eps, rope, tied head, activation, quantisation;
 * d->layer is allocated, every layer dense with intermediate_size and no window.  Called before
 * arch->read. */
void cmoei_config_decoder(cmoei_config *c, cmoei_decoder *d);

/* Rotary positions, from the old form or the new one (config_rope.c).  cmoei_config_decoder reads them
 * with theta 10000 and all of a head; architectures with other defaults read them again. */
void cmoei_config_rope(cmoei_config *c, cmoei_decoder *d, double theta, double partial);
/* eps of the norms, again with another default than 1e-6. */
void cmoei_config_eps(cmoei_config *c, cmoei_decoder *d, double eps);

/* What must hold whatever the architecture is; the last thing that reads. */
void cmoei_config_check(cmoei_config *c, cmoei_decoder *d);

/* ---- parts that several architectures share; each sets every layer ------------------------------ */

/* Experts, top-k and their width (`inter_key`) in all layers. */
void cmoei_config_experts(cmoei_config *c, cmoei_decoder *d, const char *inter_key);
/* Dense again: layers in mlp_only_layers, and those where (i + 1) % decoder_sparse_step != 0. */
void cmoei_config_sparse_step(cmoei_config *c, cmoei_decoder *d);
/* Dense again: the first `n` layers. */
void cmoei_config_dense_first(cmoei_config *c, cmoei_decoder *d, int64_t n);
/* Turns a layer into a dense one. */
void cmoei_layer_dense(cmoei_config *c, cmoei_decoder *d, int64_t layer);
/* Shared experts beside the routed ones, so many (key, else `fallback`) widths of an expert each. */
void cmoei_config_shared(cmoei_config *c, cmoei_decoder *d, const char *count_key,
                         int64_t fallback);
/* DeepSeek's router: sigmoid, choice bias, groups, scale. */
void cmoei_config_sigmoid_groups(cmoei_config *c, cmoei_decoder *d);
/* window in layers whose layer_types entry is sliding_attention; in all without that list. */
void cmoei_config_window(cmoei_config *c, cmoei_decoder *d);

/* The same only with use_sliding_window; without the list, layers from max_window_layers on. */
void cmoei_config_window_from(cmoei_config *c, cmoei_decoder *d);
/* norm_topk_prob of a softmax router. */
void cmoei_config_softmax(cmoei_config *c, cmoei_decoder *d, bool renormalize);
/* attention_bias: on q, k, v and o. */
void cmoei_config_attention_bias(cmoei_config *c, cmoei_decoder *d, bool fallback);

/* ---- tensor names that several architectures share ---------------------------------------------- */

extern const cmoei_tensor_name cmoei_names_common[];  /* embedding, norms, q k v o, head, ignored */
extern const cmoei_tensor_name cmoei_names_mlp[];     /* mlp.{gate,up,down}_proj */
extern const cmoei_tensor_name cmoei_names_experts[]; /* mlp.experts.{e}.{gate,up,down}_proj,
                                                               mlp.gate, fused mlp.experts.* */
extern const cmoei_tensor_name
    cmoei_names_block_sparse[]; /* block_sparse_moe.experts.{e}.w1 w3 w2 */
extern const cmoei_tensor_name cmoei_names_shared_experts[]; /* mlp.shared_experts.* */

#endif
