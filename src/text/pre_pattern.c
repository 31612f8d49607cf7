/* SPDX-License-Identifier: MIT
 *
 * pre_pattern.c - see pre_pattern.h.
 *
 * A pattern tells characters apart only by the classes that stand in it.  So PCRE2 never sees Unicode:
 * the pattern is read here, every class and every character beyond ASCII becomes a set, characters that
 * lie in the same sets become one symbol of one byte, and PCRE2 matches bytes against classes of bytes.
 * Which symbols those are is known when all sets are: until then a set stands in the text as one byte
 * beyond ASCII, its number.
 *
 *     \p{L}+|[^\s\p{L}]  ->  [A-Za-z\x80]+|[\x00-\x08...\x81\x82]
 *
 * ASCII keeps its values, which leaves 128 symbols for the rest; the patterns of published models need
 * less than ten.  Against classes of several hundred ranges in PCRE2's UTF mode this is as exact, does
 * not depend on the version of Unicode that PCRE2 was built with, and Chinese is as fast as English.
 *
 * Oniguruma's syntax is read, not PCRE2's.  Where the two mean different things by one spelling the
 * spelling is refused, by name.
 */
#include "pre_pattern.h"

#include <stdio.h>
#include <string.h>

#include <utf8proc.h>

enum { MOST_SETS = 64, MOST_DEPTH = 200, MOST_SOURCE = 1 << 12, ASCII = 128 };

/* One atom of the source, for finding the place of an error of PCRE2's. */
typedef struct mark {
    int64_t source, emitted;
} mark;

typedef struct compiler {
    cmoe_ctx *ctx;
    cmoe_error *err;
    const char *what, *source;
    int64_t bytes, at;
    int32_t depth;
    bool fold[MOST_DEPTH + 1];    /* (?i) in every open group */
    cmoei_charset set[MOST_SETS]; /* distinct ones */
    int32_t sets;
    uint64_t symbol_sets[256]; /* which sets a symbol lies in */
    int32_t symbols;
    cmoei_buffer out, marks; /* out: ASCII, and 0x80 + i for set i */
    cmoei_buffer blocks;     /* of the table, as cmoei_pattern has them */
} compiler;

/* ---- texts ----------------------------------------------------------------------------------- */

static cmoe_status fail_at(const compiler *c, cmoe_status status, int64_t at, const char *text)
{
    /* The pattern is quoted from a little before the place. */
    int64_t from = CMOEI_MAX(0, at - 12), n = CMOEI_MIN(c->bytes - from, 24);
    while (from > 0 && ((unsigned char)c->source[from] & 0xc0) == 0x80)
        from--, n++;
    while (n > 0 && from + n < c->bytes && ((unsigned char)c->source[from + n] & 0xc0) == 0x80)
        n--;
    return cmoei_fail(c->err, status, "%s: pattern, byte %lld (\"%s%.*s%s\"): %s", c->what,
                      (long long)at, from ? "..." : "", (int)n, c->source + from,
                      from + n < c->bytes ? "..." : "", text);
}

static cmoe_status refuse(const compiler *c, int64_t at, const char *construct)
{
    char text[128];
    snprintf(text, sizeof text, "%s not supported", construct);
    return fail_at(c, CMOE_ERR_UNSUPPORTED, at, text);
}

static cmoe_status broken(const compiler *c, int64_t at, const char *text)
{
    return fail_at(c, CMOE_ERR_FORMAT, at, text);
}

/* ---- reading --------------------------------------------------------------------------------- */

static int peek(const compiler *c, int64_t ahead)
{
    return c->at + ahead < c->bytes ? (unsigned char)c->source[c->at + ahead] : -1;
}

static bool starts(const compiler *c, const char *text)
{
    const int64_t n = (int64_t)strlen(text);
    return c->bytes - c->at >= n && memcmp(c->source + c->at, text, (size_t)n) == 0;
}

static int digit_of(int c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : 16;
}

/* least..most hexadecimal digits. */
static cmoe_status read_hex(compiler *c, int32_t least, int32_t most, uint32_t *point)
{
    uint32_t value = 0;
    int32_t n = 0;
    for (; n < most && digit_of(peek(c, 0)) < 16; n++, c->at++)
        value = value << 4 | (uint32_t)digit_of(peek(c, 0));
    if (n < least || value >= CMOEI_CODE_POINTS || (value >= 0xd800 && value < 0xe000))
        return broken(c, c->at, "no character has this number");
    *point = value;
    return CMOE_OK;
}

/* Behind "\p" or "\P": {name} or {^name}. */
static cmoe_status read_property(compiler *c, bool negated, cmoei_charset *set)
{
    const int64_t begin = c->at - 2;
    if (peek(c, 0) != '{') return broken(c, begin, "\\p wants a name in braces");
    c->at++;
    if (peek(c, 0) == '^') negated = !negated, c->at++;
    const int64_t name = c->at;
    while (peek(c, 0) >= 0 && peek(c, 0) != '}')
        c->at++;
    if (peek(c, 0) < 0) return broken(c, begin, "\\p{ is not closed");
    bool known;
    CMOEI_TRY(cmoei_charset_property(set, c->source + name, c->at - name, &known, c->err));
    if (!known)
        return refuse(c, begin, "this property (want a general category: L, Lu, N, Nd, P, ...)");
    c->at++;
    return negated ? cmoei_charset_invert(set, c->err) : CMOE_OK;
}

/* Behind a backslash: a set, or, with *point >= 0, one character.  *point == -2: neither. */
static cmoe_status read_escape(compiler *c, cmoei_charset *set, int64_t *point)
{
    static const char names[] = "nrtfvae", values[] = "\n\r\t\f\v\a\x1b";
    const int k = peek(c, 0);
    uint32_t value = 0;
    *point = -1;
    if (k < 0) return broken(c, c->at, "ends in a backslash");
    c->at++;
    if (k == 'p' || k == 'P') return read_property(c, k == 'P', set);
    if (strchr("sdwhSDWH", k)) {
        CMOEI_TRY(cmoei_charset_escape(set, (char)(k | 0x20), c->err));
        return k & 0x20 ? CMOE_OK : cmoei_charset_invert(set, c->err);
    }
    if (k == 'x' && peek(c, 0) == '{') {
        c->at++;
        CMOEI_TRY(read_hex(c, 1, 8, &value));
        if (peek(c, 0) != '}') return broken(c, c->at, "\\x{ is not closed");
        c->at++;
        *point = value;
    } else if (k == 'x' || k == 'u') {
        CMOEI_TRY(read_hex(c, k == 'x' ? 1 : 4, k == 'x' ? 2 : 4, &value));
        if (k == 'x' && value >= ASCII) return refuse(c, c->at, "a byte above 7f");
        *point = value;
    } else if (strchr(names, k)) {
        *point = values[strchr(names, k) - names];
    } else if (k < ASCII && !(digit_of(k) < 10) && !((k | 0x20) >= 'a' && (k | 0x20) <= 'z')) {
        *point = k;
    } else {
        *point = -2;
        c->at--;
    }
    return CMOE_OK;
}

static bool folding(const compiler *c)
{
    return c->fold[c->depth];
}

/* One member of a class, *point >= 0 when it is a single character. */
static cmoe_status read_member(compiler *c, cmoei_charset *set, int64_t *point)
{
    const int64_t begin = c->at;
    if (peek(c, 0) == '[') return refuse(c, begin, "a class inside a class");
    if (starts(c, "&&")) return refuse(c, begin, "an intersection of classes");
    if (peek(c, 0) == '\\') {
        c->at++;
        if (peek(c, 0) == 'b') {
            c->at++;
            *point = '\b';
            return CMOE_OK;
        }
        CMOEI_TRY(read_escape(c, set, point));
        return *point == -2 ? refuse(c, begin, "this escape") : CMOE_OK;
    }
    int32_t length;
    *point = cmoei_utf8_get(c->source + c->at, &length);
    c->at += length;
    return CMOE_OK;
}

/* Behind "[". */
static cmoe_status read_class(compiler *c, cmoei_charset *set)
{
    const int64_t begin = c->at - 1;
    const bool negated = peek(c, 0) == '^';
    c->at += negated;
    for (bool first = true; first || peek(c, 0) != ']'; first = false) {
        if (peek(c, 0) < 0) return broken(c, begin, "this class is not closed");
        int64_t point = -1, last;
        cmoei_charset part = {.ctx = c->ctx};
        cmoe_status status = read_member(c, &part, &point);
        if (status == CMOE_OK) status = cmoei_charset_union(set, &part, c->err);
        cmoei_charset_free(&part);
        CMOEI_TRY(status);
        if (point < 0) continue;
        last = point;
        if (peek(c, 0) == '-' && peek(c, 1) >= 0 && peek(c, 1) != ']') {
            c->at++;
            status = read_member(c, &part, &last);
            cmoei_charset_free(&part);
            CMOEI_TRY(status);
            if (last < point)
                return broken(c, begin, "a range of this class ends before it begins");
        }
        CMOEI_TRY(cmoei_charset_add(set, (uint32_t)point, (uint32_t)last, c->err));
    }
    c->at++;
    if (folding(c)) CMOEI_TRY(cmoei_charset_fold(set, c->err));
    return negated ? cmoei_charset_invert(set, c->err) : CMOE_OK;
}

/* ---- writing --------------------------------------------------------------------------------- */

static cmoe_status emit(compiler *c, const char *text, int64_t bytes)
{
    return cmoei_buffer_add(&c->out, text, bytes, c->err);
}

static cmoe_status emit_text(compiler *c, const char *text)
{
    return emit(c, text, (int64_t)strlen(text));
}

/* Which of the sets this is; one more if it is new. */
static cmoe_status set_index(compiler *c, const cmoei_charset *set, int32_t *index)
{
    for (*index = 0; *index < c->sets; (*index)++) {
        const cmoei_charset *s = &c->set[*index];
        if (s->count == set->count &&
            (!s->count || memcmp(s->range, set->range, (size_t)s->count * 8) == 0))
            return CMOE_OK;
    }
    if (c->sets == MOST_SETS) return refuse(c, c->at, "more than 64 different classes");
    c->set[c->sets] = (cmoei_charset){.ctx = c->ctx};
    return cmoei_charset_union(&c->set[c->sets++], set, c->err);
}

static cmoe_status emit_set(compiler *c, const cmoei_charset *set)
{
    int32_t index;
    CMOEI_TRY(set_index(c, set, &index));
    return emit(c, &(char){(char)(ASCII + index)}, 1);
}

static cmoe_status emit_point(compiler *c, uint32_t point)
{
    if (point < ASCII && !folding(c)) {
        char text[8];
        const int n = snprintf(text, sizeof text, "\\x%02x", point);
        return emit(c, text, n);
    }
    cmoei_charset set = {.ctx = c->ctx};
    cmoe_status status = cmoei_charset_add(&set, point, point, c->err);
    if (status == CMOE_OK && folding(c)) status = cmoei_charset_fold(&set, c->err);
    if (status == CMOE_OK) status = emit_set(c, &set);
    cmoei_charset_free(&set);
    return status;
}

/* \b and \B: a word character on exactly one side, or not. */
static cmoe_status emit_boundary(compiler *c, bool negated)
{
    static const char *const part[2][4] = {{"(?:(?<=", ")(?!", ")|(?<!", ")(?="},
                                           {"(?:(?<=", ")(?=", ")|(?<!", ")(?!"}};
    cmoei_charset word = {.ctx = c->ctx};
    cmoe_status status = cmoei_charset_escape(&word, 'w', c->err);
    for (int32_t i = 0; i < 4 && status == CMOE_OK; i++) {
        status = emit_text(c, part[negated][i]);
        if (status == CMOE_OK) status = emit_set(c, &word);
    }
    cmoei_charset_free(&word);
    return status == CMOE_OK ? emit_text(c, "))") : status;
}

/* ---- syntax ---------------------------------------------------------------------------------- */

/* Behind "(". */
static cmoe_status group(compiler *c)
{
    static const char *const plain[] = {"?:", "?=", "?!", "?>", "?<=", "?<!"};
    const int64_t begin = c->at - 1;
    if (c->depth == MOST_DEPTH) return refuse(c, begin, "more than 200 groups in each other");
    bool fold = folding(c);
    if (peek(c, 0) == '*') return refuse(c, begin, "(*");
    if (peek(c, 0) != '?') {
        CMOEI_TRY(emit_text(c, "(?:")); /* nobody asks what a group held */
    } else if (starts(c, "?i)") || starts(c, "?-i)")) {
        c->fold[c->depth] = peek(c, 1) == 'i';
        c->at += peek(c, 1) == 'i' ? 3 : 4;
        return CMOE_OK;
    } else if (starts(c, "?i:") || starts(c, "?-i:")) {
        fold = peek(c, 1) == 'i';
        c->at += fold ? 3 : 4;
        CMOEI_TRY(emit_text(c, "(?:"));
    } else {
        int32_t i = 0;
        while (i < CMOEI_COUNT(plain) && !starts(c, plain[i]))
            i++;
        if (i == CMOEI_COUNT(plain))
            return refuse(c, begin, "this group (want one of: (?: (?i: (?= (?! (?<= (?<! (?>)");
        c->at += (int64_t)strlen(plain[i]);
        CMOEI_TRY(emit_text(c, "("));
        CMOEI_TRY(emit_text(c, plain[i]));
    }
    c->fold[++c->depth] = fold;
    return CMOE_OK;
}

/* "{n}", "{n,}", "{n,m}", "{,m}" at `at`: its length, 0 if it is something else. */
static int64_t braces(const compiler *c)
{
    int64_t n = 1, digits = 0;
    while (digit_of(peek(c, n)) < 10)
        n++, digits++;
    if (peek(c, n) == ',')
        for (n++; digit_of(peek(c, n)) < 10; n++)
            digits++;
    return peek(c, n) == '}' && digits ? n + 1 : 0;
}

/* One of * + ? { at `at`, with what may follow. */
static cmoe_status quantifier(compiler *c, int64_t length)
{
    const int64_t begin = c->at;
    const bool counted = peek(c, 0) == '{';
    if (counted && peek(c, 1) == ',') CMOEI_TRY(emit_text(c, "{0"));
    const int64_t skip = counted && peek(c, 1) == ',';
    CMOEI_TRY(emit(c, c->source + c->at + skip, length - skip));
    c->at += length;
    const int next = peek(c, 0);
    if (next != '?' && next != '+') return CMOE_OK;
    /* Behind a count Oniguruma takes + as one more repetition and, behind {n}, ? as an option. */
    if (counted && (next == '+' || !memchr(c->source + begin, ',', (size_t)length)))
        return refuse(c, begin, "+ or ? behind this count");
    c->at++;
    return emit(c, next == '?' ? "?" : "+", 1);
}

/* Behind a backslash, outside of classes. */
static cmoe_status escape(compiler *c)
{
    const int64_t begin = c->at - 1;
    const int k = peek(c, 0);
    if (k == 'b' || k == 'B') {
        c->at++;
        return emit_boundary(c, k == 'B');
    }
    if (k == 'A' || k == 'z' || k == 'Z') {
        c->at++;
        return emit_text(c, k == 'A' ? "\\A" : k == 'z' ? "\\z" : "\\Z");
    }
    cmoei_charset set = {.ctx = c->ctx};
    int64_t point = -1;
    cmoe_status status = read_escape(c, &set, &point);
    if (status == CMOE_OK && point == -2) status = refuse(c, begin, "this escape");
    if (status == CMOE_OK && point < 0 && folding(c)) status = cmoei_charset_fold(&set, c->err);
    if (status == CMOE_OK) status = point < 0 ? emit_set(c, &set) : emit_point(c, (uint32_t)point);
    cmoei_charset_free(&set);
    return status;
}

/* "[...]" or ".". */
static cmoe_status class(compiler *c, bool any)
{
    cmoei_charset set = {.ctx = c->ctx};
    cmoe_status status;
    if (any) {
        status = cmoei_charset_add(&set, '\n', '\n', c->err);
        if (status == CMOE_OK) status = cmoei_charset_invert(&set, c->err);
    } else {
        status = read_class(c, &set);
    }
    if (status == CMOE_OK) status = emit_set(c, &set);
    cmoei_charset_free(&set);
    return status;
}

static cmoe_status atom(compiler *c)
{
    const int k = peek(c, 0);
    const int64_t counted = k == '{' ? braces(c) : 0;
    if (counted || k == '*' || k == '+' || k == '?') return quantifier(c, counted ? counted : 1);
    if (k == '|' || k == '^' || k == '$') return emit(c, c->source + c->at++, 1);
    if (k == ')') {
        if (c->depth == 0) return broken(c, c->at, "closes a group that is not open");
        c->depth--;
        c->at++;
        return emit_text(c, ")");
    }
    if (k == '(') return c->at++, group(c);
    if (k == '[' || k == '.') return c->at++, class(c, k == '.');
    if (k == '\\') return c->at++, escape(c);
    int32_t length;
    const uint32_t point = cmoei_utf8_get(c->source + c->at, &length);
    c->at += length;
    return emit_point(c, point);
}

static cmoe_status read_pattern(compiler *c)
{
    while (c->at < c->bytes) {
        const mark m = {c->at, c->out.bytes};
        CMOEI_TRY(cmoei_buffer_add(&c->marks, &m, sizeof m, c->err));
        CMOEI_TRY(atom(c));
    }
    return c->depth ? broken(c, c->bytes, "a group is not closed") : CMOE_OK;
}

/* ---- symbols --------------------------------------------------------------------------------- */

/* The sets `point` lies in; *end: where behind it that may change.  Points come in ascending order;
 * at[i] is the first range of set i that does not end before the last one. */
static uint64_t sets_of(const compiler *c, int64_t at[MOST_SETS], uint32_t point, uint32_t *end)
{
    uint64_t sets = 0;
    *end = CMOEI_CODE_POINTS;
    for (int32_t i = 0; i < c->sets; i++) {
        const cmoei_charset *s = &c->set[i];
        while (at[i] < s->count && s->range[2 * at[i] + 1] < point)
            at[i]++;
        if (at[i] == s->count) continue;
        const uint32_t *range = s->range + 2 * at[i];
        const bool in = range[0] <= point;
        sets |= (uint64_t)in << i;
        *end = CMOEI_MIN(*end, in ? range[1] + 1 : range[0]);
    }
    return sets;
}

static cmoe_status symbol_for(compiler *c, uint64_t sets, uint8_t *symbol)
{
    int32_t i = ASCII;
    while (i < c->symbols && c->symbol_sets[i] != sets)
        i++;
    if (i == 256)
        return refuse(c, 0, "a pattern that tells more than 128 kinds of characters apart");
    if (i == c->symbols) c->symbol_sets[c->symbols++] = sets;
    *symbol = (uint8_t)i;
    return CMOE_OK;
}

enum { PAGES = CMOEI_CODE_POINTS / 256 };

/* Pages of one symbol, which nearly all are, share a block; uniform[symbol] is its number + 1. */
static cmoe_status keep_block(compiler *c, uint16_t *page, const uint8_t fresh[256], bool same,
                              int32_t uniform[256])
{
    int32_t i = same ? uniform[fresh[0]] : 0;
    if (i == 0) {
        CMOEI_TRY(cmoei_buffer_add(&c->blocks, fresh, 256, c->err));
        i = (int32_t)(c->blocks.bytes / 256);
        if (same) uniform[fresh[0]] = i;
    }
    *page = (uint16_t)(i - 1);
    return CMOE_OK;
}

static cmoe_status make_symbols(compiler *c, cmoei_pattern *p)
{
    int64_t at[MOST_SETS] = {0};
    int32_t uniform[256] = {0};
    uint8_t fresh[256], symbol = 0;
    uint32_t end = 0; /* of the code points that have this symbol */
    c->symbols = ASCII;
    for (uint32_t page = 0; page < PAGES; page++) {
        const uint32_t behind = (page + 1) * 256;
        bool same = false;
        for (uint32_t point = page * 256, stop; point < behind; point = stop) {
            if (point == end) {
                const uint64_t sets = sets_of(c, at, point, &end);
                if (point < ASCII) { /* ASCII keeps its values */
                    c->symbol_sets[point] = sets;
                    symbol = (uint8_t)point;
                    end = point + 1;
                } else {
                    CMOEI_TRY(symbol_for(c, sets, &symbol));
                }
            }
            stop = CMOEI_MIN(end, behind);
            same = stop - point == 256;
            /* Of a page that is there already the first one says which. */
            memset(fresh + point % 256, symbol, same && uniform[symbol] ? 1 : stop - point);
        }
        CMOEI_TRY(keep_block(c, &p->page[page], fresh, same, uniform));
    }
    return CMOE_OK;
}

/* Which symbol a code point is. */
static cmoe_status build_table(compiler *c, cmoei_pattern *p)
{
    void *space;
    CMOEI_TRY(cmoei_alloc(c->ctx, PAGES * 2, "pattern", &space, c->err));
    p->page = space;
    CMOEI_TRY(make_symbols(c, p));
    CMOEI_TRY(cmoei_alloc(c->ctx, c->blocks.bytes, "pattern", &space, c->err));
    p->block = space;
    p->blocks = c->blocks.bytes / 256;
    memcpy(p->block, c->blocks.data, (size_t)c->blocks.bytes);
    return CMOE_OK;
}

/* ---- PCRE2 ----------------------------------------------------------------------------------- */

static cmoe_status put_set(compiler *c, cmoei_buffer *out, int32_t index)
{
    char text[16];
    int32_t members = 0;
    CMOEI_TRY(cmoei_buffer_add(out, "[", 1, c->err));
    for (int32_t i = 0; i < 256; i++) {
        int32_t end = i;
        while (end < c->symbols && c->symbol_sets[end] >> index & 1)
            end++;
        if (end == i) continue;
        const int n = snprintf(text, sizeof text, "\\x%02x-\\x%02x", i, end - 1);
        CMOEI_TRY(cmoei_buffer_add(out, text, n, c->err));
        members += end - i;
        i = end - 1;
    }
    const char *rest = members ? "]" : "^\\x00-\\xff]";
    return cmoei_buffer_add(out, rest, (int64_t)strlen(rest), c->err);
}

/* Every number of a set becomes the class of its symbols; marks move along. */
static cmoe_status put_sets(compiler *c, cmoei_buffer *out)
{
    mark *m = (void *)c->marks.data;
    int64_t k = 0;
    const int64_t marks = c->marks.bytes / (int64_t)sizeof *m;
    for (int64_t i = 0; i < c->out.bytes; i++) {
        for (; k < marks && m[k].emitted <= i; k++)
            m[k].emitted = out->bytes;
        const uint8_t byte = (uint8_t)c->out.data[i];
        if (byte < ASCII)
            CMOEI_TRY(cmoei_buffer_add(out, &c->out.data[i], 1, c->err));
        else
            CMOEI_TRY(put_set(c, out, byte - ASCII));
    }
    for (; k < marks; k++)
        m[k].emitted = out->bytes;
    return CMOE_OK;
}

static cmoe_status compile(compiler *c, cmoei_pattern *p, const cmoei_buffer *text,
                           pcre2_general_context *memory)
{
    pcre2_compile_context *context = pcre2_compile_context_create(memory);
    if (!context) return cmoei_fail(c->err, CMOE_ERR_MEMORY, "%s: no memory", c->what);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE offset = 0;
    /* ^ and $ are those of lines in Oniguruma's Ruby syntax. */
    p->code =
        pcre2_compile((PCRE2_SPTR)text->data, (PCRE2_SIZE)text->bytes,
                      PCRE2_MULTILINE | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP | PCRE2_NEVER_BACKSLASH_C,
                      &code, &offset, context);
    pcre2_compile_context_free(context);
    if (!p->code && code == PCRE2_ERROR_HEAP_FAILED)
        return cmoei_fail(c->err, CMOE_ERR_MEMORY, "%s: no memory for the pattern", c->what);
    if (!p->code) {
        const mark *m = (const void *)c->marks.data;
        int64_t at = 0;
        for (int64_t i = 0; i < c->marks.bytes / (int64_t)sizeof *m; i++)
            if (m[i].emitted <= (int64_t)offset) at = m[i].source;
        char why[128];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return broken(c, at, why);
    }
    /* Where there is no JIT, pcre2_match interprets. */
    p->jit = pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE) == 0;
    if (pcre2_pattern_info(p->code, PCRE2_INFO_FIRSTBITMAP, &p->first) != 0) p->first = NULL;
    return CMOE_OK;
}

cmoe_status cmoei_pattern_compile(cmoei_pattern *p, pcre2_general_context *memory, cmoe_ctx *ctx,
                                  const char *source, int64_t bytes, const char *what,
                                  cmoe_error *err)
{
    *p = (cmoei_pattern){.ctx = ctx};
    if (bytes > MOST_SOURCE)
        return cmoei_fail(err, CMOE_ERR_RANGE, "%s: pattern of %lld bytes, want at most %d", what,
                          (long long)bytes, MOST_SOURCE);
    void *space;
    CMOEI_TRY(cmoei_alloc(ctx, sizeof(compiler), "pattern", &space, err));
    compiler *c = space;
    *c = (compiler){.ctx = ctx, .err = err, .what = what, .source = source, .bytes = bytes};
    c->out.ctx = c->marks.ctx = c->blocks.ctx = ctx;
    cmoei_buffer text = {.ctx = ctx};
    cmoe_status status = read_pattern(c);
    if (status == CMOE_OK) status = build_table(c, p);
    if (status == CMOE_OK) status = put_sets(c, &text);
    if (status == CMOE_OK) status = compile(c, p, &text, memory);
    if (status != CMOE_OK) cmoei_pattern_free(p);
    for (int32_t i = 0; i < c->sets; i++)
        cmoei_charset_free(&c->set[i]);
    cmoei_buffer_free(&c->out);
    cmoei_buffer_free(&c->marks);
    cmoei_buffer_free(&c->blocks);
    cmoei_buffer_free(&text);
    cmoei_free(ctx, c, sizeof *c);
    return status;
}

void cmoei_pattern_free(cmoei_pattern *p)
{
    pcre2_code_free(p->code);
    if (p->page) cmoei_free(p->ctx, p->page, PAGES * 2);
    if (p->block) cmoei_free(p->ctx, p->block, p->blocks * 256);
    *p = (cmoei_pattern){.ctx = p->ctx};
}
