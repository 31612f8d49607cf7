/* SPDX-License-Identifier: MIT
 *
 * train.c - the tiny models of this folder, trained as PyTorch trained them (README.md).
 *
 *     golden_train FOLDER
 *
 * Every step is given the sequences of the file, one unit each.  Compared are, step by step, the loss, the
 * auxiliary losses, the norm of the gradient and the load of every expert, and in the end every tensor:
 * with SGD the loss within 1e-5 and each tensor within 1e-4 of its norm, with AdamW within 1e-4 and 1e-3.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmoe/train.h"
#include "cmoe/weights.h"

typedef struct golden_run {
    const char *model, *name;
    double lr;
    int32_t optimizer;
    float balance, z_loss;
    double loss_bound, tensor_bound;
    bool adapter;
} golden_run;

static const golden_run runs[] = {
    {"qwen3_moe", "sgd", 0.05, CMOE_OPTIMIZER_SGD, 0, 0, 1e-5, 1e-4, false},
    {"qwen3_moe", "sgd_aux", 0.05, CMOE_OPTIMIZER_SGD, 0.01f, 0.001f, 1e-5, 1e-4, false},
    {"qwen3_moe", "adamw", 0.003, CMOE_OPTIMIZER_ADAMW, 0, 0, 1e-4, 1e-3, false},
    {"qwen2_moe", "sgd", 0.05, CMOE_OPTIMIZER_SGD, 0, 0, 1e-5, 1e-4, false},
    {"glm4_moe", "sgd", 0.05, CMOE_OPTIMIZER_SGD, 0, 0, 1e-5, 1e-4, false},
    {"qwen3_moe", "lora_sgd_aux", 0.05, CMOE_OPTIMIZER_SGD, 0.01f, 0.001f, 1e-5, 1e-4, true},
    {"qwen3_moe", "lora_adamw", 0.003, CMOE_OPTIMIZER_ADAMW, 0, 0, 1e-4, 1e-3, true},
};

static long long passed, failed;
static char where[256];

static void check(bool ok, const char *what, double got, double want)
{
    if (ok) {
        passed++;
    } else if (failed++ < 40) {
        printf("%s: %s: got %.9g, want %.9g\n", where, what, got, want);
    }
}

static void must(cmoe_status status, const cmoe_error *err)
{
    if (status == CMOE_OK) return;
    printf("%s: %s\n", where, err->text);
    printf("train: %lld passed, %lld failed\n", passed, failed + 1);
    exit(1);
}

/* The data of a tensor of the file. */
static cmoe_tensor tensor(const cmoe_checkpoint *c, const char *name)
{
    cmoe_tensor t = {.size = sizeof t};
    cmoe_error err = {.size = sizeof err};
    must(cmoe_checkpoint_tensor(c, cmoe_checkpoint_find(c, name), &t, &err), &err);
    return t;
}

static double number(const cmoe_tensor *t, int64_t i)
{
    double v;
    memcpy(&v, (const char *)t->data + i * 8, sizeof v);
    return v;
}

/* ---- steps ------------------------------------------------------------------------------------- */

static void compare_step(const golden_run *r, const cmoe_checkpoint *c,
                         const cmoe_train_report *report, int64_t step)
{
    const cmoe_tensor ce = tensor(c, "ce"), norm = tensor(c, "grad_norm"),
                      balance = tensor(c, "balance"), z = tensor(c, "z_loss"),
                      load = tensor(c, "load");
    const int64_t layers = balance.dims[1], experts = load.dims[2];
    double balance_mean = 0, z_mean = 0;
    for (int64_t i = 0; i < layers; i++) {
        balance_mean += number(&balance, step * layers + i) / (double)layers;
        z_mean += number(&z, step * layers + i) / (double)layers;
    }
    snprintf(where, sizeof where, "%s/%s step %d", r->model, r->name, (int)step + 1);
    const double loss = number(&ce, step), length = number(&norm, step);
    check(fabs(report->loss - loss) <= r->loss_bound, "loss", report->loss, loss);
    check(fabs(report->gradient_norm - length) <= 10 * r->tensor_bound * length,
          "norm of the gradient", report->gradient_norm, length);
    if (r->balance > 0) {
        check(fabs(report->balance_loss - balance_mean) <= 1e-5, "balance loss",
              report->balance_loss, balance_mean);
        check(fabs(report->z_loss - z_mean) <= 1e-4, "z-loss", report->z_loss, z_mean);
    }
    for (int64_t i = 0; i < layers * experts; i++) {
        int32_t want;
        memcpy(&want, (const char *)load.data + (step * layers * experts + i) * 4, sizeof want);
        check(report->load[i] == want, "load", (double)report->load[i], want);
    }
}

/* Every "final." tensor against what was written to `out`. */
static void compare_final(const golden_run *r, cmoe_ctx *ctx, const cmoe_checkpoint *c,
                          const char *out)
{
    cmoe_checkpoint *ours;
    cmoe_error err = {.size = sizeof err};
    char file[512];
    snprintf(file, sizeof file, "%s/%s", out,
             r->adapter ? "adapter_model.safetensors" : "model.safetensors");
    must(cmoe_checkpoint_open(&ours, ctx, file, &err), &err);
    for (int64_t i = 0; i < cmoe_checkpoint_count(c); i++) {
        cmoe_tensor want = {.size = sizeof want};
        must(cmoe_checkpoint_tensor(c, i, &want, &err), &err);
        if (strncmp(want.name, "final.", 6) != 0) continue;
        snprintf(where, sizeof where, "%s/%s %s", r->model, r->name, want.name);
        const int64_t found = cmoe_checkpoint_find(ours, want.name + 6);
        check(found >= 0, "is there", (double)found, 0);
        if (found < 0) continue;
        const cmoe_tensor got = tensor(ours, want.name + 6);
        double off = 0, all = 0;
        check(got.bytes == want.bytes, "bytes", (double)got.bytes, (double)want.bytes);
        for (int64_t k = 0; k < want.bytes / 4 && got.bytes == want.bytes; k++) {
            float g, w;
            memcpy(&g, (const char *)got.data + 4 * k, 4);
            memcpy(&w, (const char *)want.data + 4 * k, 4);
            off += ((double)g - w) * ((double)g - w);
            all += (double)w * w;
        }
        check(sqrt(off) <= r->tensor_bound * sqrt(all), "distance over norm", sqrt(off / all),
              r->tensor_bound);
    }
    cmoe_checkpoint_free(ours);
}

static void train(const golden_run *r, const char *folder, int32_t threads)
{
    char path[512], file[512], out[] = "/tmp/cmoe_train_XXXXXX";
    cmoe_error err = {.size = sizeof err};
    cmoe_ctx_options co;
    cmoe_ctx *ctx;
    cmoe_checkpoint *c;
    cmoe_trainer *t;
    cmoe_train_options o;
    cmoe_adapter *start = NULL;
    snprintf(where, sizeof where, "%s/%s", r->model, r->name);
    snprintf(path, sizeof path, "%s/%s", folder, r->model);
    snprintf(file, sizeof file, "%s/%s/%s.safetensors", folder, r->model, r->name);
    cmoe_ctx_options_default(&co, sizeof co);
    co.threads = threads;
    must(cmoe_ctx_create(&ctx, &co, &err), &err);
    must(cmoe_checkpoint_open(&c, ctx, file, &err), &err);
    const cmoe_tensor ids = tensor(c, "ids");
    cmoe_train_options_default(&o, sizeof o);
    o.length = ids.dims[2];
    o.units = ids.dims[1];
    o.steps = ids.dims[0];
    o.optimizer = r->optimizer;
    o.schedule = CMOE_SCHEDULE_CONSTANT;
    o.lr = r->lr;
    o.clip = 0;
    o.balance = r->balance;
    o.z_loss = r->z_loss;
    o.bias_rate = 0;
    o.eps = 1e-5;
    o.weight_decay = r->optimizer == CMOE_OPTIMIZER_ADAMW && !r->adapter ? 0.1 : 0;
    if (r->adapter) {
        snprintf(file, sizeof file, "%s/%s/lora_start", folder, r->model);
        must(cmoe_adapter_open(&start, ctx, file, CMOE_PEFT_AUTO, &err), &err);
        o.what = CMOE_TRAIN_LORA;
        o.start = start;
    }
    must(cmoe_trainer_create(&t, ctx, path, &o, &err), &err);
    for (int64_t s = 0; s < ids.dims[0]; s++) {
        cmoe_train_report report = {.size = sizeof report};
        const cmoe_view step =
            cmoe_view_2d((const int32_t *)ids.data + s * ids.dims[1] * ids.dims[2], CMOE_I32,
                         ids.dims[1], ids.dims[2]);
        must(cmoe_trainer_step_on(t, step, cmoe_view_none(), &report, &err), &err);
        compare_step(r, c, &report, s);
    }
    if (!mkdtemp(out)) exit(1);
    must(cmoe_trainer_export(t, out, CMOE_F32, &err), &err);
    compare_final(r, ctx, c, out);
    static const char *const files[] = {"model.safetensors", "config.json",
                                        "adapter_model.safetensors", "adapter_config.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(file, sizeof file, "%s/%s", out, files[i]);
        (void)unlink(file);
    }
    (void)rmdir(out);
    cmoe_trainer_free(t);
    cmoe_adapter_free(start);
    cmoe_checkpoint_free(c);
    cmoe_ctx_free(ctx);
}

int main(int argc, char **argv)
{
    if (argc < 2) return 2;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s/%s", runs[i].model, runs[i].name);
        if (argc > 2 && strcmp(argv[2], name) != 0) continue;
        train(&runs[i], argv[1], (int32_t)(i % 3 + 1));
    }
    printf("train: %lld passed, %lld failed\n", passed, failed);
    return failed > 0;
}
