"""Layers that take part of a batch for what it is."""

import torch
from timm.models.vision_transformer import Block
from torch import nn

from smallvit.parallel import processes
from smallvit.parallel.by_rows import share_out


def test_what_is_shared_out_twice_is_as_after_once(monkeypatch):
    """A run of several processes may be prepared more than once with one network."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    parts = {"block": Block(16, 2, attn_drop=0.1, drop_path=0.2), "norm": nn.BatchNorm2d(3)}
    network = nn.ModuleDict(parts)

    def layers():
        return [(type(m), len(m._forward_pre_hooks)) for m in network.modules()]

    share_out(network)
    once = layers()
    share_out(network)
    assert layers() == once
    images = torch.randn(2, 3, 4, 4)
    network.eval()
    torch.testing.assert_close(network["norm"](images), nn.BatchNorm2d(3).eval()(images))
