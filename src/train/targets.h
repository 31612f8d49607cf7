/* SPDX-License-Identifier: MIT
 *
 * targets.h - which parameters get low-rank terms.
 */
#ifndef CMOE_TRAIN_TARGETS_H
#define CMOE_TRAIN_TARGETS_H

#include "params.h"

/* Sets the ranks of the parts that o.targets names, and the scale.  A target that fits nothing is
 * CMOE_ERR_ARG, whose text lists what there is. */
cmoe_status cmoei_targets_apply(cmoei_params *p, cmoe_error *err);

/* The factors of o.start, once there is memory for them. */
cmoe_status cmoei_targets_start(cmoei_params *p, cmoe_error *err);

/* The module a part belongs to in PEFT's eyes: "model.layers.0.self_attn.q_proj"; stacked experts are
 * "model.layers.0.mlp.experts.gate_up_proj", both parts of it. */
bool cmoei_targets_module(const cmoei_params *p, int64_t layer, const cmoei_weight *w, int32_t part,
                          char *name, size_t size);

#endif
