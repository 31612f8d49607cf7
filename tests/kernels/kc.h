/* SPDX-License-Identifier: MIT
 *
 * kc.h - kernel check: random buffers with guard bytes, bounds, and a report that names the case.
 *
 * Each check_x.c is a program that walks the table of one operation and compares every row that
 * this CPU can run with the double oracle (x_ref.c built with -DCMOEI_DOUBLE).  Seeds come from the
 * case itself, so a failing line can be run again alone.
 */
#ifndef CMOE_KC_H
#define CMOE_KC_H

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/kernel.h"

enum { KC_GUARD = 64, KC_BUFFERS = 32 };

typedef struct kc {
    char title[256];
    uint64_t seed, draw;
    int64_t passed, failed;
    int bad; /* mismatches of the open case */
    int buffers;
    struct {
        unsigned char *block;
        int64_t bytes;
    } buffer[KC_BUFFERS];
} kc;

static inline void kc_begin(kc *c, const char *format, ...) CMOEI_PRINTF(2, 3);
static inline void kc_begin(kc *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c->title, sizeof c->title, format, args);
    va_end(args);
    c->seed = 1469598103934665603u; /* FNV-1a of the title */
    for (const char *p = c->title; *p; p++)
        c->seed = (c->seed ^ (unsigned char)*p) * 1099511628211u;
    c->draw = 0;
    c->bad = 0;
}

static inline uint64_t kc_u64(kc *c)
{
    return cmoe_random_u64(c->seed, c->draw++, 0);
}

/* In [low, high]. */
static inline int64_t kc_int(kc *c, int64_t low, int64_t high)
{
    return low + (int64_t)(kc_u64(c) % (uint64_t)(high - low + 1));
}

static inline float kc_normal(kc *c)
{
    return cmoe_random_normal(c->seed, c->draw++, 1);
}

/* Guard bytes on both sides, contents 0xa5 so that unwritten floats are odd; address 64-byte
 * aligned. */
static inline void *kc_out(kc *c, int64_t bytes)
{
    const size_t total = ((size_t)bytes + 2 * KC_GUARD + 63) / 64 * 64;
    unsigned char *block = aligned_alloc(64, total);
    if (!block || c->buffers == KC_BUFFERS) {
        fprintf(stderr, "%s: out of buffers\n", c->title);
        exit(2);
    }
    memset(block, 0xa5, total);
    c->buffer[c->buffers].block = block;
    c->buffer[c->buffers++].bytes = bytes;
    return block + KC_GUARD;
}

static inline float *kc_f32s(kc *c, int64_t n)
{
    float *p = kc_out(c, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = kc_normal(c);
    return p;
}

static inline int32_t *kc_i32s(kc *c, int64_t n, int32_t low, int32_t high)
{
    int32_t *p = kc_out(c, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)kc_int(c, low, high);
    return p;
}

static inline void kc_fail(kc *c, const char *format, ...) CMOEI_PRINTF(2, 3);
static inline void kc_fail(kc *c, const char *format, ...)
{
    if (c->bad++ < 3) {
        va_list args;
        va_start(args, format);
        printf("FAIL %s: ", c->title);
        vprintf(format, args);
        printf("\n");
        va_end(args);
    }
}

/* `bound` is absolute, derived where it is called. */
static inline void kc_near(kc *c, const char *what, int64_t i, double got, double want,
                           double bound)
{
    if (!(fabs(got - want) <= bound) && !(got != got && want != want) && got != want)
        kc_fail(c, "%s[%lld] = %.9g, want %.9g within %.3g", what, (long long)i, got, want, bound);
}

static inline void kc_equal(kc *c, const char *what, const void *got, const void *want,
                            int64_t bytes)
{
    const unsigned char *a = got, *b = want;
    for (int64_t i = 0; i < bytes; i++) {
        if (a[i] != b[i]) {
            kc_fail(c, "%s differs first at byte %lld of %lld: %02x, want %02x", what, (long long)i,
                    (long long)bytes, a[i], b[i]);
            return;
        }
    }
}

/* Also checks the guard bytes around every buffer. */
static inline void kc_end(kc *c)
{
    for (int i = 0; i < c->buffers; i++) {
        for (int g = 0; g < KC_GUARD; g++) {
            const unsigned char *b = c->buffer[i].block;
            if (b[g] != 0xa5 || b[KC_GUARD + c->buffer[i].bytes + g] != 0xa5) {
                kc_fail(c, "buffer %d: written outside its %lld bytes", i,
                        (long long)c->buffer[i].bytes);
                break;
            }
        }
        free(c->buffer[i].block);
    }
    c->buffers = 0;
    if (c->bad)
        c->failed++;
    else
        c->passed++;
}

static inline int kc_report(const kc *c, const char *name)
{
    printf("%s: %lld passed, %lld failed\n", name, (long long)c->passed, (long long)c->failed);
    return c->failed != 0;
}

#endif
