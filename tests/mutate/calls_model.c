/* SPDX-License-Identifier: MIT
 *
 * calls_model.c - checkpoints and whole models; see mutate.h.  The model is MUTATE_MODEL, a golden one.
 */
#include <unistd.h>

#include "cmoe/model.h"
#include "cmoe/weights.h"
#include "layout.h"

DEFAULTS(cmoe_model_options)
DEFAULTS(cmoe_model_call)
DEFAULTS(cmoe_cache_options)

static void info_init(void *o, size_t size)
{
    *(cmoe_model_info *)o = (cmoe_model_info){.size = size};
}
static void layer_init(void *o, size_t size)
{
    *(cmoe_model_layer *)o = (cmoe_model_layer){.size = size};
}
static void tensor_init(void *o, size_t size)
{
    *(cmoe_tensor *)o = (cmoe_tensor){.size = size};
}
/* No struct but an array of views, which place() fills: nothing in it is a number. */
static void views_init(void *o, size_t size)
{
    memset(o, 0, size);
}
static void *array(args *a, size_t size)
{
    void *p = options(a, size, views_init);
    close_words(&a->block[a->blocks - 1], 0, size);
    return p;
}

/* The last block is what the call fills. */
static void fills(args *a)
{
    a->filled[a->blocks - 1] = true;
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

static void set_path(args *a, memory *m)
{
    (void)m;
    with_object(a, MUTATE_MODEL);
    pointer(a, &a->ctx);
}
static cmoe_status run_checkpoint_open(args *a, cmoe_error *err)
{
    return cmoe_checkpoint_open((cmoe_checkpoint **)&a->made, a->ctx, a->object, err);
}
static void free_checkpoint(void *c)
{
    cmoe_checkpoint_free(c);
}

static void set_tensor(args *a, memory *m)
{
    (void)m;
    with_object(a, a->fix->checkpoint);
    a->n[0] = 3;
    number(a, &a->n[0], 8);
    options(a, sizeof(cmoe_tensor), tensor_init);
    fills(a);
}
static cmoe_status run_tensor(args *a, cmoe_error *err)
{
    cmoe_checkpoint_count(a->object);
    cmoe_checkpoint_bytes(a->object);
    cmoe_checkpoint_find(a->object, NULL);
    return cmoe_checkpoint_tensor(a->object, a->n[0], (cmoe_tensor *)(uintptr_t)a->options[0], err);
}

/* Into a file of the working directory, which is there afterwards only if the call succeeded: then it
 * can be read.  What was made is that file. */
static char written_file[] = "mutate_written.safetensors";

static void set_write(args *a, memory *m)
{
    static const char *const metadata[] = {"format", "pt", "made by", "mutate", NULL};
    enum { COUNT = 3 };
    array(a, COUNT * sizeof(cmoe_view));
    static const char *const names[COUNT] = {"weight", "bias", "ids"};
    for (int i = 0; i < COUNT; i++) {
        const int v = i == 0   ? tensor(a, m, false, CMOE_BF16, 7, 3, E, I, H)
                      : i == 1 ? in1(a, m, CMOE_F32, 1, H)
                               : in2(a, m, CMOE_I64, 3, T, K);
        a->view[v].in.name = names[i];
        place(a, v, (size_t)i * sizeof(cmoe_view));
    }
    a->n[0] = COUNT;
    number(a, &a->n[0], 8);
    a->result[0] = written_file;
    pointer(a, &a->result[0]);
    with_object(a, metadata);
}
static cmoe_status run_write(args *a, cmoe_error *err)
{
    cmoe_checkpoint *c = NULL;
    unlink(written_file);
    cmoe_status status =
        cmoe_safetensors_write(a->result[0], a->options[0], a->n[0], a->object, err);
    if (access(written_file, F_OK) == 0) a->made = written_file;
    if (status != CMOE_OK) return status;
    status = cmoe_checkpoint_open(&c, a->fix->ctx, written_file, err);
    cmoe_checkpoint_free(c);
    return status;
}
static void remove_file(void *file)
{
    unlink(file);
}

/* ---- load, plan, describe -------------------------------------------------------------------- */

static int32_t go_on(void *user, int64_t done, int64_t all)
{
    (void)user;
    return done > all; /* never */
}

static void model_options(args *a)
{
    cmoe_model_options *o = OPTIONS(a, cmoe_model_options);
    o->format = CMOE_F32;
    o->progress = go_on;
    place_pointer(a, offsetof(cmoe_model_options, progress));
    place_pointer(a, offsetof(cmoe_model_options, progress_user));
    place_pointer(a, offsetof(cmoe_model_options, cache_dir));
}

static void set_load(args *a, memory *m)
{
    set_path(a, m);
    model_options(a);
}
static cmoe_status run_load(args *a, cmoe_error *err)
{
    return cmoe_model_load((cmoe_model **)&a->made, a->ctx, a->object, a->options[0], err);
}
static void free_model(void *m)
{
    cmoe_model_free(m);
}

static void set_plan(args *a, memory *m)
{
    set_load(a, m);
    options(a, sizeof(cmoe_model_info), info_init);
    fills(a);
}
static cmoe_status run_plan(args *a, cmoe_error *err)
{
    return cmoe_model_plan(a->ctx, a->object, a->options[0],
                           (cmoe_model_info *)(uintptr_t)a->options[1], err);
}

static void set_describe(args *a, memory *m)
{
    (void)m;
    with_object(a, a->fix->model);
    options(a, sizeof(cmoe_model_info), info_init);
    fills(a);
}
static cmoe_status run_describe(args *a, cmoe_error *err)
{
    return cmoe_model_describe(a->object, (cmoe_model_info *)(uintptr_t)a->options[0], err);
}

static void set_layer_describe(args *a, memory *m)
{
    (void)m;
    with_object(a, a->fix->model);
    a->n[0] = 2;
    number(a, &a->n[0], 8);
    options(a, sizeof(cmoe_model_layer), layer_init);
    fills(a);
}
static cmoe_status run_layer_describe(args *a, cmoe_error *err)
{
    return cmoe_model_layer_describe(a->object, a->n[0],
                                     (cmoe_model_layer *)(uintptr_t)a->options[0], err);
}

/* ---- cache, forward -------------------------------------------------------------------------- */

static void set_cache(args *a, memory *m)
{
    (void)m;
    with_object(a, a->fix->model);
    cmoe_cache_options *o = OPTIONS(a, cmoe_cache_options);
    o->pages = 2;
}
static cmoe_status run_cache(args *a, cmoe_error *err)
{
    return cmoe_cache_create((cmoe_cache **)&a->made, a->object, a->options[0], err);
}
static void free_cache(void *c)
{
    cmoe_cache_free(c);
}

static bool may_forward(const args *a, int corrupted)
{
    return batch_fits((const cmoe_batch *)a->block[2].bytes, corrupted);
}

/* Layer 0 is captured, layer 1 replayed; `rows` of the tokens have logits. */
static void set_model_forward(args *a, memory *m)
{
    enum { ROWS = 3, LAYERS = 3, VOCAB = 256, TOPK = 4 };
    static const int64_t rows[ROWS] = {0, 2, 5};
    cmoe_routing *capture = array(a, LAYERS * sizeof *capture);
    place(a, out2(a, m, CMOE_I32, 0, T, TOPK), offsetof(cmoe_routing, ids));
    place(a, out2(a, m, CMOE_F32, 0, T, TOPK), offsetof(cmoe_routing, weights));
    cmoe_routing *replay = array(a, LAYERS * sizeof *replay);
    place(a, in2(a, m, CMOE_I32, 0, T, TOPK), sizeof *replay + offsetof(cmoe_routing, ids));
    place(a, in2(a, m, CMOE_F32, 0, T, TOPK), sizeof *replay + offsetof(cmoe_routing, weights));
    cmoe_batch *batch = options(a, sizeof *batch, batch_init);
    with_batch(a, m, batch, 0);
    cmoe_model_call *c = OPTIONS(a, cmoe_model_call);
    c->batch = batch;
    place_pointer(a, offsetof(cmoe_model_call, batch));
    place(a, in1(a, m, CMOE_I32, 0, T), offsetof(cmoe_model_call, ids));
    const int r = in1(a, m, CMOE_I64, 0, ROWS);
    memcpy(m->buffer[r] + MIDDLE, rows, sizeof rows);
    place(a, r, offsetof(cmoe_model_call, rows));
    c->cache = a->fix->cache;
    c->capture = capture;
    c->replay = replay;
    place_pointer(a, offsetof(cmoe_model_call, cache));
    place_pointer(a, offsetof(cmoe_model_call, capture));
    place_pointer(a, offsetof(cmoe_model_call, replay));
    a->n[0] = out2(a, m, CMOE_F32, 0, ROWS, VOCAB);
    with_object(a, a->fix->model);
    with_arena(a, m);
    a->may = may_forward;
}
static cmoe_status run_model_forward(args *a, cmoe_error *err)
{
    return cmoe_model_forward(a->stream, a->object, a->options[3], OUT(a->n[0]), a->arena_at, err);
}

static void set_forward_bytes(args *a, memory *m)
{
    (void)m;
    with_object(a, a->fix->model);
    a->n[0] = a->n[2] = T;
    a->n[1] = 2;
    for (int i = 0; i < 3; i++)
        number(a, &a->n[i], 8);
    pointer(a, &a->result[0]);
    pointer(a, &a->result[1]);
}
static cmoe_status run_forward_bytes(args *a, cmoe_error *err)
{
    return cmoe_model_forward_bytes(a->object, a->n[0], a->n[1], a->n[2], a->result[0],
                                    a->result[1], err);
}

const call model_calls[] = {
    {"checkpoint_open", set_path, run_checkpoint_open, free_checkpoint, false},
    {"checkpoint_tensor", set_tensor, run_tensor, NULL, false},
    {"safetensors_write", set_write, run_write, remove_file, false},
    {"model_load", set_load, run_load, free_model, false},
    {"model_plan", set_plan, run_plan, NULL, false},
    {"model_describe", set_describe, run_describe, NULL, false},
    {"model_layer_describe", set_layer_describe, run_layer_describe, NULL, false},
    {"cache_create", set_cache, run_cache, free_cache, false},
    {"model_forward", set_model_forward, run_model_forward, NULL, false},
    {"model_forward_bytes", set_forward_bytes, run_forward_bytes, NULL, false},
};
const int n_model_calls = (int)(sizeof model_calls / sizeof model_calls[0]);

/* ---- what they need -------------------------------------------------------------------------- */

void fixture_model(fixture *f)
{
    cmoe_error err = {0};
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = CMOE_F32;
    must(cmoe_model_load(&f->model, f->ctx, MUTATE_MODEL, &o, &err), &err);
    cmoe_cache_options c;
    cmoe_cache_options_default(&c, sizeof c);
    c.pages = 3;
    must(cmoe_cache_create(&f->cache, f->model, &c, &err), &err);
    must(cmoe_checkpoint_open(&f->checkpoint, f->ctx, MUTATE_MODEL, &err), &err);
}

void fixture_model_close(fixture *f)
{
    cmoe_checkpoint_free(f->checkpoint);
    cmoe_cache_free(f->cache);
    cmoe_model_free(f->model);
}
