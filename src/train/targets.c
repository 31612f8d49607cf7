/* SPDX-License-Identifier: MIT
 *
 * targets.c - which parameters get low-rank terms.
 *
 * A target is a word for a kind (experts, router, shared, mlp, attention), or the end of a module's name at a
 * dot: "q_proj", "mlp.experts.down_proj", "model.layers.3.self_attn.o_proj".  Stacked experts are the module
 * that PEFT knows, gate_up_proj or down_proj.
 */
#include "targets.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lora/peft.h"
#include "models/adapt.h"
#include "models/resolve.h"

static const char *const words[] = {"attention", "experts", "router", "shared", "mlp"};
static const char default_targets[] = "attention,experts,router,shared,mlp";

/* Index of the word for a role. */
static int32_t word_of(cmoei_role role)
{
    if (role >= CMOEI_Q && role <= CMOEI_O) return 0;
    if (role == CMOEI_FUSED_GATE_UP ||
        (role >= CMOEI_EXPERT_GATE && role <= CMOEI_EXPERT_DOWN_BIAS))
        return 1;
    if (role == CMOEI_ROUTER) return 2;
    if (role >= CMOEI_SHARED_GATE && role <= CMOEI_SHARED_DOWN_BIAS) return 3;
    return role >= CMOEI_GATE && role <= CMOEI_DOWN_BIAS ? 4 : -1;
}

bool cmoei_targets_module(const cmoei_params *p, int64_t layer, const cmoei_weight *w, int32_t part,
                          char *name, size_t size)
{
    return cmoei_adapt_module(p->d, layer, w->part[part].role, name, size);
}

static bool ends_with(const char *name, const char *end, size_t n)
{
    const size_t length = strlen(name);
    if (n > length || strncmp(name + length - n, end, n) != 0) return false;
    return n == length || name[length - n - 1] == '.';
}

/* Target `t` of n characters is this part. */
static bool fits(const cmoei_params *p, int64_t layer, const cmoei_weight *w, int32_t part,
                 const char *t, size_t n)
{
    char name[CMOEI_NAME];
    const int32_t word = word_of(w->part[part].role);
    if (word >= 0 && strlen(words[word]) == n && strncmp(words[word], t, n) == 0) return true;
    return word >= 0 && cmoei_targets_module(p, layer, w, part, name, sizeof name) &&
           ends_with(name, t, n);
}

/* Every part that a target fits gets the rank; returns how many. */
static int64_t apply(cmoei_params *p, const char *t, size_t n)
{
    int64_t found = 0;
    for (int64_t i = 0; i < p->d->layers; i++) {
        for (int32_t k = 0; k < CMOEI_W_KINDS; k++) {
            cmoei_weight *w = &p->layer[i].weight[k];
            for (int32_t j = 0; w->outputs > 0 && j < w->parts; j++) {
                if (!fits(p, i, w, j, t, n)) continue;
                w->part[j].rank = p->o.rank;
                found++;
            }
        }
    }
    return found;
}

/* Gate and up of stacked experts have one pair of factors. */
static void fuse_experts(cmoei_params *p)
{
    for (int64_t i = 0; i < p->d->layers; i++) {
        cmoei_weight *w = &p->layer[i].weight[CMOEI_W_13];
        if (p->d->layer[i].experts == 0) continue;
        w->parts = 1;
        w->part[0] = (cmoei_weight_part){
            .role = CMOEI_FUSED_GATE_UP, .bias_role = CMOEI_EXPERT_GATE_BIAS, .rows = w->outputs};
    }
}

static cmoe_status unknown(const cmoei_params *p, const char *t, size_t n, cmoe_error *err)
{
    char list[400] = "";
    size_t used = 0;
    for (int32_t k = 0; p->d->layers > 0 && k < CMOEI_W_KINDS; k++) {
        const cmoei_weight *w = &p->layer[p->d->layers - 1].weight[k];
        for (int32_t j = 0; w->outputs > 0 && j < w->parts; j++) {
            char name[CMOEI_NAME];
            if (word_of(w->part[j].role) < 0 ||
                !cmoei_targets_module(p, p->d->layers - 1, w, j, name, sizeof name))
                continue;
            const char *last = strrchr(name, '.');
            const int more =
                snprintf(list + used, sizeof list - used, " %s", last ? last + 1 : name);
            if (more > 0 && (size_t)more < sizeof list - used) used += (size_t)more;
        }
    }
    return cmoei_fail(err, CMOE_ERR_ARG,
                      "target \"%.*s\" fits no parameter of this model, want some of: attention "
                      "experts router shared mlp, or the end of a module's name:%s",
                      (int)CMOEI_MIN(n, 100), t, list);
}

/* The part that a module of an adapter is; NULL: there is none. */
static cmoei_weight_part *part_of(cmoei_params *p, const char *module, cmoei_weight **weight)
{
    char name[CMOEI_NAME];
    for (int64_t i = 0; i < p->d->layers; i++) {
        for (int32_t k = 0; k < CMOEI_W_KINDS; k++) {
            cmoei_weight *w = &p->layer[i].weight[k];
            for (int32_t j = 0; w->outputs > 0 && j < w->parts; j++) {
                if (!cmoei_targets_module(p, i, w, j, name, sizeof name)) continue;
                if (strcmp(name, module) != 0) continue;
                *weight = w;
                return &w->part[j];
            }
        }
    }
    return NULL;
}

static cmoe_status start_term(cmoei_params *p, const cmoei_lora_term *term, cmoei_lora_term *out,
                              cmoei_weight_part **part, cmoe_error *err)
{
    cmoei_weight *w = NULL;
    *part = part_of(p, term->module, &w);
    if (!*part)
        return cmoei_fail(
            err, CMOE_ERR_UNSUPPORTED,
            "adapter: %s cannot be trained on: want projections of attention, stacked "
            "experts, routers, shared experts or MLPs of this model",
            term->module);
    int32_t layout = CMOE_PEFT_SINCE_0_19;
    const cmoei_role role = (*part)->role == CMOEI_EXPERT_DOWN ? CMOEI_FUSED_DOWN : (*part)->role;
    /* What a class keeps transposed PEFT has always written alike. */
    if (term->stacked && !(cmoei_adapt_how(p->d, role) & CMOEI_TRANSPOSED))
        CMOEI_TRY(cmoei_adapter_layout(p->o.start, p->d, &layout, err));
    return cmoei_lora_orient(p->o.start, term, layout, w->experts, (*part)->rows, w->inputs, out,
                             err);
}

/* Ranks as the adapter has them; all terms must have one scale. */
static cmoe_status apply_start(cmoei_params *p, cmoe_error *err)
{
    const cmoe_adapter *a = p->o.start;
    for (int64_t i = 0; i < a->count; i++) {
        cmoei_weight_part *part;
        cmoei_lora_term term;
        CMOEI_TRY(start_term(p, &a->terms[i], &term, &part, err));
        part->rank = term.rank;
        if (i == 0) p->lora_scale = term.scale;
        if (term.scale != p->lora_scale)
            return cmoei_fail(
                err, CMOE_ERR_UNSUPPORTED,
                "adapter: %s is scaled by %g and %s by %g, want one scale to train on",
                a->terms[0].module, (double)p->lora_scale, term.module, (double)term.scale);
    }
    return CMOE_OK;
}

/* The trainer has gate rows first, then up; some classes have them in turn. */
static void copy_b(const cmoei_params *p, cmoei_role role, const cmoei_lora_term *t, float *to)
{
    const bool mixed =
        role == CMOEI_FUSED_GATE_UP && (cmoei_adapt_how(p->d, role) & CMOEI_INTERLEAVED);
    const int64_t N = t->outputs, half = N / 2;
    for (int64_t e = 0; e < t->experts; e++)
        for (int64_t n = 0; n < N; n++) {
            const int64_t from = !mixed ? n : n < half ? 2 * n : 2 * (n - half) + 1;
            memcpy(to + (e * N + n) * t->rank, t->b + (e * N + from) * t->rank,
                   (size_t)t->rank * sizeof *to);
        }
}

cmoe_status cmoei_targets_start(cmoei_params *p, cmoe_error *err)
{
    const cmoe_adapter *a = p->o.start;
    for (int64_t i = 0; i < a->count; i++) {
        cmoei_weight_part *part;
        cmoei_lora_term term;
        CMOEI_TRY(start_term(p, &a->terms[i], &term, &part, err));
        const size_t one = (size_t)(term.experts * term.rank) * sizeof(float);
        memcpy(part->a, term.a, one * (size_t)term.inputs);
        copy_b(p, part->role, &term, part->b);
    }
    return CMOE_OK;
}

cmoe_status cmoei_targets_apply(cmoei_params *p, cmoe_error *err)
{
    const bool given = p->o.targets != NULL;
    const char *t = given ? p->o.targets : default_targets;
    int64_t all = 0;
    const double rank = (double)p->o.rank;
    p->lora_scale = (float)(p->o.alpha / (p->o.rslora ? sqrt(rank) : rank));
    fuse_experts(p);
    if (p->o.start) return apply_start(p, err);
    while (*t) {
        const size_t n = strcspn(t, ",");
        const int64_t found = n > 0 ? apply(p, t, n) : 0;
        /* Of the default list a model has what it has. */
        if (found == 0 && given) return unknown(p, t, n, err);
        all += found;
        t += n + (t[n] == ',');
    }
    if (all == 0) return unknown(p, t, 0, err);
    return CMOE_OK;
}
