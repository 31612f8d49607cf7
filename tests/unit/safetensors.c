/* SPDX-License-Identifier: MIT
 *
 * safetensors.c - headers as they come from outside: every check of weights/header.c and json.c
 * with its text, and the ways in which other readers of model files were broken, by name.
 */
#include "unit.h"

#include <time.h>

#include "weights/header.h"
#include "weights/json.h"

static unit_env env;

/* ---- a file in memory ------------------------------------------------------------------------ */

/* What a reader does with a file: length, then table.  The text lies in memory of exactly its size,
 * so that sanitizers see a byte too many. */
static cmoe_status read_file(const void *file, int64_t bytes, cmoei_header *h, cmoe_error *err)
{
    int64_t length = -1;
    cmoe_status status = cmoei_header_length(file, bytes, "f.safetensors", &length, err);
    if (status != CMOE_OK) return status;
    char *text = malloc((size_t)length + (length == 0));
    memcpy(text, (const char *)file + 8, (size_t)length);
    status = cmoei_header_read(h, env.ctx, text, length, bytes, "f.safetensors", err);
    free(text);
    return status;
}

/* The same with a header of `length` bytes and so many bytes of data. */
static cmoe_status read_text(const char *json, int64_t length, int64_t data, cmoei_header *h,
                             cmoe_error *err)
{
    char *file = calloc(1, (size_t)(8 + length + data));
    for (int i = 0; i < 8; i++)
        file[i] = (char)((uint64_t)length >> 8 * i);
    memcpy(file + 8, json, (size_t)length);
    const cmoe_status status = read_file(file, 8 + length + data, h, err);
    free(file);
    return status;
}

static void refuse_n(const char *json, int64_t length, int64_t data, const char *text)
{
    static const cmoei_header mark = {.count = 77};
    cmoei_header h = mark;
    UNIT_FAILS(read_text(json, length, data, &h, &err), CMOE_ERR_FORMAT, text);
    UNIT_FAILS(read_text(json, length, data, &h, &err), CMOE_ERR_FORMAT, "f.safetensors: ");
    assert_memory_equal(&h, &mark, sizeof h);
    assert_int_equal(read_text(json, length, data, &h, NULL), CMOE_ERR_FORMAT);
}

/* A literal that holds a NUL. */
#define REFUSE_NUL(json, data, text) refuse_n(json, (int64_t)sizeof(json) - 1, data, text)

static void refuse(const char *json, int64_t data, const char *text)
{
    refuse_n(json, (int64_t)strlen(json), data, text);
}

static void accept(const char *json, int64_t data, int64_t count)
{
    cmoei_header h = {0};
    UNIT_OK(read_text(json, (int64_t)strlen(json), data, &h, &err));
    assert_int_equal(h.count, count);
    cmoei_header_free(&h, env.ctx);
}

/* One tensor "x", its three values as given. */
static const char *one(const char *dtype, const char *shape, const char *offsets)
{
    static char text[1024];
    snprintf(text, sizeof text, "{\"x\":{\"dtype\":%s,\"shape\":%s,\"data_offsets\":%s}}", dtype,
             shape, offsets);
    return text;
}

/* ---- good files ------------------------------------------------------------------------------ */

static void good(void **state)
{
    (void)state;
    accept("{}", 0, 0);
    accept("{}      ", 0, 0);
    accept("{ \t\r\n}", 0, 0);
    accept("{\"__metadata__\":{}}", 0, 0);
    accept("{\"__metadata__\":{\"format\":\"pt\",\"a\":\"\\u0001\"}}", 0, 0);
}

static void a_table(void **state)
{
    (void)state;
    static const char json[] =
        " {\"b\" : {\"dtype\":\"F32\", \"shape\":[2,3] , \"data_offsets\":[2,26]},\n"
        "\"__metadata__\":{\"format\":\"pt\"},"
        "\"empty\":{\"shape\":[0,5],\"data_offsets\":[26,26],\"dtype\":\"BF16\"},"
        "\"a\\u00e9\\ud83d\\ude00\":{\"data_offsets\":[0,2],\"dtype\":\"F16\",\"shape\":[]}}  ";
    cmoei_header h = {0};
    UNIT_OK(read_text(json + 1, sizeof json - 2, 26, &h, &err));
    const int64_t data = 8 + (int64_t)sizeof json - 2;
    assert_int_equal(h.count, 3);
    const cmoei_entry *a = &h.entries[h.order[0]], *b = &h.entries[h.order[1]];
    const cmoei_entry *empty = &h.entries[h.order[2]];
    assert_string_equal(a->name, "a\xc3\xa9\xf0\x9f\x98\x80");
    assert_int_equal(a->rank, 0);
    assert_int_equal(a->begin, data);
    assert_int_equal(a->bytes, 2);
    assert_string_equal(b->name, "b");
    assert_int_equal(b->begin, data + 2);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->dims[1], 3);
    assert_int_equal(cmoei_stored_formats[b->stored].dtype, CMOE_F32);
    assert_int_equal(empty->bytes, 0);
    assert_int_equal(empty->dims[1], 5);
    cmoei_header_free(&h, env.ctx);
    assert_null(h.block);
}

static void formats(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int bits;
        int32_t dtype;
    } want[] = {{"BOOL", 8, 0},
                {"F4", 4, 0},
                {"F6_E2M3", 6, 0},
                {"F6_E3M2", 6, 0},
                {"U8", 8, CMOE_U8},
                {"I8", 8, CMOE_I8},
                {"F8_E5M2", 8, 0},
                {"F8_E4M3", 8, CMOE_F8E4M3},
                {"F8_E8M0", 8, CMOE_F8E8M0},
                {"F8_E4M3FNUZ", 8, 0},
                {"F8_E5M2FNUZ", 8, 0},
                {"I16", 16, 0},
                {"U16", 16, 0},
                {"F16", 16, CMOE_F16},
                {"BF16", 16, CMOE_BF16},
                {"I32", 32, CMOE_I32},
                {"U32", 32, 0},
                {"F32", 32, CMOE_F32},
                {"C64", 64, 0},
                {"F64", 64, CMOE_F64},
                {"I64", 64, CMOE_I64},
                {"U64", 64, 0}};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        char dtype[32], offsets[32];
        snprintf(dtype, sizeof dtype, "\"%s\"", want[i].name);
        snprintf(offsets, sizeof offsets, "[0,%d]", want[i].bits * 3 / 2);
        cmoei_header h = {0};
        const char *json = one(dtype, "[3,4]", offsets);
        UNIT_OK(read_text(json, (int64_t)strlen(json), want[i].bits * 3 / 2, &h, &err));
        const cmoei_stored *s = &cmoei_stored_formats[h.entries[0].stored];
        assert_string_equal(s->name, want[i].name);
        assert_int_equal(s->bits, want[i].bits);
        assert_int_equal(s->dtype, want[i].dtype);
        assert_ptr_equal(cmoei_stored_of(want[i].dtype), want[i].dtype ? s : NULL);
        cmoei_header_free(&h, env.ctx);
    }
    assert_null(cmoei_stored_of(CMOE_I4X2));
    assert_null(cmoei_stored_of(CMOE_E2M1X2));
    assert_null(cmoei_stored_of(-1));
}

/* ---- length ---------------------------------------------------------------------------------- */

static void length_word(uint64_t length, int64_t bytes, const char *text)
{
    unsigned char first[8];
    int64_t n = -5;
    for (int i = 0; i < 8; i++)
        first[i] = (unsigned char)(length >> 8 * i);
    UNIT_FAILS(cmoei_header_length(first, bytes, "f", &n, &err), CMOE_ERR_FORMAT, text);
    assert_int_equal(n, -5);
}

static void lengths(void **state)
{
    (void)state;
    int64_t n = 0;
    for (int64_t bytes = 0; bytes < 8; bytes++)
        UNIT_FAILS(cmoei_header_length(NULL, bytes, "f", &n, &err), CMOE_ERR_FORMAT,
                   " bytes, want at least 8");
    length_word(1, 8, "f: header of 1 bytes, but only 0 behind its length");
    length_word(100000000, 100000007, "header of 100000000 bytes, but only 99999999 behind");
    length_word(100000001, INT64_MAX, "f: header of 100000001 bytes, want at most 100000000");
    length_word(INT64_MAX, INT64_MAX, "header of 9223372036854775807 bytes, want at most");
    length_word(1ull << 63, INT64_MAX, "header of 9223372036854775808 bytes, want at most");
    length_word(UINT64_MAX, INT64_MAX, "header of 18446744073709551615 bytes, want at most");
    UNIT_FAILS(cmoei_header_length("version https://git-lfs...", 130, "f", &n, &err),
               CMOE_ERR_FORMAT, "a git-lfs pointer");
    UNIT_OK(cmoei_header_length("\x03\0\0\0\0\0\0", 11, "f", &n, &err));
    assert_int_equal(n, 3);
    cmoei_header h;
    UNIT_FAILS(cmoei_header_read(&h, env.ctx, "{}", 2, 9, "f", &err), CMOE_ERR_ARG, "header of 2");
    UNIT_FAILS(cmoei_header_read(&h, env.ctx, "{}", -1, 9, "f", &err), CMOE_ERR_ARG,
               "header of -1");
}

/* ---- words ----------------------------------------------------------------------------------- */

static void syntax(void **state)
{
    (void)state;
    refuse("", 0, "header byte 0: the header's first byte must be '{'");
    refuse(" {}", 0, "first byte must be '{'");
    refuse("[]", 0, "first byte must be '{'");
    refuse("\xef\xbb\xbf{}", 0, "first byte must be '{'");
    refuse("{", 0, "header byte 1: its end, want '\"' (a string)");
    refuse("{}\n", 0, "byte 0x0a behind the closing brace, want nothing but blanks");
    refuse("{} {}", 0, "header byte 3: '{' behind the closing brace");
    REFUSE_NUL("{}\0", 0, "byte 0x00 behind the closing brace");
    refuse("{,}", 0, "',', want '\"' (a string)");
    refuse("{x:1}", 0, "'x', want '\"' (a string)");
    refuse("{'x':1}", 0, "''', want '\"'");
    refuse("{\"x\"}", 0, "\"x\": '}', want ':' (between key and value)");
    refuse("{\"x\":}", 0, "\"x\": '}', want '{' (a tensor)");
    refuse("{\"x\":[]}", 0, "\"x\": '[', want '{' (a tensor)");
    refuse("{\"x\":{}}", 0, "\"x\": '}', want '\"'");
    refuse("{\"x\":{\"dtype\":\"U8\"}}", 0, "\"x\": no \"shape\"");
    refuse("{\"x\":{\"shape\":[],\"data_offsets\":[0,1]}}", 1, "\"x\": no \"dtype\"");
    refuse("{\"x\":{\"shape\":[],\"dtype\":\"U8\"}}", 1, "\"x\": no \"data_offsets\"");
    refuse("{\"x\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 0, "\"x\": key \"dtype\" twice");
    refuse("{\"x\":{\"stride\":1}}", 0, "key \"stride\", want one of: dtype shape data_offsets");
    refuse("{\"x\":{\"data_offsets_and_more\":1}}", 0, "key \"data_offsets_an\", want one of");
    refuse("{\"x\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]},}", 1, "'}', want '\"'");
    refuse("{\"x\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],}}", 1, "'}', want '\"'");
    refuse("{\"x\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}", 1,
           "its end, want '}' (end of the header)");
    refuse("{\"x\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]/**/}}", 1,
           "'/', want '}'");
}

static void strings(void **state)
{
    (void)state;
    refuse("{\"x", 0, "a string without end");
    refuse("{\"x\\", 0, "an escape that JSON does not have");
    refuse("{\"\\x\":1}", 0, "an escape that JSON does not have");
    refuse("{\"\\u12g4\":1}", 0, "an escape");
    refuse("{\"\\u12", 0, "an escape");
    refuse("{\"\\u0000\":1}", 0, "or a NUL");
    refuse("{\"\\udc00\":1}", 0, "half of a surrogate pair");
    refuse("{\"\\ud800\":1}", 0, "half of a surrogate pair");
    refuse("{\"\\ud800\\u0041\":1}", 0, "half of a surrogate pair");
    refuse("{\"\\ud800\\ud800\":1}", 0, "half of a surrogate pair");
    refuse("{\"a\nb\":1}", 0, "byte 0x0a in a string, want it escaped");
    REFUSE_NUL("{\"a\0b\":1}", 0, "byte 0x00 in a string, want it escaped");
    const char *const not_utf8[] = {"\x80",
                                    "\xc0\x80",
                                    "\xc1\xbf",
                                    "\xe0\x9f\xbf",
                                    "\xed\xa0\x80",
                                    "\xf0\x8f\xbf\xbf",
                                    "\xf5\x80\x80\x80",
                                    "\xf4\x90\x80\x80",
                                    "\xff",
                                    "\xc3",
                                    "\xe2\x82",
                                    "\xf0\x9f\x98",
                                    "\xc3(",
                                    "\xe2\x28\xa1"};
    for (size_t i = 0; i < sizeof not_utf8 / sizeof not_utf8[0]; i++) {
        char text[32];
        snprintf(text, sizeof text, "{\"%s\":1}", not_utf8[i]);
        refuse(text, 0, "invalid UTF-8 (byte 0x");
        refuse_n(text, 2 + (int64_t)strlen(not_utf8[i]), 0, "header byte 2: invalid UTF-8");
        assert_false(cmoei_utf8(not_utf8[i], (int64_t)strlen(not_utf8[i])));
    }
    /* Characters of two, three and four bytes, the largest of each, as they stand. */
    cmoei_header h = {0};
    const char *raw =
        "{\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f"
        "\xbf\xbf\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}";
    UNIT_OK(read_text(raw, (int64_t)strlen(raw), 1, &h, &err));
    assert_int_equal(strlen(h.entries[0].name), 21);
    assert_memory_equal(h.entries[0].name, raw + 2, 21);
    cmoei_header_free(&h, env.ctx);
    /* Everything that JSON may escape, in a value that is kept by nobody. */
    accept("{\"__metadata__\":{\"k\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00ff\\uD834\\uDd1e\"}}", 0, 0);
    /* Names are printed and compared as C strings. */
    refuse("{\"a\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
           "\"a?[2J\": a control character in the name");
    refuse("{\"a\\u007f\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
           "a control character in the name");
}

static void metadata(void **state)
{
    (void)state;
    refuse("{\"__metadata__\":null}", 0, "__metadata__: 'n', want '{' (an object of strings)");
    refuse("{\"__metadata__\":{\"a\":1}}", 0, "\"a\": __metadata__: '1', want '\"' (a string)");
    refuse("{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, "'{', want '\"'");
    refuse("{\"__metadata__\":{\"a\":\"1\"},\"__metadata__\":{}}", 0, "\"__metadata__\": twice");
    refuse("{\"__metadata__\":{\"a\":\"1\",\"b\":\"\",\"a\":\"2\"}}", 0,
           "__metadata__: key \"a\" twice");
    char *many = malloc(100000);
    int64_t n = snprintf(many, 100000, "{\"__metadata__\":{");
    for (int i = 0; i <= CMOEI_METADATA_MAX; i++)
        n += snprintf(many + n, 100, "%s\"%d\":\"\"", i ? "," : "", i);
    snprintf(many + n, 100, "}}");
    refuse(many, 0, "__metadata__: more than 4096 pairs");
    free(many);
}

/* ---- values ---------------------------------------------------------------------------------- */

static void values(void **state)
{
    (void)state;
    refuse(one("\"F64X\"", "[1]", "[0,8]"), 8,
           "\"x\": dtype: \"F64X\", want one of: BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3");
    refuse(one("\"f32\"", "[1]", "[0,4]"), 4, "dtype: \"f32\", want one of");
    refuse(one("\"\"", "[1]", "[0,4]"), 4, "dtype: \"\", want one of");
    refuse(one("32", "[1]", "[0,4]"), 4, "dtype: '3', want '\"'");
    refuse(one("\"F32\"", "4", "[0,4]"), 4, "\"x\": shape: '4', want '[' (a list of dimensions)");
    refuse(one("\"F32\"", "[-1]", "[0,4]"), 4, "\"x\": shape[0]: a negative number, -1, want");
    refuse(one("\"F32\"", "[-0]", "[0,4]"), 4, "shape[0]: a negative number");
    refuse(one("\"F32\"", "[1,1.0]", "[0,4]"), 4, "shape[1]: a fraction or exponent");
    refuse(one("\"F32\"", "[111111111111111111111111111111]", "[0,4]"), 4,
           "a number beyond 2^63 - 1, 111111111111111111111111..., want");
    refuse(one("\"F32\"", "[1e0]", "[0,4]"), 4, "shape[0]: a fraction or exponent");
    refuse(one("\"F32\"", "[01]", "[0,4]"), 4, "shape[0]: a number that begins with 0");
    refuse(one("\"F32\"", "[\"1\"]", "[0,4]"), 4, "shape[0]: '\"', want an integer >= 0");
    refuse(one("\"F32\"", "[true]", "[0,4]"), 4, "shape[0]: 't', want an integer >= 0");
    refuse(one("\"F32\"", "[1,]", "[0,4]"), 4, "shape[1]: ']', want an integer >= 0");
    refuse(one("\"F32\"", "[1 1]", "[0,4]"), 4, "shape: '1', want ']'");
    refuse(one("\"F32\"", "[[1]]", "[0,4]"), 4, "shape[0]: '[', want an integer");
    refuse(one("\"F32\"", "[9223372036854775808]", "[0,4]"), 4,
           "a number beyond 2^63 - 1, 9223372036854775808, want 0 <= n < 2^63");
    refuse(one("\"F32\"", "[1,1,1,1,1,1,1]", "[0,4]"), 4, "shape: more than 6 dimensions");
    accept(one("\"F32\"", "[1,1,1,1,1,1]", "[0,4]"), 4, 1);
    refuse(one("\"F4\"", "[3]", "[0,2]"), 2, "3 values of F4 are 12 bits, want whole bytes");
    refuse(one("\"F6_E2M3\"", "[2]", "[0,2]"), 2, "2 values of F6_E2M3 are 12 bits");
    refuse(one("\"F32\"", "[2]", "[0,4]"), 4,
           "\"x\": data_offsets span 4 bytes, want 8 (2 values of F32)");
    refuse(one("\"F32\"", "[0]", "[0,4]"), 4, "span 4 bytes, want 0 (0 values of F32)");
    refuse(one("\"F32\"", "[]", "[0,0]"), 0, "span 0 bytes, want 4 (1 values of F32)");
    refuse(one("\"F32\"", "[1]", "[0]"), 4, "data_offsets: ']', want ',' (two offsets)");
    refuse(one("\"F32\"", "[1]", "[0,4,4]"), 4, "data_offsets: ',', want ']' (two offsets)");
    refuse(one("\"F32\"", "[1]", "[]"), 4, "data_offsets[0]: ']', want an integer");
    refuse(one("\"F32\"", "[1]", "[-4,0]"), 4, "data_offsets[0]: a negative number");
    refuse(one("\"F32\"", "[1]", "[4,0]"), 4, "[4, 0], want the end not before the begin");
    refuse(one("\"F32\"", "[1]", "[0,4]"), 3,
           "\"x\": data_offsets: [0, 4], but the file has 3 bytes of data: cut short?");
}

#define U8(name, begin, end, n) \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" n "],\"data_offsets\":[" begin "," end "]}"

static void places(void **state)
{
    (void)state;
    accept("{" U8("b", "4", "6", "2") "," U8("e", "4", "4", "0") "," U8("a", "0", "4", "4") "}", 6,
           3);
    refuse("{" U8("a", "0", "4", "4") "," U8("b", "3", "6", "3") "}", 6,
           "tensor \"b\" begins at byte 3 of the data, want 4, where \"a\" ends: they overlap");
    refuse("{" U8("b", "5", "6", "1") "," U8("a", "0", "4", "4") "}", 6,
           "tensor \"b\" begins at byte 5 of the data, want 4, where \"a\" ends: a hole");
    refuse("{" U8("a", "1", "4", "3") "}", 4,
           "tensor \"a\" begins at byte 1 of the data, want 0, where the data begin: a hole");
    refuse("{" U8("a", "0", "4", "4") "," U8("b", "0", "4", "4") "}", 4, "they overlap");
    refuse("{" U8("a", "0", "4", "4") "," U8("e", "2", "2", "0") "}", 4, "they overlap");
    refuse("{" U8("a", "0", "4", "4") "}", 7, "3 bytes behind the last tensor, want none");
    refuse("{}", 1, "1 bytes behind the last tensor, want none");
    refuse("{" U8("a", "0", "1", "1") "," U8("a", "1", "2", "1") "}", 2, "tensor \"a\" twice");
    refuse("{" U8("a", "0", "1", "1") "," U8("\\u0061", "1", "2", "1") "}", 2,
           "tensor \"a\" twice");
}

/* ---- how others were broken ------------------------------------------------------------------ */

typedef struct history {
    const char *name, *json;
    int64_t data;
    const char *text;
} history;

static const history cases[] = {
    {"llamafile, llama.cpp: number of dimensions from the file (CVE-2024-21802)",
     "{\"x\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}"
     "}",
     4, "more than 6 dimensions"},
    {"product of dimensions wraps to a small one (CVE-2024-21825, CVE-2025-53630)",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,0]}}", 0,
     "its dimensions multiply to 2^63 bits or more"},
    {"product times size of an element wraps (CVE-2024-21836, CVE-2026-27940)",
     "{\"x\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
     "multiply to 2^63 bits or more"},
    {"a zero dimension hides a product that wraps (CVE-2026-33298)",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[0,4611686018427387904,4],\"data_offsets\":[0,0]}}", 0,
     "multiply to 2^63 bits or more"},
    {"the same, the zero last",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[4611686018427387904,4,0],\"data_offsets\":[0,0]}}", 0,
     "multiply to 2^63 bits or more"},
    {"string length from the file (CVE-2024-23605): a string that does not end", "{\"aaaaaaaa", 0,
     "a string without end"},
    {"begin plus size wraps (CVE-2024-23496)",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[9223372036854775804,"
     "9223372036854775807]}}",
     8, "but the file has 8 bytes of data"},
    {"an offset that is negative as int64 (CVE-2025-49847)",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[18446744073709551608,0]}}", 8,
     "data_offsets[0]: a number beyond 2^63 - 1"},
    {"declared size beyond the file: reads the heap (CVE-2026-7482)",
     "{\"x\":{\"dtype\":\"F32\",\"shape\":[1048576],\"data_offsets\":[0,4194304]}}", 64,
     "but the file has 64 bytes of data: cut short?"},
    {"two sizes that disagree: shape fills, offsets copy (colibri)",
     "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,64]}}", 64,
     "data_offsets span 64 bytes, want 16"},
    {"unknown format guessed as another (colibri)",
     "{\"x\":{\"dtype\":\"INT2\",\"shape\":[8],\"data_offsets\":[0,2]}}", 2,
     "dtype: \"INT2\", want"},
    {"no value behind a key: null pointer (CVE-2024-41130)", "{\"x\":null}", 0, "want '{'"},
    {"a kind that is not the expected one: uninitialised value (CVE-2024-32878)",
     "{\"x\":{\"dtype\":[],\"shape\":{},\"data_offsets\":\"\"}}", 0, "dtype: '[', want '\"'"},
    {"digits not checked before conversion (lmstudio 2289)",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[1x],\"data_offsets\":[0,1]}}", 1, "want ']'"},
    {"trailing data: another file behind this one (Trail of Bits 2023)", "{}", 22,
     "22 bytes behind the last tensor"},
    {"leading blanks: another file in front (Trail of Bits 2023)", "  {}", 0, "first byte must be"},
    {"overlapping tensors (Trail of Bits 2023)",
     "{" U8("a", "0", "8", "8") "," U8("b", "0", "8", "8") "}", 8, "they overlap"},
    {"a key twice: two parsers see two tensors (Trail of Bits 2023)",
     "{" U8("a", "0", "8", "8") "," U8("a", "0", "8", "8") "}", 8, "tensor \"a\" twice"},
    {"a hole that carries what nobody reads", "{" U8("a", "8", "16", "8") "}", 16, "a hole"},
    {"a fraction where an integer is meant",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[1e300],\"data_offsets\":[0,1]}}", 1,
     "fraction or exponent"},
};

static void historic(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        print_message("  %s\n", cases[i].name);
        refuse(cases[i].json, cases[i].data, cases[i].text);
    }
    /* A NUL ends the name for one reader and not for another (colibri, JSON in C). */
    REFUSE_NUL("{\"x\0y\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
               "byte 0x00 in a string");
    /* Every header of the good table cut at every byte, and with every byte replaced. */
    static const char whole[] = "{\"__metadata__\":{\"f\":\"pt\"}," U8(
        "a\\u00e9", "0", "2", "2") "," U8("b", "2", "3", "1") "}";
    for (int64_t n = 0; n < (int64_t)sizeof whole - 1; n++)
        refuse_n(whole, n, 3, "");
    for (size_t at = 0; at < sizeof whole - 1; at++) {
        for (int byte = 0; byte < 256; byte++) {
            char text[sizeof whole];
            memcpy(text, whole, sizeof whole);
            text[at] = (char)byte;
            cmoei_header h = {0};
            const cmoe_status status = read_text(text, sizeof whole - 1, 3, &h, NULL);
            assert_true(status == CMOE_OK || status == CMOE_ERR_FORMAT);
            cmoei_header_free(&h, env.ctx);
        }
    }
}

/* ---- size ------------------------------------------------------------------------------------ */

static double seconds(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* 100 MB of nested lists, of blanks, of one string, of a list of zeros: refused or read, and no
 * tree is built.  The time is that of a machine which does other things too. */
static void hundred_megabytes(void **state)
{
    (void)state;
    static const char *const starts[] = {"{\"", "{\"x\":{\"shape\":[0,0", "{\"x\":", "{\"x\":[",
                                         "{"};
    static const char fills[] = {'a', '0', '[', '{', ' '};
    char *text = malloc(CMOEI_HEADER_MAX);
    for (int i = 0; i < 5; i++) {
        memset(text, fills[i], CMOEI_HEADER_MAX);
        memcpy(text, starts[i], strlen(starts[i]));
        cmoei_header h;
        const double begin = seconds();
        UNIT_FAILS(cmoei_header_read(&h, env.ctx, text, CMOEI_HEADER_MAX, INT64_MAX, "f", &err),
                   CMOE_ERR_FORMAT, "f: header byte");
        assert_true(seconds() - begin < 10);
    }
    free(text);
}

static void shown_names(void **state)
{
    (void)state;
    char out[CMOEI_SHOWN + 4], name[300];
    assert_string_equal(cmoei_shown(out, "a\nb\x7f", 4), "a?b?");
    memset(name, 'n', sizeof name);
    assert_int_equal(strlen(cmoei_shown(out, name, 96)), 96);
    assert_int_equal(strlen(cmoei_shown(out, name, 97)), 99);
    assert_string_equal(out + 94, "nn...");
    memcpy(name + 94, "\xf0\x9f\x98\x80", 4); /* cut in front of a character, not inside */
    assert_int_equal(strlen(cmoei_shown(out, name, 300)), 97);
    assert_true(cmoei_utf8(out, 97));
    /* A name of 300 bytes: found, and shown cut. */
    char json[600];
    memset(name, 'n', sizeof name);
    snprintf(json, sizeof json,
             "{\"%.300s\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1]}}", name);
    refuse(json, 1, "nnn...\": data_offsets span 1 bytes, want 2");
    cmoei_header h = {0};
    json[strlen(json) - 4] = '2'; /* right this time: the name is kept whole */
    UNIT_OK(read_text(json, (int64_t)strlen(json), 2, &h, &err));
    assert_int_equal(strlen(h.entries[0].name), 300);
    assert_memory_equal(h.entries[0].name, name, 300);
    cmoei_header_free(&h, env.ctx);
}

static int compare_values(const void *table, int32_t a, int32_t b)
{
    const uint64_t *v = table;
    return (v[a] > v[b]) - (v[a] < v[b]);
}

static void sorting(void **state)
{
    (void)state;
    for (int n = 0; n < 70; n++) {
        for (uint64_t seed = 0; seed < 8; seed++) {
            uint64_t values[70];
            int32_t order[70], scratch[70];
            for (int i = 0; i < n; i++) {
                values[i] = seed == 0 ? (uint64_t)i : cmoe_random_u64(seed, (uint64_t)i, 0) % 20;
                order[i] = i;
            }
            cmoei_sort(order, scratch, n, compare_values, values);
            for (int i = 1; i < n; i++) {
                assert_true(values[order[i - 1]] <= values[order[i]]);
                if (values[order[i - 1]] == values[order[i]]) assert_true(order[i - 1] < order[i]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good),
        cmocka_unit_test(a_table),
        cmocka_unit_test(formats),
        cmocka_unit_test(lengths),
        cmocka_unit_test(syntax),
        cmocka_unit_test(strings),
        cmocka_unit_test(metadata),
        cmocka_unit_test(values),
        cmocka_unit_test(places),
        cmocka_unit_test(historic),
        cmocka_unit_test(hundred_megabytes),
        cmocka_unit_test(shown_names),
        cmocka_unit_test(sorting),
    };
    env = unit_open(1);
    const int failed = UNIT_RUN("unit_safetensors", tests);
    unit_close(&env);
    return failed;
}
