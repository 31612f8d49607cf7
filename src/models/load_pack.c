/* SPDX-License-Identifier: MIT
 *
 * load_pack.c - the matrices of a layer: allocated empty, then all their panels packed in one parallel
 * region straight from the mapped files; or found on a tape, packed before.
 */
#include <string.h>

#include "load.h"

static void stacked_row(const void *user, int64_t e, int64_t n, float *row)
{
    const cmoei_job *j = user;
    for (int32_t i = 0; i < CMOEI_PIECES; i++) {
        const cmoei_piece *p = &j->pieces[i];
        if (n < p->rows.count) {
            cmoei_source_row(&p->source[e], p->rows.first + n, row);
            cmoei_fold_row(j->folds, p->layer, p->role, p->first_expert + e, p->rows.first + n,
                           row);
            return;
        }
        n -= p->rows.count;
    }
}

/* Task 0 tells how far all of them are, about 500 times in a load, and once that it is done. */
static void tell(cmoei_loader *l, int64_t done)
{
    if (!l->o->progress || l->cancelled || done == l->told) return;
    if (done < l->total && done - l->told < l->total / 500) return;
    l->told = done;
    if (l->o->progress(l->o->progress_user, CMOEI_MIN(done, l->total), l->total)) l->cancelled = 1;
}

static void pack(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    cmoei_loader *l = arg;
    (void)count;
    int64_t all = 0;
    for (int32_t i = 0; i < l->count; i++)
        all += l->jobs[i].panels;
    for (int64_t i; !l->cancelled && (i = cmoei_next(team, 1)) < all;) {
        const cmoei_job *j = l->jobs;
        while (i >= j->panels)
            i -= j++->panels;
        const cmoei_rows rows = {.row = stacked_row, .user = j};
        cmoei_matrix_pack(j->matrix, &rows, i, l->rows + index * l->row_length);
        l->packed += j->matrix->panel_bytes;
        if (index == 0) tell(l, l->done + l->packed);
    }
}

/* Packs what was added, then forgets it. */
cmoe_status cmoei_load_run(cmoei_loader *l)
{
    int64_t panels = 0, bytes = 0;
    for (int32_t i = 0; i < l->count; i++) {
        panels += l->jobs[i].panels;
        bytes += cmoe_matrix_weight_bytes(l->jobs[i].matrix);
    }
    l->packed = 0;
    cmoei_region(l->m->ctx, panels, pack, l);
    l->count = 0;
    l->done += bytes;
    tell(l, l->done);
    if (l->cancelled) return cmoei_fail(l->err, CMOE_ERR_CANCELLED, "loading was cancelled");
    return CMOE_OK;
}

/* Biases of [count] pieces, stacked as the rows of their matrix are, for experts [first, + n). */
static cmoe_status set_bias(cmoei_loader *l, cmoe_matrix *m, const cmoei_piece *pieces,
                            int32_t count)
{
    float *bias;
    const int64_t bytes = m->outputs * (int64_t)sizeof *bias;
    if (!m->bias) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(l->m->ctx, bytes, "bias", (void **)&bias, l->err));
    for (int64_t e = 0; e < m->count; e++) {
        int64_t at = 0;
        for (int32_t i = 0; i < count; i++) {
            const cmoei_source s = pieces[i].source[e];
            cmoei_source part = s;
            part.data += pieces[i].rows.first * s.col * cmoe_dtype_bytes(s.dtype);
            part.cols = pieces[i].rows.count;
            if (part.cols) cmoei_source_row(&part, 0, bias + at);
            at += part.cols;
        }
        cmoei_matrix_set_bias(m, e, bias);
    }
    cmoei_free(l->m->ctx, bias, bytes);
    return CMOE_OK;
}

/* Three stretches of the tape, as they were put there. */
static cmoe_status take(cmoei_loader *l, const cmoei_recipe *r, cmoe_matrix **out)
{
    const bool bias = r->bias[0].source != NULL;
    cmoei_matrix_memory memory = {0};
    CMOEI_TRY(
        cmoei_matrix_adopt(out, l->m->ctx, r->format, r->gated, r->dims, bias, &memory, l->err));
    for (int32_t i = 0; i < 3; i++)
        CMOEI_TRY(cmoei_tape_take(l->tape, memory.bytes[i], &memory.data[i], l->err));
    return cmoei_matrix_adopt(out, l->m->ctx, r->format, r->gated, r->dims, bias, &memory, l->err);
}

static cmoe_status put(cmoei_loader *l, const cmoe_matrix *m)
{
    const cmoei_matrix_memory memory = cmoei_matrix_memory_of(m);
    for (int32_t i = 0; i < 3; i++)
        CMOEI_TRY(cmoei_tape_put(l->tape, memory.data[i], memory.bytes[i], false, l->err));
    return CMOE_OK;
}

cmoe_status cmoei_load_matrix(cmoei_loader *l, const cmoei_recipe *r, cmoe_matrix **out)
{
    if (cmoei_tape_plays(l->tape)) {
        CMOEI_TRY(take(l, r, out));
        l->done += cmoe_matrix_weight_bytes(*out);
        return CMOE_OK;
    }
    const bool bias = r->bias[0].source != NULL;
    CMOEI_TRY(
        cmoei_matrix_alloc(out, l->m->ctx, r->format, r->gated, r->dims, bias, r->name, l->err));
    if (bias) CMOEI_TRY(set_bias(l, *out, r->bias, r->count));
    CMOEI_TRY(put(l, *out));
    CMOE_ASSERT(l->count < CMOEI_JOBS && r->count <= CMOEI_PIECES);
    cmoei_job *j = &l->jobs[l->count++];
    *j = (cmoei_job){.matrix = *out, .folds = l->folds, .panels = (*out)->count * (*out)->panels};
    memcpy(j->pieces, r->rows, (size_t)r->count * sizeof *r->rows);
    return CMOE_OK;
}
