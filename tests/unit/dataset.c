/* SPDX-License-Identifier: MIT
 *
 * Datasets from files: ids, what is learned, parts, and refusals with file and line.
 *
 * Tokens are bytes, but for "ab" and the special ones, so that a dataset can be written down as text: '<', '|'
 * and '>' stand for special tokens, and 'X' for "ab".
 */
#include "unit.h"

#include "cmoe/text.h"
#include "files.h"
#include "memory.h"
#include "train/data.h"

static unit_env env;
static files_folder folder;
static cmoe_tokenizer *tokenizer, *with_bos;
static cmoe_template *chat;

static const char *const special[] = {"<e>", "<u>", "<a>", NULL};
static const char marks[] = "<|>"; /* how tests write them */

/* <u>question<a>answer<e> */
static const char source[] =
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}{% elif m.role == "
    "'assistant' %}"
    "<a>{{ m.content }}{{ eos_token }}{% elif m.role == 'stop' %}{{ raise_exception('no stop') }}"
    "{% elif m.role == 'last' %}{{ loop.last }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}";

static cmoe_dataset_options options(void)
{
    cmoe_dataset_options o;
    cmoe_dataset_options_default(&o, sizeof o);
    o.tokenizer = tokenizer;
    o.chat = chat;
    return o;
}

static cmoe_status open_with(cmoe_dataset **out, const char *name, const cmoe_dataset_options *o,
                             cmoe_error *err)
{
    return cmoe_dataset_open(out, env.ctx, files_in(&folder, name), o, err);
}

static char shown(int32_t id)
{
    if (id >= 257) return marks[id - 257];
    if (id == 256) return 'X';
    char c[1];
    int64_t n = 0;
    UNIT_OK(cmoe_tokenizer_decode(tokenizer, &id, 1, 0, c, 1, &n, &err));
    return c[0] ? c[0] : '0';
}

/* Documents are separated by a slash; `learn` has a 1 below each token that is learned. */
static void holds(const cmoe_dataset *d, const char *ids, const char *learn, int64_t bytes)
{
    char got[512] = "", flags[512] = "";
    int n = 0;
    int64_t document = 0, learned = 0;
    for (int64_t i = 0; i < d->tokens; i++) {
        if (document < d->document_count && d->documents[document] == i) {
            if (document++ > 0) got[n] = flags[n] = '/', n++;
        }
        got[n] = shown(d->ids[i]);
        flags[n++] = d->learn[i] ? '1' : '0';
        learned += d->learn[i];
    }
    assert_string_equal(got, ids);
    assert_string_equal(flags, learn);
    cmoe_dataset_info info = {.size = sizeof info};
    UNIT_OK(cmoe_dataset_describe(d, &info, &err));
    assert_int_equal(info.tokens, d->tokens);
    assert_int_equal(info.documents, document);
    assert_int_equal(info.learned, learned);
    assert_int_equal(info.bytes, bytes);
    assert_int_equal(d->documents[document], d->tokens);
}

static void gives(const char *name, const char *text, const cmoe_dataset_options *o,
                  const char *ids, const char *learn, int64_t bytes)
{
    cmoe_dataset *d = NULL;
    files_text(&folder, name, text);
    UNIT_OK(open_with(&d, name, o, &err));
    holds(d, ids, learn, bytes);
    cmoe_dataset_free(d);
    remove(files_in(&folder, name));
}

static void refused(const char *name, const char *text, const cmoe_dataset_options *o,
                    cmoe_status status, const char *want)
{
    cmoe_dataset *d = (cmoe_dataset *)1;
    files_text(&folder, name, text);
    UNIT_FAILS(open_with(&d, name, o, &err), status, want);
    assert_ptr_equal(d, (void *)1);
    remove(files_in(&folder, name));
}

/* ---- plain text ---------------------------------------------------------------------------------- */

static void test_text(void **state)
{
    (void)state;
    cmoe_dataset_options o = options();
    gives("t.txt", "cab d", &o, "cX d<", "11111", 5);
    gives("t.txt", "c<e>", &o, "c<", "11", 4); /* the end is there */
    gives("t.txt", "", &o, "", "", 0);
    gives("jsonl", "{}", &o, "{}<", "111", 2);
    o.end = -2;
    gives("t.txt", "cab d", &o, "cX d", "1111", 5);
    o.end = 258;
    gives("t.txt", "cab d", &o, "cX d|", "11111", 5);
    o.end = -1;
    o.tokenizer = with_bos;
    gives("t.txt", "cd", &o, "|cd<", "1111", 2);
}

static void test_parts(void **state)
{
    (void)state;
    static const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z\xf0\x9f\x98\x80";
    const int64_t bytes = (int64_t)sizeof text - 1;
    files_text(&folder, "t.txt", text);
    for (int cut = 1; cut < 40; cut++) {
        char back[64];
        int64_t at = 0;
        for (int half = 0; half < 2; half++) {
            cmoe_dataset *d = NULL;
            cmoe_dataset_options o = options();
            int64_t n = 0;
            o.end = -2;
            o.from = half ? cut / 40. : 0;
            o.to = half ? 1 : cut / 40.;
            UNIT_OK(open_with(&d, "t.txt", &o, &err));
            assert_int_equal(d->bytes, d->tokens); /* of bytes each */
            UNIT_OK(cmoe_tokenizer_decode(tokenizer, d->ids, d->tokens, 0, back + at,
                                          (int64_t)sizeof back - at, &n, &err));
            assert_int_equal(n, d->tokens); /* characters are whole */
            at += n;
            cmoe_dataset_free(d);
        }
        assert_int_equal(at, bytes);
        assert_memory_equal(back, text, (size_t)bytes);
    }
    remove(files_in(&folder, "t.txt"));
}

/* ---- lines --------------------------------------------------------------------------------------- */

static void test_lines(void **state)
{
    (void)state;
    cmoe_dataset_options o = options();
    gives("t.jsonl",
          "{\"text\":\"cd\",\"more\":7}\r\n\n  \t\r\n{\"text\":\"e\\u0000\"}\n{\"text\":\"\"}", &o,
          "cd</e0<", "111/111", 4);
}

static void test_pairs(void **state)
{
    (void)state;
    cmoe_dataset_options o = options();
    gives("t.jsonl", "{\"prompt\":\"cd\",\"completion\":\" e\"}", &o, "cd e<", "00111", 4);
    gives("t.jsonl", "{\"prompt\":\"ca\",\"completion\":\"bd\"}", &o, "cXd<", "0111", 4);
    gives("t.jsonl", "{\"prompt\":\"cd\",\"completion\":\"\"}", &o, "cd<", "001", 2);
    gives("t.jsonl", "{\"prompt\":\"\",\"completion\":\"cd\"}", &o, "cd<", "111", 2);
    gives("t.jsonl", "{\"prompt\":\"c\",\"completion\":\"d<e>\"}", &o, "cd<", "011", 5);
    o.tokenizer = with_bos;
    gives("t.jsonl", "{\"prompt\":\"cd\",\"completion\":\"e\"}", &o, "|cde<", "00011", 3);
}

#define USER(text)      "{\"role\":\"user\",\"content\":\"" text "\"}"
#define ASSISTANT(text) "{\"role\":\"assistant\",\"content\":\"" text "\"}"
#define CHAT(list)      "{\"messages\":[" list "]}\n"

static void test_messages(void **state)
{
    (void)state;
    cmoe_dataset_options o = options();
    const char *two = CHAT(USER("cd") "," ASSISTANT("e") "," USER("f") "," ASSISTANT("ab"));
    gives("t.jsonl", two, &o, "|cd>e<|f>X<", "00001100011", 24);
    gives("t.jsonl", CHAT(USER("cd") "," ASSISTANT("e") "," USER("f")), &o, "|cd>e<|f<",
          "000011000", 16);
    gives("t.jsonl", CHAT(ASSISTANT("e")) CHAT(USER("c")), &o, ">e</|c<", "011/000", 7 + 4);
    o.all_turns = 1;
    gives("t.jsonl", two, &o, "|cd>e<|f>X<", "11111111111", 24);
    o.all_turns = 0;
    o.end = 258; /* what follows the answer */
    gives("t.jsonl", CHAT(USER("c") "," ASSISTANT("e")), &o, "|c>e<|", "000111", 11);
    o.end = -1;
    o.tokenizer = with_bos; /* the template would have written it */
    gives("t.jsonl", CHAT(USER("c") "," ASSISTANT("e")), &o, "|c>e<", "00011", 11);
}

/* Lines, blank ones too, are cut as the file has them. */
static void test_line_parts(void **state)
{
    (void)state;
    static const char text[] = "{\"text\":\"c\"}\n\n{\"text\":\"d\"}\n{\"text\":\"e\"}";
    cmoe_dataset_options o = options();
    o.to = 0.5;
    gives("t.jsonl", text, &o, "c<", "11", 1);
    o.from = 0.5;
    o.to = 0.9;
    gives("t.jsonl", text, &o, "d<", "11", 1);
    o.from = 0.75;
    o.to = 1;
    gives("t.jsonl", text, &o, "e<", "11", 1);
    o.from = 0.9; /* of four lines: the last */
    gives("t.jsonl", text, &o, "e<", "11", 1);
    refused("t.jsonl", "{\"text\":\"c\"}\n{\"text\":\"d\"}\n{\"text\":\"e\"}\n{}\n", &o,
            CMOE_ERR_FORMAT, "t.jsonl: line 4: none of the keys");
}

/* ---- refusals ------------------------------------------------------------------------------------ */

static void test_options(void **state)
{
    (void)state;
    cmoe_dataset *d;
    cmoe_dataset_options o = options();
    UNIT_FAILS(cmoe_dataset_open(NULL, env.ctx, "x", &o, &err), CMOE_ERR_ARG, "out is NULL");
    UNIT_FAILS(cmoe_dataset_open(&d, NULL, "x", &o, &err), CMOE_ERR_ARG, "ctx is NULL");
    UNIT_FAILS(cmoe_dataset_open(&d, env.ctx, NULL, &o, &err), CMOE_ERR_ARG, "path is NULL");
    UNIT_FAILS(open_with(&d, "x", NULL, &err), CMOE_ERR_ARG, "tokenizer is NULL");
    UNIT_FAILS(open_with(&d, "x", &o, &err), CMOE_ERR_IO, "x: cannot be opened");
    UNIT_FAILS(open_with(&d, ".", &o, &err), CMOE_ERR_IO, "is a folder, want a regular file");
    o.all_turns = 2;
    UNIT_FAILS(open_with(&d, "x", &o, &err), CMOE_ERR_RANGE, "all_turns = 2");
    o = options();
    o.size = 1;
    UNIT_FAILS(open_with(&d, "x", &o, &err), CMOE_ERR_ARG, "dataset options.size = 1");
    static const double part[][2] = {{-0.1, 1}, {0, 1.5}, {0.5, 0.5}, {0.6, 0.5}, {0, 0}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        o = options();
        o.from = part[i][0];
        o.to = part[i][1];
        refused("t", "text", &o, CMOE_ERR_RANGE, "want 0 <= from < to <= 1");
    }
}

static void test_end(void **state)
{
    (void)state;
    cmoe_dataset_options o = options();
    o.end = 260;
    refused("t", "text", &o, CMOE_ERR_RANGE,
            "end = 260, want 0 <= end < 260 (the tokenizer's), -1 (its eos) or -2 (none)");
    o.end = -3;
    refused("t", "text", &o, CMOE_ERR_RANGE, "end = -3, want 0 <= end < 260");
    cmoe_tokenizer *bare = NULL;
    UNIT_OK(cmoe_tokenizer_open(&bare, env.ctx, files_in(&folder, "tokens/tokenizer.json"), &err));
    o = options();
    o.tokenizer = bare; /* without its configuration */
    refused("t", "text", &o, CMOE_ERR_RANGE,
            "end = -1, but the tokenizer has no eos, want an id, or -2 (none)");
    o.end = -2;
    gives("t", "cd", &o, "cd", "11", 2);
    cmoe_tokenizer_free(bare);
}

static void test_bad_text(void **state)
{
    (void)state;
    cmoe_dataset_options o = options();
    refused("t", "abc\xc3(", &o, CMOE_ERR_FORMAT, "t: byte 3 (0xc3) is no UTF-8");
    o.from = 0.5; /* the offset is the file's */
    refused("t", "abcdef\xff", &o, CMOE_ERR_FORMAT, "t: byte 6 (0xff) is no UTF-8");
}

static void test_bad_lines(void **state)
{
    (void)state;
    const cmoe_dataset_options o = options();
    static const struct {
        const char *line, *want;
    } bad[] = {
        {"{\"text\":\"\xff\"}", "byte 9 (0xff) is no UTF-8"},
        {"{\"text\":\"c\"", "no JSON: "},
        {"{\"text\":\"c\",\"text\":\"d\"}", "no JSON: duplicate object key"},
        {"hello", "no JSON: "},
        {"[1]",
         "no object, want an object with \"text\", with \"prompt\" and \"completion\", or with "
         "\"messages\""},
        {"{\"content\":\"c\"}", "none of the keys, want an object with"},
        {"{\"text\":\"c\",\"prompt\":\"c\"}", "keys of more than one kind"},
        {"{\"text\":7}", "\"text\" is something else, want a text"},
        {"{\"prompt\":\"c\"}", "\"completion\" is not there, want a text"},
        {"{\"completion\":\"c\"}", "\"prompt\" is not there"},
        {"{\"messages\":\"c\"}", "\"messages\" is no list, want a list of messages"},
        {"{\"messages\":[]}", "\"messages\" is empty"},
        {"{\"messages\":[{\"content\":\"c\"}]}", "messages[0] is no object with a \"role\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[256], want[256];
        snprintf(text, sizeof text, "{\"text\":\"c\"}\n\n%s\n{\"text\":\"d\"}", bad[i].line);
        snprintf(want, sizeof want, "t.jsonl: line 3: %s", bad[i].want);
        refused("t.jsonl", text, &o, CMOE_ERR_FORMAT, want);
    }
}

static void test_bad_chat(void **state)
{
    (void)state;
    cmoe_dataset_options o = options();
    refused("t.jsonl", CHAT("{\"role\":\"stop\"}"), &o, CMOE_ERR_FORMAT, "no stop");
    /* The template tells which message is the last: what it wrote then is not what it writes now. */
    refused(
        "t.jsonl", CHAT("{\"role\":\"last\"}," ASSISTANT("c")), &o, CMOE_ERR_UNSUPPORTED,
        "t.jsonl: line 1: messages[1]: what the template writes to ask for it is no beginning of "
        "the whole conversation");
    o.all_turns = 1;
    gives("t.jsonl", CHAT("{\"role\":\"last\"}," ASSISTANT("c")), &o, "False>c<", "11111111", 12);
    o = options();
    o.chat = NULL;
    refused("t.jsonl", CHAT(USER("c")), &o, CMOE_ERR_ARG,
            "t.jsonl: line 1: \"messages\", but chat (a template) is NULL");
    gives("t.jsonl", "{\"text\":\"c\"}", &o, "c<", "11", 1);
}

static void test_memory(void **state)
{
    (void)state;
    memory_state m = {0};
    cmoe_ctx *ctx = memory_open(&m);
    const cmoe_dataset_options o = options();
    const int64_t before = m.blocks;
    files_text(&folder, "t.jsonl",
               "{\"prompt\":\"cd\",\"completion\":\"e\"}\n" CHAT(USER("c") "," ASSISTANT("e")));
    for (int64_t n = 1;; n++) {
        cmoe_dataset *d = NULL;
        cmoe_error err = {0};
        m.fail_at = n;
        const cmoe_status status =
            cmoe_dataset_open(&d, ctx, files_in(&folder, "t.jsonl"), &o, &err);
        const int64_t left = m.fail_at;
        m.fail_at = 0;
        if (left == 0 && status != CMOE_ERR_MEMORY)
            fail_msg("allocation %d: %s (\"%s\")", (int)n, cmoe_status_name(status), err.text);
        if (status == CMOE_OK) holds(d, "cde</|c>e<", "0011/00011", 14);
        cmoe_dataset_free(d);
        assert_int_equal(m.blocks, before);
        if (left > 0) assert_int_equal(status, CMOE_OK);
        if (left > 0) break;
    }
    remove(files_in(&folder, "t.jsonl"));
    cmoe_ctx_free(ctx);
}

/* ---- running --------------------------------------------------------------------------------------- */

static void make_tokenizers(void)
{
    cmoe_bpe_options o;
    cmoe_bpe_options_default(&o, sizeof o);
    o.vocab = 260;
    o.special = special;
    files_text(&folder, "text", "ab ab");
    const char *const paths[] = {files_in(&folder, "text")};
    UNIT_OK(cmoe_bpe_train(env.ctx, paths, 1, &o, files_in(&folder, "tokens"), &err));
    UNIT_OK(cmoe_tokenizer_open(&tokenizer, env.ctx, files_in(&folder, "tokens"), &err));
    files_text(&folder, "tokens/tokenizer_config.json",
               "{\"eos_token\":\"<e>\",\"bos_token\":\"<u>\",\"add_bos_token\":true}");
    UNIT_OK(cmoe_tokenizer_open(&with_bos, env.ctx, files_in(&folder, "tokens"), &err));
    UNIT_OK(cmoe_template_parse(&chat, env.ctx, source, (int64_t)strlen(source), "chat", &err));
    remove(files_in(&folder, "text"));
}

static void remove_tokenizers(void)
{
    files_folder tokens;
    snprintf(tokens.path, sizeof tokens.path, "%s", files_in(&folder, "tokens"));
    files_close(&tokens);
    cmoe_template_free(chat);
    cmoe_tokenizer_free(with_bos);
    cmoe_tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),     cmocka_unit_test(test_parts),
        cmocka_unit_test(test_lines),    cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_messages), cmocka_unit_test(test_line_parts),
        cmocka_unit_test(test_options),  cmocka_unit_test(test_end),
        cmocka_unit_test(test_bad_text), cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_bad_chat), cmocka_unit_test(test_memory)};
    env = unit_open(1);
    folder = files_open("unit_dataset");
    make_tokenizers();
    const int failed = UNIT_RUN("dataset", tests);
    remove_tokenizers();
    files_close(&folder);
    unit_close(&env);
    return failed;
}
