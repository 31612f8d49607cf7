/* SPDX-License-Identifier: MIT
 *
 * Tokenizers of the nine families of tests/golden/text: streaming against decoding, speed, threads, and long
 * pieces against the definition of merging.
 */
#include "unit.h"

#include <math.h>
#include <pthread.h>
#include <time.h>

#include "cmoe/text.h"
#include "text/tokenizer.h"

static cmoe_ctx *ctx;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* others run on this machine too */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- families: streaming, speed, threads ----------------------------------------------------------- */

static const char *const families[] = {"bailing_llada2",       "deepseek_v2", "deepseek_v3",
                                       "glm4_llama3",          "gpt2_olmoe",  "mixtral_spm",
                                       "o200k_gptoss_minimax", "qwen2",       "qwen35"};
enum { FAMILIES = sizeof families / sizeof families[0] };

static cmoe_tokenizer *family(int i)
{
    char path[1024];
    cmoe_tokenizer *t = NULL;
    snprintf(path, sizeof path, "%s/%s", UNIT_TOKENIZERS, families[i]);
    UNIT_OK(cmoe_tokenizer_open(&t, ctx, path, &err));
    return t;
}

static void test_streaming(void **state)
{
    static int32_t ids[64];
    static char whole[4096], parts[4096];
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        cmoe_tokenizer *t = family(f);
        const int64_t size = cmoe_tokenizer_size(t) + 3;
        for (uint64_t round = 0; round < 2000; round++) {
            const int64_t n = (int64_t)(cmoe_random_u64(1, round, 0) % 40);
            const int32_t skip = (int32_t)(round & 1);
            int64_t bytes, at = 0, part_bytes;
            const char *part;
            /* Mostly small ids: single bytes, which make halves of characters. */
            for (int64_t i = 0; i < n; i++) {
                const uint64_t r = cmoe_random_u64(1, round, (uint64_t)i + 1);
                ids[i] = (int32_t)((r >> 32) % (r % 4 ? 300 : (uint64_t)size));
            }
            UNIT_OK(cmoe_tokenizer_decode(t, ids, n, skip, whole, sizeof whole, &bytes, &err));
            cmoe_detokenizer *d = NULL;
            UNIT_OK(cmoe_detokenizer_create(&d, t, skip, &err));
            for (int64_t i = 0; i <= n; i++) {
                if (i < n)
                    UNIT_OK(cmoe_detokenizer_push(d, ids[i], &part, &part_bytes, &err));
                else
                    UNIT_OK(cmoe_detokenizer_finish(d, &part, &part_bytes, &err));
                assert_int_equal(cmoei_utf8_check(part, part_bytes), -1);
                memcpy(parts + at, part, (size_t)part_bytes);
                at += part_bytes;
            }
            assert_int_equal(at, bytes);
            assert_memory_equal(parts, whole, (size_t)bytes);
            UNIT_FAILS(cmoe_detokenizer_push(d, 0, &part, &part_bytes, &err), CMOE_ERR_ARG,
                       "finished");
            cmoe_detokenizer_free(d);
        }
        cmoe_tokenizer_free(t);
    }
}

/* Held back only as long as it must be. */
static void test_streaming_early(void **state)
{
    const char *part;
    int64_t n;
    (void)state;
    cmoe_tokenizer *t = family(7);
    cmoe_detokenizer *d = NULL;
    UNIT_OK(cmoe_detokenizer_create(&d, t, 0, &err));
    UNIT_OK(cmoe_detokenizer_push(d, (int32_t)cmoe_tokenizer_id(t, "\xc3\x83"), &part, &n, &err));
    assert_int_equal(n, 0); /* c3 */
    UNIT_OK(cmoe_detokenizer_push(d, (int32_t)cmoe_tokenizer_id(t, "\xc2\xa9"), &part, &n, &err));
    assert_int_equal(n, 2); /* a9 */
    assert_memory_equal(part, "\xc3\xa9", 2);
    UNIT_OK(cmoe_detokenizer_push(d, (int32_t)cmoe_tokenizer_id(t, "a"), &part, &n, &err));
    assert_int_equal(n, 1);
    cmoe_detokenizer_free(d);
    cmoe_tokenizer_free(t);
}

/* Stop of Strip, which holds blanks back, against what it says. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { TIMED = 0, MEGABYTES = 1 };
#else
enum { TIMED = 1, MEGABYTES = 10 };
#endif

/* Bytes of `unit` repeated; seconds. */
static double encode_time(const cmoe_tokenizer *t, const char *unit, int64_t bytes)
{
    const int64_t n = (int64_t)strlen(unit);
    bytes -= bytes % n;
    char *text = malloc((size_t)bytes);
    int64_t count = 0;
    for (int64_t i = 0; i < bytes; i += n)
        memcpy(text + i, unit, (size_t)n);
    const double begin = now();
    UNIT_OK(cmoe_tokenizer_encode(t, NULL, text, bytes, NULL, 0, &count, &err));
    const double seconds = now() - begin;
    assert_true(count > 0);
    free(text);
    return seconds;
}

static void test_one_character(void **state)
{
    static const char *const units[] = {
        "a", " ", "\n", "1", "!", "\xe4\xbd\xa0", "\xf0\x9f\x98\x80", "\xcc\x81"};
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        cmoe_tokenizer *t = family(f);
        double worst = 0;
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            /* A neighbour on the same core doubles even this thread's own time: the best of three. */
            double s = encode_time(t, units[u], MEGABYTES * 1000000);
            for (int more = 0; more < 2 && TIMED && s > 1; more++)
                s = fmin(s, encode_time(t, units[u], MEGABYTES * 1000000));
            if (s > worst) worst = s;
            if (TIMED && s > 1)
                fail_msg("%s: %.2f s for %d MB of \"%s\"", families[f], s, MEGABYTES, units[u]);
        }
        printf("%-22s %d MB of one character: %.2f s at most\n", families[f], MEGABYTES, worst);
        cmoe_tokenizer_free(t);
    }
}

/* All the texts of a family's cases, again and again. */
static char *ordinary(int64_t bytes)
{
    static const char *const lines[] = {
        "The quick brown fox jumps over the lazy dog. It's what they've said: we'll see, I'm "
        "sure.\n",
        "int main(void) { for (int i = 0; i < 128; ++i) { printf(\"%d\\n\", x[i] * 3.14159e-10f); "
        "} }\n",
        "Mixture of experts: every token is routed to the top 8 of 256 experts; bias += 0.001;\n",
        "Gr\xc3\xbc\xc3\x9f"
        "e aus M\xc3\xbcnchen, na\xc3\xafve caf\xc3\xa9\n",
        "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82, \xd0\xbc\xd0\xb8\xd1\x80!\n",
        "\xe4\xbd\xa0\xe5\xa5\xbd\xe4\xb8\x96\xe7\x95\x8c\xef\xbc\x8c\xe6\xb7\xb7\xe5\x90\x88\xe4"
        "\xb8\x93\xe5\xae\xb6\xe6\xa8\xa1\xe5\x9e\x8b\xe3\x80\x82\n",
        "    if (x >= 10 && y <= 42) return \"a_b-c+d\"; // 2024-11-21 12:34:56\n"};
    char *text = malloc((size_t)bytes + 256);
    int64_t at = 0;
    for (uint64_t i = 0; at < bytes; i++) {
        const char *line = lines[cmoe_random_u64(2, i, 0) % 7];
        /* Words vary, so that the cache does not hold them all. */
        at += sprintf(text + at, "%.*s%06x ", (int)(cmoe_random_u64(2, i, 1) % 8), "word ab ",
                      (unsigned)(cmoe_random_u64(2, i, 2) & 0xffffff));
        at += sprintf(text + at, "%s", line);
    }
    return text;
}

static void test_throughput(void **state)
{
    const int64_t bytes = MEGABYTES * 1000000;
    char *text = ordinary(bytes);
    (void)state;
    while (((unsigned char)text[bytes] & 0xc0) == 0x80)
        text[bytes] = ' '; /* the cut falls between characters */
    for (int f = 0; f < FAMILIES; f++) {
        cmoe_tokenizer *t = family(f);
        int64_t count, used = bytes;
        while (used > 0 && (unsigned char)text[used - 1] >= 0x80)
            used--;
        double rate = 0;
        for (int attempt = 0; attempt < 3 && rate <= 10; attempt++) {
            const double begin = now();
            UNIT_OK(cmoe_tokenizer_encode(t, NULL, text, used, NULL, 0, &count, &err));
            rate = fmax(rate, (double)used / 1e6 / (now() - begin));
        }
        printf("%-22s %.0f MB/s, %.2f bytes a token\n", families[f], rate,
               (double)used / (double)count);
        if (TIMED) assert_true(rate > 10);
        cmoe_tokenizer_free(t);
    }
    free(text);
}

typedef struct shared {
    const cmoe_tokenizer *t;
    const char *text;
    int64_t bytes, count;
    uint64_t sum;
} shared;

static void *encode_shared(void *arg)
{
    shared *s = arg;
    int32_t *ids = malloc((size_t)s->bytes * 4);
    if (cmoe_tokenizer_encode(s->t, NULL, s->text, s->bytes, ids, s->bytes, &s->count, NULL) !=
        CMOE_OK)
        s->count = -1;
    for (int64_t i = 0; i < s->count; i++)
        s->sum = s->sum * 31 + (uint64_t)ids[i];
    free(ids);
    return NULL;
}

static void test_threads(void **state)
{
    const int64_t bytes = 100000;
    char *text = ordinary(bytes);
    (void)state;
    int64_t used = bytes;
    while (used > 0 && (unsigned char)text[used - 1] >= 0x80)
        used--;
    for (int f = 0; f < FAMILIES; f++) {
        cmoe_tokenizer *t = family(f);
        shared s[4];
        pthread_t thread[4];
        for (int i = 0; i < 4; i++) {
            s[i] = (shared){t, text, used, 0, 0};
            assert_int_equal(pthread_create(&thread[i], NULL, encode_shared, &s[i]), 0);
        }
        for (int i = 0; i < 4; i++)
            pthread_join(thread[i], NULL);
        for (int i = 0; i < 4; i++) {
            assert_true(s[i].count > 0);
            assert_int_equal(s[i].count, s[0].count);
            assert_true(s[i].sum == s[0].sum);
        }
        cmoe_tokenizer_free(t);
    }
    free(text);
}

/* ---- long pieces ----------------------------------------------------------------------------------- */

/* The definition: of all pairs the one with the lowest rank, the leftmost of them, again and again. */
static int64_t merge_plainly(const cmoei_bpe *b, int32_t *id, int64_t n)
{
    for (;;) {
        const cmoei_merge *best = NULL;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < n; i++) {
            const cmoei_merge *m = cmoei_bpe_find(b, id[i], id[i + 1]);
            if (m && (!best || m->rank < best->rank)) best = m, at = i;
        }
        if (!best) return n;
        id[at] = best->id;
        memmove(id + at + 1, id + at + 2, (size_t)(n - at - 2) * 4);
        n--;
    }
}

static void test_long_pieces(void **state)
{
    (void)state;
    cmoe_tokenizer *t = family(7);
    for (uint64_t round = 0; round < 300; round++) {
        static int32_t want[4000], got[4000];
        /* A few are long enough, and of few kinds, to be merged pair by pair. */
        int64_t n = 2 + (int64_t)(cmoe_random_u64(3, round, 0) % (round % 8 ? 590 : 3990)),
                left = n;
        const uint64_t kinds = 1 + cmoe_random_u64(3, round, 1) % (round % 8 ? 12 : 3);
        for (int64_t i = 0; i < n; i++)
            want[i] = got[i] = t->bpe.byte_id[(
                unsigned char)"etaoin shrdl"[cmoe_random_u64(3, round, (uint64_t)i + 2) % kinds]];
        cmoei_bpe_work w;
        UNIT_OK(cmoei_bpe_open(&w, ctx, 0, &err));
        UNIT_OK(cmoei_bpe_merge_long(&t->bpe, &w, got, &left, &err));
        cmoei_bpe_close(&w);
        n = merge_plainly(&t->bpe, want, n);
        assert_int_equal(left, n);
        assert_memory_equal(got, want, (size_t)n * 4);
    }
    cmoe_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streaming),     cmocka_unit_test(test_streaming_early),
        cmocka_unit_test(test_one_character), cmocka_unit_test(test_throughput),
        cmocka_unit_test(test_threads),       cmocka_unit_test(test_long_pieces)};
    cmoe_error err = {0};
    if (cmoe_ctx_create(&ctx, NULL, &err) != CMOE_OK) return 2;
    const int failed = UNIT_RUN("unit_tokenizer_families", tests);
    cmoe_ctx_free(ctx);
    return failed;
}
