# SPDX-License-Identifier: MIT
"""torch tensors in, torch tensors out; the numbers are those of numpy."""
import unittest

import numpy as np

import cmoe
import reference as ref
from common import TestCase, torch


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(40)

    def normal(self, *shape, scale=1.0):
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def test_route_and_align(self):
        x = self.normal(6, 16)
        weights, ids = cmoe.route(torch.from_numpy(x), 3)
        self.assertEqual((weights.dtype, ids.dtype), (torch.float32, torch.int32))
        for got, want in zip((weights, ids), cmoe.route(x, 3)):
            self.same(got.numpy(), want)
        groups = cmoe.align(ids.long(), 16, 4)
        for got, want in zip(groups, cmoe.align(ids.numpy(), 16, 4)):
            self.assertIsInstance(got, torch.Tensor)
            self.same(got.numpy(), want)

    def test_experts(self):
        x, w13, w2 = self.normal(5, 24), self.normal(4, 26, 24, scale=.2), self.normal(4, 24, 13)
        weights, ids = cmoe.route(x[:, :4], 2)
        want, bound = ref.experts(x.astype(np.float64), w13.astype(np.float64),
                                  w2.astype(np.float64), ids, weights)
        tensors = [torch.from_numpy(a) for a in (x, w13, w2, ids, weights)]
        got = cmoe.experts(*tensors)
        self.near(got.numpy(), want, bound, "experts")
        layer = cmoe.Experts(tensors[1], tensors[2])
        self.assertTrue(torch.equal(layer(tensors[0], tensors[3].long(), tensors[4]), got))
        turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
        self.assertTrue(torch.equal(cmoe.experts(*turned), got))

    def test_bfloat16(self):
        x = torch.from_numpy(self.normal(5, 24)).bfloat16()
        w13 = torch.from_numpy(self.normal(3, 16, 24, scale=.2)).bfloat16()
        w2 = torch.from_numpy(self.normal(3, 24, 8, scale=.3)).bfloat16()
        weights, ids = cmoe.route(x[:, :3], 2)
        want, bound = ref.experts(x.double().numpy(), w13.double().numpy(), w2.double().numpy(),
                                  ids.numpy(), weights.numpy(), dtype="bf16", out_dtype="bf16")
        out = cmoe.experts(x, w13, w2, ids, weights)
        self.assertEqual(out.dtype, torch.bfloat16)
        self.near(out.double().numpy(), want, bound, "experts in bfloat16")

    def test_parameters(self):
        x = torch.nn.Parameter(torch.from_numpy(self.normal(3, 8)))
        out = cmoe.rms_norm(x, torch.ones(8), 1e-6)
        self.assertFalse(out.requires_grad)
        self.same(out.numpy(), cmoe.rms_norm(x.detach().numpy(), np.ones(8, np.float32), 1e-6))

    def test_any_rank(self):
        x = torch.from_numpy(self.normal(2, 3, 8))
        q, scale = cmoe.quantize_rows(x.transpose(0, 1))
        self.assertEqual((tuple(q.shape), tuple(scale.shape)), ((3, 2, 8), (3, 2)))
        self.assertEqual((q.dtype, scale.dtype), (torch.int8, torch.float32))

    def test_errors(self):
        self.fails(cmoe.Error, "CMOE_ERR_DEVICE", "logits: on device meta", cmoe.route,
                   torch.zeros(2, 4, device="meta"), 2)
        self.fails(ValueError, "CMOE_ERR_ARG", "logits: layout", cmoe.route,
                   torch.zeros(2, 4).to_sparse(), 2)
        self.fails(TypeError, "CMOE_ERR_DTYPE", "logits", cmoe.route,
                   torch.zeros(2, 4, dtype=torch.complex64), 2)
