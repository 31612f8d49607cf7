/* SPDX-License-Identifier: MIT
 *
 * sampling.c - rows of logits processed as transformers 5.23.0 does (sampling/cases.json): the
 * same ids are left out, and the logits and probabilities of the others agree.
 *
 *     golden_sampling FOLDER
 *
 * Bounds: a logit goes through a penalty and a division, on both sides in float32: four roundings.
 * A probability is e to a difference of two of them, in double in the file and here.
 */
#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>

#include "cmoe/engine.h"

enum { MOST = 256 };

typedef struct sample_case {
    int64_t vocab, previous_count;
    int32_t previous[MOST];
    float logits[MOST];
    bool kept[MOST];
    double processed[MOST], probs[MOST];
    cmoe_sampling settings;
} sample_case;

static double number(const json_t *object, const char *key, double otherwise)
{
    const json_t *v = json_object_get(object, key);
    return v ? json_number_value(v) : otherwise;
}

static bool read_case(const json_t *json, sample_case *c)
{
    const json_t *logits = json_object_get(json, "logits");
    const json_t *processed = json_object_get(json, "processed");
    const json_t *probs = json_object_get(json, "probs"), *prev = json_object_get(json, "prev");
    const json_t *params = json_object_get(json, "params");
    c->vocab = (int64_t)json_array_size(logits);
    c->previous_count = (int64_t)json_array_size(prev);
    if (c->vocab < 1 || c->vocab > MOST || c->previous_count > MOST) return false;
    if (json_array_size(processed) != json_array_size(logits) ||
        json_array_size(probs) != json_array_size(logits))
        return false;
    for (size_t i = 0; i < (size_t)c->previous_count; i++)
        c->previous[i] = (int32_t)json_integer_value(json_array_get(prev, i));
    for (size_t i = 0; i < (size_t)c->vocab; i++) {
        c->logits[i] = (float)json_number_value(json_array_get(logits, i));
        c->kept[i] = !json_is_null(json_array_get(processed, i));
        c->processed[i] = json_number_value(json_array_get(processed, i));
        c->probs[i] = json_number_value(json_array_get(probs, i));
    }
    cmoe_sampling *s = &c->settings;
    cmoe_sampling_default(s, sizeof *s);
    s->temperature = (float)number(params, "temperature", 1);
    s->top_k = (int32_t)number(params, "top_k", 0);
    s->top_p = (float)number(params, "top_p", 1);
    s->min_p = (float)number(params, "min_p", 0);
    s->repetition_penalty = (float)number(params, "repetition_penalty", 1);
    return true;
}

static bool compare(const sample_case *c, size_t index, const float *got)
{
    double sum = 0, top = -INFINITY;
    for (int64_t i = 0; i < c->vocab; i++)
        top = fmax(top, got[i]);
    for (int64_t i = 0; i < c->vocab; i++)
        sum += exp(got[i] - top);
    for (int64_t i = 0; i < c->vocab; i++) {
        const double p = exp(got[i] - top) / sum;
        const double off = 4 * FLT_EPSILON * fabs(c->processed[i]);
        const double off_p = 8 * FLT_EPSILON * (fabs(c->processed[i]) + fabs(top)) * c->probs[i];
        if ((got[i] > -INFINITY) == c->kept[i] &&
            (!c->kept[i] || fabs(got[i] - c->processed[i]) <= off) &&
            fabs(p - c->probs[i]) <= off_p)
            continue;
        printf("case %zu: logits[%d] = %.9g (probability %.9g), want %.9g%s (%.9g)\n", index,
               (int)i, got[i], p, c->processed[i], c->kept[i] ? "" : " left out", c->probs[i]);
        return false;
    }
    return true;
}

/* Draws stay within what was kept. */
static bool draws(const sample_case *c, size_t index, const float *got)
{
    for (int64_t position = 0; position < 200; position++) {
        int32_t id = -1;
        if (cmoe_sampling_draw(&c->settings, got, c->vocab, position, &id, NULL) == CMOE_OK &&
            id >= 0 && id < c->vocab && c->kept[id])
            continue;
        printf("case %zu: draw %d gives id %d, which was left out\n", index, (int)position, id);
        return false;
    }
    return true;
}

static bool check(const json_t *json, size_t index)
{
    static sample_case c;
    float got[MOST];
    cmoe_error err = {0};
    if (!read_case(json, &c)) {
        printf("case %zu: not readable\n", index);
        return false;
    }
    for (int64_t i = 0; i < c.vocab; i++)
        got[i] = c.logits[i];
    if (cmoe_sampling_process(NULL, &c.settings, got, c.vocab, c.previous, c.previous_count, 0,
                              &err) != CMOE_OK) {
        printf("case %zu: %s\n", index, err.text);
        return false;
    }
    return compare(&c, index, got) && draws(&c, index, got);
}

int main(int argc, char **argv)
{
    char path[4096];
    if (argc != 2) {
        printf("usage: golden_sampling FOLDER\n");
        return 2;
    }
    snprintf(path, sizeof path, "%s/cases.json", argv[1]);
    json_t *cases = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
    const size_t n = json_array_size(cases);
    int failed = 0;
    for (size_t i = 0; i < n; i++)
        failed += !check(json_array_get(cases, i), i);
    if (n != 30) {
        printf("%s: %zu cases, want 30\n", path, n);
        failed++;
    }
    json_decref(cases);
    printf("golden_sampling: %d passed, %d failed\n", (int)n - failed, failed);
    return failed != 0;
}
