/* SPDX-License-Identifier: MIT
 *
 * peft.h - adapters as PEFT writes them: a list of low-rank terms by module.
 *
 *     W'[n, k] = W[n, k] + scale * sum over rho of b[n, rho] * a[rho, k]
 *
 * Inside, factors are always by expert: a [E, r, K], b [E, N, r].  In files the B of stacked experts has its
 * columns by rank first (rho * E + e), and up to PEFT 0.19.0 the two factors of such a parameter were
 * exchanged.
 */
#ifndef CMOE_LORA_PEFT_H
#define CMOE_LORA_PEFT_H

#include "cmoe/lora.h"
#include "core/core.h"

typedef struct cmoei_lora_term {
    char module[256]; /* "model.layers.0.self_attn.q_proj", "...mlp.experts.gate_up_proj",
                                "...mlp.experts.3.up_proj" */
    int64_t experts;  /* E of a stacked parameter, else 1 */
    bool stacked;
    bool interleaved; /* to be written with the rows of gate and up in turn; b has gate first */
    int64_t rank, inputs, outputs; /* r, K, N of one */
    float scale;                   /* alpha / r or alpha / sqrt(r) */
    const float *a, *b;
    /* Of a stacked parameter that may be in the old layout: the factors exchanged, a [E, r, N] and
     * b [E, K, r]; or NULL. */
    const float *exchanged_a, *exchanged_b;
} cmoei_lora_term;

struct cmoe_adapter {
    cmoe_ctx *ctx;
    cmoe_adapter_info info;
    cmoei_lora_term *terms; /* [count] by module name */
    int64_t count, terms_bytes;
    float *values;
    int64_t values_bytes;
    char base[512];
    char path[512]; /* for texts */
};

/* Which layouts make a term, stacked or not, [outputs, inputs] for so many experts. */
enum { CMOEI_LORA_FITS_OLD = 1, CMOEI_LORA_FITS_NEW = 2 };
int32_t cmoei_lora_fits(const cmoei_lora_term *t, int64_t experts, int64_t outputs, int64_t inputs);

/* The term in that layout (CMOE_PEFT_BEFORE_0_19 or _SINCE_0_19), to be [outputs, inputs].
 * CMOE_ERR_FORMAT: it does not fit. */
cmoe_status cmoei_lora_orient(const cmoe_adapter *a, const cmoei_lora_term *t, int32_t layout,
                              int64_t experts, int64_t outputs, int64_t inputs,
                              cmoei_lora_term *out, cmoe_error *err);

typedef struct cmoei_peft_write {
    const char *dir, *base_model;
    int64_t rank;
    double alpha;
    bool rslora;
    /* The model has experts.  Then PEFT takes gate_proj, up_proj and down_proj among the modules for the
     * experts of former versions, so those of shared experts and dense MLPs are targeted as parameters. */
    bool experts;
} cmoei_peft_write_options;

/* adapter_config.json and adapter_model.safetensors in the layout of PEFT since 0.19.1, the tensors first:
 * without its config a folder is no adapter.  Terms of another rank or scale than the options say get a
 * pattern. */
cmoe_status cmoei_peft_write(cmoe_ctx *ctx, const cmoei_peft_write_options *o,
                             const cmoei_lora_term *terms, int64_t count, cmoe_error *err);

#endif
