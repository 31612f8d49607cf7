/* SPDX-License-Identifier: MIT
 *
 * sdar.c - SDAR 1.7B, 4B, 8B: a Qwen3 that writes blocks by diffusion.
 *
 * The network is Qwen3's; attention is block-causal.  A token sees its own block whole and all
 * blocks before it, in the prompt too; blocks are counted from position 0.
 */
#include <inttypes.h>

#include "archs.h"

void cmoei_sdar_blocks(cmoei_config *c, cmoei_decoder *d)
{
    enum { BLOCK = 4, MOST_BLOCK = 1 << 16, MASK_TOKEN = 151669 };
    d->mask = (int32_t)cmoei_config_int(c, "block_size|block_length", 1, MOST_BLOCK, BLOCK);
    d->mask_token = cmoei_config_int(c, "mask_token_id", 0, d->vocab - 1, MASK_TOKEN);
    if (d->mask_token >= d->vocab)
        cmoei_config_fail(
            c, CMOE_ERR_FORMAT,
            "mask_token_id is missing, and %d lies outside the vocabulary of %" PRId64, MASK_TOKEN,
            d->vocab);
}

static void read(cmoei_config *c, cmoei_decoder *d)
{
    cmoei_qwen3_read(c, d);
    cmoei_sdar_blocks(c, d);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_sdar = {"sdar", read, names};
