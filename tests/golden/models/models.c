/* SPDX-License-Identifier: MIT
 *
 * models.c - every folder with a config.json and a golden.safetensors: logits and routing against the
 * golden ones, then everything that must not change a bit.  The table: largest differences from golden,
 * positions compared, and how far bf16 and int8 are from float32 in deviations of the logits.
 *
 *     golden_models FOLDER [CASE]...
 */
#include "models.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool run_case(const char *folder, const char *name, int sum[2])
{
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    golden_case g;
    run_model m = {0};
    cmoe_error err = {0};
    cmoe_ctx *ctx = NULL;
    if (cmoe_ctx_create(&ctx, NULL, &err) != CMOE_OK) return false;
    if (golden_open(&g, ctx, name, path) &&
        golden_call(&g, run_open(&m, path, 1, NULL, CMOE_F32, &err), &err, "load")) {
        golden_compare(&g, &m);
        golden_bits(&g, &m);
        golden_formats(&g, &m);
    }
    run_close(&m);
    golden_close(&g);
    cmoe_ctx_free(ctx);
    printf("%-20s %10.1e %10.1e %10d %8.4f %8.4f   %s\n", name, g.logit, g.weight, (int)g.positions,
           g.bf16, g.int8, g.failed == 0 ? "ok" : "FAILED");
    fflush(stdout);
    sum[0] += g.passed;
    sum[1] += g.failed;
    return true;
}

static int is_case(const struct dirent *e)
{
    return e->d_name[0] != '.' && !strchr(e->d_name, '.') && strcmp(e->d_name, "__pycache__") != 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        printf("usage: golden_models FOLDER [CASE]...\n");
        return 2;
    }
    struct dirent **entries = NULL;
    const int n = scandir(argv[1], &entries, is_case, alphasort);
    int sum[2] = {0};
    printf("%-20s %10s %10s %10s %8s %8s   %s\n", "case", "logits off", "weights", "positions",
           "bf16", "int8", "verdict");
    for (int i = 0; i < n; i++) {
        bool wanted = argc == 2;
        for (int a = 2; a < argc; a++)
            wanted = wanted || strcmp(argv[a], entries[i]->d_name) == 0;
        if (wanted && !run_case(argv[1], entries[i]->d_name, sum)) sum[1]++;
        free(entries[i]);
    }
    free(entries);
    if (sum[0] + sum[1] == 0) sum[1]++; /* no case is no proof */
    printf("golden_models: %d passed, %d failed\n", sum[0], sum[1]);
    return sum[1] != 0;
}
