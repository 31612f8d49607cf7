/* SPDX-License-Identifier: MIT
 *
 * tokenizer_added.c - added tokens inside a text: the leftmost, of several the longest.
 *
 * The text is read once, from its end, by an automaton of the tokens' bytes in reverse (Aho and Corasick,
 * Efficient string matching, 1975).  Coming from behind, the longest way down the tree that fits at a
 * place is the longest token that begins there; so one list has, for every place, what is wanted of it,
 * in time that grows with the text alone.  Reading forwards, a token of a megabyte and a text that nearly
 * matches it everywhere take the product of the two.
 *
 * A match that does not count (a special one when these are plain text, a single word inside another)
 * is passed over as a whole.  lstrip and rstrip take the white space around with them.
 */
#include <string.h>

#include "tokenizer.h"

/* ---- the automaton --------------------------------------------------------------------------- */

static int32_t child_of(const cmoei_tree *tree, int32_t node, uint8_t byte)
{
    if (node == 0) return tree->first[byte];
    int32_t child = tree->node[node].child;
    while (child && tree->node[child].byte != byte)
        child = tree->node[child].sibling;
    return child;
}

static int32_t step(const cmoei_tree *tree, int32_t node, uint8_t byte)
{
    int32_t child = child_of(tree, node, byte);
    while (!child && node) {
        node = tree->node[node].fall;
        child = child_of(tree, node, byte);
    }
    return child;
}

static void tree_put(cmoei_tree *tree, cmoei_text content, int32_t token)
{
    int32_t node = 0;
    for (int64_t i = content.bytes; i-- > 0;) {
        const uint8_t byte = (uint8_t)content.s[i];
        int32_t child = child_of(tree, node, byte);
        if (!child) {
            child = (int32_t)tree->nodes++;
            tree->node[child] = (cmoei_tree_node){0, tree->node[node].child, 0, -1, byte};
            if (node)
                tree->node[node].child = child;
            else
                tree->first[byte] = child;
        }
        node = child;
    }
    /* Two that normalise to the same: the first counts. */
    if (tree->node[node].token < 0) tree->node[node].token = token;
}

/* Level by level: where a node falls to lies above it.  queue has room for all nodes. */
static void tree_link(cmoei_tree *tree, int32_t *queue)
{
    int64_t n = 0;
    for (int32_t byte = 0; byte < 256; byte++)
        if (tree->first[byte]) queue[n++] = tree->first[byte];
    for (int64_t i = 0; i < n; i++) {
        const cmoei_tree_node *parent = &tree->node[queue[i]];
        for (int32_t child = parent->child; child; child = tree->node[child].sibling) {
            cmoei_tree_node *c = &tree->node[child];
            c->fall = step(tree, parent->fall, c->byte);
            if (c->token < 0) c->token = tree->node[c->fall].token;
            queue[n++] = child;
        }
    }
}

cmoe_status cmoei_tree_build(cmoe_tokenizer *t, cmoei_tree *tree, const cmoei_text *content,
                             const int32_t *token, int64_t count, cmoe_error *err)
{
    int64_t nodes = 1;
    for (int64_t i = 0; i < count; i++)
        nodes += content[i].bytes;
    void *p;
    if (nodes > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "tokenizer.json: added_tokens: more than 2^31 bytes");
    CMOEI_TRY(cmoei_text_alloc(&t->pool, nodes, sizeof *tree->node, &p, err));
    tree->node = p;
    tree->node[0].token = -1;
    tree->nodes = 1;
    for (int64_t i = 0; i < count; i++)
        tree_put(tree, content[i], token[i]);
    CMOEI_TRY(cmoei_alloc(t->ctx, nodes * 4, "tokenizer: added tokens", &p, err));
    tree_link(tree, p);
    cmoei_free(t->ctx, p, nodes * 4);
    return CMOE_OK;
}

/* The longest token that begins here. */
typedef struct place {
    int32_t begin, token;
} place;

/* All places with a token, the last first. */
static cmoe_status find_all(const cmoei_tree *tree, const char *s, int64_t bytes,
                            cmoei_buffer *found, cmoe_error *err)
{
    int32_t node = 0;
    found->bytes = 0;
    for (int64_t at = bytes; at-- > 0;) {
        const uint8_t byte = (uint8_t)s[at];
        node = node ? step(tree, node, byte) : tree->first[byte];
        if (!node || tree->node[node].token < 0) continue;
        const place p = {(int32_t)at, tree->node[node].token};
        CMOEI_TRY(cmoei_buffer_add(found, &p, sizeof p, err));
    }
    return CMOE_OK;
}

/* ---- around a token -------------------------------------------------------------------------- */

static bool word_before(const char *s, int64_t at)
{
    int32_t length;
    return at > 0 && cmoei_unicode_is_word(cmoei_utf8_get(s + cmoei_utf8_before(s, at), &length));
}

static bool word_behind(const char *s, int64_t bytes, int64_t at)
{
    int32_t length;
    return at < bytes && cmoei_unicode_is_word(cmoei_utf8_get(s + at, &length));
}

/* Where the white space in front of `at` begins; from `done` on. */
static int64_t spaces_before(const char *s, int64_t done, int64_t at)
{
    while (at > done) {
        int32_t length;
        const int64_t before = cmoei_utf8_before(s, at);
        if (!cmoei_unicode_is_space(cmoei_utf8_get(s + before, &length))) break;
        at = before;
    }
    return at;
}

/* White space that was walked through. */
typedef struct stretch {
    int64_t begin, end;
} stretch;

/* Where the white space behind `at` ends; one stretch behind many tokens is walked through once. */
static int64_t spaces_behind(const char *s, int64_t bytes, int64_t at, stretch *known)
{
    int32_t length;
    if (at >= known->begin && at <= known->end) return known->end;
    known->begin = at;
    while (at < bytes && cmoei_unicode_is_space(cmoei_utf8_get(s + at, &length)))
        at += length;
    return known->end = at;
}

cmoe_status cmoei_added_split(cmoei_encoder *e, const cmoei_tree *tree, const char *s,
                              int64_t bytes, bool first, cmoei_rest_fn rest)
{
    cmoei_buffer *found = &e->found[tree != &e->t->raw];
    if (tree->nodes <= 1) return bytes ? rest(e, s, bytes, first) : CMOE_OK;
    CMOEI_TRY(find_all(tree, s, bytes, found, e->err));
    const place *p = (const void *)found->data;
    stretch known = {-1, -1};
    int64_t done = 0, end = 0;
    for (int64_t i = found->bytes / (int64_t)sizeof *p; i-- > 0;) {
        int64_t begin = p[i].begin;
        const cmoei_added *a = &e->t->added[p[i].token];
        if (begin < end) continue; /* inside the one before */
        end = begin + a->content.bytes;
        if (a->special && !e->parse_special) continue;
        if (a->single_word && (word_before(s, begin) || word_behind(s, bytes, end))) continue;
        if (a->lstrip) begin = spaces_before(s, done, begin);
        if (done < begin) CMOEI_TRY(rest(e, s + done, begin - done, first && done == 0));
        cmoei_ids_add(&e->ids, a->id);
        /* The search goes on behind the token, not behind what it swallows. */
        done = a->rstrip ? spaces_behind(s, bytes, end, &known) : end;
    }
    if (done < bytes) CMOEI_TRY(rest(e, s + done, bytes - done, first && done == 0));
    return CMOE_OK;
}
