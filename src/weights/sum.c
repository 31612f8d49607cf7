/* SPDX-License-Identifier: MIT
 *
 * sum.c - see sum.h.
 *
 * Eight chains, because one alone waits for its own multiplication and is slower than memory.
 */
#include "sum.h"

#include <string.h>

static const uint64_t factor = 0x2545f4914f6cdd1du;

void cmoei_sum_begin(cmoei_sum *s)
{
    for (int i = 0; i < CMOEI_SUM_LANES; i++)
        s->lane[i] = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
}

void cmoei_sum_add(cmoei_sum *s, const void *data, int64_t bytes)
{
    uint64_t word[CMOEI_SUM_LANES], x[CMOEI_SUM_LANES];
    const char *p = data;
    memcpy(x, s->lane, sizeof x);
    for (; bytes >= CMOEI_SUM_WORDS; bytes -= CMOEI_SUM_WORDS, p += CMOEI_SUM_WORDS) {
        memcpy(word, p, sizeof word);
        for (int i = 0; i < CMOEI_SUM_LANES; i++) {
            x[i] = (x[i] ^ word[i]) * factor;
            x[i] ^= x[i] >> 32;
        }
    }
    memcpy(s->lane, x, sizeof x);
}

uint64_t cmoei_sum_end(const cmoei_sum *s, const void *data, int64_t bytes, int64_t total)
{
    const unsigned char *p = data;
    uint64_t sum = (uint64_t)total;
    for (int i = 0; i < CMOEI_SUM_LANES; i++)
        sum = (sum ^ s->lane[i]) * factor;
    for (; bytes > 0; bytes--, p++)
        sum = (sum ^ *p) * factor;
    return sum;
}

uint64_t cmoei_sum64(const void *data, int64_t bytes)
{
    cmoei_sum s;
    const int64_t whole = bytes / CMOEI_SUM_WORDS * CMOEI_SUM_WORDS;
    cmoei_sum_begin(&s);
    cmoei_sum_add(&s, data, whole);
    return cmoei_sum_end(&s, (const char *)data + whole, bytes - whole, bytes);
}
