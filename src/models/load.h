/* SPDX-License-Identifier: MIT
 *
 * load.h - filling a model: the loader, and what its files share.
 *
 *   load.c        what is loaded, part by part
 *   load_pack.c   matrices: allocated and packed, or found on a tape
 *   load_files.c  reading ahead in the files, and dropping what was read
 *   tape.c        packed weights that another load has kept on disk
 *   keep.c        where, and under which name
 */
#ifndef CMOE_MODELS_LOAD_H
#define CMOE_MODELS_LOAD_H

#include "adapt.h"
#include "model.h"
#include "tape.h"

/* Rows [first, first + count) of a source of each expert, and where adapters find it. */
typedef struct cmoei_piece {
    const cmoei_source *source; /* [E] */
    cmoei_range rows;
    int64_t layer, first_expert; /* layer -1: none changes it */
    cmoei_role role;
} cmoei_piece;

enum { CMOEI_PIECES = 3, CMOEI_JOBS = 8 };

/* A matrix [E, N, K] whose rows are those of its pieces, one below the other. */
typedef struct cmoei_job {
    cmoe_matrix *matrix;
    const cmoei_folds *folds;
    cmoei_piece pieces[CMOEI_PIECES];
    int64_t panels; /* of all E matrices */
} cmoei_job;

typedef struct cmoei_loader {
    cmoe_model *m;
    const cmoe_model_options *o;
    const cmoe_checkpoint *c;
    const cmoei_tensors *t;
    const cmoei_folds *folds;
    cmoei_tape *tape;
    cmoe_error *err;
    cmoei_job jobs[CMOEI_JOBS];
    int32_t count;
    _Atomic int32_t cancelled;
    _Atomic int64_t packed; /* bytes, of the jobs at hand */
    int64_t told;           /* at how many bytes progress was last called */
    float *rows;            /* [threads, row_length] */
    int64_t row_length, row_bytes;
    int64_t done, total; /* packed bytes */
} cmoei_loader;

/* Packs every tensor, or takes what the tape has; m->d, share, format, layer array and info are set. */
cmoe_status cmoei_model_fill(cmoe_model *m, const cmoe_model_options *o, const cmoe_checkpoint *c,
                             const cmoei_tensors *t, const cmoei_folds *folds, cmoei_tape *tape,
                             cmoe_error *err);

/* What a matrix is made of: rows and, unless bias[0].source is NULL, biases. */
typedef struct cmoei_recipe {
    const char *name;
    int32_t format;
    bool gated;
    int64_t dims[3];
    int32_t count; /* of pieces */
    cmoei_piece rows[CMOEI_PIECES], bias[CMOEI_PIECES];
} cmoei_recipe;

/* The matrix of a recipe: from the tape, or allocated, with its packing added to the jobs. */
cmoe_status cmoei_load_matrix(cmoei_loader *l, const cmoei_recipe *r, cmoe_matrix **out);
/* Packs what was added, then forgets it. */
cmoe_status cmoei_load_run(cmoei_loader *l);

typedef void (*cmoei_extent_fn)(const cmoe_checkpoint *c, const void *data, int64_t bytes);
/* Calls fn for what a layer reads of the files. */
cmoe_status cmoei_load_extents(const cmoei_loader *l, int64_t layer, cmoei_extent_fn fn);
void cmoei_load_drop_global(const cmoei_loader *l);

#endif
