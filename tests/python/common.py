# SPDX-License-Identifier: MIT
"""What the tests share: contexts of every instruction set, comparison within bounds, shapes."""
import unittest

import numpy as np

import cmoe

try:
    import ml_dtypes
    BF16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BF16 = None

try:
    import torch
except ImportError:
    torch = None

NUMPY = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "f64": np.dtype(np.float64),
         "bf16": BF16}
_contexts = {}


def contexts():
    """(isa, context) for everything this CPU has, made once."""
    if not _contexts:
        _contexts.update((isa, cmoe.Context(threads=2, isa=isa)) for isa in cmoe.isas())
    return _contexts.items()


class TestCase(unittest.TestCase):
    def near(self, got, want, bound, what):
        """|got - want| <= bound everywhere; says where it is missed most."""
        got = np.asarray(got).astype(np.float64)
        want, bound = np.broadcast_arrays(np.asarray(want, np.float64), bound)
        self.assertEqual(got.shape, want.shape, what)
        over = ~(np.abs(got - want) <= bound)
        if over.any():
            at = tuple(int(i[0]) for i in np.nonzero(over))
            self.fail("%s: %d of %d wrong, first [%s] = %.9g, want %.9g within %.3g" % (
                what, over.sum(), over.size, ", ".join(map(str, at)), got[at], want[at], bound[at]))

    def same(self, got, want, what=""):
        """Equal bits, shape and dtype."""
        self.assertEqual((got.shape, got.dtype), (want.shape, want.dtype), what)
        self.assertEqual(np.ascontiguousarray(got).tobytes(), np.ascontiguousarray(want).tobytes(),
                         what)

    def fails(self, kind, status, text, call, *args, **kwargs):
        """cmoe.Error that is also `kind`, with this status and this in its text."""
        with self.assertRaises(cmoe.Error) as caught:
            call(*args, **kwargs)
        self.assertIsInstance(caught.exception, kind)
        self.assertEqual(caught.exception.status, status, str(caught.exception))
        self.assertIn(text, str(caught.exception))


def strided(rng, a):
    """The same values in memory that is not contiguous: steps, reversed, or in another order."""
    how = rng.integers(0, 4)
    if how == 0:
        return a
    if how == 1:
        big = np.zeros([2 * d + 1 for d in a.shape], a.dtype)
        view = big[tuple(slice(1, None, 2) for _ in a.shape)]
        view[...] = a
        return view
    if how == 2:
        flip = tuple(slice(None, None, -1) for _ in a.shape)
        return np.ascontiguousarray(a[flip])[flip]
    return np.asfortranarray(a)


def misaligned(a):
    """The same values at an odd address."""
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view
