/* SPDX-License-Identifier: MIT
 *
 * greedy.c - greedy tokens of every causal checkpoint that has some, both prompts at once.
 *
 *     golden_engine_greedy FOLDER                 the golden checkpoints
 */
#include "world.h"

static const char *const cases[] = {"dots1",      "ernie4_5_moe",   "flex_olmo",    "glm4_moe",
                                    "gpt_oss",    "mixtral",        "minimax_m2",   "gpt_oss_mxfp4",
                                    "granitemoe", "hunyuan_v1_moe", "olmoe",        "phimoe",
                                    "qwen2_moe",  "qwen3_moe",      "qwen3_moe_fp8"};

static void greedy(const char *name)
{
    static answer all[2];
    world w = world_open(name, 2);
    world_engine(&w, NULL);
    int32_t prompt[2][WORLD_TOKENS], want[2][WORLD_TOKENS];
    int64_t n[2];
    for (int p = 0; p < 2; p++) {
        char tensor[32];
        cmoe_request r;
        cmoe_request_default(&r, sizeof r);
        snprintf(tensor, sizeof tensor, "p%d.input_ids", p);
        r.prompt = prompt[p];
        r.prompt_count = world_golden(&w, name, tensor, prompt[p], WORLD_TOKENS);
        snprintf(tensor, sizeof tensor, "p%d.greedy", p);
        n[p] = r.max_tokens = world_golden(&w, name, tensor, want[p], WORLD_TOKENS);
        if (n[p] == 0) fail_msg("%s has no %s", name, tensor);
        world_submit(&w, &r, &all[p]);
    }
    world_run(&w, all, 2);
    for (int p = 0; p < 2; p++) {
        assert_int_equal(all[p].finish, CMOE_FINISH_LENGTH);
        assert_int_equal(all[p].count, n[p]);
        for (int64_t i = 0; i < n[p]; i++)
            if (all[p].ids[i] != want[p][i])
                fail_msg("%s: p%d token %d = %d, want %d", name, p, (int)i, (int)all[p].ids[i],
                         (int)want[p][i]);
    }
    world_close(&w);
}

static void every_case(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        greedy(cases[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_case)};
    if (argc != 2) {
        printf("usage: golden_engine_greedy FOLDER\n");
        return 2;
    }
    world_folder = argv[1];
    return UNIT_RUN("golden_engine_greedy", tests);
}
