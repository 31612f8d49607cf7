/* SPDX-License-Identifier: MIT
 *
 * cmoe/cmoe.h - all of libcmoe: a Mixture-of-Experts layer and every step of it.  Whole models are
 * libcmoe_engine's: weights.h, model.h, text.h, engine.h.
 */
#ifndef CMOE_CMOE_H
#define CMOE_CMOE_H

#include "cmoe/base.h"

#include "cmoe/align.h"
#include "cmoe/attention.h"
#include "cmoe/comm.h"
#include "cmoe/dispatch.h"
#include "cmoe/experts.h"
#include "cmoe/layer.h"
#include "cmoe/matmul.h"
#include "cmoe/ops.h"
#include "cmoe/route.h"
#include "cmoe/trainable.h"

#endif
