/* SPDX-License-Identifier: MIT
 *
 * cpu.c - which instructions this CPU has and its operating system saves.
 *
 * Both are asked: CPUID says what the silicon can do, XCR0 which registers survive a context
 * switch. Nothing is cached; a context asks once.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

static uint64_t saved_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static uint32_t probe(void)
{
    enum { YMM = 0x6, ZMM = 0xe6 };
    uint32_t a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    const bool fma = c & bit_FMA, f16c = c & bit_F16C;
    const uint64_t saved = saved_registers();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((saved & YMM) == YMM && fma && f16c && (b & bit_AVX2)) features |= CMOE_CPU_AVX2;
    const uint32_t base =
        (uint32_t)bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | (uint32_t)bit_AVX512VL | bit_AVX512CD;
    if (!(features & CMOE_CPU_AVX2) || (saved & ZMM) != ZMM || (b & base) != base) return features;
    features |= CMOE_CPU_AVX512;
    if (c & bit_AVX512VNNI) features |= CMOE_CPU_AVX512_VNNI;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5))
        features |= CMOE_CPU_AVX512_BF16 | CMOE_CPU_BF16_FIRST;
    return features;
}

/* Intel's vdpbf16ps issues every other cycle on one port: half the rate of two float32 FMAs. */
bool cmoei_cpu_bf16_is_slow(void)
{
    uint32_t a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
}
#else
static uint32_t probe(void)
{
    return 0;
}

bool cmoei_cpu_bf16_is_slow(void)
{
    return false;
}
#endif

uint32_t cmoe_cpu_features(void)
{
    return CMOE_CPU_PLAIN | probe();
}

#if defined(__x86_64__)
#include <xmmintrin.h>

uint64_t cmoei_float_enter(void)
{
    enum { PLAIN = 0x1f80 }; /* every exception masked, half to even, no flushing */
    const uint32_t before = _mm_getcsr();
    if ((before & ~0x3fu) != PLAIN) _mm_setcsr(PLAIN); /* the low bits only say what happened */
    return before;
}

void cmoei_float_leave(uint64_t before)
{
    if ((before & ~0x3fu) != 0x1f80) _mm_setcsr((uint32_t)before);
}
#elif defined(__aarch64__)
uint64_t cmoei_float_enter(void)
{
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    if (before) __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return before;
}

void cmoei_float_leave(uint64_t before)
{
    if (before) __asm__ volatile("msr fpcr, %0" : : "r"(before));
}
#else
uint64_t cmoei_float_enter(void)
{
    return 0;
}

void cmoei_float_leave(uint64_t before)
{
    (void)before;
}
#endif

static const struct {
    const char *name;
    uint32_t mask;
} levels[] = {
    {"ref", CMOE_CPU_PLAIN},
    {"avx2", CMOE_CPU_PLAIN | CMOE_CPU_AVX2},
    {"avx512", CMOE_CPU_PLAIN | CMOE_CPU_AVX2 | CMOE_CPU_AVX512},
    {"avx512_vnni", CMOE_CPU_PLAIN | CMOE_CPU_AVX2 | CMOE_CPU_AVX512 | CMOE_CPU_AVX512_VNNI},
    {"avx512_bf16", CMOE_CPU_PLAIN | CMOE_CPU_AVX2 | CMOE_CPU_AVX512 | CMOE_CPU_AVX512_VNNI |
                        CMOE_CPU_AVX512_BF16 | CMOE_CPU_BF16_FIRST},
};

int32_t cmoe_isa_levels(void)
{
    return (int32_t)CMOEI_COUNT(levels);
}

const char *cmoe_isa_level_name(int32_t level)
{
    return level >= 0 && level < CMOEI_COUNT(levels) ? levels[level].name : NULL;
}

cmoe_status cmoe_isa_mask(const char *level, uint32_t *mask, cmoe_error *err)
{
    if (!mask)
        return cmoei_fail(err, CMOE_ERR_ARG, "isa: mask is NULL, want a place for the features");
    for (int32_t i = 0; level && i < CMOEI_COUNT(levels); i++) {
        if (!strcmp(levels[i].name, level)) {
            *mask = levels[i].mask;
            return CMOE_OK;
        }
    }
    return cmoei_fail(err, CMOE_ERR_RANGE,
                      "isa \"%s\" unknown, want one of: ref avx2 avx512 avx512_vnni avx512_bf16",
                      level ? level : "(null)");
}

int32_t cmoei_cpu_count(void)
{
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int32_t)n : 1;
}
