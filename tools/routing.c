/* SPDX-License-Identifier: MIT
 *
 * routing.c - captured routing in memory and in files.
 *
 * A file is copied before it is used, because it is mapped and its writer may still be at work; and
 * it must match the model and the prompt in every tensor, for a routing of another model would
 * give logits that look right and are not.
 */
#include "routing.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmoe/weights.h"
#include "files.h"
#include "model.h"
#include "report.h"

enum { NAME_SIZE = 64 };

/* ---- flags ----------------------------------------------------------------------------------- */

int routing_check_flags(const routing_flags *flags, const cmoe_model_info *info,
                        const char *model_path)
{
    int status = 0;
    if (flags->capture) status = files_check_writable("--capture-routing", flags->capture);
    if (status) return status;
    if ((flags->capture || flags->replay) && info->moe_layers == 0)
        return report_fail(EXIT_USAGE, flags->capture ? "--capture-routing" : "--replay-routing",
                           "%s has no experts", model_path);
    if (flags->replay_weights && !flags->replay)
        return report_fail(EXIT_USAGE, "--replay-weights", "needs --replay-routing F");
    return flags->replay && access(flags->replay, R_OK) != 0
               ? report_fail(EXIT_FILE, flags->replay, "%s", strerror(errno))
               : 0;
}

static void tensor_name(char name[NAME_SIZE], int64_t layer, bool weights)
{
    snprintf(name, NAME_SIZE, "layers.%lld.topk_%s", (long long)layer, weights ? "weights" : "ids");
}

/* ---- memory ---------------------------------------------------------------------------------- */

int routing_create(routing *r, const cmoe_model *m, int64_t tokens)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_model_info info = {.size = sizeof info};
    cmoe_status status = cmoe_model_describe(m, &info, &err);
    *r = (routing){.layers = info.layers, .tokens = tokens};
    if (status != CMOE_OK) return report_status(status, "routing", &err);
    r->layer = calloc((size_t)r->layers + 1, sizeof *r->layer);
    r->rows = calloc((size_t)r->layers + 1, sizeof *r->rows);
    bool there = r->layer && r->rows;
    for (int64_t i = 0; i < r->layers && there; i++) {
        cmoe_model_layer l = {.size = sizeof l};
        routing_layer *mine = &r->layer[i];
        status = cmoe_model_layer_describe(m, i, &l, &err);
        if (status != CMOE_OK) return report_status(status, "routing", &err);
        if (l.experts == 0) continue;
        mine->topk = l.topk;
        mine->experts = l.experts;
        mine->ids = calloc((size_t)(tokens * l.topk), sizeof *mine->ids);
        mine->weights = calloc((size_t)(tokens * l.topk), sizeof *mine->weights);
        there = mine->ids && mine->weights;
    }
    return there ? 0
                 : report_fail(EXIT_MEMORY, "routing", "no memory for %lld tokens",
                               (long long)tokens);
}

void routing_free(routing *r)
{
    for (int64_t i = 0; i < r->layers && r->layer; i++) {
        free(r->layer[i].ids);
        free(r->layer[i].weights);
    }
    free(r->layer);
    free(r->rows);
    *r = (routing){0};
}

const cmoe_routing *routing_rows(routing *r, int64_t first, int64_t n, bool weights)
{
    for (int64_t i = 0; i < r->layers; i++) {
        const routing_layer *l = &r->layer[i];
        const int64_t K = l->topk;
        r->rows[i] = (cmoe_routing){.ids = cmoe_view_mut_none(), .weights = cmoe_view_mut_none()};
        if (K == 0) continue;
        r->rows[i].ids = cmoe_view_mut_2d(l->ids + first * K, CMOE_I32, n, K);
        if (weights) r->rows[i].weights = cmoe_view_mut_2d(l->weights + first * K, CMOE_F32, n, K);
    }
    return r->rows;
}

/* ---- write ----------------------------------------------------------------------------------- */

int routing_write(const routing *r, const char *path)
{
    cmoe_error err = {.size = sizeof err};
    const size_t most = 2 * (size_t)r->layers + 1;
    char(*names)[NAME_SIZE] = calloc(most, NAME_SIZE);
    cmoe_view *views = calloc(most, sizeof *views);
    int64_t n = 0;
    cmoe_status status = CMOE_ERR_MEMORY;
    for (int64_t i = 0; i < r->layers && names && views; i++) {
        const routing_layer *l = &r->layer[i];
        for (int w = 0; w < 2 && l->topk > 0; w++, n++) {
            const void *data = w ? (const void *)l->weights : (const void *)l->ids;
            views[n] = cmoe_view_2d(data, w ? CMOE_F32 : CMOE_I32, r->tokens, l->topk);
            tensor_name(names[n], i, w == 1);
            views[n].name = names[n];
        }
    }
    if (names && views) status = cmoe_safetensors_write(path, views, n, NULL, &err);
    free(names);
    free(views);
    return report_status(status, path, &err);
}

/* ---- read ------------------------------------------------------------------------------------ */

static void shape_text(const cmoe_tensor *t, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "%s [", t->stored);
    for (int32_t i = 0; i < t->rank && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", i ? ", " : "",
                                 (long long)t->dims[i]);
    if (used < size) snprintf(text + used, size - used, "]");
}

/* Copies one tensor; 3 when it is not there or not of this shape. */
static int read_tensor(const routing *r, const cmoe_checkpoint *c, const char *path, int64_t layer,
                       bool weights)
{
    const routing_layer *l = &r->layer[layer];
    char name[NAME_SIZE], has[128];
    cmoe_error err = {.size = sizeof err};
    cmoe_tensor t = {.size = sizeof t};
    tensor_name(name, layer, weights);
    const char *want = weights ? "F32" : "I32";
    const int64_t at = cmoe_checkpoint_find(c, name);
    if (at < 0)
        return report_fail(EXIT_FILE, path, "%s is not there, want %s [%lld, %lld]", name, want,
                           (long long)r->tokens, (long long)l->topk);
    const cmoe_status status = cmoe_checkpoint_tensor(c, at, &t, &err);
    if (status != CMOE_OK) return model_fail(status, path, &err);
    shape_text(&t, has, sizeof has);
    if (t.dtype != (weights ? CMOE_F32 : CMOE_I32) || t.rank != 2 || t.dims[0] != r->tokens ||
        t.dims[1] != l->topk)
        return report_fail(EXIT_FILE, path, "%s is %s, want %s [%lld, %lld]", name, has, want,
                           (long long)r->tokens, (long long)l->topk);
    memcpy(weights ? (void *)l->weights : (void *)l->ids, t.data, (size_t)t.bytes);
    return 0;
}

/* Ids must be experts of the layer, weights numbers. */
static int check_layer(const routing *r, const char *path, int64_t layer, bool weights)
{
    const routing_layer *l = &r->layer[layer];
    const int64_t K = l->topk;
    for (int64_t i = 0; i < r->tokens * K; i++) {
        if (l->ids[i] < 0 || l->ids[i] >= l->experts)
            return report_fail(
                EXIT_FILE, path,
                "layers.%lld.topk_ids[%lld, %lld] = %d, want 0 <= id < %lld (experts)",
                (long long)layer, (long long)(i / K), (long long)(i % K), (int)l->ids[i],
                (long long)l->experts);
        if (weights && !isfinite(l->weights[i]))
            return report_fail(
                EXIT_FILE, path, "layers.%lld.topk_weights[%lld, %lld] = %g, want a finite number",
                (long long)layer, (long long)(i / K), (long long)(i % K), (double)l->weights[i]);
    }
    return 0;
}

/* A tensor that this model has no use for: the file belongs to another one. */
static int check_names(const routing *r, const cmoe_checkpoint *c, const char *path)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(c); i++) {
        cmoe_error err = {.size = sizeof err};
        cmoe_tensor t = {.size = sizeof t};
        char ids[NAME_SIZE], weights[NAME_SIZE];
        long long layer = -1;
        const cmoe_status status = cmoe_checkpoint_tensor(c, i, &t, &err);
        if (status != CMOE_OK) return model_fail(status, path, &err);
        if (sscanf(t.name, "layers.%9lld.", &layer) == 1 && layer >= 0 && layer < r->layers &&
            r->layer[layer].topk > 0) {
            tensor_name(ids, layer, false);
            tensor_name(weights, layer, true);
            if (!strcmp(t.name, ids) || !strcmp(t.name, weights)) continue;
        }
        return report_fail(EXIT_FILE, path,
                           "%.100s is there, want layers.<i>.topk_ids and .topk_weights of the "
                           "%lld layers of this model that have experts",
                           t.name, (long long)r->layers);
    }
    return 0;
}

int routing_count(cmoe_ctx *ctx, const char *path, int64_t *tokens)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_checkpoint *c = NULL;
    cmoe_tensor t = {.size = sizeof t};
    *tokens = 0;
    cmoe_status status = cmoe_checkpoint_open(&c, ctx, path, &err);
    if (status == CMOE_OK && cmoe_checkpoint_count(c) > 0) {
        status = cmoe_checkpoint_tensor(c, 0, &t, &err);
        if (status == CMOE_OK && t.rank == 2) *tokens = t.dims[0];
    }
    cmoe_checkpoint_free(c);
    return model_fail(status, path, &err);
}

int routing_read(routing *r, cmoe_ctx *ctx, const char *path, bool weights)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_checkpoint *c = NULL;
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) /* which a checkpoint may be */
        return report_fail(EXIT_FILE, path, "is a directory, want a file of captured routing");
    int status = model_fail(cmoe_checkpoint_open(&c, ctx, path, &err), path, &err);
    if (status) return status;
    for (int64_t i = 0; i < r->layers && status == 0; i++) {
        if (r->layer[i].topk == 0) continue;
        status = read_tensor(r, c, path, i, false);
        if (status == 0 && weights) status = read_tensor(r, c, path, i, true);
        if (status == 0) status = check_layer(r, path, i, weights);
    }
    if (status == 0) status = check_names(r, c, path);
    cmoe_checkpoint_free(c);
    return status;
}
