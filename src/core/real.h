/* SPDX-License-Identifier: MIT
 *
 * real.h - the functions a reference kernel needs, for its float and its double build.
 *
 * As float they are the library's own (vmath.h), as double libm's: the oracle shares no polynomial
 * with what it judges.
 */
#ifndef CMOE_REAL_H
#define CMOE_REAL_H

#include "kernel.h"
#include "vmath.h"

#ifdef CMOEI_DOUBLE
static inline double real_fma(double a, double b, double c)
{
    return a * b + c;
}
static inline double real_exp(double x)
{
    return exp(x);
}
static inline double real_log(double x)
{
    return log(x);
}
static inline double real_sqrt(double x)
{
    return sqrt(x);
}
static inline double real_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}
static inline double real_silu(double x)
{
    return x / (1 + exp(-x));
}
static inline double real_gelu_tanh(double x)
{
    return x / 2 * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
}
static inline double real_sin(double x)
{
    return sin(x);
}
static inline double real_cos(double x)
{
    return cos(x);
}
static inline double real_softplus(double x)
{
    return fmax(x, 0) + log1p(exp(-fabs(x)));
}
#else
static inline float real_fma(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float real_exp(float x)
{
    return cmoei_expf(x);
}
static inline float real_log(float x)
{
    return cmoei_logf(x);
}
static inline float real_sqrt(float x)
{
    return sqrtf(x);
}
static inline float real_sigmoid(float x)
{
    return cmoei_sigmoidf(x);
}
static inline float real_silu(float x)
{
    return cmoei_siluf(x);
}
static inline float real_gelu_tanh(float x)
{
    return cmoei_gelu_tanhf(x);
}
static inline float real_sin(float x)
{
    return cmoei_sinf(x);
}
static inline float real_cos(float x)
{
    return cmoei_cosf(x);
}
static inline float real_softplus(float x)
{
    return cmoei_softplusf(x);
}
#endif

#endif
