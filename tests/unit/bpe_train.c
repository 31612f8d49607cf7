/* SPDX-License-Identifier: MIT
 *
 * Byte-pair encoding learned from text: merges against a learner that counts anew before each merge, ties,
 * files, refusals and their texts.
 */
#include "unit.h"

#include "cmoe/text.h"
#include "cmoe/train.h"
#include "files.h"
#include "memory.h"

static unit_env env;
static files_folder folder;

static cmoe_status train(const char *name, const cmoe_bpe_options *o, const char *out,
                         cmoe_error *err)
{
    const char *const paths[] = {files_in(&folder, name)};
    return cmoe_bpe_train(env.ctx, paths, 1, o, files_in(&folder, out), err);
}

static cmoe_bpe_options options(int64_t vocab)
{
    cmoe_bpe_options o;
    cmoe_bpe_options_default(&o, sizeof o);
    o.vocab = vocab;
    return o;
}

static void remove_tokenizer(const char *out)
{
    files_folder f;
    snprintf(f.path, sizeof f.path, "%s", files_in(&folder, out));
    assert_int_equal(files_count(&f), 2); /* no part stays */
    files_close(&f);
}

static cmoe_tokenizer *made(const char *name, const cmoe_bpe_options *o)
{
    cmoe_tokenizer *t = NULL;
    UNIT_OK(train(name, o, "out", &err));
    UNIT_OK(cmoe_tokenizer_open(&t, env.ctx, files_in(&folder, "out"), &err));
    assert_int_equal(cmoe_tokenizer_size(t), o->vocab);
    return t;
}

/* ---- merges -------------------------------------------------------------------------------------- */

static void test_defaults(void **state)
{
    (void)state;
    cmoe_bpe_options o;
    cmoe_bpe_options_default(&o, sizeof o);
    assert_int_equal(o.size, sizeof o);
    assert_int_equal(o.vocab, 4096);
    assert_int_equal(o.least, 2);
    assert_true(o.from == 0 && o.to == 1);
    assert_null(o.special);
}

/* "ab", " cd", " ab", " cd": (a,b), (blank,c) and (c,d) occur twice.  The smallest left id is a's; the blank is
 * written as a character behind all letters. */
static void test_ties(void **state)
{
    (void)state;
    files_text(&folder, "text", "ab cd ab cd");
    cmoe_bpe_options o = options(260);
    cmoe_tokenizer *t = made("text", &o);
    assert_string_equal(cmoe_tokenizer_token(t, 0), "!");
    assert_string_equal(cmoe_tokenizer_token(t, 255), "\xc5\x83"); /* byte 0xad */
    assert_string_equal(cmoe_tokenizer_token(t, 256), "ab");
    assert_string_equal(cmoe_tokenizer_token(t, 257), "cd");
    assert_string_equal(cmoe_tokenizer_token(t, 258), "\xc4\xa0"
                                                      "cd");
    assert_string_equal(cmoe_tokenizer_token(t, 259), "<|endoftext|>");
    assert_int_equal(cmoe_tokenizer_eos(t), 259);
    assert_true(cmoe_tokenizer_is_special(t, 259));
    cmoe_tokenizer_free(t);
    remove_tokenizer("out");

    o.vocab = 261;
    UNIT_FAILS(
        train("text", &o, "out", &err), CMOE_ERR_RANGE,
        "vocab = 261, but the text gives 260 (256 bytes, 3 merges of pairs that occur 2 times "
        "or more, 1 special tokens)");
    assert_int_equal(files_count(&folder), 1); /* no folder */
    o.least = 1;
    t = made("text", &o);
    assert_string_equal(cmoe_tokenizer_token(t, 259), "\xc4\xa0"
                                                      "ab");
    cmoe_tokenizer_free(t);
    remove_tokenizer("out");
    remove(files_in(&folder, "text"));
}

/* Words of one alphabet, each on a line; what the learner must find, counted anew each time. */
enum { WORDS = 120, LENGTH = 24, TOKENS = 64, BYTES = 256 };

typedef struct naive {
    int word[WORDS][LENGTH], length[WORDS];
    char text[BYTES + TOKENS][LENGTH + 1];
    int tokens;
} naive;

static int naive_step(naive *n)
{
    static int count[BYTES + TOKENS][BYTES + TOKENS];
    int left = -1, right = -1;
    memset(count, 0, sizeof count);
    for (int w = 0; w < WORDS; w++)
        for (int i = 0; i + 1 < n->length[w]; i++)
            count[n->word[w][i]][n->word[w][i + 1]]++;
    for (int a = 0; a < n->tokens; a++)
        for (int b = 0; b < n->tokens; b++)
            if (count[a][b] >= 2 && (left < 0 || count[a][b] > count[left][right]))
                left = a, right = b;
    if (left < 0) return 0;
    const size_t l = strlen(n->text[left]), r = strlen(n->text[right]);
    char joined[2 * LENGTH + 2] = "";
    memcpy(joined, n->text[left], l);
    memcpy(joined + l, n->text[right], r);
    memcpy(n->text[n->tokens], joined, LENGTH + 1);
    for (int w = 0; w < WORDS; w++) {
        int kept = 0, *s = n->word[w];
        for (int i = 0; i < n->length[w]; i++) {
            const int hit = i + 1 < n->length[w] && s[i] == left && s[i + 1] == right;
            s[kept++] = hit ? n->tokens : s[i];
            i += hit;
        }
        n->length[w] = kept;
    }
    n->tokens++;
    return 1;
}

static void compare_with_naive(uint64_t seed, int letters)
{
    static naive n;
    char text[WORDS * (LENGTH + 1) + 1] = "";
    uint64_t at = 0;
    int end = 0;
    for (int w = 0; w < WORDS; w++) {
        n.length[w] = 1 + (int)(cmoe_random_u64(seed, at++, 0) % 12);
        for (int i = 0; i < n.length[w]; i++) {
            const char c = (char)('a' + cmoe_random_u64(seed, at++, 0) % (uint64_t)letters);
            n.word[w][i] = c - '!';
            snprintf(n.text[c - '!'], sizeof n.text[0], "%c", c);
            text[end++] = c;
        }
        text[end++] = '\n';
    }
    n.tokens = BYTES;
    while (n.tokens < BYTES + TOKENS && naive_step(&n))
        ;
    files_text(&folder, "text", text);
    cmoe_bpe_options o = options(n.tokens + 1);
    cmoe_tokenizer *t = made("text", &o);
    for (int id = BYTES; id < n.tokens; id++)
        assert_string_equal(cmoe_tokenizer_token(t, id), n.text[id]);
    cmoe_tokenizer_free(t);
    remove_tokenizer("out");
    remove(files_in(&folder, "text"));
}

static void test_against_naive(void **state)
{
    (void)state;
    for (int letters = 1; letters <= 4; letters++)
        for (uint64_t seed = 1; seed <= 3; seed++)
            compare_with_naive(seed, letters);
}

/* ---- text ---------------------------------------------------------------------------------------- */

static void comes_back(const cmoe_tokenizer *t, const char *text, int64_t bytes)
{
    int32_t *ids = malloc((size_t)bytes * 4 + 4);
    char *back = malloc((size_t)bytes + 1);
    int64_t count = 0, n = -1;
    UNIT_OK(cmoe_tokenizer_encode(t, NULL, text, bytes, ids, bytes, &count, &err));
    UNIT_OK(cmoe_tokenizer_decode(t, ids, count, 0, back, bytes, &n, &err));
    assert_int_equal(n, bytes);
    assert_memory_equal(back, text, (size_t)bytes);
    free(ids);
    free(back);
}

/* Every character of one and two bytes, and samples of the others. */
static void test_round_trip(void **state)
{
    (void)state;
    char all[1 << 14];
    int64_t n = 0;
    for (uint32_t c = 0; c < 0x110000; c += c < 0x800 ? 1 : 1021) {
        if (c >= 0xd800 && c < 0xe000) continue;
        if (c < 0x80) {
            all[n++] = (char)c;
        } else if (c < 0x800) {
            all[n++] = (char)(0xc0 | c >> 6);
            all[n++] = (char)(0x80 | (c & 63));
        } else if (c < 0x10000) {
            all[n++] = (char)(0xe0 | c >> 12);
            all[n++] = (char)(0x80 | (c >> 6 & 63));
            all[n++] = (char)(0x80 | (c & 63));
        } else {
            all[n++] = (char)(0xf0 | c >> 18);
            all[n++] = (char)(0x80 | (c >> 12 & 63));
            all[n++] = (char)(0x80 | (c >> 6 & 63));
            all[n++] = (char)(0x80 | (c & 63));
        }
    }
    files_put(&folder, "text", all, n);
    cmoe_bpe_options o = options(300);
    cmoe_tokenizer *t = made("text", &o);
    comes_back(t, all, n);
    comes_back(t, "The <|endoftext|> of  it's\n\n all\r\n", 34);
    cmoe_tokenizer_free(t);
    remove_tokenizer("out");
    remove(files_in(&folder, "text"));
}

static void test_same_files(void **state)
{
    (void)state;
    int64_t n[2];
    char text[4000] = "", *json[2];
    for (int i = 0; i < 100; i++)
        snprintf(text + strlen(text), 32, "word%d other's  %d.\n", i % 7, i);
    files_text(&folder, "text", text);
    const cmoe_bpe_options o = options(270);
    for (int i = 0; i < 2; i++) {
        UNIT_OK(train("text", &o, "out", &err)); /* the second over the first */
        json[i] = files_get(&folder, "out/tokenizer.json", &n[i]);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(json[0], json[1], (size_t)n[0]);
    free(json[0]);
    free(json[1]);
    remove_tokenizer("out");
    remove(files_in(&folder, "text"));
}

/* A part of one file, and the strings of lines, give what their text gives. */
static void test_parts_and_lines(void **state)
{
    (void)state;
    static const char *const name[] = {"text", "half", "a.jsonl"};
    int64_t n[3];
    char *json[3];
    files_text(&folder, "text", "hello world, hello there, hello world");
    files_text(&folder, "half",
               "hello world, hello there, hello world.....................!!!!!!!!!!!!!!!!");
    files_text(&folder, "a.jsonl",
               "{\"text\":\"hello world,\"}\n\n{\"prompt\":\" hello\",\"completion\":\" there,\"}\n"
               "{\"messages\":[{\"role\":\"user\",\"content\":\" hello world\"},{}]}");
    for (int i = 0; i < 3; i++) {
        cmoe_bpe_options o = options(262);
        o.to = i == 1 ? 0.5 : 1;
        UNIT_OK(train(name[i], &o, "out", &err));
        json[i] = files_get(&folder, "out/tokenizer.json", &n[i]);
        assert_int_equal(n[i], n[0]);
        assert_memory_equal(json[i], json[0], (size_t)n[0]);
        remove_tokenizer("out");
        remove(files_in(&folder, name[i]));
    }
    for (int i = 0; i < 3; i++)
        free(json[i]);
}

/* ---- refusals ------------------------------------------------------------------------------------ */

static void test_special(void **state)
{
    (void)state;
    files_text(&folder, "text", "ab ab ab ab");
    static const char *const two[] = {"<eos>", "<pad>", NULL}, *const none[] = {NULL};
    static const char *const twice[] = {"<a>", "<b>", "<a>", NULL}, *const empty[] = {"", NULL};
    static const char *const broken[] = {"\xff", NULL}, *const taken[] = {"ab", NULL};
    cmoe_bpe_options o = options(259);
    o.special = two;
    cmoe_tokenizer *t = made("text", &o);
    assert_int_equal(cmoe_tokenizer_id(t, "<eos>"), 257);
    assert_int_equal(cmoe_tokenizer_id(t, "<pad>"), 258);
    assert_int_equal(cmoe_tokenizer_eos(t), 257);
    cmoe_tokenizer_free(t);
    remove_tokenizer("out");
    o.special = none;
    o.vocab = 256;
    t = made("text", &o);
    assert_int_equal(cmoe_tokenizer_eos(t), -1);
    cmoe_tokenizer_free(t);
    remove_tokenizer("out");
    o.special = twice;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_ARG, "special[2] = \"<a>\" is there twice");
    o.special = empty;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_ARG, "special[0] is empty, want a text");
    o.special = broken;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_ARG, "special[0] is no UTF-8");
    o.special = taken;
    o.vocab = 258;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_RANGE,
               "special[0] = \"ab\" is a token of the text as well");
    assert_int_equal(files_count(&folder), 1);
    remove(files_in(&folder, "text"));
}

static void test_options(void **state)
{
    (void)state;
    files_text(&folder, "text", "ab ab ab ab");
    const char *const paths[] = {files_in(&folder, "text"), NULL};
    cmoe_bpe_options o = options(256);
    UNIT_FAILS(cmoe_bpe_train(NULL, paths, 1, &o, "x", &err), CMOE_ERR_ARG, "ctx is NULL");
    UNIT_FAILS(cmoe_bpe_train(env.ctx, NULL, 1, &o, "x", &err), CMOE_ERR_ARG, "paths is NULL");
    UNIT_FAILS(cmoe_bpe_train(env.ctx, paths, 1, &o, NULL, &err), CMOE_ERR_ARG, "out_dir is NULL");
    UNIT_FAILS(cmoe_bpe_train(env.ctx, paths, 0, &o, "x", &err), CMOE_ERR_RANGE,
               "0 files, want 1 or more");
    UNIT_FAILS(cmoe_bpe_train(env.ctx, paths, 2, &o, "x", &err), CMOE_ERR_ARG, "paths[1] is NULL");
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_RANGE,
               "vocab = 256, want 257 (256 bytes, 1 special tokens) to 1048576");
    o.vocab = 1 << 21;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_RANGE, "vocab = 2097152, want 257");
    o = options(257);
    o.least = 0;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_RANGE, "least = 0, want 1 or more");
    o = options(257);
    o.from = 0.5;
    o.to = 0.25;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_RANGE,
               "from = 0.5, to = 0.25, want 0 <= from < to <= 1");
    o = options(257);
    o.size = 3;
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_ARG, "bpe options.size = 3");
    remove(files_in(&folder, "text"));
}

static void test_files(void **state)
{
    (void)state;
    const cmoe_bpe_options o = options(257);
    files_put(&folder, "text",
              "ab\xff"
              "cd",
              5);
    files_text(&folder, "a.jsonl", "{\"text\":\"a\"}\n\n{\"txt\":1}\n");
    files_text(&folder, "good", "ab");
    UNIT_FAILS(train("text", &o, "out", &err), CMOE_ERR_FORMAT, "text: byte 2 (0xff) is no UTF-8");
    UNIT_FAILS(train("a.jsonl", &o, "out", &err), CMOE_ERR_FORMAT,
               "a.jsonl: line 3: none of the keys, want an object with \"text\"");
    UNIT_FAILS(train("none", &o, "out", &err), CMOE_ERR_IO, "none: cannot be opened");
    UNIT_FAILS(train(".", &o, "out", &err), CMOE_ERR_IO, "is a folder, want a regular file");
    UNIT_FAILS(train("good", &o, "good", &err), CMOE_ERR_IO,
               "good/tokenizer_config.json: cannot be written");
    UNIT_FAILS(train("good", &o, "no/such", &err), CMOE_ERR_IO, "no/such: cannot be made");
    assert_int_equal(files_count(&folder), 3);
    remove(files_in(&folder, "text"));
    remove(files_in(&folder, "a.jsonl"));
    remove(files_in(&folder, "good"));
}

static void test_memory(void **state)
{
    (void)state;
    memory_state m = {0};
    cmoe_ctx *ctx = memory_open(&m);
    cmoe_bpe_options o = options(260);
    const int64_t before = m.blocks;
    int failed = 0;
    files_text(&folder, "text", "ab cd ab cd");
    char out[512], text[512]; /* files_in has room for a few only */
    snprintf(out, sizeof out, "%s", files_in(&folder, "out"));
    snprintf(text, sizeof text, "%s", files_in(&folder, "text"));
    const char *const paths[] = {text};
    for (int64_t n = 1;; n++) {
        cmoe_error err = {0};
        m.fail_at = n;
        const cmoe_status status = cmoe_bpe_train(ctx, paths, 1, &o, out, &err);
        const int64_t left = m.fail_at;
        m.fail_at = 0;
        /* A pattern works without the memory for its machine code. */
        if (status != CMOE_OK && (left > 0 || status != CMOE_ERR_MEMORY))
            fail_msg("allocation %d: %s (\"%s\")", (int)n, cmoe_status_name(status), err.text);
        assert_int_equal(m.blocks, before);
        failed += status != CMOE_OK;
        if (left > 0) break;
        if (status == CMOE_OK) remove_tokenizer("out");
        assert_int_equal(files_count(&folder), 1);
    }
    assert_in_range(failed, 20, 10000);
    remove_tokenizer("out");
    remove(files_in(&folder, "text"));
    cmoe_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),      cmocka_unit_test(test_ties),
        cmocka_unit_test(test_against_naive), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_same_files),    cmocka_unit_test(test_parts_and_lines),
        cmocka_unit_test(test_special),       cmocka_unit_test(test_options),
        cmocka_unit_test(test_files),         cmocka_unit_test(test_memory)};
    env = unit_open(1);
    folder = files_open("unit_bpe_train");
    const int failed = UNIT_RUN("bpe_train", tests);
    files_close(&folder);
    unit_close(&env);
    return failed;
}
