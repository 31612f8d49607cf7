# SPDX-License-Identifier: MIT
"""cmoe - Mixture-of-Experts layers: exact, fast, the same bits everywhere.

T tokens, K slots per token (top-k), E experts, H hidden, I intermediate size.

    weights, ids = cmoe.route(logits, 8)            # [T, E] -> [T, K] twice
    out = cmoe.experts(x, w13, w2, ids, weights)    # x [T, H], w13 [E, 2I, H], w2 [E, H, I]

    layer = cmoe.Experts(w13, w2, dtype="bf16")     # packs the weights once
    out = layer(x, ids, weights)

Tensors are numpy arrays, torch tensors, or anything with DLPack, in the memory of the CPU; any
strides are used as they are.  bfloat16 comes through ml_dtypes or torch.  Results are of the kind
of the first argument.  A token's result does not depend on the batch it is in, nor on the number of
threads.  There is no arithmetic here: every function calls the C function of its name, and fails
with cmoe.Error, whose text names the argument, the bad value and what is accepted.

Every function takes ctx, a cmoe.Context; None is one that all calls of the process share.  Calls
run without the interpreter lock, so Python threads compute side by side.
"""
from ._context import Context
from ._native import ArgumentError, DtypeError, Error, OutOfMemoryError, UnsupportedError
from ._steps import (Experts, GdnInputs, Groups, Variant, add_shared_expert, align, experts,
                     gdn_decode_pack, isas, quantize_rows, rms_norm, route, sigmoid_mul, variants,
                     version)

__all__ = ["ArgumentError", "Context", "DtypeError", "Error", "OutOfMemoryError", "UnsupportedError",
           "Experts", "GdnInputs", "Groups", "Variant", "add_shared_expert", "align",
           "experts", "gdn_decode_pack", "isas", "quantize_rows", "rms_norm", "route", "sigmoid_mul", "variants",
           "version"]
__version__ = version()
