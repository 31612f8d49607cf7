/* SPDX-License-Identifier: MIT
 *
 * backward_ref.c - gradients of one token's logits (the plain build of backward_token.h).
 */
#include "backward_token.h"

void CMOEI_REF(cmoei_route_back_token)(const cmoei_route_back *a, int64_t t)
{
    back_token_run(a, t);
}

void CMOEI_REF(cmoei_route_back_pull)(const cmoei_route_pull *a, int64_t t, double mean)
{
    back_pull_run(a, t, mean);
}

double CMOEI_REF(cmoei_route_back_z)(const cmoei_route_slope *a, int64_t t, double scale)
{
    return back_z_run(a, t, scale);
}
