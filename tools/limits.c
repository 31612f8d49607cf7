/* SPDX-License-Identifier: MIT
 *
 * limits.c - runs the probes: which kernels this CPU has, the buffer, the clock.
 *
 * A peak is the sum over all threads of what each did in its own time, the best of a few short
 * trials: whatever else runs on the machine can only lower a trial.  Bandwidth is one pass of all
 * threads over their parts of the buffer, from the first start to the last end.
 */
#include "limits.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "crew.h"
#include "report.h"

typedef struct peak_kernel {
    int format;
    uint32_t needs;
    const char *instruction;
    double (*run)(int64_t rounds);
} peak_kernel;

/* All that the CPU has are tried once, and the best one again later. */
static const peak_kernel peak_kernels[] = {
#if CMOE_HAVE_AVX512
    {LIMIT_F32, CMOE_CPU_AVX512, "vfmadd zmm", limits_f32_avx512},
    {LIMIT_BF16, CMOE_CPU_AVX512, "vfmadd zmm", limits_f32_avx512},
    {LIMIT_INT8, CMOE_CPU_AVX512, "vpmaddubsw zmm", limits_int8_avx512},
#endif
#if CMOE_HAVE_AVX512_VNNI
    {LIMIT_INT8, CMOE_CPU_AVX512_VNNI, "vpdpbusd zmm", limits_int8_avx512_vnni},
#endif
#if CMOE_HAVE_AVX512_BF16
    {LIMIT_BF16, CMOE_CPU_AVX512_BF16, "vdpbf16ps zmm", limits_bf16_avx512_bf16},
#endif
#if CMOE_HAVE_AVX2
    {LIMIT_F32, CMOE_CPU_AVX2, "vfmadd ymm", limits_f32_avx2},
    {LIMIT_BF16, CMOE_CPU_AVX2, "vfmadd ymm", limits_f32_avx2},
    {LIMIT_INT8, CMOE_CPU_AVX2, "vpmaddubsw ymm", limits_int8_avx2},
#endif
    {LIMIT_F32, 0, "mul + add", limits_f32_base},
    {LIMIT_BF16, 0, "mul + add", limits_f32_base},
    {LIMIT_INT8, 0, "mul + add", limits_int8_base},
};

enum { PEAK_KERNELS = sizeof peak_kernels / sizeof peak_kernels[0] };

/* ---- kernels for every machine --------------------------------------------------------------- */

typedef float vec4 __attribute__((vector_size(16)));

double limits_f32_base(int64_t rounds)
{
    vec4 x = {0.5f, 0.5f, 0.5f, 0.5f}, y = x;
    LIMITS_KEEP(x);
    LIMITS_KEEP(y);
#define START(i) vec4 sum##i = x;
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                    \
    {                              \
        vec4 product = x * y;      \
        LIMITS_KEEP(product);      \
        sum##i = sum##i + product; \
        LIMITS_KEEP(sum##i);       \
    }
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 4 * 2;
}

#if defined(__SSE2__)
double limits_int8_base(int64_t rounds)
{
    __m128i x = _mm_set1_epi16(1);
    LIMITS_KEEP(x);
#define START(i) __m128i sum##i = _mm_setzero_si128();
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                                \
    {                                          \
        __m128i pairs = _mm_madd_epi16(x, x);  \
        LIMITS_KEEP(pairs);                    \
        sum##i = _mm_add_epi32(sum##i, pairs); \
        LIMITS_KEEP(sum##i);                   \
    }
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 8 * 2;
}
#else
double limits_int8_base(int64_t rounds)
{
    return limits_f32_base(rounds);
}
#endif

uint64_t limits_read_base(const void *data, size_t bytes)
{
    const char *p = data;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < bytes; i += sizeof sum) {
        uint64_t line[8];
        memcpy(line, p + i, sizeof line);
        for (int j = 0; j < 8; j++)
            sum[j] ^= line[j];
    }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

/* ---- peaks ----------------------------------------------------------------------------------- */

enum { PEAK_TRIALS = 4, MOST_THREADS = 4096 };
static const double peak_seconds = 8e-3;

typedef struct peak_work {
    const peak_kernel *kernel;
    double rate[MOST_THREADS]; /* operations a second of each thread */
} peak_work;

static void peak_thread(void *arg, int32_t index, int32_t count)
{
    peak_work *w = arg;
    (void)count;
    double done = 0, now;
    const double start = crew_now();
    do {
        done += w->kernel->run(10000);
        now = crew_now();
    } while (now - start < peak_seconds);
    w->rate[index] = done / (now - start);
}

void limits_peak(limits *l, int format)
{
    static peak_work w; /* 32 KiB; one probe at a time */
    const uint32_t features = cmoe_cpu_features();
    const char *winner = l->instruction[format];
    for (int k = 0; k < PEAK_KERNELS; k++) {
        w.kernel = &peak_kernels[k];
        if (w.kernel->format != format || (w.kernel->needs & ~features)) continue;
        if (features && !w.kernel->needs) continue; /* never the best where there are others */
        if (winner && strcmp(winner, w.kernel->instruction) != 0) continue;
        for (int trial = 0; trial < PEAK_TRIALS; trial++) {
            double sum = 0;
            memset(w.rate, 0, sizeof w.rate);
            crew_run(l->threads, peak_thread, &w);
            for (int i = 0; i < l->threads; i++)
                sum += w.rate[i];
            if (sum <= l->gflops[format] * 1e9) continue;
            l->gflops[format] = sum / 1e9;
            l->instruction[format] = w.kernel->instruction;
        }
    }
}

/* ---- bandwidth ------------------------------------------------------------------------------- */

enum { PAGE = 2 << 20 }; /* a huge one */

static void part_of(const limits *l, int32_t index, int32_t count, char **from, size_t *bytes)
{
    const int64_t pages = l->buffer_bytes / PAGE;
    const int64_t first = pages * index / count, end = pages * (index + 1) / count;
    *from = (char *)l->buffer + first * PAGE;
    *bytes = (size_t)((end - first) * PAGE);
}

/* Each thread touches its own part first, so that it lies in the memory near it. */
static void fill_thread(void *arg, int32_t index, int32_t count)
{
    char *from;
    size_t bytes;
    part_of(arg, index, count, &from, &bytes);
    memset(from, index + 1, bytes);
}

static void read_thread(void *arg, int32_t index, int32_t count)
{
    const uint32_t features = cmoe_cpu_features();
    uint64_t sum;
    char *from;
    size_t bytes;
    part_of(arg, index, count, &from, &bytes);
#if CMOE_HAVE_AVX512
    if (features & CMOE_CPU_AVX512)
        sum = limits_read_avx512(from, bytes);
    else
#endif
#if CMOE_HAVE_AVX2
        if (features & CMOE_CPU_AVX2)
        sum = limits_read_avx2(from, bytes);
    else
#endif
        sum = limits_read_base(from, bytes);
    __asm__ volatile("" : : "r"(sum), "r"(features));
}

double limits_read(limits *l)
{
    double best = 0;
    for (int pass = 0; pass < 3; pass++) {
        const double seconds = crew_run(l->threads, read_thread, l);
        const double gbps = (double)l->buffer_bytes / seconds / 1e9;
        if (gbps > best) best = gbps;
    }
    if (best > l->read_gbps) l->read_gbps = best;
    return best;
}

int limits_open_read(limits *l, const machine *m, int32_t threads)
{
    int64_t bytes = 4 * m->llc_bytes;
    if (bytes < (int64_t)1 << 30) bytes = (int64_t)1 << 30;
    if (m->available_bytes > 0 && bytes > m->available_bytes / 4) bytes = m->available_bytes / 4;
    *l = (limits){.threads = threads, .buffer_bytes = bytes / PAGE * PAGE};
    if (l->buffer_bytes == 0) l->buffer_bytes = PAGE;
    l->buffer = mmap(NULL, (size_t)l->buffer_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (l->buffer == MAP_FAILED) {
        l->buffer = NULL;
        return report_fail(EXIT_MEMORY, "bandwidth probe", "%lld bytes: %s",
                           (long long)l->buffer_bytes, strerror(errno));
    }
    madvise(l->buffer, (size_t)l->buffer_bytes, MADV_HUGEPAGE);
    crew_run(threads, fill_thread, l);
    limits_read(l);
    return 0;
}

int limits_open(limits *l, const machine *m, int32_t threads)
{
    const int status = limits_open_read(l, m, threads);
    for (int f = 0; f < LIMIT_FORMATS && status == 0; f++)
        limits_peak(l, f);
    return status;
}

void limits_close(limits *l)
{
    if (l->buffer) munmap(l->buffer, (size_t)l->buffer_bytes);
    l->buffer = NULL;
    l->buffer_bytes = 0;
}

int limits_format(int32_t dtype)
{
    return dtype == CMOE_I8 ? LIMIT_INT8 : dtype == CMOE_BF16 ? LIMIT_BF16 : LIMIT_F32;
}

json_t *limits_json(const limits *l)
{
    return json_pack("{sf s{sf sf sf}}", "read_gbps", l->read_gbps, "gflops", "f32",
                     l->gflops[LIMIT_F32], "bf16", l->gflops[LIMIT_BF16], "int8",
                     l->gflops[LIMIT_INT8]);
}
