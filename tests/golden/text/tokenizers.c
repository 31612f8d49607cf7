/* SPDX-License-Identifier: MIT
 *
 * tokenizers.c - ids and texts equal to those of the Hugging Face tokenizers package.
 *
 *   golden_tokenizers FOLDER     FOLDER/<family>/tokenizer.json and cases.jsonl: text, ids (nothing
 *                                added), ids_special, decoded, decoded_skip; FOLDER/random.txt: a hash
 *                                of the ids of random strings per family
 *
 * The random strings are made here and in random_ids.py by the same rule, so that 100,000 of them need
 * one number of 64 bits in place of a file.  A second argument is how many to compare, at most that.
 */
#include <dirent.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmoe/text.h"

static int passed, failed;

static void check(int ok, const char *format, ...)
{
    va_list args;
    passed += ok;
    failed += !ok;
    if (ok || failed > 20) return;
    va_start(args, format);
    printf("FAILED: ");
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

static cmoe_ctx *ctx;

enum { MOST = 1 << 16 };

/* ---- cases ----------------------------------------------------------------------------------- */

static void check_ids(const cmoe_tokenizer *t, const char *family, const json_t *c, const char *key,
                      int32_t add_special)
{
    static int32_t ids[MOST];
    const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, key);
    cmoe_encode_options o;
    cmoe_encode_options_default(&o, sizeof o);
    o.add_special = add_special;
    int64_t n = -1;
    cmoe_error err = {0};
    const cmoe_status status = cmoe_tokenizer_encode(
        t, &o, json_string_value(text), (int64_t)json_string_length(text), ids, MOST, &n, &err);
    int equal = status == CMOE_OK && n == (int64_t)json_array_size(want);
    for (int64_t i = 0; equal && i < n; i++)
        equal = ids[i] == json_integer_value(json_array_get(want, (size_t)i));
    check(equal, "%s: %s of \"%s\": %lld ids, want %zu %s", family, key, json_string_value(text),
          (long long)n, json_array_size(want), err.text);
}

static int64_t read_ids(const json_t *c, int32_t *ids)
{
    const json_t *list = json_object_get(c, "ids");
    for (size_t i = 0; i < json_array_size(list); i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (int64_t)json_array_size(list);
}

static void check_text(const cmoe_tokenizer *t, const char *family, const json_t *c,
                       const char *key, int32_t skip)
{
    static int32_t ids[MOST];
    static char text[MOST];
    const json_t *want = json_object_get(c, key);
    const int64_t count = read_ids(c, ids);
    int64_t bytes = -1;
    cmoe_error err = {0};
    const cmoe_status status = cmoe_tokenizer_decode(t, ids, count, skip, text, MOST, &bytes, &err);
    check(status == CMOE_OK && bytes == (int64_t)json_string_length(want) &&
              memcmp(text, json_string_value(want), (size_t)bytes) == 0,
          "%s: %s: \"%.*s\", want \"%s\" %s", family, key, (int)bytes, text,
          json_string_value(want), err.text);
    /* The same, one id at a time. */
    cmoe_detokenizer *d = NULL;
    char *at = text;
    const char *part;
    int64_t n;
    check(cmoe_detokenizer_create(&d, t, skip, &err) == CMOE_OK, "%s: %s", family, err.text);
    for (int64_t i = 0; i <= count; i++) {
        const cmoe_status s = i < count ? cmoe_detokenizer_push(d, ids[i], &part, &n, &err)
                                        : cmoe_detokenizer_finish(d, &part, &n, &err);
        if (s != CMOE_OK) break;
        memcpy(at, part, (size_t)n);
        at += n;
    }
    cmoe_detokenizer_free(d);
    check(at - text == (int64_t)json_string_length(want) &&
              memcmp(text, json_string_value(want), (size_t)(at - text)) == 0,
          "%s: %s, streamed: \"%.*s\"", family, key, (int)(at - text), text);
}

static void run_cases(const cmoe_tokenizer *t, const char *folder, const char *family)
{
    char path[4096];
    static char line[1 << 20];
    snprintf(path, sizeof path, "%s/%s/cases.jsonl", folder, family);
    FILE *f = fopen(path, "r");
    check(f != NULL, "%s: cannot be opened", path);
    while (f && fgets(line, sizeof line, f)) {
        json_t *c = json_loads(line, JSON_ALLOW_NUL, NULL);
        check(c != NULL, "%s: not JSON: %.40s", path, line);
        check_ids(t, family, c, "ids", 0);
        check_ids(t, family, c, "ids_special", 1);
        check_text(t, family, c, "decoded", 0);
        check_text(t, family, c, "decoded_skip", 1);
        json_decref(c);
    }
    if (f) fclose(f);
}

/* ---- random strings ---------------------------------------------------------------------------- */

/* A linear congruential generator, its upper half; the same in random_ids.py. */
static uint64_t state;

static uint32_t next(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 32) % below);
}

static char *put(char *s, uint32_t c)
{
    if (c < 0x80) {
        *s++ = (char)c;
    } else if (c < 0x800) {
        *s++ = (char)(0xc0 | c >> 6);
        *s++ = (char)(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        *s++ = (char)(0xe0 | c >> 12);
        *s++ = (char)(0x80 | (c >> 6 & 0x3f));
        *s++ = (char)(0x80 | (c & 0x3f));
    } else {
        *s++ = (char)(0xf0 | c >> 18);
        *s++ = (char)(0x80 | (c >> 12 & 0x3f));
        *s++ = (char)(0x80 | (c >> 6 & 0x3f));
        *s++ = (char)(0x80 | (c & 0x3f));
    }
    return s;
}

/* Ranges that random characters come from: first, how many. */
static const uint32_t blocks[][2] = {
    {0x61, 26},      {0x41, 26},     {0x20, 1},       {0x30, 10},          {0x21, 15},
    {0x3a, 38},      {0x0, 32},      {0x7f, 34},      {0xa0, 96},          {0x100, 384},
    {0x300, 112},    {0x370, 144},   {0x400, 256},    {0x590, 112},        {0x600, 256},
    {0x900, 384},    {0xe00, 128},   {0x1100, 256},   {0x1780, 128},       {0x1d00, 256},
    {0x1e00, 256},   {0x2000, 112},  {0x2070, 304},   {0x2460, 160},       {0x3000, 64},
    {0x3040, 192},   {0x4e00, 2000}, {0xac00, 2000},  {0xf900, 512},       {0xfb00, 80},
    {0xff00, 240},   {0x10400, 80},  {0x11000, 2048}, {0x1d400, 1024},     {0x1f000, 2816},
    {0x20000, 1000}, {0xe000, 100},  {0x0, 0x11000},  {0x10000, 0x100000}, {0x9, 5}};

static const char *const words[] = {"<|endoftext|>",
                                    "<|im_start|>",
                                    "<|im_end|>",
                                    "<think>",
                                    "</think>",
                                    "<mask_l>",
                                    "<rs>",
                                    "sw",
                                    "<|im_",
                                    "  ",
                                    "\n\n",
                                    "\r\n",
                                    "'s",
                                    "'LL",
                                    "'\xc5\xbf",
                                    " the",
                                    "HTTPServer",
                                    "hello",
                                    "<s>",
                                    "</s>",
                                    "<unk>",
                                    "<0x41>",
                                    "\xe2\x96\x81",
                                    "123456",
                                    "e\xcc\x81",
                                    "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9",
                                    "\t",
                                    "    ",
                                    "3.14",
                                    "quick brown"};

enum { BLOCKS = sizeof blocks / sizeof blocks[0], WORDS = sizeof words / sizeof words[0] };

static uint32_t random_character(uint32_t block)
{
    const uint32_t c = blocks[block][0] + next(blocks[block][1]);
    return c >= 0xd800 && c < 0xe000 ? 0xfffd : c;
}

/* Up to 24 stretches of one kind: a word of the list, one character repeated, characters of one block,
 * letters. */
static int64_t random_string(uint64_t seed, char *s)
{
    char *at = s;
    state = seed * 0x9e3779b97f4a7c15u + 1;
    next(2);
    for (uint32_t n = next(24); n > 0; n--) {
        const uint32_t kind = next(8);
        if (kind < 2) {
            const char *w = words[next(WORDS)];
            memcpy(at, w, strlen(w));
            at += strlen(w);
        } else if (kind == 2) {
            const uint32_t c = random_character(next(BLOCKS));
            for (uint32_t k = next(10) == 0 ? next(200) : next(6); k > 0; k--)
                at = put(at, c);
        } else {
            const uint32_t block = kind < 5 ? next(6) : next(BLOCKS);
            for (uint32_t k = next(9); k > 0; k--)
                at = put(at, random_character(block));
        }
    }
    return at - s;
}

static uint64_t fnv(uint64_t h, int32_t value)
{
    for (int32_t i = 0; i < 4; i++)
        h = (h ^ ((uint32_t)value >> 8 * i & 0xff)) * 0x100000001b3u;
    return h;
}

/* Of the ids, of what they decode to, -1 behind each. */
static uint64_t hash_string(const cmoe_tokenizer *t, uint64_t h, uint64_t seed)
{
    static char text[MOST], back[8 * MOST];
    static int32_t ids[MOST];
    int64_t n = 0, bytes = 0;
    cmoe_error err = {0};
    const int64_t length = random_string(seed, text);
    cmoe_status status = cmoe_tokenizer_encode(t, NULL, text, length, ids, MOST, &n, &err);
    check(status == CMOE_OK, "string %llu: %s", (unsigned long long)seed, err.text);
    for (int64_t i = 0; i < n; i++)
        h = fnv(h, ids[i]);
    h = fnv(h, -1);
    if (getenv("SHOW_IDS")) {
        printf("%llu:", (unsigned long long)seed);
        for (int64_t i = 0; i < n; i++)
            printf(" %d", ids[i]);
        printf("\n");
    }
    status = cmoe_tokenizer_decode(t, ids, n, 0, back, sizeof back, &bytes, &err);
    check(status == CMOE_OK, "string %llu: %s", (unsigned long long)seed, err.text);
    for (int64_t i = 0; i < bytes; i++)
        h = fnv(h, (unsigned char)back[i]);
    return fnv(h, -1);
}

/* Lines "family strings hash"; the hash is that of the strings 0, 1, ... */
static void run_random(const cmoe_tokenizer *t, const char *folder, const char *family,
                       int64_t most)
{
    char path[4096], name[128];
    unsigned long long want;
    long long count;
    int found = 0;
    snprintf(path, sizeof path, "%s/random.txt", folder);
    FILE *f = fopen(path, "r");
    check(f != NULL, "%s: cannot be opened", path);
    while (f && fscanf(f, "%127s %lld %llx", name, &count, &want) == 3) {
        if (strcmp(name, family) != 0 || count > most) continue;
        uint64_t h = 0xcbf29ce484222325u;
        for (int64_t i = 0; i < count; i++)
            h = hash_string(t, h, (uint64_t)i);
        check(h == want, "%s: %lld random strings have hash %016llx, want %016llx", family, count,
              (unsigned long long)h, want);
        found = 1;
    }
    check(found, "%s: no line for %s", path, family);
    if (f) fclose(f);
}

int main(int argc, char **argv)
{
    static const char *const families[] = {"bailing_llada2",       "deepseek_v2", "deepseek_v3",
                                           "glm4_llama3",          "gpt2_olmoe",  "mixtral_spm",
                                           "o200k_gptoss_minimax", "qwen2",       "qwen35"};
    if (argc < 2) return 2;
    cmoe_error err = {0};
    check(cmoe_ctx_create(&ctx, NULL, &err) == CMOE_OK, "%s", err.text);
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        char path[4096];
        cmoe_tokenizer *t = NULL;
        snprintf(path, sizeof path, "%s/%s", argv[1], families[i]);
        check(cmoe_tokenizer_open(&t, ctx, path, &err) == CMOE_OK, "%s: %s", families[i], err.text);
        if (t) run_cases(t, argv[1], families[i]);
        if (t) run_random(t, argv[1], families[i], argc > 2 ? atoll(argv[2]) : INT64_MAX);
        cmoe_tokenizer_free(t);
    }
    cmoe_ctx_free(ctx);
    printf("golden_tokenizers: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
