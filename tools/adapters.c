/* SPDX-License-Identifier: MIT
 *
 * adapters.c - see adapters.h.
 */
#include "adapters.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "report.h"

enum { PATH = 4096 };

/* Folder and factor.  What is the name of a folder as it stands has no factor. */
static int split(const char *text, char path[PATH], float *scale)
{
    const char *colon = strrchr(text, ':');
    char *end;
    size_t n = strlen(text);
    *scale = 1;
    if (colon && access(text, F_OK) != 0) {
        *scale = strtof(colon + 1, &end);
        if (end == colon + 1 || *end || !isfinite(*scale))
            return report_fail(EXIT_USAGE, "--adapter",
                               "\"%.200s\": what stands behind the colon is not a number, want "
                               "DIR[:SCALE]",
                               text);
        n = (size_t)(colon - text);
    }
    if (n == 0 || n >= PATH)
        return report_fail(EXIT_USAGE, "--adapter", "\"%.200s\" names no folder, want DIR[:SCALE]",
                           text);
    memcpy(path, text, n);
    path[n] = '\0';
    return 0;
}

int adapters_open(adapters *a, cmoe_ctx *ctx, const option_texts *texts)
{
    *a = (adapters){0};
    for (int64_t i = 0; i < texts->n; i++) {
        char path[PATH];
        cmoe_error err = {.size = sizeof err};
        const int status = split(texts->v[i], path, &a->scales[i]);
        if (status) return status;
        const cmoe_status bad = cmoe_adapter_open(&a->own[i], ctx, path, CMOE_PEFT_AUTO, &err);
        if (bad != CMOE_OK) return model_fail(bad, path, &err);
        a->list[i] = a->own[i];
        a->n = i + 1;
    }
    return 0;
}

void adapters_close(adapters *a)
{
    for (int64_t i = 0; i < a->n; i++)
        cmoe_adapter_free(a->own[i]);
    *a = (adapters){0};
}
