/* SPDX-License-Identifier: MIT
 *
 * tokenizer_added.c - added tokens inside a text: the leftmost, of several the longest, by a tree.
 *
 * A match that does not count (a special one when these are plain text, a single word inside another)
 * is passed over as a whole.  lstrip and rstrip take the white space around with them.
 */
#include <string.h>

#include "tokenizer.h"

static int32_t child_of(const cmoei_tree *tree, int32_t node, uint8_t byte)
{
    if (node == 0) return tree->first[byte];
    int32_t child = tree->node[node].child;
    while (child && tree->node[child].byte != byte)
        child = tree->node[child].sibling;
    return child;
}

static void tree_put(cmoei_tree *tree, cmoei_text content, int32_t token)
{
    int32_t node = 0;
    for (int64_t i = 0; i < content.bytes; i++) {
        const uint8_t byte = (uint8_t)content.s[i];
        int32_t child = child_of(tree, node, byte);
        if (!child) {
            child = (int32_t)tree->nodes++;
            tree->node[child] = (cmoei_tree_node){0, tree->node[node].child, -1, byte};
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
    return CMOE_OK;
}

/* The next match at or behind `from`: its token, -1 if there is none. */
static int32_t find(const cmoei_tree *tree, const char *s, int64_t bytes, int64_t from,
                    int64_t *begin, int64_t *end)
{
    for (int64_t at = from; at < bytes; at++) {
        int32_t node = tree->first[(uint8_t)s[at]], found = -1;
        for (int64_t i = at + 1; node; i++) {
            if (tree->node[node].token >= 0) {
                found = tree->node[node].token;
                *begin = at;
                *end = i;
            }
            if (i == bytes) break;
            node = child_of(tree, node, (uint8_t)s[i]);
        }
        if (found >= 0) return found;
    }
    return -1;
}

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

static int64_t spaces_before(const char *s, int64_t at)
{
    while (at > 0) {
        int32_t length;
        const int64_t before = cmoei_utf8_before(s, at);
        if (!cmoei_unicode_is_space(cmoei_utf8_get(s + before, &length))) break;
        at = before;
    }
    return at;
}

static int64_t spaces_behind(const char *s, int64_t bytes, int64_t at)
{
    int32_t length;
    while (at < bytes && cmoei_unicode_is_space(cmoei_utf8_get(s + at, &length)))
        at += length;
    return at;
}

cmoe_status cmoei_added_split(cmoei_encoder *e, const cmoei_tree *tree, const char *s,
                              int64_t bytes, bool first, cmoei_rest_fn rest)
{
    int64_t done = 0, begin = 0, end = 0;
    if (tree->nodes > 1) {
        for (int32_t token; (token = find(tree, s, bytes, end, &begin, &end)) >= 0;) {
            const cmoei_added *a = &e->t->added[token];
            const int64_t found_end = end;
            if (a->special && !e->parse_special) continue;
            if (a->single_word && (word_before(s, begin) || word_behind(s, bytes, end))) continue;
            if (a->lstrip) begin = CMOEI_MAX(spaces_before(s, begin), done);
            if (a->rstrip) end = spaces_behind(s, bytes, end);
            if (done < begin) CMOEI_TRY(rest(e, s + done, begin - done, first && done == 0));
            cmoei_ids_add(&e->ids, a->id);
            done = end;
            end = found_end; /* the search goes on behind the token, not behind what it swallowed */
        }
    }
    if (done < bytes) CMOEI_TRY(rest(e, s + done, bytes - done, first && done == 0));
    return CMOE_OK;
}
