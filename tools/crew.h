/* SPDX-License-Identifier: MIT
 *
 * crew.h - a few threads for one piece of work: probes and making test data.
 *
 * Not the library's pool: what is measured must not share code with what measures.
 */
#ifndef TOOLS_CREW_H
#define TOOLS_CREW_H

#include <stdint.h>

typedef void (*crew_fn)(void *arg, int32_t index, int32_t count);

/* Calls fn(arg, i, n) once for every i of 0..n-1, all at the same time, n = `count` or as many
 * threads as can be had.  Returns the seconds from the first start to the last end. */
double crew_run(int32_t count, crew_fn fn, void *arg);

double crew_now(void); /* seconds of a clock that only goes forward */

#endif
