/* SPDX-License-Identifier: MIT
 *
 * limits.h - what this machine can do at best: bytes a second from memory, operations a second for
 * each format with the best instruction of the CPU.
 *
 * These are measured, not looked up: guests share memory buses and clocks move, so a share of the
 * limit means something only against a probe taken at the same time by as many threads.
 */
#ifndef TOOLS_LIMITS_H
#define TOOLS_LIMITS_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "machine.h"

enum { LIMIT_F32, LIMIT_BF16, LIMIT_INT8, LIMIT_FORMATS };

typedef struct limits {
    int32_t threads;
    double read_gbps;                       /* best seen so far */
    double gflops[LIMIT_FORMATS];           /* likewise; a multiply and an add are two operations */
    const char *instruction[LIMIT_FORMATS]; /* that reached it */
    void *buffer;
    int64_t buffer_bytes;
} limits;

/* Takes the buffer that bandwidth is measured on (4 times the last-level cache, at least 1 GiB, at
 * most a quarter of the free memory) and measures everything once. */
int limits_open(limits *l, const machine *m, int32_t threads);
int limits_open_read(limits *l, const machine *m, int32_t threads); /* bandwidth only */
void limits_close(limits *l); /* gives the buffer back; the figures stay */

double limits_read(limits *l);           /* GB/s now: the best of three passes */
void limits_peak(limits *l, int format); /* measures a peak, again; the best ever is kept */

int limits_format(int32_t dtype); /* LIMIT_ of CMOE_F32, CMOE_BF16 or CMOE_I8 */
json_t *limits_json(const limits *l);

/* ---- kernels --------------------------------------------------------------------------------- */

/* Each runs `rounds` rounds of independent chains of its instruction and returns how many
 * operations that was. */
double limits_f32_base(int64_t rounds);
double limits_int8_base(int64_t rounds);
double limits_f32_avx2(int64_t rounds);
double limits_int8_avx2(int64_t rounds);
double limits_f32_avx512(int64_t rounds);
double limits_int8_avx512(int64_t rounds);
double limits_int8_avx512_vnni(int64_t rounds);
double limits_bf16_avx512_bf16(int64_t rounds);

/* Each reads bytes (a multiple of 256, at a multiple of 64) once and returns something that depends
 * on all of them. */
uint64_t limits_read_base(const void *data, size_t bytes);
uint64_t limits_read_avx2(const void *data, size_t bytes);
uint64_t limits_read_avx512(const void *data, size_t bytes);

/* A latency of 4 to 6 cycles at two instructions a cycle needs 8 to 12 chains that do not wait for
 * each other; more would only cost registers, of which AVX2 has 16. */
#define LIMITS_CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
enum { LIMITS_CHAIN_COUNT = 12 };

/* Keeps a register's value in that register and hides from the compiler what it is. */
#if defined(__x86_64__)
#define LIMITS_KEEP(v)     __asm__ volatile("" : "+x"(v))
#define LIMITS_KEEP_ZMM(v) __asm__ volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define LIMITS_KEEP(v) __asm__ volatile("" : "+w"(v))
#else
#define LIMITS_KEEP(v) __asm__ volatile("" : "+m"(v))
#endif

#endif
