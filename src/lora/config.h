/* SPDX-License-Identifier: MIT
 *
 * config.h - adapter_config.json: what decides how the tensors beside it are meant.
 */
#ifndef CMOE_LORA_CONFIG_H
#define CMOE_LORA_CONFIG_H

#include <jansson.h>

#include "core/core.h"

typedef struct cmoei_adapter_pattern cmoei_adapter_pattern; /* a compiled key and its number */

typedef struct cmoei_adapter_config {
    cmoe_ctx *ctx;
    json_t *root;
    int64_t rank;
    double alpha;
    bool rslora;
    const json_t *parameters;                            /* list of target_parameters; or NULL */
    cmoei_adapter_pattern *rank_pattern, *alpha_pattern; /* or NULL */
    int64_t ranks, alphas;
    int32_t layout; /* CMOE_PEFT_: by the version that it records */
    const char *base;
} cmoei_adapter_config;

/* The text of a file; `file` stands in error texts.  On error nothing is left open. */
cmoe_status cmoei_adapter_config_read(cmoei_adapter_config *c, cmoe_ctx *ctx, const char *text,
                                      int64_t bytes, cmoe_error *err);
void cmoei_adapter_config_close(cmoei_adapter_config *c);

/* A parameter of that full name is one of target_parameters. */
bool cmoei_adapter_config_targets(const cmoei_adapter_config *c, const char *name);
/* Rank and alpha of a module or parameter, patterns considered. */
cmoe_status cmoei_adapter_config_rank(const cmoei_adapter_config *c, const char *name,
                                      int64_t *rank, double *alpha, cmoe_error *err);

#endif
