/* SPDX-License-Identifier: MIT
 *
 * checkpoint.h - what the loader needs of a checkpoint beside cmoe/weights.h.
 */
#ifndef CMOE_WEIGHTS_CHECKPOINT_H
#define CMOE_WEIGHTS_CHECKPOINT_H

#include "cmoe/weights.h"
#include "core/core.h"

/* libcmoe must be of this libcmoe_engine's version: they share internals.  Every entry of the
 * engine that makes something from a context asks first. */
cmoe_status cmoei_engine_check(cmoe_error *err);

/* Hints about [data, data + bytes) of the mappings, of one tensor or of many that lie side by side.
 * Neither changes what is read later, nor fails.
 *
 * drop: it was read for the last time; whole pages inside leave the mapping and the page cache.
 * will_need: it is read soon; its pages are fetched in the background. */
void cmoei_checkpoint_drop(const cmoe_checkpoint *c, const void *data, int64_t bytes);
/* One number for the files as they are now: their names, sizes, places and times.  Other contents have
 * another number, unless somebody has set the clock back. */
uint64_t cmoei_checkpoint_identity(const cmoe_checkpoint *c);
void cmoei_checkpoint_will_need(const cmoe_checkpoint *c, const void *data, int64_t bytes);

/* CMOE_ERR_IO when a file is shorter than it was when it was mapped: reading on would end the process.
 * Asked before each layer; a file that is cut in between nobody who maps it can survive. */
cmoe_status cmoei_checkpoint_whole(const cmoe_checkpoint *c, cmoe_error *err);

#endif
