/* SPDX-License-Identifier: MIT
 *
 * engine_pages.c - pages of the cache: counted holders, eviction by age and from the end, and prefixes
 * that are found by content even where hashes collide.
 */
#include "unit.h"

#include "engine/pages.h"

enum { PAGES = 6 };

typedef struct fixture {
    void *memory;
    cmoei_pages p;
} fixture;

static fixture open_pages(void)
{
    fixture f;
    cmoei_carver c = cmoei_carver_dry();
    cmoei_pages_carve(&f.p, PAGES, &c);
    const int64_t bytes = cmoei_carver_bytes(&c);
    f.memory = malloc((size_t)bytes);
    const cmoe_arena arena = cmoe_arena_make(f.memory, bytes);
    c = cmoei_carver_open(&arena);
    cmoei_pages_carve(&f.p, PAGES, &c);
    UNIT_OK(cmoei_carver_check(&c, "pages", &err));
    cmoei_pages_clear(&f.p);
    return f;
}

static void close_pages(fixture *f)
{
    assert_int_equal(f->p.free + f->p.reusable, PAGES);
    free(f->memory);
}

static const int32_t *tokens_of(int32_t seed)
{
    static int32_t tokens[CMOE_KV_PAGE];
    for (int32_t i = 0; i < CMOE_KV_PAGE; i++)
        tokens[i] = seed * 100 + i;
    return tokens;
}

/* A sequence of n known pages, seeds from `seed` on. */
static void chain(cmoei_pages *p, int32_t *page, int32_t n, int32_t seed)
{
    for (int32_t i = 0; i < n; i++) {
        page[i] = cmoei_pages_take(p);
        assert_true(page[i] >= 0);
        page[i] = cmoei_prefix_publish(p, page[i], i ? page[i - 1] : -1, tokens_of(seed + i));
    }
}

static void drop(cmoei_pages *p, const int32_t *page, int32_t n)
{
    while (n > 0)
        cmoei_pages_drop(p, page[--n]);
}

static void holders(void **state)
{
    (void)state;
    fixture f = open_pages();
    int32_t page[PAGES];
    for (int i = 0; i < PAGES; i++) {
        page[i] = cmoei_pages_take(&f.p);
        for (int k = 0; k < i; k++)
            assert_int_not_equal(page[i], page[k]);
    }
    assert_int_equal(cmoei_pages_take(&f.p), -1);
    cmoei_pages_hold(&f.p, page[2]);
    cmoei_pages_drop(&f.p, page[2]);
    assert_int_equal(f.p.free, 0);
    cmoei_pages_drop(&f.p, page[2]);
    assert_int_equal(f.p.free, 1);
    assert_int_equal(cmoei_pages_take(&f.p), page[2]);
    drop(&f.p, page, PAGES);
    assert_int_equal(f.p.free, PAGES);
    close_pages(&f);
}

static void found_again(void **state)
{
    (void)state;
    fixture f = open_pages();
    int32_t a[3], b[3];
    chain(&f.p, a, 3, 1);
    assert_int_equal(cmoei_prefix_find(&f.p, -1, tokens_of(1)), a[0]);
    assert_int_equal(cmoei_prefix_find(&f.p, a[0], tokens_of(2)), a[1]);
    assert_int_equal(cmoei_prefix_find(&f.p, -1, tokens_of(2)),
                     -1); /* same tokens, no such start */
    assert_int_equal(cmoei_prefix_find(&f.p, a[1], tokens_of(2)), -1);
    chain(&f.p, b, 2, 1); /* computed twice: one of them goes */
    assert_int_equal(b[0], a[0]);
    assert_int_equal(b[1], a[1]);
    assert_int_equal(f.p.free, PAGES - 3);
    drop(&f.p, a, 3);
    assert_int_equal(f.p.reusable, 1);
    drop(&f.p, b, 2);
    assert_int_equal(f.p.reusable, 3);
    cmoei_pages_hold(&f.p, a[1]); /* out of the middle of the list */
    cmoei_pages_hold(&f.p, a[0]);
    assert_int_equal(f.p.reusable, 1);
    drop(&f.p, a, 2);
    close_pages(&f);
}

/* What was let go first goes first, and of a sequence its end. */
static void evicted(void **state)
{
    (void)state;
    fixture f = open_pages();
    int32_t a[3], b[3], c[PAGES];
    chain(&f.p, a, 3, 1);
    chain(&f.p, b, 3, 11);
    drop(&f.p, b, 3);
    drop(&f.p, a, 3);
    assert_int_equal(f.p.reusable, PAGES);
    const int32_t order[] = {b[2], b[1], b[0], a[2], a[1], a[0]};
    for (int i = 0; i < PAGES; i++) {
        c[i] = cmoei_pages_take(&f.p);
        assert_int_equal(c[i], order[i]);
        if (i == 3) {
            assert_int_equal(cmoei_prefix_find(&f.p, -1, tokens_of(11)), -1);
            assert_int_equal(cmoei_prefix_find(&f.p, a[0], tokens_of(2)), a[1]);
            assert_int_equal(cmoei_prefix_find(&f.p, a[1], tokens_of(3)), -1);
        }
    }
    assert_int_equal(cmoei_pages_take(&f.p), -1);
    drop(&f.p, c, PAGES);
    assert_int_equal(f.p.free, PAGES);
    close_pages(&f);
}

/* Pages whose hash and bucket are those of other content, as if 64 bits had collided. */
static void collisions(void **state)
{
    (void)state;
    fixture f = open_pages();
    int32_t a[2], other[2];
    chain(&f.p, a, 2, 1);
    chain(&f.p, other, 2, 31);
    const int32_t kept = f.p.page[a[0]].tokens[63];
    f.p.page[a[0]].tokens[63]++; /* the hash says tokens_of(1), the page holds something else */
    assert_int_equal(cmoei_prefix_find(&f.p, -1, tokens_of(1)), -1);
    f.p.page[a[0]].tokens[63] = kept;
    assert_int_equal(cmoei_prefix_find(&f.p, -1, tokens_of(1)), a[0]);
    f.p.page[other[0]].hash = f.p.page[a[0]].hash; /* two prefixes with one hash */
    assert_int_equal(cmoei_prefix_find(&f.p, a[0], tokens_of(2)), a[1]);
    assert_int_equal(cmoei_prefix_find(&f.p, other[0], tokens_of(2)), -1);
    free(f.memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(holders), cmocka_unit_test(found_again),
                                       cmocka_unit_test(evicted), cmocka_unit_test(collisions)};
    return UNIT_RUN("engine_pages", tests);
}
