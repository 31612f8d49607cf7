/* SPDX-License-Identifier: MIT
 *
 * random.c - random numbers as a function of (seed, position, draw): Philox 4x32 with 10 rounds
 * (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011).
 */
#include "vmath.h"

uint64_t cmoe_random_u64(uint64_t seed, uint64_t position, uint64_t draw)
{
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32);
    uint32_t c2 = (uint32_t)draw, c3 = (uint32_t)(draw >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;
        const uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return (uint64_t)c1 << 32 | c0;
}

float cmoe_random_uniform(uint64_t seed, uint64_t position, uint64_t draw)
{
    return (float)(cmoe_random_u64(seed, position, draw) >> 40) * 0x1p-24f;
}

/* The inverse of the normal distribution at a uniform point (Wichura, AS 241, the 7 digit form). */
static float normal(uint64_t seed, uint64_t position, uint64_t draw)
{
    /* The middle of one of 2^23 cells, all of it exact: never 0 or 1, and as likely below a half as
     * above. */
    const float u = ((float)(cmoe_random_u64(seed, position, draw) >> 41) + 0.5f) * 0x1p-23f;
    const float q = u - 0.5f;
    if (fabsf(q) <= 0.425f) {
        const float r = 0.180625f - q * q;
        return q * (((59.10937472f * r + 159.29113202f) * r + 50.434271938f) * r + 3.3871327179f) /
               (((67.187563600f * r + 78.757757664f) * r + 17.895169469f) * r + 1.0f);
    }
    /* u >= 2^-24 makes r <= 4.08: the form for r > 5 is never needed. */
    const float r = sqrtf(-cmoei_logf(q < 0 ? u : 0.5f - q)) - 1.6f;
    const float x =
        (((0.17023821103f * r + 1.3067284816f) * r + 2.7568153900f) * r + 1.4234372777f) /
        ((0.12021132975f * r + 0.73700164250f) * r + 1.0f);
    return q < 0 ? -x : x;
}

float cmoe_random_normal(uint64_t seed, uint64_t position, uint64_t draw)
{
    const uint64_t before = cmoei_float_enter(); /* the same in every caller's rounding mode */
    const float x = normal(seed, position, draw);
    cmoei_float_leave(before);
    return x;
}
