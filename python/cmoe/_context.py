# SPDX-License-Identifier: MIT
"""Contexts: which threads and instructions work, and the scratch memory of each Python thread.

A context is shared by any number of Python threads.  A stream belongs to one thread at a time, so
each call makes its own: that is one small allocation.  Scratch memory is kept per thread and only
grows, because calls of one model ask for the same amount again and again.
"""
import operator
import os
import threading
import weakref
from ctypes import byref, c_int64, c_uint32, c_void_p

import numpy as np

from . import _native as n


def integer(name, value, bits=64):
    """A Python integer that fits, because ctypes would silently cut it."""
    try:
        value = operator.index(value)
    except TypeError:
        raise n.error("CMOE_ERR_ARG", "%s = %r, want an integer" % (name, value)) from None
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise n.error("CMOE_ERR_RANGE", "%s = %d, want an integer of %d bits"
                      % (name, value, bits))
    return value


def isa_levels():
    """(name, mask of features) of every level the library knows, lowest first."""
    levels = []
    for i in range(n.lib.isa_levels()):
        name, mask = n.lib.isa_level_name(i), c_uint32()
        n.call("isa_mask", name, byref(mask))
        levels.append((name.decode(), mask.value))
    return levels


class Context:
    """Where and how computing happens.

    threads  None or 0: one for every CPU that this process may run on
    isa      the highest instruction set to use, one of isas(); None: the best
    device   "cpu"

    May be shared by threads.  It belongs to the process that made it: after a fork, make another.
    """

    def __init__(self, threads=None, isa=None, device="cpu"):
        if device != "cpu":
            raise n.error("CMOE_ERR_UNSUPPORTED", "device %r, want \"cpu\"" % (device,))
        o = n.options(n.cmoe_ctx_options, "ctx_options_default")
        if threads is not None:
            o.threads = integer("threads", threads, 32)
            if o.threads < 0:
                raise n.error("CMOE_ERR_RANGE", "threads = %d, want at least 0 (all)" % o.threads)
        if isa is not None:
            mask = c_uint32()
            n.call("isa_mask", str(isa).encode(), byref(mask))
            o.isa_mask = mask.value
        handle = c_void_p()
        n.call("ctx_create", byref(handle), byref(o))
        self._handle = handle
        self._local = threading.local()
        # At exit other threads may still be computing, and the memory goes anyway.
        weakref.finalize(self, n.lib.ctx_free, handle).atexit = False

    @property
    def threads(self):
        return n.lib.ctx_threads(self._handle)

    @property
    def isa(self):
        """The highest level that this context uses in full.

        Without a choice of its own that may be below the last of isas(): where the bf16
        instructions of a CPU are slower than float32, only asking by name brings them.
        """
        features = n.lib.ctx_features(self._handle)
        return [name for name, mask in isa_levels() if not mask & ~features][-1]

    @property
    def device(self):
        return "cpu"

    def __repr__(self):
        return "cmoe.Context(threads=%d, isa=%r)" % (self.threads, self.isa)

    def _scratch(self, size):
        """`size` is a *_bytes function and its arguments; memory that this thread keeps."""
        wanted = scratch_bytes(*size)
        memory = getattr(self._local, "memory", None)
        if memory is None or memory.nbytes < wanted:
            self._local.memory = None
            memory = self._local.memory = np.empty(wanted, np.uint8)
        return memory

    def _run(self, function, *args, size=None, memory=None):
        """lib.<function>(stream, *args) with an arena last, if the function takes one.

        size    makes the arena from this thread's scratch memory
        memory  is the arena: results stay in it
        """
        if size is not None:
            memory = self._scratch(size)
        if memory is not None:
            args += (byref(n.cmoe_arena(memory.ctypes.data, memory.nbytes, 0)),)
        stream = c_void_p()
        n.call("stream_create", byref(stream), self._handle)
        try:
            n.call(function, stream, *args)
        finally:
            n.lib.stream_free(stream)


def scratch_bytes(function, *args):
    """What a *_bytes function says for the host."""
    host, device = c_int64(), c_int64()
    n.call(function, *args, byref(host), byref(device))
    return host.value


_default = None
_lock = threading.Lock()


def context(ctx):
    """The caller's context, or the one that is made at the first call without."""
    global _default
    if ctx is None:
        if _default is None:
            with _lock:
                if _default is None:
                    _default = Context()
        return _default
    if not isinstance(ctx, Context):
        raise n.error("CMOE_ERR_ARG", "ctx: %s, want a cmoe.Context" % type(ctx).__name__)
    return ctx


def _after_fork():
    """The child has none of the parent's threads, so the default context starts anew."""
    global _default, _lock
    _abandoned.append(_default)
    _default, _lock = None, threading.Lock()


_abandoned = []  # never freed: freeing joins threads that do not exist here
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
