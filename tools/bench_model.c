/* SPDX-License-Identifier: MIT
 *
 * bench_model.c - `cmoe bench model`: how fast a model reads a prompt and writes an answer.
 *
 * Through the engine, as generate does it, so that all of its costs are in the numbers.  Prefill is
 * the time to the first token, decode that of all others.  Every repetition reads another prompt of
 * random ids and nothing is reused; one more goes before the clock starts.
 */
#include <math.h>
#include <stdlib.h>

#include "bench.h"
#include "report.h"
#include "settings.h"
#include "talk.h"
#include "verbs.h"

typedef struct bench_model_options {
    model_flags model;
    int64_t prompt_tokens, new_tokens, repeat;
    diffusion_flags diffusion;
    common_options common;
} bench_model_options;

#define AT(field) offsetof(bench_model_options, field)

static const option options[] = {
    OPTION_MODEL(bench_model_options, true),
    {.name = "prompt-tokens",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(prompt_tokens),
     .initial = "0",
     .most = 1099511627776.0,
     .help = "tokens of the prompt; 0: 512, or four fifths of a shorter context"},
    {.name = "new-tokens",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(new_tokens),
     .initial = "0",
     .most = 1099511627776.0,
     .help = "tokens of the answer, at least 2; 0: 128, or a fifth of a shorter context"},
    {.name = "repeat",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(repeat),
     .initial = "5",
     .least = 1,
     .most = 1000,
     .help = "repetitions; medians are printed"},
    OPTIONS_MODEL(bench_model_options, "auto", "none"),
    OPTIONS_DIFFUSION(bench_model_options),
    OPTIONS_COMMON(bench_model_options),
};

const option_verb bench_model_verb = {
    .name = "bench model",
    .group = "Measure",
    .summary = "tokens per second of a model: prompt and answer",
    .examples = "  cmoe bench model MODEL\n"
                "  cmoe bench model MODEL --prompt-tokens 2048 --new-tokens 256 --dtype int8\n"
                "  cmoe bench model MODEL --prompt-tokens 1 --json      decode alone\n",
    .text = "Greedy, one sequence, no end of text. Prefill: prompt tokens over the time to the "
            "first new one; decode: the other new tokens over the rest of the time. spread: "
            "(largest - least) / median of the repetitions.",
    .options = options,
};

typedef struct run {
    bench_model_options *o;
    talk talk;
    settings settings;
    int32_t *prompt;          /* [prompt_tokens] */
    double *prefill, *decode; /* [repeat] tokens per second */
    int64_t forwards;         /* of the last repetition */
} run;

static int prepare(run *r)
{
    bench_model_options *o = r->o;
    const sampling_flags greedy = {.has_temperature = true};
    int status = talk_open(&r->talk, &o->model, &o->common);
    const cmoe_model_info *info = &r->talk.info;
    if (status == 0)
        status = settings_read(&r->settings, r->talk.session.ctx, o->model.path, info, &greedy,
                               &o->diffusion, o->model.block_length);
    if (status) return status;
    if (o->new_tokens == 1)
        return report_fail(EXIT_USAGE, "--new-tokens", "\"1\" is too few to time, want 2 or more");
    const int64_t usual = info->context < 640 ? info->context / 5 : 128;
    if (o->new_tokens == 0) o->new_tokens = usual > 2 ? usual : 2;
    if (o->prompt_tokens == 0)
        o->prompt_tokens = info->context < 640 ? info->context - o->new_tokens : 512;
    if (o->prompt_tokens + o->new_tokens > info->context || o->prompt_tokens < 1)
        return report_fail(EXIT_USAGE, "--prompt-tokens",
                           "%lld and %lld new ones, want together at most %lld (context of %s)",
                           (long long)o->prompt_tokens, (long long)o->new_tokens,
                           (long long)info->context, o->model.path);
    r->prompt = malloc((size_t)o->prompt_tokens * sizeof *r->prompt);
    r->prefill = malloc((size_t)o->repeat * sizeof *r->prefill);
    r->decode = malloc((size_t)o->repeat * sizeof *r->decode);
    if (!r->prompt || !r->prefill || !r->decode)
        return report_fail(EXIT_MEMORY, "bench model", "no memory");
    status = talk_load(&r->talk, o->prompt_tokens + o->new_tokens,
                       settings_canvas(&r->settings, info), false);
    keep_end(&r->talk.keeping, o->common.quiet); /* nothing else shall run */
    return status;
}

/* Ids that are no mask. */
static void make_prompt(run *r, uint64_t seed)
{
    const int64_t mask = settings_mask_token(&r->settings, &r->talk.info);
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < r->o->prompt_tokens; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        int64_t id = (int64_t)((state >> 33) % (uint64_t)r->talk.info.vocab);
        if (id == mask) id = id > 0 ? id - 1 : id + 1;
        r->prompt[i] = (int32_t)id;
    }
}

/* One repetition; i < 0: not counted. */
static int once(run *r, int64_t i)
{
    const bench_model_options *o = r->o;
    talk_answer a;
    cmoe_request q;
    make_prompt(r, (uint64_t)(i + 1));
    cmoe_request_default(&q, sizeof q);
    q.prompt = r->prompt;
    q.prompt_count = o->prompt_tokens;
    q.max_tokens = o->new_tokens;
    q.sampling = &r->settings.sampling;
    q.diffusion = r->settings.diffuses ? &r->settings.diffusion : NULL;
    q.want_text = 0;
    if (i < 0)
        report_progress(o->common.quiet, "warming up");
    else
        report_progress(o->common.quiet, "repetition %lld of %lld", (long long)i + 1,
                        (long long)o->repeat);
    int status = talk_ask(&r->talk, &q, NULL, NULL, &a);
    if (status == 0 && a.finish == CMOE_FINISH_CANCELLED)
        status = report_fail(EXIT_CANCELLED, "bench model", "cancelled");
    if (status == 0 && i >= 0) {
        r->prefill[i] = (double)o->prompt_tokens / fmax(a.prompt_seconds, 1e-9);
        r->decode[i] = (double)(a.count - 1) / fmax(a.generate_seconds, 1e-9);
        r->forwards = a.forwards;
    }
    talk_answer_free(&a);
    return status;
}

static int print(run *r)
{
    const bench_model_options *o = r->o;
    const cmoe_model_info *info = &r->talk.info;
    const char *dtype = model_format_name(info->format);
    const int64_t n = o->repeat, P = o->prompt_tokens, N = o->new_tokens;
    const double prefill = bench_median(r->prefill, n), decode = bench_median(r->decode, n);
    const double prefill_spread = (r->prefill[n - 1] - r->prefill[0]) / prefill;
    const double decode_spread = (r->decode[n - 1] - r->decode[0]) / decode;
    const int threads = (int)cmoe_ctx_threads(r->talk.session.ctx);
    if (o->common.json) {
        machine m;
        machine_read(&m);
        json_t *result =
            json_pack("{sI sI sI ss si sf sf sf sf sI}", "prompt_tokens", (json_int_t)P,
                      "new_tokens", (json_int_t)N, "repeat", (json_int_t)n, "dtype", dtype,
                      "threads", threads, "prefill_tokens_per_second", prefill, "prefill_spread",
                      prefill_spread, "decode_tokens_per_second", decode, "decode_spread",
                      decode_spread, "forwards", (json_int_t)r->forwards);
        return report_json(json_pack(
            "{so s{so ss sI sI sI} sf s[o]}", "machine", machine_json(&m, r->talk.session.ctx),
            "model", "path", report_json_text(o->model.path), "type", info->type, "parameters",
            (json_int_t)info->parameters, "active_parameters", (json_int_t)info->active_parameters,
            "weight_bytes", (json_int_t)info->bytes.total, "load_seconds", r->talk.load_seconds,
            "results", result));
    }
    const report_style style = report_style_of_stdout();
    report out;
    const int status = report_begin(&out);
    if (status) return status;
    fprintf(out.to, "%s%s%s as %s, %s, %d threads, loaded in %.2f s\n\n", style.bold, info->type,
            style.off, dtype, size_of(info->bytes.total).s, threads, r->talk.load_seconds);
    fprintf(out.to, "%s         tokens   tokens/s   spread%s\n", style.bold, style.off);
    fprintf(out.to, "prefill  %6lld %10.1f %7.1f%%\n", (long long)P, prefill, 100 * prefill_spread);
    fprintf(out.to, "decode   %6lld %10.1f %7.1f%%\n", (long long)N, decode, 100 * decode_spread);
    fprintf(out.to, "\n%lld forwards, medians of %lld\n", (long long)r->forwards, (long long)n);
    return report_end(&out, 0);
}

int bench_model_main(int argc, char **argv)
{
    bench_model_options o = {0};
    run r = {.o = &o};
    int status = options_parse(&bench_model_verb, argc, argv, &o);
    if (status == 0) {
        report_catch_signals();
        status = prepare(&r);
    }
    for (int64_t i = -1; i < o.repeat && status == 0; i++)
        status = once(&r, i);
    if (status == 0) status = print(&r);
    settings_free(&r.settings);
    talk_close(&r.talk);
    free(r.prompt);
    free(r.prefill);
    free(r.decode);
    return status;
}
