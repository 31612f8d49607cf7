/* SPDX-License-Identifier: MIT
 *
 * file.h - reads the cases of steps.txt (make.py says what is in it).
 *
 * Values are kept as double, which holds every number of the file exactly enough: inputs are
 * rounded to their own type when a view is made of them.
 */
#ifndef CMOE_STEPS_FILE_H
#define CMOE_STEPS_FILE_H

#include <stdbool.h>
#include <stdio.h>

#include "cmoe/cmoe.h"

enum { STEPS_WORD = 64, STEPS_TENSORS = 16, STEPS_OPTIONS = 24 };

typedef struct steps_tensor {
    char name[STEPS_WORD];
    int32_t dtype, rank;
    int64_t dims[CMOE_MAX_RANK];
    int64_t n;
    double *values; /* [n] */
    void *bytes;    /* the same in dtype, made when a view is asked for */
} steps_tensor;

typedef struct steps_case {
    char kind[STEPS_WORD], name[STEPS_WORD];
    int options, tensors;
    struct {
        char name[STEPS_WORD];
        double value;
    } option[STEPS_OPTIONS];
    steps_tensor tensor[STEPS_TENSORS];
} steps_case;

/* The next case; false at the end.  A file that is not one ends the program. */
bool steps_read(FILE *f, steps_case *c);
void steps_free(steps_case *c);

double steps_option(const steps_case *c, const char *name, double fallback);
steps_tensor *steps_find(steps_case *c, const char *name); /* NULL: not there */

/* The tensor as the library takes it; a view of zeros when it is not there. */
cmoe_view steps_view(cmoe_stream *s, steps_case *c, const char *name);

#endif
