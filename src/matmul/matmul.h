/* SPDX-License-Identifier: MIT
 *
 * matmul.h - packed matrices, prepared rows, and the kernels that multiply a few rows by one panel.
 *
 * A matrix [N, K] is cut into panels of `panel` output columns; a panel lies in memory in the order
 * in which the product reads it, one 64-byte line per 16 columns and step:
 *
 *     panel p:  step 0: column 0: k 0..step-1, column 1: k 0..step-1, ...
 *               step 1: ...                                              (zeros behind K and N)
 *
 * A gated panel holds panel/2 gate columns, then the up columns of the same elements, so the
 * activation can be applied to what one tile leaves behind.
 *
 * One lane is one output element, added up over ascending k; rows are broadcast.  So the tree of an
 * element is a chain that knows nothing of other rows, and one row gets its speed from many
 * columns.  A row of x is prepared once (rounded, quantised, widened) so that a step takes 32 bits
 * of it, or 64 where bf16 is widened to f32.
 */
#ifndef CMOE_MATMUL_INTERNAL_H
#define CMOE_MATMUL_INTERNAL_H

#include "cmoe/matmul.h"
#include "core/kernel.h"

enum {
    CMOEI_TILE_ROWS = 12,   /* most rows of any kernel */
    CMOEI_PANEL = 32,       /* most columns of any kernel */
    CMOEI_BLOCK_ROWS = 96,  /* rows that stay in L2 while the panels of an expert pass by */
    CMOEI_INT8_DIM = 131072 /* longest int8 sum that cannot leave int32: 2^17 * 127 * 128 < 2^31 */
};

/* How a kernel wants the rows of x. */
enum {
    CMOEI_X_F32, /* float32; rounded to bf16 first when the format is bf16 */
    CMOEI_X_BF16,
    CMOEI_X_I8,
    CMOEI_X_U8, /* value + 128, for instructions that take unsigned by signed */
    CMOEI_X_I16
};

typedef struct cmoei_tile {
    const char *x; /* [rows], x_stride bytes apart */
    int64_t x_stride;
    int64_t x_step; /* f32: bytes from one k of a row to the next; 0: side by side */
    bool more;      /* float formats: the sums continue from what is in acc */
    bool onto;      /* f32: they begin at 0 and are added to what is in acc */
    const char *w;  /* one packed panel */
    int64_t steps;
    void *acc;         /* [rows, panel] float32, int32 for int8; 64-byte aligned */
    const char *ahead; /* what to fetch meanwhile, never read: `ahead_step` bytes a step */
    int64_t ahead_step;
} cmoei_tile;

typedef struct cmoei_matmul_kernel {
    cmoei_variant v;
    int32_t panel; /* output columns */
    int32_t step;  /* elements of the reduction taken at once */
    int32_t rows;  /* most rows of a tile */
    int32_t x_form;
    void (*run)(const cmoei_tile *tile, int32_t rows);
} cmoei_matmul_kernel;

extern const cmoei_table cmoei_matmul_table;

void cmoei_matmul_f32_avx512(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_bf16_avx512(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_i8_avx512(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_i8_avx512_vnni(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_bf16_avx512_bf16(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_f32_avx2(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_bf16_avx2(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_i8_avx2(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_f32_ref(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_bf16_ref(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_i8_ref(const cmoei_tile *t, int32_t rows);
/* The same as double: acc is double [rows, panel]. */
void cmoei_matmul_f32_f64(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_bf16_f64(const cmoei_tile *t, int32_t rows);
void cmoei_matmul_i8_f64(const cmoei_tile *t, int32_t rows);

/* ---- matrices -------------------------------------------------------------------------------- */

/* Which rows of w meet in a panel. */
typedef struct cmoei_gate {
    bool gated;       /* N = 2I: gate and up rows of one element side by side; else plain columns */
    bool interleaved; /* rows alternate gate, up; else one part comes first */
    bool up_first;
} cmoei_gate;

/* Where the rows of [E, N, K] come from: row n of matrix e as float32 [K].  With `scale` they are
 * int8 values that a scale of their own belongs to; only for matrices of that format. */
typedef struct cmoei_rows {
    void (*row)(const void *user, int64_t e, int64_t n, float *row);
    float (*scale)(const void *user, int64_t e, int64_t n); /* NULL: plain values */
    const void *user;
    /* The other way round, for sources in which that is how values lie: to[i][j] = value k + i of row
     * n + j, i < lines, j < count; lines of `to` are `stride` floats apart.  NULL: by rows.  Not for
     * gated or int8 matrices. */
    void (*lines)(const void *user, int64_t e, int64_t k, int64_t lines, int64_t n, int64_t count,
                  float *to, int64_t stride);
} cmoei_rows;

struct cmoe_matrix {
    cmoe_ctx *ctx;
    const cmoei_matmul_kernel *kernel;
    const struct cmoei_quantize_kernel *quantize; /* of rows of x, int8 */
    cmoe_matrix_options o;
    cmoei_gate gate;
    int64_t count;   /* E */
    int64_t outputs; /* N */
    int64_t inputs;  /* K */
    int64_t width;   /* outputs of one panel: panel, or panel / 2 elements with gate and up */
    int64_t panels, steps;
    int64_t panel_bytes; /* of the weights of one panel, a multiple of 64 */
    char *packed;        /* [E, panels] panels; NULL when borrowed */
    float *scale;        /* [E, panels, panel], int8 only; NULL when borrowed */
    float *bias;         /* [E, panels, panel] or NULL */
    int64_t packed_bytes, scale_bytes, bias_bytes;
    bool adopted;     /* the three above lie in somebody else's memory */
    cmoe_view source; /* [E, N, K] after transposing, when borrowed */
    cmoei_rows rows;  /* or, when borrowed, this is where rows come from */
};

/* A matrix [E, N, K] without contents, to be filled by packing each of its E * panels panels, in any
 * order and by any thread.  Gated: rows 0 .. N/2-1 are the gate's.  Rows of a bias are set one
 * matrix at a time. */
cmoe_status cmoei_matrix_alloc(cmoe_matrix **out, cmoe_ctx *ctx, int32_t format, bool gated,
                               const int64_t dims[3], bool bias, const char *name, cmoe_error *err)
    CMOE_PRIV(matrix_alloc);
/* The memory that a filled matrix consists of, in this order; what it has none of has no bytes. */
typedef struct cmoei_matrix_memory {
    const void *data[3];
    int64_t bytes[3]; /* packed weights, scales, bias */
} cmoei_matrix_memory;
cmoei_matrix_memory cmoei_matrix_memory_of(const cmoe_matrix *m) CMOE_PRIV(matrix_memory_of);
/* A matrix around memory that was one's before, of the same arguments, kernel and version; aligned to
 * 64, and there as long as the matrix is.  With data NULL: only says how many bytes there must be. */
cmoe_status cmoei_matrix_adopt(cmoe_matrix **out, cmoe_ctx *ctx, int32_t format, bool gated,
                               const int64_t dims[3], bool bias, cmoei_matrix_memory *memory,
                               cmoe_error *err) CMOE_PRIV(matrix_adopt);
/* The layout that matrices of a format have in this context, in words: "avx512 32x2 0". */
void cmoei_matrix_layout(cmoe_ctx *ctx, int32_t format, char *text, size_t size)
    CMOE_PRIV(matrix_layout);
/* cmoe_matrix_weight_bytes of such a matrix. */
cmoe_status cmoei_matrix_size(cmoe_ctx *ctx, int32_t format, bool gated, const int64_t dims[3],
                              const char *name, int64_t *bytes, cmoe_error *err)
    CMOE_PRIV(matrix_size);
/* The same, but with borrow nothing is kept and rows are asked for panels on the way; `m` is written
 * to, not allocated.  cmoei_matrix_clear gives back what it has. */
cmoe_status cmoei_matrix_init(cmoe_matrix *m, cmoe_ctx *ctx, int32_t format, const int64_t dims[3],
                              bool bias, bool borrow, const char *name, cmoe_error *err);
void cmoei_matrix_clear(cmoe_matrix *m);
/* Panel i of E * panels; `x` is scratch of the calling thread. */
void cmoei_matrix_pack(cmoe_matrix *m, const cmoei_rows *rows, int64_t i, float *x)
    CMOE_PRIV(matrix_pack);
/* Floats of that scratch, for rows of so many inputs; false when they leave int64. */
bool cmoei_pack_elements(int64_t inputs, int64_t *elements) CMOE_PRIV(pack_elements);
void cmoei_matrix_set_bias(cmoe_matrix *m, int64_t e, const float *bias)
    CMOE_PRIV(matrix_set_bias); /* [N] */

/* Row of matrix e that column c of panel p comes from; -1 behind the last one. */
int64_t cmoei_matrix_row(const cmoe_matrix *m, int64_t p, int64_t c);
void cmoei_panel_pack(const cmoe_matrix *m, const cmoei_rows *rows, int64_t e, int64_t p,
                      char *panel, float *scale, float *x);
cmoei_rows cmoei_matrix_source(const cmoe_matrix *m); /* of its own view, or m->rows */
/* Panels [p, end) of matrix e from a source of lines, together: a line of all of them lies in one
 * stretch of the source.  `panels` is where panel p goes. */
void cmoei_panels_pack_lines(const cmoe_matrix *m, const cmoei_rows *rows, int64_t e, int64_t p,
                             int64_t end, char *panels);

/* Room that packing one panel on the way needs, per task. */
typedef struct cmoei_panel_scratch {
    char *weights; /* [panel_bytes] */
    float *scale;  /* [panel] */
    float *rows;   /* as cmoei_pack_elements says */
} cmoei_panel_scratch;

cmoei_panel_scratch cmoei_panel_scratch_carve(cmoei_carver *c, const cmoe_matrix *m);

typedef struct cmoei_panel {
    const char *weights;
    const float *scale; /* int8 only */
    const float *bias;  /* or NULL */
} cmoei_panel;

/* Panel p of matrix e, packed into `scratch` first when the matrix is borrowed. */
cmoei_panel cmoei_matrix_panel(const cmoe_matrix *m, int64_t e, int64_t p,
                               const cmoei_panel_scratch *scratch);

/* cmoe_matrix_create with a gate, and with the argument names of whoever calls. */
cmoe_status cmoei_matrix_create(cmoe_matrix **out, cmoe_ctx *ctx, const cmoe_matrix_options *o,
                                cmoei_gate gate, cmoe_view w, const char *w_name, cmoe_view bias,
                                const char *bias_name, cmoe_error *err);

/* [N, K] as [1, N, K] */
static inline cmoe_view cmoei_as_matrices(cmoe_view w)
{
    for (int32_t i = 2; i > 0; i--) {
        w.dims[i] = w.dims[i - 1];
        w.strides[i] = w.strides[i - 1];
    }
    w.dims[0] = 1;
    w.strides[0] = 0;
    w.rank = 3;
    return w;
}

/* A matrix object on the stack that borrows w [1, N, K]; nothing to free.  Its sizes are known even
 * when w has no data. */
cmoe_status cmoei_matrix_borrow(cmoe_matrix *m, cmoe_ctx *ctx, int32_t format, cmoe_view w,
                                cmoe_error *err);

/* ---- rows ------------------------------------------------------------------------------------ */

int64_t
cmoei_row_bytes(const cmoe_matrix *m); /* of one prepared row, padded against cache aliasing */

/* x [K] float32 -> one prepared row; writes *scale for int8. */
void cmoei_row_prepare(const cmoe_matrix *m, const float *x, void *row, float *scale);

/* Cuts `rows` into tiles as even as possible: rows of tile i of the returned count begin at i's
 * share. */
static inline int64_t cmoei_tiles(const cmoei_matmul_kernel *k, int64_t rows)
{
    return cmoei_ceil_div(rows, k->rows);
}

static inline void cmoei_tile_rows(int64_t rows, int64_t tiles, int64_t i, int64_t *begin,
                                   int64_t *end)
{
    cmoei_split(rows, (int32_t)i, (int32_t)tiles, begin, end);
}

/* Tile i of n over one panel.  A single tile fetches its own panel a page ahead, and runs on into
 * the next; several tiles, which read the panel from cache after the first, share the fetching of
 * the next panel among them, so that memory works while they compute. */
static inline void cmoei_tile_run(const cmoe_matrix *m, const char *weights, int64_t i, int64_t n,
                                  const char *x, int64_t x_stride, int32_t rows, void *acc)
{
    enum { NEAR = 4096 };
    const int64_t bytes = m->panel_bytes, line = bytes / CMOEI_MAX(m->steps, 1);
    const cmoei_tile t = {
        .x = x,
        .x_stride = x_stride,
        .w = weights,
        .steps = m->steps,
        .acc = acc,
        .ahead = n == 1 ? weights + NEAR : weights + bytes + bytes * i / n,
        .ahead_step = line / n,
    };
    m->kernel->run(&t, rows);
}

/* ---- blocks of rows -------------------------------------------------------------------------- */

/* Rows [begin, end) of one expert, at most CMOEI_BLOCK_ROWS of them. */
typedef struct cmoei_block {
    int64_t expert, begin, end;
} cmoei_block;

/* At most so many blocks for `rows` rows of `experts` experts. */
int64_t cmoei_blocks_most(int64_t rows, int64_t experts);
/* Padding rows at the end of an expert are left out.  Returns the number of blocks. */
int64_t cmoei_blocks_list(const cmoe_groups *g, cmoei_block *blocks);

/* Groups come from the caller's memory: everything that will be used as an index is looked at. */
cmoe_status cmoei_groups_check(const cmoe_groups *g, int64_t experts, cmoe_error *err);
/* An output must not be written over the arrays of checked groups. */
cmoe_status cmoei_groups_apart(const cmoe_view_mut *out, const char *name, const cmoe_groups *g,
                               cmoe_error *err);

/* No array of the groups lies in what the call may carve. */
cmoe_status cmoei_groups_check_scratch(const cmoe_groups *g, const cmoe_arena *scratch,
                                       cmoe_error *err);
/* An output does not lie on weights that are borrowed. */
cmoe_status cmoei_matrix_apart(const cmoe_view_mut *out, const char *out_name, const cmoe_matrix *m,
                               const char *name, cmoe_error *err);

/* The rows of groups fit into a tensor. */
cmoe_status cmoei_check_filled(const cmoe_view *v, const char *name, int64_t rows, cmoe_error *err);

/* Calls run(arg, task, block, panel) for every panel of every block, shared out over the team. */
typedef void (*cmoei_panel_fn)(void *arg, int32_t task, const cmoei_block *block, int64_t panel);
void cmoei_panels_run(cmoei_team *team, int32_t task, int32_t tasks, const cmoei_block *blocks,
                      int64_t count, int64_t panels, cmoei_panel_fn run, void *arg);

#endif
