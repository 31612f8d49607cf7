/* SPDX-License-Identifier: MIT
 *
 * bpe_long.c - merges of a long piece: n log n, and n where all characters are the same.
 *
 * Candidates are (rank, place) in one number, taken in ascending order.  A heap alone would do, but ten
 * million equal candidates make it walk all over memory.  So the first candidates are sorted once and
 * read in order (the run); a new one that comes before the run's end goes into a small heap beside it;
 * one that comes behind is put aside (later), sorted when run and heap are empty, and is the next run.
 *
 * A candidate whose pair has changed meanwhile is met as well; its rank is no longer that of the pair.
 *
 * Before that, while one pair makes up an eighth of all and has the lowest rank, its places are merged
 * in one walk: a run of one character halves each time, and the queue never sees it.
 */
#include <string.h>

#include "bpe.h"

typedef struct queue {
    cmoei_buffer *run, *heap, *later; /* uint64_t rank << 32 | place */
    int64_t next;                     /* of the run */
    uint64_t limit;                   /* the run's last */
    cmoe_error *err;
} queue;

static uint64_t *keys(const cmoei_buffer *b)
{
    return (uint64_t *)(void *)b->data;
}

static cmoe_status append(cmoei_buffer *b, uint64_t key, cmoe_error *err)
{
    if (b->bytes + 8 > b->capacity) CMOEI_TRY(cmoei_buffer_reserve(b, 8, err));
    memcpy(b->data + b->bytes, &key, 8);
    b->bytes += 8;
    return CMOE_OK;
}

static void heap_up(uint64_t *key, int64_t i)
{
    const uint64_t moving = key[i];
    for (; i > 0 && key[(i - 1) / 2] > moving; i = (i - 1) / 2)
        key[i] = key[(i - 1) / 2];
    key[i] = moving;
}

static uint64_t heap_take(cmoei_buffer *heap)
{
    uint64_t *key = keys(heap);
    const int64_t n = heap->bytes / 8 - 1;
    const uint64_t top = key[0], moving = key[n];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && key[child + 1] < key[child];
        if (key[child] >= moving) break;
        key[i] = key[child];
    }
    key[i] = moving;
    heap->bytes -= 8;
    return top;
}

static bool ascending(const uint64_t *key, int64_t n)
{
    int64_t i = 1;
    while (i < n && key[i - 1] <= key[i])
        i++;
    return i >= n;
}

/* By digits of 8 bits, lowest first; digits that are the same everywhere are skipped.  The result is in
 * *b again, `spare` is written over. */
static cmoe_status sort(cmoei_buffer *b, cmoei_buffer *spare, cmoe_error *err)
{
    const int64_t n = b->bytes / 8;
    if (ascending(keys(b), n)) return CMOE_OK;
    spare->bytes = 0;
    CMOEI_TRY(cmoei_buffer_reserve(spare, b->bytes, err));
    for (int32_t shift = 0; shift < 64; shift += 8) {
        int64_t place[257] = {0};
        const uint64_t *from = keys(b);
        uint64_t *to = keys(spare);
        for (int64_t i = 0; i < n; i++)
            place[(from[i] >> shift & 0xff) + 1]++;
        if (place[(from[0] >> shift & 0xff) + 1] == n) continue;
        for (int32_t k = 0; k < 256; k++)
            place[k + 1] += place[k];
        for (int64_t i = 0; i < n; i++)
            to[place[from[i] >> shift & 0xff]++] = from[i];
        spare->bytes = b->bytes;
        const cmoei_buffer swap = *b;
        *b = *spare;
        *spare = swap;
    }
    spare->bytes = 0;
    return CMOE_OK;
}

static cmoe_status push(queue *q, uint32_t rank, int64_t place)
{
    const uint64_t key = (uint64_t)rank << 32 | (uint64_t)place;
    if (key > q->limit) return append(q->later, key, q->err);
    CMOEI_TRY(append(q->heap, key, q->err));
    heap_up(keys(q->heap), q->heap->bytes / 8 - 1);
    return CMOE_OK;
}

/* What was put aside becomes the run. */
static cmoe_status turn(queue *q)
{
    q->run->bytes = 0;
    CMOEI_TRY(sort(q->later, q->run, q->err));
    const cmoei_buffer swap = *q->run;
    *q->run = *q->later;
    *q->later = swap;
    q->later->bytes = 0;
    q->next = 0;
    q->limit = q->run->bytes ? keys(q->run)[q->run->bytes / 8 - 1] : 0;
    return CMOE_OK;
}

static cmoe_status take(queue *q, uint64_t *key, bool *any)
{
    if (q->next == q->run->bytes / 8 && !q->heap->bytes) CMOEI_TRY(turn(q));
    const bool in_run = q->next < q->run->bytes / 8;
    *any = in_run || q->heap->bytes;
    if (!*any) return CMOE_OK;
    if (in_run && (!q->heap->bytes || keys(q->run)[q->next] <= keys(q->heap)[0]))
        *key = keys(q->run)[q->next++];
    else
        *key = heap_take(q->heap);
    return CMOE_OK;
}

typedef struct link {
    int32_t before, behind; /* -1: none */
} link;

/* All pairs as they stand. */
static cmoe_status first_candidates(const cmoei_bpe *b, queue *q, const int32_t *id, int64_t n)
{
    const cmoei_merge *m = NULL;
    for (int64_t i = 0; i + 1 < n; i++) {
        if (i == 0 || id[i] != id[i - 1] || id[i + 1] != id[i])
            m = cmoei_bpe_find(b, id[i], id[i + 1]);
        if (m) CMOEI_TRY(append(q->later, (uint64_t)m->rank << 32 | (uint64_t)i, q->err));
    }
    return CMOE_OK;
}

static cmoe_status candidate(const cmoei_bpe *b, queue *q, const int32_t *id, int64_t left,
                             int64_t right)
{
    if (left < 0 || right < 0) return CMOE_OK;
    const cmoei_merge *m = cmoei_bpe_find(b, id[left], id[right]);
    return m ? push(q, m->rank, left) : CMOE_OK;
}

static cmoe_status merge_all(const cmoei_bpe *b, queue *q, int32_t *id, link *at)
{
    for (;;) {
        uint64_t key;
        bool any;
        CMOEI_TRY(take(q, &key, &any));
        if (!any) return CMOE_OK;
        const int64_t i = (int64_t)(key & 0xffffffff);
        const int64_t j = id[i] < 0 ? -1 : at[i].behind;
        if (j < 0) continue;
        const cmoei_merge *m = cmoei_bpe_find(b, id[i], id[j]);
        if (!m || m->rank != key >> 32) continue;
        id[i] = m->id;
        id[j] = -1;
        at[i].behind = at[j].behind;
        if (at[j].behind >= 0) at[at[j].behind].before = (int32_t)i;
        CMOEI_TRY(candidate(b, q, id, at[i].before, i));
        CMOEI_TRY(candidate(b, q, id, i, at[i].behind));
    }
}

enum { MANY = 1024 };

/* The pair of the lowest rank, NULL if none has one, and how often it stands there. */
static const cmoei_merge *least_pair(const cmoei_bpe *b, const int32_t *id, int64_t n,
                                     int64_t *count)
{
    const cmoei_merge *least = NULL, *m = NULL;
    *count = 0;
    for (int64_t i = 0; i + 1 < n; i++) {
        if (i == 0 || id[i] != id[i - 1] || id[i + 1] != id[i])
            m = cmoei_bpe_find(b, id[i], id[i + 1]);
        if (m && (!least || m->rank < least->rank)) {
            least = m;
            *count = 0;
        }
        *count += m && m == least;
    }
    return least;
}

static bool comes_before(const cmoei_bpe *b, int32_t left, int32_t right, uint32_t rank)
{
    const cmoei_merge *m = cmoei_bpe_find(b, left, right);
    return m && m->rank < rank;
}

/* Merges all places of the pair, left to right; no further than to where that makes a pair of a lower
 * rank, which then is next. */
static int64_t merge_pair(const cmoei_bpe *b, int32_t *id, int64_t n, const cmoei_merge *pair,
                          bool *lower)
{
    const int32_t left = (int32_t)(pair->pair >> 32), right = (int32_t)(pair->pair & 0xffffffff);
    int32_t before = -1, behind = -1; /* neighbours that were looked at last: they repeat */
    int64_t out = 0;
    *lower = false;
    for (int64_t i = 0; i < n; i++) {
        if (*lower || i + 1 == n || id[i] != left || id[i + 1] != right) {
            id[out++] = id[i];
            continue;
        }
        i++;
        if (out > 0 && id[out - 1] != before) {
            before = id[out - 1];
            *lower = comes_before(b, before, pair->id, pair->rank);
        }
        if (i + 1 < n && id[i + 1] != behind) {
            behind = id[i + 1];
            *lower = *lower || comes_before(b, pair->id, behind, pair->rank);
        }
        id[out++] = pair->id;
    }
    return out;
}

static int64_t merge_common(const cmoei_bpe *b, int32_t *id, int64_t n)
{
    for (bool lower = false; n > MANY && !lower;) {
        int64_t count;
        const cmoei_merge *pair = least_pair(b, id, n, &count);
        /* In a run of one symbol every second place goes. */
        if (!pair || count < n / 8) break;
        n = merge_pair(b, id, n, pair, &lower);
    }
    return n;
}

cmoe_status cmoei_bpe_merge_long(const cmoei_bpe *b, cmoei_bpe_work *w, int32_t *id, int64_t *n,
                                 cmoe_error *err)
{
    queue q = {.run = &w->run, .heap = &w->heap, .later = &w->later, .err = err};
    *n = merge_common(b, id, *n);
    w->run.bytes = w->heap.bytes = w->later.bytes = w->links.bytes = 0;
    CMOEI_TRY(cmoei_buffer_reserve(&w->links, *n * (int64_t)sizeof(link), err));
    link *at = (link *)(void *)w->links.data;
    for (int64_t i = 0; i < *n; i++)
        at[i] = (link){(int32_t)(i - 1), i + 1 < *n ? (int32_t)(i + 1) : -1};
    CMOEI_TRY(first_candidates(b, &q, id, *n));
    CMOEI_TRY(merge_all(b, &q, id, at));
    int64_t left = 0;
    for (int64_t i = 0; i < *n; i++)
        if (id[i] >= 0) id[left++] = id[i];
    *n = left;
    return CMOE_OK;
}
