/* SPDX-License-Identifier: MIT
 *
 * file.c - words and numbers of steps.txt into cases.
 */
#include "file.h"

#include <stdlib.h>
#include <string.h>

static void stop(const steps_case *c, const char *what, const char *word)
{
    printf("steps.txt: case %s %s: %s \"%s\"\n", c->kind, c->name, what, word);
    exit(2);
}

static void *memory(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) {
        printf("out of memory\n");
        exit(2);
    }
    return p;
}

static bool word(FILE *f, char *w)
{
    return fscanf(f, "%63s", w) == 1; /* STEPS_WORD - 1 */
}

static double number(FILE *f, const steps_case *c)
{
    char w[STEPS_WORD] = "", *end;
    if (!word(f, w)) stop(c, "ends before a number", w);
    const double x = strtod(w, &end);
    if (*end) stop(c, "not a number", w);
    return x;
}

static void read_tensor(FILE *f, steps_case *c)
{
    char w[STEPS_WORD] = "";
    if (c->tensors == STEPS_TENSORS) stop(c, "more tensors than", "STEPS_TENSORS");
    steps_tensor *t = &c->tensor[c->tensors++];
    memset(t, 0, sizeof *t);
    if (!word(f, t->name) || !word(f, w)) stop(c, "ends in tensor", t->name);
    t->dtype = cmoe_dtype_parse(w);
    t->rank = (int32_t)number(f, c);
    if (!t->dtype || t->rank < 1 || t->rank > CMOE_MAX_RANK) stop(c, "bad head of tensor", t->name);
    t->n = 1;
    for (int32_t i = 0; i < t->rank; i++) {
        t->dims[i] = (int64_t)number(f, c);
        t->n *= t->dims[i];
    }
    t->values = memory((size_t)t->n * sizeof *t->values);
    for (int64_t i = 0; i < t->n; i++)
        t->values[i] = number(f, c);
}

bool steps_read(FILE *f, steps_case *c)
{
    char w[STEPS_WORD];
    c->options = c->tensors = 0;
    while (word(f, w)) {
        if (w[0] == '#') {
            if (fscanf(f, "%*[^\n]") == EOF) return false;
        } else if (!strcmp(w, "case")) {
            if (!word(f, c->kind) || !word(f, c->name)) stop(c, "has no name", w);
        } else if (!strcmp(w, "set")) {
            if (c->options == STEPS_OPTIONS || !word(f, c->option[c->options].name))
                stop(c, "bad option", w);
            c->option[c->options++].value = number(f, c);
        } else if (!strcmp(w, "tensor")) {
            read_tensor(f, c);
        } else if (!strcmp(w, "end")) {
            return true;
        } else {
            stop(c, "unknown word", w);
        }
    }
    return false;
}

void steps_free(steps_case *c)
{
    for (int i = 0; i < c->tensors; i++) {
        free(c->tensor[i].values);
        free(c->tensor[i].bytes);
    }
    c->tensors = 0;
}

double steps_option(const steps_case *c, const char *name, double fallback)
{
    for (int i = 0; i < c->options; i++) {
        if (!strcmp(c->option[i].name, name)) return c->option[i].value;
    }
    return fallback;
}

steps_tensor *steps_find(steps_case *c, const char *name)
{
    for (int i = 0; i < c->tensors; i++) {
        if (!strcmp(c->tensor[i].name, name)) return &c->tensor[i];
    }
    return NULL;
}

cmoe_view steps_view(cmoe_stream *s, steps_case *c, const char *name)
{
    steps_tensor *t = steps_find(c, name);
    if (!t) return cmoe_view_none();
    if (!t->bytes) {
        cmoe_error err = {0};
        t->bytes = memory((size_t)(t->n * cmoe_dtype_bytes(t->dtype)));
        const cmoe_view_mut out = cmoe_view_mut_make(t->bytes, t->dtype, t->rank, t->dims);
        if (cmoe_convert(s, cmoe_view_make(t->values, CMOE_F64, t->rank, t->dims), out, &err))
            stop(c, err.text, name);
    }
    cmoe_view v = cmoe_view_make(t->bytes, t->dtype, t->rank, t->dims);
    v.name = t->name;
    return v;
}
