/* SPDX-License-Identifier: MIT
 *
 * outer_run.c - outer products on the tiles of the f32 product.
 *
 * The reduction runs over rows, so both operands are packed with the row as the step: b as panels
 * [rows, 32], which all tasks share, a as tiles [rows, 12], which belong to whoever multiplies
 * them.  Packing copies short stretches of rows, nothing is transposed.
 *
 *     for a few experts at a time (a round, whose panels stay in cache)
 *         pack b                                               all tasks
 *         for items (expert, slab of up to 8 tiles of a)       whoever is free
 *             pack the slab
 *             for panels, for CHUNK rows of a unit, for tiles of the slab:
 *                 sums of 12 x 32 += tile . panel              panel chunk 32 KiB, in L1
 *
 * At the end of a unit its sums go up the tree of units.h, in L1.  Units
 * without rows are left out, which only loses the sign of a zero: a sum of which 0 was an operand is
 * never -0, so + 0 at the root puts it right.
 */
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "outer.h"

enum {
    SLAB = 8,               /* most tiles of a that share a chunk of b in L1 */
    SLAB_BYTES = 1 << 20,   /* half of L2 */
    ROUND_BYTES = 2 << 20,  /* panels of a round */
    STREAM_BYTES = 8 << 20, /* results that caches would lose before they are read */
    CHUNK = 256,            /* rows whose panel lies in L1 */
    PACK_ROWS = 16,         /* rows that are packed together */
    ROWS = CMOEI_UNITS_ROWS,
    TILE = CMOEI_TILE_ROWS * CMOEI_PANEL /* floats of the largest tile */
};

typedef struct span {
    int64_t begin, end;
} span;

static inline int64_t columns(const cmoei_operand *x)
{
    return x->n + x->tail_n;
}

static inline int64_t round_width(const cmoei_outer *o)
{
    return cmoei_round_up(columns(&o->b), o->kernel->panel);
}

/* Tiles of a slab for so many rows. */
static int64_t slab_most(const cmoei_outer *o, int64_t rows)
{
    const int64_t bytes = CMOEI_MAX(rows, 1) * o->kernel->rows * (int64_t)sizeof(float);
    return CMOEI_MAX(1, CMOEI_MIN(SLAB, SLAB_BYTES / bytes));
}

void cmoei_outer_carve(cmoei_outer *o, cmoei_carver *c)
{
    int64_t width = 0;
    if (!cmoei_mul(round_width(o), (int64_t)sizeof(float), &width)) width = INT64_MAX;
    /* Rounded up, so that slabs of any smaller number of rows fit, too. */
    const int64_t tile = o->kernel->rows * (int64_t)sizeof(float);
    const int64_t slab = CMOEI_MAX(o->rows * tile, CMOEI_MIN(SLAB_BYTES, o->rows * tile * SLAB));
    o->packed = cmoei_carve_array(c, o->rows, width);
    o->tasks = cmoei_carve_array(c, o->threads, sizeof *o->tasks);
    for (int64_t i = 0; i < o->threads; i++) {
        const struct cmoei_outer_task t = {
            .slab = cmoei_carve(c, slab),
            .sums = cmoei_carve_array(c, SLAB * ROWS, TILE * sizeof(float)),
            .bounds = cmoei_carve_array(c, CMOE_UNITS_MOST + 1, sizeof(int64_t)),
        };
        if (o->tasks && t.bounds) o->tasks[i] = t;
    }
}

/* ---- packing --------------------------------------------------------------------------------- */

static inline void copy(float *to, const char *from, int64_t n)
{
    memcpy(to, from, (size_t)n * sizeof *to);
}

/* Columns [c, c + width) of one row, of which some may be behind the row: zeros. */
static void copy_edge(const cmoei_operand *x, const char *row, int64_t r, int64_t c, int64_t width,
                      float *to)
{
    for (int64_t i = 0; i < width; i++, c++) {
        if (c < x->n)
            memcpy(&to[i], row + c * (int64_t)sizeof *to, sizeof *to);
        else
            to[i] = c < columns(x) ? x->tail[r * x->tail_n + c - x->n] : 0;
    }
}

/* Columns [c, end) of rows [r, r + n), n <= PACK_ROWS, in pieces of `width`; piece p goes to to + p *
 * stride, its rows behind each other.  Called with a constant width. */
static inline void pack_pieces(const cmoei_operand *x, const char *const *rows, int64_t r,
                               int64_t n, int64_t c, int64_t end, int64_t width, float *to,
                               int64_t stride)
{
    for (; c < end; c += width, to += stride) {
        if (c + width <= x->n) {
            for (int64_t i = 0; i < n; i++)
                copy(to + i * width, rows[i] + c * (int64_t)sizeof *to, width);
        } else {
            for (int64_t i = 0; i < n; i++)
                copy_edge(x, rows[i], r + i, c, width, to + i * width);
        }
    }
}

static void scale_all(float *x, int64_t n, float scale)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= scale;
}

static void pack_rows(const cmoei_outer *o, const cmoei_operand *x, int64_t r, int64_t n, int64_t c,
                      int64_t end, int64_t width, float *to, int64_t stride)
{
    const char *rows[PACK_ROWS];
    for (int64_t i = 0; i < n; i++)
        rows[i] = cmoei_at(&x->x, x->grouped ? r + i : cmoei_row_token(o->groups, r + i), 0);
    switch (width) {
    case 32:
        pack_pieces(x, rows, r, n, c, end, 32, to, stride);
        break;
    case 16:
        pack_pieces(x, rows, r, n, c, end, 16, to, stride);
        break;
    case 12:
        pack_pieces(x, rows, r, n, c, end, 12, to, stride);
        break;
    case 6:
        pack_pieces(x, rows, r, n, c, end, 6, to, stride);
        break;
    default:
        pack_pieces(x, rows, r, n, c, end, width, to, stride);
        break;
    }
    if (x->scale == 1) return;
    for (; c < end; c += width, to += stride)
        scale_all(to, n * width, x->scale);
}

/* Panels of b of the experts of a round, which begin at row `first`. */
static void pack_round(const cmoei_outer *o, cmoei_team *team, int64_t e, int64_t e_end,
                       int64_t first)
{
    const int64_t width = o->kernel->panel, all = round_width(o);
    const int64_t last = o->groups ? o->groups->first[e_end] : o->rows;
    int64_t begin, end, at = 0;
    cmoei_expert_rows(o->groups, o->rows, e, &begin, &end);
    for (int64_t r; (r = first + cmoei_next(team, PACK_ROWS)) < last;) {
        const int64_t r_end = CMOEI_MIN(r + PACK_ROWS, last);
        while (r < r_end) {
            while (e + 1 < e_end && o->groups->first[e + 1] <= r)
                cmoei_expert_rows(o->groups, o->rows, ++e, &begin, &end);
            const int64_t next = o->groups ? o->groups->first[e + 1] : o->rows;
            const int64_t n = CMOEI_MIN(r_end, end) - r;
            at = (begin - first) * all + (r - begin) * width;
            if (n > 0)
                pack_rows(o, &o->b, r, n, 0, columns(&o->b), width, o->packed + at,
                          (end - begin) * width);
            r = CMOEI_MIN(r_end, next);
        }
    }
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* Where units begin among the rows of an expert, counted from its first. */
static void unit_bounds(const cmoei_outer *o, span rows, int64_t *bounds)
{
    bounds[0] = 0;
    for (int64_t u = 1; u <= o->units.count; u++) {
        int64_t low = rows.begin + bounds[u - 1], high = rows.end;
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (cmoei_row_token(o->groups, middle) < o->units.first[u])
                low = middle + 1;
            else
                high = middle;
        }
        bounds[u] = low - rows.begin;
    }
}

/* The sums of unit u are made in row cmoei_units_row(u) of `sums` [ROWS, TILE], where `have` says which
 * rows hold something; then the pairs that it completes are closed, a row at a time towards row 0. */
static uint32_t fold(float *sums, uint32_t have, int64_t u, int64_t n)
{
    for (int64_t row = cmoei_units_row(u); u & 1; u >>= 1, row--) {
        const float *x = sums + row * TILE;
        float *left = sums + (row - 1) * TILE;
        if (!(have >> row & 1)) continue;
        if (have >> (row - 1) & 1) {
            for (int64_t i = 0; i < n; i++)
                left[i] += x[i];
        } else {
            memcpy(left, x, (size_t)n * sizeof *x);
        }
        have = (have & ~(1u << row)) | 1u << (row - 1);
    }
    return have;
}

static void add_zero(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += 0.0f;
}

/* ---- rectangles ------------------------------------------------------------------------------ */

static inline span common(int64_t a, int64_t a_n, int64_t b, int64_t b_n)
{
    return (span){CMOEI_MAX(a, b), CMOEI_MIN(a + a_n, b + b_n)};
}

/* A tensor is given and a tile of n rows from i on and a panel from j on has something of it. */
static inline bool meets(const cmoei_outer *o, const cmoei_outer_part *p, int64_t i, int64_t n,
                         int64_t j)
{
    const span a = common(i, n, p->i, p->n), b = common(j, o->kernel->panel, p->j, p->k);
    return p->out.dtype && a.begin < a.end && b.begin < b.end;
}

static bool wanted(const cmoei_outer *o, int64_t i, int64_t n, int64_t j)
{
    for (int64_t p = 0; p < o->count; p++) {
        if (meets(o, &o->parts[p], i, n, j)) return true;
    }
    return false;
}

static inline char *place(const cmoei_outer_part *p, int64_t e, int64_t i, int64_t j)
{
    const int64_t *strides = p->out.strides;
    return (char *)p->out.data +
           (e * strides[0] + (i - p->i) * strides[1] + (j - p->j) * strides[2]) *
               (int64_t)sizeof(float);
}

/* x -> to past the caches, which saves reading lines that are overwritten.  Both aligned to 16, n a
 * multiple of 4.  stream_end before another thread may read it. */
static inline void stream(float *to, const float *x, int64_t n)
{
#if defined(__SSE2__)
    for (int64_t i = 0; i < n; i += 4)
        _mm_stream_ps(to + i, _mm_load_ps(x + i));
#else
    memcpy(to, x, (size_t)n * sizeof *x);
#endif
}

static inline void stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Between sums [n, panel] of rows i.. and columns j.. of matrix e and the tensors. */
static void exchange(const cmoei_outer *o, int64_t e, int64_t i, int64_t n, int64_t j, float *sums,
                     bool load)
{
    const int64_t panel = o->kernel->panel;
    for (int64_t q = 0; q < o->count; q++) {
        const cmoei_outer_part *p = &o->parts[q];
        if (!meets(o, p, i, n, j)) continue;
        const span a = common(i, n, p->i, p->n), b = common(j, panel, p->j, p->k);
        const int64_t stride = p->out.strides[2], columns_n = b.end - b.begin;
        const bool line = stride == 1 && columns_n == 32;
        for (int64_t r = a.begin; r < a.end; r++) {
            char *at = place(p, e, r, b.begin);
            float *x = sums + (r - i) * panel + b.begin - j;
            if (load)
                cmoei_load_f32(x, at, CMOE_F32, stride, columns_n);
            else if (line && o->stream && (uintptr_t)at % 64 == 0)
                stream((float *)(void *)at, x, 32);
            else if (line) /* the usual case, of a size that the compiler knows */
                memcpy(at, x, 32 * sizeof *x);
            else
                cmoei_store_f32(at, CMOE_F32, stride, x, columns_n);
        }
    }
}

/* ---- products -------------------------------------------------------------------------------- */

typedef struct item {
    int64_t expert;
    span rows;           /* of the expert */
    int64_t tile, tiles; /* of the slab */
    const float *slab;   /* [tiles, rows, kernel->rows] */
    const float *panels; /* [panels, rows, panel] */
    const int64_t *bounds;
    float *sums;
} item;

static inline int64_t tile_rows(const cmoei_outer *o, int64_t tile)
{
    return CMOEI_MIN(o->kernel->rows, columns(&o->a) - tile * o->kernel->rows);
}

/* Rows [r, end) of one panel times a tile of the slab, into row `to` of its sums. */
static void run_tile(const cmoei_outer *o, const item *it, int64_t p, int64_t t, span rows,
                     int64_t to, bool more, bool onto)
{
    const int64_t width = o->kernel->rows, panel = o->kernel->panel;
    const int64_t n = it->rows.end - it->rows.begin;
    const float *w = it->panels + (p * n + rows.begin) * panel;
    o->kernel->run(&(cmoei_tile){.x = (const char *)(it->slab + (t * n + rows.begin) * width),
                                 .x_stride = (int64_t)sizeof(float),
                                 .x_step = width * (int64_t)sizeof(float),
                                 .w = (const char *)w,
                                 .steps = rows.end - rows.begin,
                                 .acc = it->sums + (t * ROWS + to) * TILE,
                                 .more = more,
                                 .onto = onto,
                                 .ahead = (const char *)(w + CHUNK * panel / it->tiles * t),
                                 .ahead_step = panel * (int64_t)sizeof(float) / it->tiles},
                   (int32_t)tile_rows(o, it->tile + t));
}

/* One unit, whose rows are not none.  The sums of an odd one that is computed at once go straight onto
 * those of the unit before. */
static void run_unit(const cmoei_outer *o, const item *it, int64_t p, int64_t u, const bool *want,
                     uint32_t *have)
{
    const int64_t begin = it->bounds[u], end = it->bounds[u + 1], row = cmoei_units_row(u);
    const int64_t size = o->kernel->rows * o->kernel->panel;
    for (int64_t r = begin; r < end; r += CHUNK) {
        const span rows = {r, CMOEI_MIN(r + CHUNK, end)};
        for (int64_t t = 0; t < it->tiles; t++) {
            const bool onto = (u & 1) && end - begin <= CHUNK && have[t] >> (row - 1) & 1;
            if (!want[t]) continue;
            run_tile(o, it, p, t, rows, onto ? row - 1 : row, o->accumulate || r > begin, onto);
            have[t] |= onto ? 0 : 1u << row;
        }
    }
    for (int64_t t = 0; t < it->tiles; t++) {
        if (want[t]) have[t] = fold(it->sums + t * ROWS * TILE, have[t], u, size);
    }
}

static void run_panel(const cmoei_outer *o, const item *it, int64_t p)
{
    const int64_t panel = o->kernel->panel, j = p * panel, size = o->kernel->rows * panel;
    bool want[SLAB], any = false, missing = false;
    uint32_t have[SLAB] = {0};
    for (int64_t t = 0; t < it->tiles; t++) {
        const int64_t i = (it->tile + t) * o->kernel->rows, n = tile_rows(o, it->tile + t);
        want[t] = wanted(o, i, n, j);
        any = any || want[t];
        if (want[t] && o->accumulate)
            exchange(o, it->expert, i, n, j, it->sums + t * ROWS * TILE, true);
    }
    for (int64_t u = 0; u < o->units.count && any; u++) {
        if (it->bounds[u] < it->bounds[u + 1]) {
            run_unit(o, it, p, u, want, have);
        } else {
            missing = true;
            for (int64_t t = 0; t < it->tiles; t++)
                have[t] = fold(it->sums + t * ROWS * TILE, have[t], u, size);
        }
    }
    for (int64_t t = 0; t < it->tiles; t++) {
        float *sums = it->sums + t * ROWS * TILE;
        if (!want[t]) continue;
        if (!have[t])
            memset(sums, 0, (size_t)size * sizeof *sums);
        else if (missing)
            add_zero(sums, size);
        exchange(o, it->expert, (it->tile + t) * o->kernel->rows, tile_rows(o, it->tile + t), j,
                 sums, false);
    }
}

/* ---- bias ------------------------------------------------------------------------------------ */

/* x [n, width] -> sums [width], added to what is there in ascending order. */
static inline void sum_rows(const float *x, int64_t n, int64_t width, float *sums)
{
    float s[CMOEI_TILE_ROWS];
    for (int64_t i = 0; i < width; i++)
        s[i] = sums[i];
    for (int64_t r = 0; r < n; r++) {
        for (int64_t i = 0; i < width; i++)
            s[i] += x[r * width + i];
    }
    for (int64_t i = 0; i < width; i++)
        sums[i] = s[i];
}

static void sum_tile(const float *x, int64_t n, int64_t width, float *sums)
{
    switch (width) {
    case 12:
        sum_rows(x, n, 12, sums);
        break;
    case 6:
        sum_rows(x, n, 6, sums);
        break;
    default:
        sum_rows(x, n, width, sums);
        break;
    }
}

static void run_bias(const cmoei_outer *o, const item *it, int64_t t, const cmoei_outer_part *part)
{
    const int64_t width = o->kernel->rows, n = it->rows.end - it->rows.begin;
    const int64_t i = (it->tile + t) * width;
    const span a = common(i, tile_rows(o, it->tile + t), part->i, part->n);
    const float *x = it->slab + t * n * width;
    float v[CMOE_UNITS_MOST][CMOEI_TILE_ROWS] = {{0}};
    if (a.begin >= a.end) return;
    char *to = cmoei_at_mut(&part->bias, it->expert, a.begin - part->i);
    const int64_t stride = part->bias.strides[1];
    if (o->accumulate) cmoei_load_f32(&v[0][a.begin - i], to, CMOE_F32, stride, a.end - a.begin);
    for (int64_t u = 0; u < o->units.count; u++)
        sum_tile(x + it->bounds[u] * width, it->bounds[u + 1] - it->bounds[u], width, v[u]);
    cmoei_units_tree(v[0], CMOEI_TILE_ROWS, o->units.count, width);
    cmoei_store_f32(to, CMOE_F32, stride, &v[0][a.begin - i], a.end - a.begin);
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static void run_item(const cmoei_outer *o, int32_t index, item *it)
{
    const struct cmoei_outer_task *task = &o->tasks[index];
    const int64_t width = o->kernel->rows, n = it->rows.end - it->rows.begin;
    const int64_t begin = it->tile * width,
                  end = CMOEI_MIN(begin + it->tiles * width, columns(&o->a));
    it->slab = task->slab;
    it->sums = task->sums;
    it->bounds = task->bounds;
    for (int64_t r = 0; r < n; r += PACK_ROWS)
        pack_rows(o, &o->a, it->rows.begin + r, CMOEI_MIN(PACK_ROWS, n - r), begin, end, width,
                  task->slab + r * width, n * width);
    unit_bounds(o, it->rows, task->bounds);
    for (int64_t p = 0; p < cmoei_ceil_div(columns(&o->b), o->kernel->panel); p++)
        run_panel(o, it, p);
    for (int64_t p = 0; p < o->count; p++) {
        const cmoe_view bias = cmoe_view_of(o->parts[p].bias);
        for (int64_t t = 0; t < it->tiles && cmoei_given(&bias); t++)
            run_bias(o, it, t, &o->parts[p]);
    }
}

/* The experts from e on whose panels fit into a round, at least one. */
static int64_t round_end(const cmoei_outer *o, int64_t e)
{
    const int64_t row = round_width(o) * (int64_t)sizeof(float);
    int64_t end = e + 1;
    while (end < o->experts &&
           (o->groups->first[end + 1] - o->groups->first[e]) * row <= ROUND_BYTES)
        end++;
    return end;
}

/* Tiles of a slab: no more than leave four items a task. */
static int64_t slab_tiles(const cmoei_outer *o, int64_t experts, int64_t rows, int32_t tasks)
{
    const int64_t tiles = cmoei_ceil_div(columns(&o->a), o->kernel->rows);
    const int64_t fair = cmoei_ceil_div(tiles * experts, 4 * (int64_t)tasks);
    return CMOEI_MIN(slab_most(o, rows), CMOEI_MIN(CMOEI_MAX(fair, 1), tiles));
}

static void run_round(const cmoei_outer *o, cmoei_team *team, int32_t index, int32_t count,
                      int64_t e, int64_t e_end, int64_t first)
{
    const int64_t tiles = cmoei_ceil_div(columns(&o->a), o->kernel->rows);
    int64_t most = 0;
    for (int64_t i = e; i < e_end; i++) {
        span rows;
        cmoei_expert_rows(o->groups, o->rows, i, &rows.begin, &rows.end);
        most = CMOEI_MAX(most, rows.end - rows.begin);
    }
    const int64_t slab = slab_tiles(o, e_end - e, most, count), slabs = cmoei_ceil_div(tiles, slab);
    for (int64_t i; (i = cmoei_next(team, 1)) < slabs * (e_end - e);) {
        item it = {.expert = e + i / slabs, .tile = i % slabs * slab};
        cmoei_expert_rows(o->groups, o->rows, it.expert, &it.rows.begin, &it.rows.end);
        if (it.rows.begin == it.rows.end && o->accumulate) continue;
        it.tiles = CMOEI_MIN(slab, tiles - it.tile);
        it.panels = o->packed + (it.rows.begin - first) * round_width(o);
        run_item(o, index, &it);
    }
}

void cmoei_outer_run(const cmoei_outer *o, cmoei_team *team, int32_t index, int32_t count)
{
    for (int64_t e = 0, end; e < o->experts; e = end) {
        const int64_t first = o->groups ? o->groups->first[e] : 0;
        end = round_end(o, e);
        pack_round(o, team, e, end, first);
        cmoei_barrier(team);
        run_round(o, team, index, count, e, end, first);
        if (o->stream) stream_end();
        cmoei_barrier(team);
    }
}

bool cmoei_outer_streams(const cmoei_outer *o)
{
    double bytes = 0;
    for (int64_t p = 0; p < o->count; p++)
        bytes += o->parts[p].out.dtype
                     ? 4.0 * (double)o->experts * (double)o->parts[p].n * (double)o->parts[p].k
                     : 0;
    return !o->accumulate && bytes > STREAM_BYTES;
}

int64_t cmoei_outer_items(const cmoei_outer *o)
{
    return o->experts * cmoei_ceil_div(columns(&o->a), o->kernel->rows);
}
