/* SPDX-License-Identifier: MIT
 *
 * Tokenizers: refusals and their texts, bad input, buffers, patterns, normal forms, added tokens.  Real ones
 * are tokenizer_families.c's affair, ids equal to Hugging Face's tests/golden/text's.
 */
#include "unit.h"

#include <time.h>
#include <unistd.h>

#include <utf8proc.h>

#include "cmoe/text.h"
#include "text/tokenizer.h"

static cmoe_ctx *ctx;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* others run on this machine too */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- small files made here --------------------------------------------------------------------- */

#define MODEL(more)                                                                 \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"<u>\":3,\" " \
    "\":4,\"aa\":5},\"merges\":[\"a b\",[\"a\",\"a\"]]" more "}"
#define FILE_WITH(more) "{" more "," MODEL("") "}"

/* Opens from text instead of a file; the config may be NULL. */
static cmoe_status parse2(cmoe_tokenizer **out, const char *json, const char *config,
                          cmoe_error *err)
{
    char name[] = "unit_tokenizer_XXXXXX", path[64];
    assert_non_null(mkdtemp(name));
    snprintf(path, sizeof path, "%s/tokenizer.json", name);
    FILE *f = fopen(path, "w");
    fputs(json, f);
    fclose(f);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", name);
    if (config) {
        f = fopen(path, "w");
        fputs(config, f);
        fclose(f);
    }
    const cmoe_status status = cmoe_tokenizer_open(out, ctx, name, err);
    remove(path);
    snprintf(path, sizeof path, "%s/tokenizer.json", name);
    remove(path);
    rmdir(name);
    return status;
}

static cmoe_status parse(cmoe_tokenizer **out, const char *json, cmoe_error *err)
{
    return parse2(out, json, NULL, err);
}

static cmoe_tokenizer *make(const char *json)
{
    cmoe_tokenizer *t = NULL;
    UNIT_OK(parse(&t, json, &err));
    return t;
}

static void refused(const char *json, cmoe_status status, const char *text)
{
    cmoe_tokenizer *t = (cmoe_tokenizer *)1;
    UNIT_FAILS(parse(&t, json, &err), status, text);
    assert_ptr_equal(t, (void *)1); /* untouched */
}

static void encodes_with(const cmoe_tokenizer *t, const cmoe_encode_options *o, const char *text,
                         int64_t bytes, const char *want)
{
    int32_t ids[256];
    int64_t n = -1;
    char got[2048] = "";
    UNIT_OK(cmoe_tokenizer_encode(t, o, text, bytes, ids, 256, &n, &err));
    for (int64_t i = 0; i < n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", ids[i]);
    assert_string_equal(got, want);
}

static void encodes(const cmoe_tokenizer *t, const char *text, const char *want)
{
    encodes_with(t, NULL, text, (int64_t)strlen(text), want);
}

/* ---- refusals ---------------------------------------------------------------------------------- */

static void test_json(void **state)
{
    (void)state;
    refused("", CMOE_ERR_FORMAT, "tokenizer.json: line 1");
    refused("[1,2", CMOE_ERR_FORMAT, "tokenizer.json: line 1");
    refused("[]", CMOE_ERR_FORMAT, "is a list, want an object");
    refused("{}", CMOE_ERR_FORMAT, "model: is not there, want an object");
    refused("{\"a\":1,\"a\":2}", CMOE_ERR_FORMAT, "duplicate object key");
    refused("{\"frobnicate\":1," MODEL("") "}", CMOE_ERR_UNSUPPORTED,
            "key \"frobnicate\" not supported, want one of: version truncation");
    refused("{\"mod\":1," MODEL("") "}", CMOE_ERR_UNSUPPORTED, "key \"mod\" not supported");
    refused("{\"model\":{\"type\":\"WordPiece\"}}", CMOE_ERR_UNSUPPORTED,
            "model: type \"WordPiece\" not supported, want one of: BPE");
    refused("{\"model\":{\"type\":\"Unigram\"}}", CMOE_ERR_UNSUPPORTED, "type \"Unigram\"");
    refused("{\"model\":{\"type\":7}}", CMOE_ERR_FORMAT, "type is a whole number, want a text");
    refused("{\"model\":{\"type\":\"BPE\"}}", CMOE_ERR_FORMAT, "model.vocab: is not there");
}

#define VOCAB(v, m) "{\"model\":{\"type\":\"BPE\",\"vocab\":{" v "},\"merges\":[" m "]}}"

static void test_model(void **state)
{
    (void)state;
    refused(VOCAB("\"a\":-1", ""), CMOE_ERR_RANGE, "\"a\" has id -1, want 0 <= id < ");
    refused(VOCAB("\"a\":2147483646", ""), CMOE_ERR_RANGE,
            "has id 2147483646, want 0 <= id < 1048592");
    refused(VOCAB("\"a\":\"x\"", ""), CMOE_ERR_RANGE, "has id no number");
    refused(VOCAB("\"a\":1,\"b\":1", ""), CMOE_ERR_FORMAT, "id 1 belongs to both \"a\" and \"b\"");
    refused(VOCAB("\"a\":0,\"b\":1", "\"a b\""), CMOE_ERR_FORMAT,
            "model.merges[0]: \"a\" + \"b\": \"ab\" is not in vocab");
    refused(VOCAB("\"a\":0", "\"a c\""), CMOE_ERR_FORMAT, "\"a\" + \"c\": \"c\" is not in vocab");
    refused(VOCAB("\"a\":0", "\"a b c\""), CMOE_ERR_FORMAT, "want \"left right\" or");
    refused(VOCAB("\"a\":0", "[\"a\"]"), CMOE_ERR_FORMAT, "want \"left right\" or");
    refused("{" MODEL(",\"dropout\":0.1") "}", CMOE_ERR_UNSUPPORTED, "dropout not supported");
    refused("{" MODEL(",\"end_of_word_suffix\":\"</w>\"") "}", CMOE_ERR_UNSUPPORTED,
            "end_of_word_suffix not supported");
    refused("{" MODEL(",\"continuing_subword_prefix\":\"##\"") "}", CMOE_ERR_UNSUPPORTED,
            "continuing_subword_prefix not supported");
    refused("{" MODEL(",\"unk_token\":\"?\"") "}", CMOE_ERR_FORMAT,
            "unk_token \"?\" is not in vocab");
    refused("{" MODEL(",\"fuse_unk\":1") "}", CMOE_ERR_FORMAT,
            "fuse_unk is a whole number, want true");
    refused(FILE_WITH("\"added_tokens\":[{\"id\":9,\"content\":\"a\"}]"), CMOE_ERR_FORMAT,
            "added_tokens[0]: \"a\" has id 9, want its id 0");
    refused(
        FILE_WITH("\"added_tokens\":[{\"id\":0,\"content\":\"a\"},{\"id\":0,\"content\":\"a\"}]"),
        CMOE_ERR_FORMAT, "added_tokens[1]: \"a\" is there twice");
    refused(FILE_WITH("\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]"), CMOE_ERR_FORMAT,
            "id 1 belongs to both \"b\" and \"x\"");
    refused(FILE_WITH("\"added_tokens\":3"), CMOE_ERR_FORMAT, "added_tokens: want a list");
}

static void test_steps(void **state)
{
    (void)state;
    refused(FILE_WITH("\"normalizer\":{\"type\":\"Lowercase\"}"), CMOE_ERR_UNSUPPORTED,
            "normalizer: type \"Lowercase\" not supported, want one of: NFC NFD");
    refused(FILE_WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
                      "{\"type\":\"Precompiled\"}]}"),
            CMOE_ERR_UNSUPPORTED, "normalizer.normalizers[1]: type \"Precompiled\"");
    refused(
        FILE_WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":"
                  "\"b\"}"),
        CMOE_ERR_UNSUPPORTED, "pattern Regex not supported, want String");
    refused(
        FILE_WITH("\"pre_tokenizer\":{\"type\":\"Whitespace\"}"), CMOE_ERR_UNSUPPORTED,
        "pre_tokenizer: type \"Whitespace\" not supported, want one of: Split Digits Metaspace");
    refused(FILE_WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},"
                      "\"behavior\":\"MergedWithNext\"}"),
            CMOE_ERR_UNSUPPORTED,
            "behavior \"MergedWithNext\" not supported, want one of: Isolated");
    refused(FILE_WITH("\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
                      "\"ByteLevel\"},{\"type\":\"Digits\"}]}"),
            CMOE_ERR_UNSUPPORTED, "Digits behind ByteLevel not supported");
    refused(FILE_WITH("\"decoder\":{\"type\":\"CTC\"}"), CMOE_ERR_UNSUPPORTED, "type \"CTC\"");
    refused(
        FILE_WITH("\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":"
                  "\"ByteFallback\"}]}"),
        CMOE_ERR_UNSUPPORTED, "ByteFallback behind Fuse not supported");
    refused(FILE_WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\"ab\"}"), CMOE_ERR_FORMAT,
            "want one character");
    refused(FILE_WITH("\"post_processor\":{\"type\":\"BertProcessing\"}"), CMOE_ERR_UNSUPPORTED,
            "want one of: TemplateProcessing ByteLevel Sequence");
    refused(FILE_WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
                      "\"SpecialToken\":{\"id\":\"x\"}}],\"special_tokens\":{}}"),
            CMOE_ERR_FORMAT, "\"x\" has no ids in special_tokens");
    refused(
        FILE_WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
                  "\"SpecialToken\":{\"id\":\"x\"}}],\"special_tokens\":{\"x\":{\"ids\":[99]}}}"),
        CMOE_ERR_RANGE, "ids[0] = 99, want 0 <= id < 6");
    refused(FILE_WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}"),
            CMOE_ERR_FORMAT, "single has no Sequence A");
    char deep[4096] = "{\"normalizer\":";
    for (int i = 0; i < 12; i++)
        strcat(deep, "{\"type\":\"Sequence\",\"normalizers\":[");
    strcat(deep, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 12; i++)
        strcat(deep, "]}");
    strcat(deep, "," MODEL("") "}");
    refused(deep, CMOE_ERR_RANGE, "more than 8 Sequences in each other");
}

/* `regex` as JSON writes it. */
static void pattern_file(char out[8192], const char *regex)
{
    snprintf(out, 8192,
             "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":"
             "\"Isolated\",\"invert\":false}," MODEL("") "}",
             regex);
}

static void test_pattern_errors(void **state)
{
    static const char *const bad[][2] = {
        {"a(b", "byte 3 (\\\"a(b\\\"): a group is not closed"},
        {"a)", "byte 1 (\\\"a)\\\"): closes a group"},
        {"[a", "this class is not closed"},
        {"[z-a]", "ends before it begins"},
        {"x\\\\p{Han}", "byte 1 (\\\"x\\\\p{Han}\\\"): this property"},
        {"[\\\\p{L}&&a]", "an intersection of classes not supported"},
        {"[a[b]]", "a class inside a class not supported"},
        {"(a)\\\\1", "this escape not supported"},
        {"(?<n>a)", "this group (want one of: (?: (?i:"},
        {"(?x)a", "this group"},
        {"(*UTF)a", "(* not supported"},
        {"a{2}+", "+ or ? behind this count not supported"},
        {"*a", "byte 0 (\\\"*a\\\"): "},
        {"\\\\Ka", "this escape not supported"},
        {"\\\\x{110000}", "no character has this number"},
        {"ab\\\\", "ends in a backslash"},
        {"(?<=a+)b", "lookbehind"}};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char json[8192], want[256] = "";
        pattern_file(json, bad[i][0]);
        for (const char *s = bad[i][1]; *s; s++)
            if (*s != '\\' || s[1] == '\\') strncat(want, s, 1), s += *s == '\\';
        cmoe_tokenizer *t = NULL;
        cmoe_error err = {0};
        const cmoe_status status = parse(&t, json, &err);
        assert_true(status == CMOE_ERR_FORMAT || status == CMOE_ERR_UNSUPPORTED);
        if (!strstr(err.text, want) || !strstr(err.text, "pre_tokenizer: pattern, byte "))
            fail_msg("%s: \"%s\", want \"%s\" in it", bad[i][0], err.text, want);
    }
}

/* ---- patterns that are accepted ------------------------------------------------------------------ */

/* Pieces of a text, "|" between them. */
static cmoe_status pieces_of(const char *source, const char *text, char out[512], cmoe_error *err)
{
    cmoei_pattern p;
    cmoei_matcher m = {0};
    uint8_t symbols[256];
    pcre2_general_context *memory = cmoei_pattern_memory(ctx);
    cmoe_status status =
        cmoei_pattern_compile(&p, memory, ctx, source, (int64_t)strlen(source), "test", err);
    if (status == CMOE_OK) status = cmoei_matcher_open(&m, memory, err);
    const int64_t n =
        status == CMOE_OK ? cmoei_pattern_symbols(&p, text, (int64_t)strlen(text), symbols) : 0;
    const char *at = text;
    out[0] = 0;
    for (int64_t from = 0, done = 0; status == CMOE_OK && from < n;) {
        bool found;
        int64_t begin, end;
        status = cmoei_pattern_next(&p, &m, symbols, n, from, &found, &begin, &end, err);
        if (status != CMOE_OK) break;
        if (!found) begin = end = n;
        for (int64_t k = done; k < end || (k == end && k < begin); k++) {
            if (k == begin && k > done) strcat(out, "|");
            strncat(out, at, (size_t)cmoei_utf8_bytes(*at));
            at += cmoei_utf8_bytes(*at);
        }
        if (end < n) strcat(out, "|");
        done = end;
        from = end > from ? end : from + 1;
    }
    cmoei_matcher_close(&m);
    cmoei_pattern_free(&p);
    pcre2_general_context_free(memory);
    return status;
}

static void test_patterns(void **state)
{
    static const char *const good[][3] = {
        {"\\p{L}+",
         "ab1\xd0\xb6\xe4\xbd\xa0"
         "2",
         "ab|1|\xd0\xb6\xe4\xbd\xa0|2"},
        {"\\P{L}", "a1b", "a|1|b"},
        {"\\p{^L}", "a1b", "a|1|b"},
        {"[^\\p{L}a-z]+", "x..\xe2\x82\xac.y", "x|..\xe2\x82\xac.|y"},
        {"(?i:s)",
         "aSb\xc5\xbf"
         "c",
         "a|S|b|\xc5\xbf|c"},
        {"(?i)K(?-i)k", "k\xe2\x84\xaakK", "k|\xe2\x84\xaak|K"},
        {"(?i:[a-c\xd0\xb6])", "xBy\xd0\x96z", "x|B|y|\xd0\x96|z"},
        {"a{,2}b", "aaab", "a|aab"},
        {"a{x}", "ba{x}b", "b|a{x}|b"},
        {"[]a]", "b]c", "b|]|c"},
        {"[a-]", "b-c", "b|-|c"},
        {"\\bab\\b", "xab ab", "xab |ab"},
        {"\\x{4f60}|\\u597d", "\xe4\xbd\xa0x\xe5\xa5\xbd", "\xe4\xbd\xa0|x|\xe5\xa5\xbd"},
        {"(?<=a)b(?!c)", "bcabcab", "bcabca|b"},
        {".+", "a\nb", "a|\n|b"},
        {"^b$", "a\nb\nc", "a\n|b|\nc"},
        {"\\s+", "a\xe3\x80\x80 \xc2\x85z\xe1\xa0\x8e", "a|\xe3\x80\x80 \xc2\x85|z\xe1\xa0\x8e"},
        {"(?>a+)b|a", "aac", "a|a|c"},
        {"[\\d\\-\\]]+", "x\xd9\xa3-]y", "x|\xd9\xa3-]|y"},
        {"\\p{Lu}\\p{Ll}*+", "aBcD", "a|Bc|D"}};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char out[512];
        cmoe_error err = {0};
        if (pieces_of(good[i][0], good[i][1], out, &err) != CMOE_OK)
            fail_msg("%s: %s", good[i][0], err.text);
        if (strcmp(out, good[i][2]) != 0)
            fail_msg("%s: \"%s\", want \"%s\"", good[i][0], out, good[i][2]);
    }
}

/* Exponential: ends, and says so. */
static void test_pattern_limit(void **state)
{
    char text[64], out[512];
    (void)state;
    memset(text, 'a', 60);
    text[60] = 0;
    const double begin = now();
    UNIT_FAILS(pieces_of("(?:a+)+(?:a+)+[bc]", text, out, &err), CMOE_ERR_RANGE, "pattern gave up");
    assert_true(now() - begin < 20);
}

/* ---- what a tokenizer does ----------------------------------------------------------------------- */

static void test_encode(void **state)
{
    (void)state;
    cmoe_tokenizer *t = make(FILE_WITH("\"version\":\"1.0\""));
    encodes(t, "", "");
    encodes(t, "ab", "2");
    encodes(t, "aab", "0 2"); /* a b comes first */
    encodes(t, "aaab", "5 2");
    encodes(t, "azb", "2"); /* unknown, and nothing stands for it */
    assert_int_equal(cmoe_tokenizer_size(t), 6);
    assert_int_equal(cmoe_tokenizer_id(t, "ab"), 2);
    assert_int_equal(cmoe_tokenizer_id(t, "zz"), -1);
    assert_string_equal(cmoe_tokenizer_token(t, 2), "ab");
    assert_null(cmoe_tokenizer_token(t, 6));
    assert_null(cmoe_tokenizer_token(t, -1));
    assert_int_equal(cmoe_tokenizer_bos(t), -1);
    assert_int_equal(cmoe_tokenizer_is_special(t, 99), 0);
    cmoe_tokenizer_free(t);
    t = make("{" MODEL(",\"unk_token\":\"<u>\"") "}");
    encodes(t, "azzb", "0 3 3 1");
    cmoe_tokenizer_free(t);
    t = make("{" MODEL(",\"unk_token\":\"<u>\",\"fuse_unk\":true") "}");
    encodes(t, "azzbz", "0 3 1 3");
    cmoe_tokenizer_free(t);
    t = make(VOCAB("", "")); /* nothing at all */
    assert_int_equal(cmoe_tokenizer_size(t), 0);
    encodes(t, "", "");
    encodes(t, "ab", "");
    cmoe_tokenizer_free(t);
    refused(VOCAB("", "\"a b\""), CMOE_ERR_FORMAT, "\"a\" is not in vocab");
    cmoe_tokenizer_free(NULL);
}

#define ADDED                                                                                    \
    "\"added_tokens\":[{\"id\":10,\"content\":\"<s>\",\"special\":true},{\"id\":11,\"content\":" \
    "\"<s>a\",\"special\":false},{\"id\":12,\"content\":\"w\",\"single_word\":true},{\"id\":13," \
    "\"content\":\"L\",\"lstrip\":true},{\"id\":14,\"content\":\"R\",\"rstrip\":true}]"

static void test_added(void **state)
{
    cmoe_encode_options o;
    cmoe_encode_options_default(&o, sizeof o);
    (void)state;
    cmoe_tokenizer *t = make(FILE_WITH(ADDED));
    encodes(t, "a<s>b", "0 10 1");
    encodes(t, "<s>ab", "11 1"); /* the longest */
    encodes(t, "<s<s>", "10");
    encodes(t, "w a w. aw", "12 4 0 4 12 4 0");
    encodes(t, "a  La  R  b", "0 13 0 4 4 14 1");
    o.parse_special = 0;
    encodes_with(t, &o, "a<s>b", 5, "2");
    encodes_with(t, &o, "<s>ab", 5, "11 1"); /* not special, so still found */
    assert_int_equal(cmoe_tokenizer_is_special(t, 10), 1);
    assert_int_equal(cmoe_tokenizer_is_special(t, 11), 0);
    assert_int_equal(cmoe_tokenizer_size(t), 15);
    assert_null(cmoe_tokenizer_token(t, 7)); /* a gap */
    cmoe_tokenizer_free(t);
}

/* Added tokens of these contents, ids from 10 on; `more` goes into each. */
static cmoe_tokenizer *make_added(char content[][8], int n, const char *more)
{
    static char json[1 << 14];
    int64_t at = snprintf(json, sizeof json, "{\"added_tokens\":[");
    for (int i = 0; i < n; i++)
        at += snprintf(json + at, sizeof json - (size_t)at,
                       "%s{\"id\":%d,\"content\":\"%s\",\"special\":false%s}", i ? "," : "", i + 10,
                       content[i], more);
    snprintf(json + at, sizeof json - (size_t)at,
             "],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2},\"merges\":[]}}");
    return make(json);
}

/* The leftmost, of several the longest; what is left over is single characters. */
static int64_t added_plainly(char content[][8], int n, const char *text, int64_t bytes,
                             int32_t *ids)
{
    int64_t count = 0;
    for (int64_t at = 0, next; at < bytes; at = next) {
        ids[count] = text[at] - 'a';
        next = at + 1;
        for (int i = 0; i < n; i++) {
            const int64_t length = (int64_t)strlen(content[i]);
            if (length < next - at || (length == next - at && ids[count] >= 10) ||
                length > bytes - at || memcmp(text + at, content[i], (size_t)length) != 0)
                continue;
            ids[count] = i + 10;
            next = at + length;
        }
        count++;
    }
    return count;
}

static void test_added_random(void **state)
{
    (void)state;
    for (uint64_t round = 0; round < 60; round++) {
        char content[24][8];
        const int most = 1 + (int)(cmoe_random_u64(4, round, 0) % 24);
        int n = 0;
        for (int i = 0; i < most; i++) {
            uint64_t r = cmoe_random_u64(4, round, (uint64_t)i + 1);
            const int length = 2 + (int)(r % 6);
            for (int k = 0; k < length; k++)
                content[n][k] = (char)('a' + (r >> (8 + 8 * k)) % (round % 3 + 1));
            content[n][length] = 0;
            bool there = false;
            for (int k = 0; k < n; k++)
                there |= strcmp(content[k], content[n]) == 0;
            n += !there;
        }
        cmoe_tokenizer *t = make_added(content, n, round % 2 ? ",\"normalized\":true" : "");
        for (uint64_t k = 0; k < 40; k++) {
            char text[96];
            int32_t want[96], got[96];
            int64_t count = -1;
            const int64_t bytes = (int64_t)(cmoe_random_u64(5, round, k) % sizeof text);
            for (int64_t i = 0; i < bytes; i++)
                text[i] =
                    (char)('a' + cmoe_random_u64(6, round * 64 + k, (uint64_t)i) % (round % 3 + 1));
            const int64_t n_want = added_plainly(content, n, text, bytes, want);
            UNIT_OK(cmoe_tokenizer_encode(t, NULL, text, bytes, got, 96, &count, &err));
            assert_int_equal(count, n_want);
            assert_memory_equal(got, want, (size_t)count * 4);
        }
        cmoe_tokenizer_free(t);
    }
}

/* White space that one token swallows may hold others, which are found all the same. */
static void test_added_spaces(void **state)
{
    (void)state;
    cmoe_tokenizer *t = make(FILE_WITH(
        "\"added_tokens\":[{\"id\":10,\"content\":\"R\",\"rstrip\":true},{\"id\":11,\"content\":"
        "\"\\t\"},{\"id\":12,\"content\":\"\\n\",\"lstrip\":true,\"rstrip\":true},{\"id\":13,"
        "\"content\":\"b\\n\",\"single_word\":true}]"));
    encodes(t, "a R  a", "0 4 10 0");
    encodes(t, "R \t  a", "10 11 4 4 0"); /* the text goes on behind the one found last */
    encodes(t, "a \n \n a", "0 12 12 0");
    encodes(t, "a \n \t \n a", "0 12 11 12 0");
    encodes(t, "ab\n b", "2 4 1"); /* no single word, and \n is passed over with it */
    cmoe_tokenizer_free(t);
}

/* `head`, `n` times `fill`, `tail`. */
static char *filled(const char *head, char fill, int64_t n, const char *tail)
{
    char *s = malloc((size_t)n + 4096);
    const int64_t at = sprintf(s, "%s", head);
    memset(s + at, fill, (size_t)n);
    strcpy(s + at + n, tail);
    return s;
}

/* A text that nearly matches a long token everywhere, white space around every token, and a long text
 * to replace: time grows with the text, not with the product of the two. */
static void test_long_tokens(void **state)
{
    const int64_t n = 1 << 18, bytes = 4 * n;
    static const char *const heads[] = {
        "{\"added_tokens\":[{\"id\":0,\"content\":\"a\"},{\"id\":3,\"content\":\"",
        "{\"added_tokens\":[{\"id\":2,\"content\":\"b",
        "{\"normalizer\":{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{\"String\":\""};
    static const char *const tails[] = {"b\"}]", "\"}]", "b\"}}"};
    (void)state;
    char *text = filled("", 'a', bytes, "");
    for (int i = 0; i < 3; i++) {
        char *json = filled(heads[i], 'a', n, tails[i]);
        strcat(json, ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}");
        cmoe_tokenizer *t = make(json);
        int64_t count;
        const double begin = now();
        UNIT_OK(cmoe_tokenizer_encode(t, NULL, text, bytes, NULL, 0, &count, &err));
        assert_true(now() - begin < 5);
        assert_int_equal(count, bytes);
        cmoe_tokenizer_free(t);
        free(json);
    }
    memset(text, '\t', (size_t)bytes);
    for (int i = 0; i < 3; i++) {
        char json[512];
        snprintf(json, sizeof json,
                 FILE_WITH("\"added_tokens\":[{\"id\":9,\"content\":\"\\t\",\"lstrip\":%s,"
                           "\"rstrip\":%s}]"),
                 i == 1 ? "false" : "true", i == 0 ? "false" : "true");
        cmoe_tokenizer *t = make(json);
        int64_t count;
        const double begin = now();
        UNIT_OK(cmoe_tokenizer_encode(t, NULL, text, bytes, NULL, 0, &count, &err));
        assert_true(now() - begin < 5);
        assert_int_equal(count, bytes);
        cmoe_tokenizer_free(t);
    }
    free(text);
}

/* Folded: whatever a member becomes in upper or lower case is a member. */
static void test_charset_fold(void **state)
{
    static const char *const names[] = {"L", "Lu", "Ll", "N", "So", "M"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        cmoei_charset set = {.ctx = ctx}, before = {.ctx = ctx};
        bool known;
        UNIT_OK(cmoei_charset_property(&before, names[i], (int64_t)strlen(names[i]), &known, &err));
        UNIT_OK(cmoei_charset_union(&set, &before, &err));
        UNIT_OK(cmoei_charset_fold(&set, &err));
        static bool want[CMOEI_CODE_POINTS];
        memset(want, 0, sizeof want);
        for (int32_t c = 0; c < CMOEI_CODE_POINTS; c++) {
            if (!cmoei_charset_has(&before, (uint32_t)c)) continue;
            const int32_t upper = utf8proc_toupper(c);
            want[c] = want[upper] = want[utf8proc_tolower(c)] = want[utf8proc_tolower(upper)] =
                true;
            if (upper == 'S') want[0x17f] = true;
            if (upper == 'K') want[0x212a] = true;
        }
        for (uint32_t c = 0; c < CMOEI_CODE_POINTS; c++)
            if (cmoei_charset_has(&set, c) != want[c])
                fail_msg("%s: U+%04X is %s", names[i], c, want[c] ? "missing" : "too much");
        cmoei_charset_free(&set);
        cmoei_charset_free(&before);
    }
}

/* Sixteen replacements of one character by ninety would make 10^31 bytes of it. */
static void test_growth(void **state)
{
    static const char *const parts[][4] = {
        {"\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[",
         "\"pattern\":{\"String\":\"a\"}", "]}", ""},
        {"\"decoder\":{\"type\":\"Sequence\",\"decoders\":[", "\"pattern\":{\"String\":\"a\"}",
         "]}", ""},
        {"\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[",
         "\"pattern\":{\"String\":\"a\"}", "]}",
         ",\"added_tokens\":[{\"id\":9,\"content\":\"<a>\",\"normalized\":true}]"}};
    (void)state;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        static char json[1 << 13];
        int64_t at = sprintf(json, "{%s", parts[i][0]);
        for (int k = 0; k < 16; k++) {
            at += sprintf(json + at, "%s{\"type\":\"Replace\",%s,\"content\":\"", k ? "," : "",
                          parts[i][1]);
            memset(json + at, 'a', 90);
            at += sprintf(json + at + 90, "\"}") + 90;
        }
        sprintf(json + at, "%s%s," MODEL("") "}", parts[i][2], parts[i][3]);
        if (i == 2) {
            refused(json, CMOE_ERR_RANGE, "Replace: more than ");
            continue;
        }
        cmoe_tokenizer *t = make(json);
        int64_t n = -5;
        if (i == 0)
            UNIT_FAILS(cmoe_tokenizer_encode(t, NULL, "a", 1, NULL, 0, &n, &err), CMOE_ERR_RANGE,
                       "Replace: more than 1048608 bytes out of a text of ");
        else
            UNIT_FAILS(cmoe_tokenizer_decode(t, (const int32_t[]){0}, 1, 0, NULL, 0, &n, &err),
                       CMOE_ERR_RANGE, "Replace: more than ");
        assert_int_equal(n, -5);
        cmoe_tokenizer_free(t);
    }
    /* A template of few tokens may name one of many ids many times. */
    static char json[1 << 14];
    int64_t at =
        sprintf(json, "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"special_tokens\":"
                      "{\"s\":{\"ids\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}},\"single\":[");
    for (int k = 0; k < 65; k++)
        at += sprintf(json + at, "{\"SpecialToken\":{\"id\":\"s\"}},");
    sprintf(json + at, "{\"Sequence\":{\"id\":\"A\"}}]}," MODEL("") "}");
    refused(json, CMOE_ERR_RANGE, "post_processor: more than 1024 tokens on one side of a text");
}

/* Sets of characters against a bit for each. */
static void test_charset(void **state)
{
    enum { N = 160 };
    (void)state;
    for (uint64_t round = 0; round < 200; round++) {
        cmoei_charset set[2] = {{.ctx = ctx}, {.ctx = ctx}};
        bool in[2][N] = {{false}};
        for (int k = 0; k < 2; k++) {
            const uint64_t ranges = cmoe_random_u64(7, round, (uint64_t)k) % 12;
            for (uint64_t i = 0; i < ranges; i++) {
                const uint64_t r = cmoe_random_u64(8, round * 2 + (uint64_t)k, i);
                const uint32_t first = (uint32_t)(r % N);
                const uint32_t last = CMOEI_MIN(first + (uint32_t)(r >> 32) % 9, N - 1);
                UNIT_OK(cmoei_charset_add(&set[k], first, last, &err));
                for (uint32_t c = first; c <= last; c++)
                    in[k][c] = true;
            }
        }
        UNIT_OK(cmoei_charset_union(&set[0], &set[1], &err));
        for (int inverted = 0; inverted < 2; inverted++) {
            for (uint32_t c = 0; c < N; c++)
                assert_int_equal(cmoei_charset_has(&set[0], c), (in[0][c] || in[1][c]) ^ inverted);
            for (int64_t i = 0; i < set[0].count; i++) {
                assert_true(set[0].range[2 * i] <= set[0].range[2 * i + 1]);
                if (i) assert_true(set[0].range[2 * i] > set[0].range[2 * i - 1] + 1);
            }
            UNIT_OK(cmoei_charset_invert(&set[0], &err));
        }
        cmoei_charset_free(&set[0]);
        cmoei_charset_free(&set[1]);
    }
}

static void test_config(void **state)
{
    (void)state;
    cmoe_tokenizer *t = NULL;
    UNIT_OK(
        parse2(&t, FILE_WITH(ADDED),
               "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"ab\",\"add_bos_token\":true,"
               "\"add_eos_token\":true}",
               &err));
    assert_int_equal(cmoe_tokenizer_bos(t), 10);
    assert_int_equal(cmoe_tokenizer_eos(t), 2);
    encodes(t, "a", "10 0 2");
    cmoe_encode_options o;
    cmoe_encode_options_default(&o, sizeof o);
    o.add_special = 0;
    encodes_with(t, &o, "a", 1, "0");
    cmoe_tokenizer_free(t);
    UNIT_FAILS(parse2(&t, FILE_WITH(ADDED), "{\"bos_token\":5}", &err), CMOE_ERR_FORMAT,
               "tokenizer_config.json: bos_token: want a text");
    UNIT_FAILS(parse2(&t, FILE_WITH(ADDED), "[", &err), CMOE_ERR_FORMAT,
               "tokenizer_config.json: line");
    UNIT_FAILS(cmoe_tokenizer_open(&t, ctx, "no/such/place", &err), CMOE_ERR_IO,
               "no/such/place: No such");
    UNIT_FAILS(cmoe_tokenizer_open(&t, ctx, ".", &err), CMOE_ERR_IO, "./tokenizer.json: No such");
    UNIT_FAILS(cmoe_tokenizer_open(&t, ctx, NULL, &err), CMOE_ERR_ARG, "path is NULL");
    UNIT_FAILS(cmoe_tokenizer_open(NULL, ctx, ".", &err), CMOE_ERR_ARG, "out is NULL");
}

static void test_arguments(void **state)
{
    static const char *const bad[] = {"a\xff",        "ab\xc3",           "\xc0\x80",
                                      "\xed\xa0\x80", "\xf4\x90\x80\x80", "abcdefghijklmnop\x80"};
    static const char *const want[] = {"byte 1 (0xff)", "byte 2 (0xc3)", "byte 0 (0xc0)",
                                       "byte 0 (0xed)", "byte 0 (0xf4)", "byte 16 (0x80)"};
    int32_t ids[4] = {-7, -7, -7, -7};
    int64_t n = -5;
    char text[8] = "xxxxxxx";
    (void)state;
    cmoe_tokenizer *t = make(FILE_WITH("\"version\":\"1.0\""));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        UNIT_FAILS(
            cmoe_tokenizer_encode(t, NULL, bad[i], (int64_t)strlen(bad[i]), ids, 4, &n, &err),
            CMOE_ERR_FORMAT, want[i]);
    UNIT_FAILS(cmoe_tokenizer_encode(t, NULL, NULL, 3, ids, 4, &n, &err), CMOE_ERR_ARG,
               "text is NULL");
    UNIT_FAILS(cmoe_tokenizer_encode(t, NULL, "a", -1, ids, 4, &n, &err), CMOE_ERR_RANGE,
               "-1 bytes");
    UNIT_FAILS(cmoe_tokenizer_encode(t, NULL, "a", 1, NULL, 4, &n, &err), CMOE_ERR_ARG, "ids NULL");
    UNIT_FAILS(cmoe_tokenizer_encode(t, NULL, "a", 1, ids, -4, &n, &err), CMOE_ERR_ARG,
               "capacity = -4");
    UNIT_FAILS(cmoe_tokenizer_encode(t, NULL, "a", 1, ids, 4, NULL, &err), CMOE_ERR_ARG,
               "count is NULL");
    UNIT_FAILS(cmoe_tokenizer_encode(NULL, NULL, "a", 1, ids, 4, &n, &err), CMOE_ERR_ARG,
               "is NULL");
    cmoe_encode_options o;
    cmoe_encode_options_default(&o, sizeof o);
    o.parse_special = 2;
    UNIT_FAILS(cmoe_tokenizer_encode(t, &o, "a", 1, ids, 4, &n, &err), CMOE_ERR_RANGE,
               "parse_special");
    assert_int_equal(n, -5);
    assert_int_equal(ids[0], -7);
    /* All are counted, the first are written; zeros in the text are text. */
    UNIT_OK(cmoe_tokenizer_encode(t, NULL, "b\0b\0b", 5, ids, 2, &n, &err));
    assert_int_equal(n, 3);
    assert_int_equal(ids[1], 1);
    assert_int_equal(ids[2], -7);
    UNIT_OK(cmoe_tokenizer_encode(t, NULL, "bbb", 3, NULL, 0, &n, &err));
    assert_int_equal(n, 3);
    /* No decoder: blanks between tokens; ids without a token are no text. */
    const int32_t some[] = {2, 99999, 0};
    UNIT_OK(cmoe_tokenizer_decode(t, some, 3, 0, text, 3, &n, &err));
    assert_int_equal(n, 4);
    assert_memory_equal(text, "ab xxxx", 7);
    UNIT_FAILS(cmoe_tokenizer_decode(t, (int32_t[]){0, -3}, 2, 0, text, 3, &n, &err),
               CMOE_ERR_RANGE, "ids[1] = -3, want 0 <= id");
    UNIT_FAILS(cmoe_tokenizer_decode(t, NULL, 2, 0, text, 3, &n, &err), CMOE_ERR_ARG, "ids NULL");
    UNIT_FAILS(cmoe_tokenizer_decode(t, some, 2, 0, NULL, 3, &n, &err), CMOE_ERR_ARG, "text NULL");
    UNIT_FAILS(cmoe_tokenizer_decode(t, some, 2, 3, text, 3, &n, &err), CMOE_ERR_RANGE,
               "skip_special");
    cmoe_tokenizer_free(t);
}

static void test_metaspace(void **state)
{
    (void)state;
#define METASPACE(scheme, split)                                                             \
    "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\","           \
    "\"prepend_scheme\":\"" scheme "\",\"split\":" split                                     \
    "},\"added_tokens\":[{\"id\":5,\"content\":\"X\"}],\"decoder\":{\"type\":\"Metaspace\"," \
    "\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"" scheme "\"},"                   \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"\xe2\x96\x81\":0,\"a\":1,\"\xe2\x96\x81"       \
    "a\":2,"                                                                                 \
    "\"a\xe2\x96\x81\":3},\"merges\":[\"a \xe2\x96\x81\",\"\xe2\x96\x81 a\"]}}"
    cmoe_tokenizer *t = make(METASPACE("always", "true"));
    encodes(t, "a a", "2 2");
    encodes(t, "aXa", "2 5 2");
    encodes(t, "  a", "0 2");
    char text[32];
    int64_t n;
    UNIT_OK(cmoe_tokenizer_decode(t, (int32_t[]){2, 2}, 2, 0, text, 32, &n, &err));
    assert_int_equal(n, 3);
    assert_memory_equal(text, "a a", 3);
    cmoe_tokenizer_free(t);
    t = make(METASPACE("first", "true"));
    encodes(t, "aXa", "2 5 1");
    encodes(t, "Xa", "5 1");
    cmoe_tokenizer_free(t);
    t = make(METASPACE("never", "false"));
    encodes(t, "a a", "3 1"); /* not cut: the other merge comes first */
    cmoe_tokenizer_free(t);
}

/* ---- normal forms -------------------------------------------------------------------------------- */

static void normalizes(int32_t form, const char *s, const char *want)
{
    cmoei_buffer out = {.ctx = ctx};
    UNIT_OK(cmoei_normalize(&out, s, (int64_t)strlen(s), form, &err));
    UNIT_OK(cmoei_buffer_add(&out, "", 1, &err));
    assert_string_equal(out.data, want);
    cmoei_buffer_free(&out);
}

static void test_normalize(void **state)
{
    (void)state;
    normalizes(CMOEI_NFC, "ab", "ab");
    normalizes(CMOEI_NFC, "xe\xcc\x81y", "x\xc3\xa9y");
    normalizes(CMOEI_NFD, "\xc3\xa9", "e\xcc\x81");
    normalizes(CMOEI_NFC, "a\xcc\x81\xcc\xa3", "\xe1\xba\xa1\xcc\x81"); /* marks change places */
    normalizes(CMOEI_NFKC, "\xef\xac\x81 \xe2\x91\xa0", "fi 1");
    normalizes(CMOEI_NFC, "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81");
    /* U+0C3C came with Unicode 14: it has no class and stays in front of a mark of class 7. */
    normalizes(CMOEI_NFC, "a\xcc\x81\xe0\xb0\xbc\xcc\xa3", "\xc3\xa1\xe0\xb0\xbc\xcc\xa3");
    /* Many marks behind one letter take no time that grows with their square. */
    const int64_t marks = 1 << 20;
    char *s = malloc((size_t)(2 * marks + 2)), *at = s;
    *at++ = 'a';
    for (int64_t i = 0; i < marks; i++, at += 2)
        memcpy(at, i < marks / 2 ? "\xcc\x81" : "\xcc\xa3", 2);
    cmoei_buffer out = {.ctx = ctx};
    const double begin = now();
    UNIT_OK(cmoei_normalize(&out, s, at - s, CMOEI_NFC, &err));
    assert_true(now() - begin < 5);
    assert_memory_equal(out.data, "\xe1\xba\xa1\xcc\xa3", 5);
    cmoei_buffer_free(&out);
    free(s);
}

static void test_strip(void **state)
{
    static const char *const in[] = {"", "a", "..", "...a.b..", ".a...", "....."};
    static const char *const out[] = {"", "a", "", ".a.b", "a.", "."};
    (void)state;
    cmoe_tokenizer *t =
        make("{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{"
             "\"type\":\"Strip\",\"content\":\".\",\"start\":2,\"stop\":2}]},\"model\":{"
             "\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\".\":2},\"merges\":[]}}");
    for (size_t i = 0; i < sizeof in / sizeof in[0]; i++) {
        int32_t ids[16];
        int64_t n, bytes;
        char text[16];
        UNIT_OK(cmoe_tokenizer_encode(t, NULL, in[i], (int64_t)strlen(in[i]), ids, 16, &n, &err));
        UNIT_OK(cmoe_tokenizer_decode(t, ids, n, 0, text, 16, &bytes, &err));
        assert_int_equal(bytes, strlen(out[i]));
        assert_memory_equal(text, out[i], (size_t)bytes);
    }
    cmoe_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),         cmocka_unit_test(test_model),
        cmocka_unit_test(test_steps),        cmocka_unit_test(test_pattern_errors),
        cmocka_unit_test(test_patterns),     cmocka_unit_test(test_pattern_limit),
        cmocka_unit_test(test_encode),       cmocka_unit_test(test_added),
        cmocka_unit_test(test_config),       cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_metaspace),    cmocka_unit_test(test_normalize),
        cmocka_unit_test(test_strip),        cmocka_unit_test(test_added_random),
        cmocka_unit_test(test_added_spaces), cmocka_unit_test(test_long_tokens),
        cmocka_unit_test(test_charset),      cmocka_unit_test(test_growth),
        cmocka_unit_test(test_charset_fold)};
    cmoe_error err = {0};
    if (cmoe_ctx_create(&ctx, NULL, &err) != CMOE_OK) return 2;
    const int failed = UNIT_RUN("unit_tokenizer", tests);
    cmoe_ctx_free(ctx);
    return failed;
}
