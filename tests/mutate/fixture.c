/* SPDX-License-Identifier: MIT
 *
 * fixture.c - the objects that calls need; see mutate.h.
 */
#include "layout.h"

/* Small, so that sizes nobody can have end in a refusal and not in a machine out of memory. */
static void *limited_alloc(void *user, size_t bytes, size_t align)
{
    (void)user;
    return bytes > (1u << 26) ? NULL : aligned_alloc(align, (bytes + align - 1) / align * align);
}
static void limited_free(void *user, void *p, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(p);
}

void must(cmoe_status status, const cmoe_error *err)
{
    if (status == CMOE_OK) return;
    printf("setting up: %s\n", err->text);
    exit(2);
}

static void make_layers(fixture *f, const float *w)
{
    cmoe_error err = {0};
    int32_t table[V * K];
    for (int i = 0; i < V * K; i++)
        table[i] = i % E;
    cmoe_route_options r;
    cmoe_route_options_default(&r, sizeof r);
    r.topk = K;
    cmoe_layer_options o;
    cmoe_layer_options_default(&o, sizeof o);
    o.route = &r;
    cmoe_layer_weights lw;
    cmoe_layer_weights_default(&lw, sizeof lw);
    lw.gate = cmoe_view_2d(w, CMOE_F32, E, H);
    lw.experts = f->experts;
    lw.shared = f->shared;
    must(cmoe_layer_create(&f->layer, f->ctx, &o, &lw, &err), &err);
    lw.hash_table = cmoe_view_2d(table, CMOE_I32, V, K);
    must(cmoe_layer_create(&f->hashed, f->ctx, &o, &lw, &err), &err);
}

fixture fixture_open(memory *m)
{
    fixture f = {0};
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 1;
    o.allocator = (cmoe_allocator){.alloc = limited_alloc, .free = limited_free};
    must(cmoe_ctx_create(&f.ctx, &o, &err), &err);
    must(cmoe_stream_create(&f.stream, f.ctx, &err), &err);
    fill(m->buffer[0], CMOE_F32);
    const void *w = m->buffer[0];
    const cmoe_view none = cmoe_view_none();
    must(cmoe_matrix_create(&f.matrix, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, E, I, H), none, &err),
         &err);
    must(cmoe_matrix_create(&f.one, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, 1, I, H), none, &err),
         &err);
    must(cmoe_experts_create(&f.experts, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, E, 2 * I, H),
                             cmoe_view_3d(w, CMOE_F32, E, H, I), none, none, &err),
         &err);
    must(cmoe_experts_create(&f.shared, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, 1, 2 * I, H),
                             cmoe_view_3d(w, CMOE_F32, 1, H, I), none, none, &err),
         &err);
    make_layers(&f, w);
    fill(m->buffer[1], CMOE_I32);
    cmoe_align_options ao;
    cmoe_align_options_default(&ao, sizeof ao);
    ao.experts = E;
    f.groups_memory = malloc(BUFFER);
    cmoe_arena arena = cmoe_arena_make(f.groups_memory, BUFFER);
    must(cmoe_align(f.stream, &ao, cmoe_view_2d(m->buffer[1], CMOE_I32, T, K), &f.groups, &arena,
                    &err),
         &err);
#ifdef MUTATE_MODEL
    fixture_model(&f);
#endif
    return f;
}

void fixture_close(fixture *f)
{
#ifdef MUTATE_MODEL
    fixture_model_close(f);
#endif
    cmoe_layer_free(f->layer);
    cmoe_layer_free(f->hashed);
    cmoe_experts_free(f->experts);
    cmoe_experts_free(f->shared);
    cmoe_matrix_free(f->matrix);
    cmoe_matrix_free(f->one);
    cmoe_stream_free(f->stream);
    cmoe_ctx_free(f->ctx);
    free(f->groups_memory);
}
