/* SPDX-License-Identifier: MIT
 *
 * rope_ref.c - rotary positions as they read.
 */
#include "core/real_plane.h"
#include "ops/rope.h"

void CMOEI_REF(cmoei_rope_table)(const cmoei_rope_table_args *a, int64_t row, int64_t row_end);
void CMOEI_REF(cmoei_rope_rotate)(const cmoei_rope_rotate_args *a, int64_t head, int64_t head_end);

void CMOEI_REF(cmoei_rope_table)(const cmoei_rope_table_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        const char *p = a->positions + row * a->positions_step;
        const float position = (float)cmoei_load_index(p, a->positions_dtype);
        for (int64_t j = 0; j < a->half; j++) {
            float frequency;
            cmoei_load_f32(&frequency, cmoei_plane_at(&a->frequencies, 0, j), CMOE_F32, 1, 1);
            const float angle = position * frequency; /* float32 in the oracle too: it is a rule */
            real_put(&a->cos, row, j, real_cos(angle) * a->amplitude);
            real_put(&a->sin, row, j, real_sin(angle) * a->amplitude);
        }
    }
}

void CMOEI_REF(cmoei_rope_rotate)(const cmoei_rope_rotate_args *a, int64_t head, int64_t head_end)
{
    for (; head < head_end; head++) {
        for (int64_t j = 0; j < a->half; j++) {
            const int64_t first = a->interleaved ? 2 * j : j;
            const int64_t second = a->interleaved ? 2 * j + 1 : a->half + j;
            const cmoei_real x = real_get(&a->x, head, first), y = real_get(&a->x, head, second);
            const cmoei_real c = real_get(&a->cos, 0, j);
            const cmoei_real s = a->inverse ? -real_get(&a->sin, 0, j) : real_get(&a->sin, 0, j);
            real_put(&a->out, head, first, real_fma(x, c, -(y * s)));
            real_put(&a->out, head, second, real_fma(y, c, x * s));
        }
    }
}
