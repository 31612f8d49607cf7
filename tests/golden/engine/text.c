/* SPDX-License-Identifier: MIT
 *
 * text.c - stop strings in a stream of single bytes and of larger pieces: where text is cut, what is
 * held back, and that nothing of it gets lost.
 *
 *     golden_engine_text FOLDER
 */
#include "engine/job.h"
#include "world.h"

enum { STOPS = 4 };

typedef struct stream {
    world w;
    cmoei_text t;
    const char *stop[STOPS];
    int64_t stop_bytes[STOPS];
    char seen[256]; /* what events would have said */
    int64_t bytes;
    bool stopped;
} stream;

static void open_stream(stream *s, const char *const *stops)
{
    *s = (stream){.w.env = unit_open(1)};
    world_tokenizer(&s->w, 256);
    for (; stops && stops[s->t.stops]; s->t.stops++) {
        s->stop[s->t.stops] = stops[s->t.stops];
        s->stop_bytes[s->t.stops] = (int64_t)strlen(stops[s->t.stops]);
    }
    s->t.stop = s->stop;
    s->t.stop_bytes = s->stop_bytes;
    s->t.wanted = true;
    UNIT_OK(cmoe_detokenizer_create(&s->t.detokenizer, s->w.tokenizer, 1, &err));
}

static void see(stream *s, int64_t end)
{
    memcpy(s->seen + s->bytes, s->t.data + s->t.begin, (size_t)(end - s->t.begin));
    s->bytes += end - s->t.begin;
    s->seen[s->bytes] = 0;
    s->t.begin = end;
}

/* Pushes byte after byte; polls after each, or only now and then. */
static void say(stream *s, const char *text, int64_t every)
{
    for (int64_t i = 0; text[i] && !s->stopped; i++) {
        UNIT_OK(cmoei_text_push(&s->t, s->w.env.ctx, (uint8_t)text[i], &s->stopped, &err));
        if (i % every == 0) see(s, s->t.ready);
    }
}

static void finish(stream *s)
{
    if (!s->stopped) cmoei_text_finish(&s->t, s->w.env.ctx);
    if (s->t.end > s->t.begin) see(s, s->t.end);
    cmoe_detokenizer_free(s->t.detokenizer);
    cmoei_free(s->w.env.ctx, s->t.data, s->t.room);
    world_close(&s->w);
}

static void cuts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want, *stops[STOPS];
        bool stopped;
    } cases[] = {
        {"hello END there", "hello ", {"END"}, true},
        {"hello EN there", "hello EN there", {"END"}, false},
        {"hello EN", "hello EN", {"END"}, false}, /* held back until the end */
        {"EENEND", "EEN", {"END"}, true},
        {"aaab", "a", {"aab"}, true},
        {"abcd", "a", {"abcd", "bc"}, true}, /* the one that ends first */
        {"xabc", "x", {"bc", "abc"}, true},  /* of those that end there the longest */
        {"xabc", "x", {"abc", "bc"}, true},
        {"END", "", {"END"}, true},
        {"caf\xc3\xa9 au", "caf", {"\xc3\xa9"}, true},
        {"caf\xc3\xa8 au", "caf\xc3\xa8 au", {"\xc3\xa9"}, false},
        {"a\n\nUser: b", "a", {"\n\nUser:", "</s>"}, true},
        {"half \xc3", "half \xef\xbf\xbd", {"END"}, false}, /* U+FFFD */
        {"half \xc3", "half ", {"\xef\xbf\xbd"}, false},
        {"plain", "plain", {NULL}, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int64_t every = 1; every < 4; every++) {
            stream s;
            open_stream(&s, cases[i].stops);
            say(&s, cases[i].text, every);
            assert_int_equal(s.stopped, cases[i].stopped);
            finish(&s);
            assert_string_equal(s.seen, cases[i].want);
        }
    }
}

static void held_back(void **state)
{
    (void)state;
    const char *const stops[] = {"</think>", "</s>", NULL};
    stream s;
    open_stream(&s, stops);
    say(&s, "ab</", 1);
    assert_string_equal(s.seen, "ab");
    say(&s, "th", 1);
    assert_string_equal(s.seen, "ab");
    say(&s, "e<", 1);
    assert_string_equal(s.seen, "ab</the");
    say(&s, "/s", 1);
    assert_string_equal(s.seen, "ab</the");
    say(&s, ">", 1);
    assert_true(s.stopped);
    finish(&s);
    assert_string_equal(s.seen, "ab</the");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cuts), cmocka_unit_test(held_back)};
    (void)argc;
    (void)argv;
    return UNIT_RUN("golden_engine_text", tests);
}
