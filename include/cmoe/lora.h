/* SPDX-License-Identifier: MIT
 *
 * cmoe/lora.h - low-rank adapters in the files of PEFT.
 *
 * An adapter adds s B A to weights of a model: attention projections, shared and dense MLPs, experts
 * (stacked or one by one) and router.  Every tensor of its file must find its place in the model, or
 * nothing is taken.  Part of libcmoe_engine.
 */
#ifndef CMOE_LORA_H
#define CMOE_LORA_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which way round PEFT wrote the two factors of stacked experts. */
enum {
    CMOE_PEFT_AUTO =
        0, /* by the version that the file records, else by shape; ambiguous: an error */
    CMOE_PEFT_BEFORE_0_19, /* up to 0.19.0 */
    CMOE_PEFT_SINCE_0_19   /* from 0.19.1 on */
};

typedef struct cmoe_adapter_info {
    size_t size;
    int64_t tensors, parameters;
    int64_t rank; /* largest */
    int64_t layers;
    int32_t experts, router, attention; /* 1: it has terms there */
    int32_t layout;                     /* CMOE_PEFT_; AUTO: by shape, when it meets a model */
    const char *base;                   /* base_model_name_or_path, or "" */
} cmoe_adapter_info;

/* Immutable, shared by threads; freed before its context. */
typedef struct cmoe_adapter cmoe_adapter;

/* `path`: a directory with adapter_config.json and adapter_model.safetensors.  Whether it fits a model
 * is found out where it meets one: by cmoe_model_load, cmoe_model_merge, cmoe_trainer_create. */
CMOE_API cmoe_status cmoe_adapter_open(cmoe_adapter **out, cmoe_ctx *ctx, const char *path,
                                       int32_t layout, cmoe_error *err);
CMOE_API void cmoe_adapter_free(cmoe_adapter *a);
CMOE_API cmoe_status cmoe_adapter_describe(const cmoe_adapter *a, cmoe_adapter_info *info,
                                           cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
