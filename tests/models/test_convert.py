"""Weights under the authors' names: mapped by name, and computing what the authors' nets compute.

Each function that writes names quotes the file and the lines where they stand, at the commits that
``convert.py`` names. The functions below compute with the authors' names and layouts; they share
nothing with the models.
"""

import argparse
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from smallvit.core.errors import ConfigError, DataError, UnknownNameError
from smallvit.models.architecture import sides
from smallvit.models.convert.adapt import adapt, position_grid
from smallvit.models.convert.checkpoint import read_checkpoint
from smallvit.models.convert.public import convert, find_source
from smallvit.models.convert.rules import mismatches, rename
from smallvit.models.registry import create_exported

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, Tensor]


def draw(shapes: Shapes) -> Weights:
    """Draw random values; variances are positive, as a batch norm needs them."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator) / math.sqrt(max(shape[-1:] or (1,)))
        weights[name] = value.abs() + 0.5 if name.endswith("running_var") else value
        if name.endswith(("num_batches_tracked", "relative_position_index")):
            weights[name] = torch.ones(shape, dtype=torch.long)
    return weights


def linear(name: str, num_out: int, num_in: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (num_out, num_in)} | ({f"{name}.bias": (num_out,)} if bias else {})


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def block(name: str, dim: int, ratio: float, *, qkv_bias: bool) -> Shapes:
    hidden = int(dim * ratio)
    return {
        **norm(f"{name}.norm1", dim),
        **linear(f"{name}.attn.qkv", 3 * dim, dim, bias=qkv_bias),
        **linear(f"{name}.attn.proj", dim, dim),
        **norm(f"{name}.norm2", dim),
        **linear(f"{name}.mlp.fc1", hidden, dim),
        **linear(f"{name}.mlp.fc2", dim, hidden),
    }


def ends(dim: int, positions: int, classes: int) -> Shapes:
    head = linear("head", classes, dim) if classes else {}
    return {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, positions, dim),
        **norm("norm", dim),
        **head,
    }


# hananshafi/vits-for-small-scale-datasets, models/vit.py: fc1, fc2 54-56; qkv, proj 75-77; norm1,
# attn, norm2, mlp 102-108; patch_embed.proj 129; cls_token, pos_embed, blocks, norm, head 150-163.
def gani_vit(*, dim: int = 24, depth: int = 2, patch: int = 4, grid: int = 3, classes: int = 5):
    shapes = {
        **ends(dim, 1 + grid**2, classes),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
    }
    for i in range(depth):
        shapes |= block(f"blocks.{i}", dim, 2, qkv_bias=True)
    return shapes


# models/cait.py there: q, k, v, proj 45-49; gamma_1, gamma_2 86-87 and 159-160; qkv, proj, proj_l,
# proj_w 114-120; norm1, norm2 152-156; patch_embed of a Rearrange and a Linear 192-194; cls_token,
# pos_embed, blocks, blocks_token_only 205-218.
def gani_cait(
    *,
    dim: int = 12,
    depth: int = 2,
    heads: int = 4,
    patch: int = 4,
    grid: int = 3,
    classes: int = 5,
):
    shapes = {**ends(dim, grid**2, classes), **linear("patch_embed.1", dim, 3 * patch**2)}
    for i in range(depth):
        name = f"blocks.{i}"
        shapes |= block(name, dim, 2, qkv_bias=True)
        shapes |= {f"{name}.gamma_1": (dim,), f"{name}.gamma_2": (dim,)}
        shapes |= linear(f"{name}.attn.proj_l", heads, heads)
        shapes |= linear(f"{name}.attn.proj_w", heads, heads)
    for i in range(2):
        name = f"blocks_token_only.{i}"
        shapes |= block(name, dim, 4, qkv_bias=True)
        shapes |= {f"{name}.gamma_1": (dim,), f"{name}.gamma_2": (dim,)}
        del shapes[f"{name}.attn.qkv.weight"], shapes[f"{name}.attn.qkv.bias"]
        for key in "qkv":
            shapes |= linear(f"{name}.attn.{key}", dim, dim)
    return shapes


# models/swin.py of both repositories: relative_position_bias_table, relative_position_index, qkv
# and proj of WindowAttention; norm1, attn, norm2, mlp of SwinTransformerBlock; blocks of
# BasicLayer; layers, norm, head of SwinTransformer.
def swin(
    dim: int,
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    windows: tuple[int, ...],
    classes: int,
) -> Shapes:
    shapes: Shapes = {}
    for i, depth in enumerate(depths):
        width = dim * 2**i
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}"
            shapes |= block(name, width, 2, qkv_bias=True)
            side = 2 * windows[i] - 1
            shapes[f"{name}.attn.relative_position_bias_table"] = (side**2, heads[i])
            shapes[f"{name}.attn.relative_position_index"] = (windows[i] ** 2,) * 2
    width = dim * 2 ** (len(depths) - 1)
    return shapes | norm("norm", width) | (linear("head", classes, width) if classes else {})


# PatchEmbed there has proj and norm; PatchMerging, downsample of BasicLayer, reduction and norm.
def gani_swin(
    *,
    dim: int = 6,
    depths: tuple[int, ...] = (1, 2, 1),
    heads: tuple[int, ...] = (1, 2, 3),
    windows: tuple[int, ...] = (4, 4, 4),
    patch: int = 2,
    classes: int = 5,
):
    shapes = swin(dim, depths, heads, windows, classes)
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    shapes |= norm("patch_embed.norm", dim)
    for i in range(len(depths) - 1):
        width = dim * 2**i
        shapes |= norm(f"layers.{i}.downsample.norm", 4 * width)
        shapes |= linear(f"layers.{i}.downsample.reduction", 2 * width, 4 * width, bias=False)
    return shapes


# zihangJiang/TokenLabeling, tlt/models/lvvit.py: patch_embed 104; cls_token, pos_embed, blocks
# 108-122; norm, head, aux_head 128-135. tlt/models/layers.py, class PatchEmbed4_2: conv1, bn1 to
# conv3, bn3, proj.
def lvvit(
    *,
    dim: int = 12,
    depth: int = 2,
    patch: int = 4,
    grid: int = 3,
    classes: int = 5,
    width: int = 8,
    aux: bool = True,
):
    kernel = patch // 2
    shapes = {
        **ends(dim, 1 + grid**2, classes),
        "patch_embed.conv1.weight": (width, 3, 7, 7),
        "patch_embed.conv2.weight": (width, width, 3, 3),
        "patch_embed.conv3.weight": (width, width, 3, 3),
        "patch_embed.proj.weight": (dim, width, kernel, kernel),
        "patch_embed.proj.bias": (dim,),
        **(linear("aux_head", classes, dim) if aux else {}),
    }
    for i in range(1, 4):
        shapes |= norm(f"patch_embed.bn{i}", width)
        shapes |= {f"patch_embed.bn{i}.running_{key}": (width,) for key in ("mean", "var")}
        shapes[f"patch_embed.bn{i}.num_batches_tracked"] = ()
    for i in range(depth):
        shapes |= block(f"blocks.{i}", dim, 3, qkv_bias=False)
    return shapes


# yitu-opensource/T2T-ViT, models/token_performer.py: kqv, proj, norm1, norm2, mlp, w 12-29;
# models/token_transformer.py: qkv, proj 21-23; norm1, attn, norm2, mlp 50-55.
def token_layer(name: str, num_in: int, kind: str) -> Shapes:
    shapes = norm(f"{name}.norm1", num_in) | norm(f"{name}.norm2", 64)
    if kind == "performer":
        return shapes | {
            **linear(f"{name}.kqv", 192, num_in),
            **linear(f"{name}.proj", 64, 64),
            **linear(f"{name}.mlp.0", 64, 64),
            **linear(f"{name}.mlp.2", 64, 64),
            f"{name}.w": (32, 64),
        }
    return shapes | {
        **linear(f"{name}.attn.qkv", 192, num_in, bias=False),
        **linear(f"{name}.attn.proj", 64, 64),
        **linear(f"{name}.mlp.fc1", 64, 64),
        **linear(f"{name}.mlp.fc2", 64, 64),
    }


# models/t2t_vit.py: attention1, attention2, project 69-71.
def t2t_stem(dim: int, kind: str) -> Shapes:
    return {
        **token_layer("tokens_to_token.attention1", 147, kind),
        **token_layer("tokens_to_token.attention2", 576, kind),
        **linear("tokens_to_token.project", dim, 576),
    }


# models/t2t_vit.py: tokens_to_token 113; cls_token, pos_embed, blocks, norm, head 117-130;
# models/transformer_block.py: fc1, fc2 19-21; qkv, proj 40-42; norm1, attn, norm2, mlp 64-70;
# models/t2t_vit_se.py: fc 26-29, se_layer 54; models/t2t_vit_ghost.py: fc1, cheap_operation2 and 3
# 29-35; q, k, v, cheap_operation_q to _v 63-69.
def t2t_vit(
    *,
    dim: int = 16,
    depth: int = 2,
    ratio: float = 2,
    grid: int = 3,
    classes: int = 5,
    kind: str = "performer",
    block_kind: str = "plain",
):
    shapes = {**ends(dim, 1 + grid**2, classes), **t2t_stem(dim, kind)}
    for i in range(depth):
        name = f"blocks.{i}"
        shapes |= block(name, dim, ratio, qkv_bias=False)
        if block_kind == "se":
            shapes |= linear(f"{name}.attn.se_layer.fc.0", dim // 16, dim, bias=False)
            shapes |= linear(f"{name}.attn.se_layer.fc.2", dim, dim // 16, bias=False)
        if block_kind == "ghost":
            del shapes[f"{name}.attn.qkv.weight"]
            for key in "qkv":
                shapes |= linear(f"{name}.attn.{key}", dim // 2, dim, bias=False)
                shapes[f"{name}.attn.cheap_operation_{key}.weight"] = (dim // 2, 1, 1)
            shapes |= linear(f"{name}.mlp.fc1", dim, dim)
            for i in (2, 3):
                shapes[f"{name}.mlp.cheap_operation{i}.weight"] = (dim, 1, 1)
    return shapes


# models/t2t_vit_dense.py: linear of class Transition 27, dense_linear of its class Block.
def t2t_vit_dense(*, grid: int = 3, classes: int = 5):
    shapes: Shapes = {}
    width, index = 128, 0
    for stage, depth in enumerate((3, 6, 6, 4)):
        for _ in range(depth):
            shapes |= block(f"blocks.{index}", width, 2, qkv_bias=False)
            shapes |= linear(f"blocks.{index}.dense_linear", 64, width)
            width, index = width + 64, index + 1
        if stage < 3:
            shapes |= linear(f"blocks.{index}.linear", width // 2, width)
            width, index = width // 2, index + 1
    shapes |= {"cls_token": (1, 1, 128), "pos_embed": (1, 1 + grid**2, 128)}
    shapes |= norm("norm", width) | linear("head", classes, width)
    return shapes | t2t_stem(128, "performer")


# aanna0701/SPT_LSA_ViT, models/SPT.py, class ShiftedPatchTokenization: merging of a Rearrange, a
# LayerNorm and a Linear.
def spt_embedding(name: str, dim: int, patch: int) -> Shapes:
    return norm(f"{name}.1", 15 * patch**2) | linear(f"{name}.2", dim, 15 * patch**2)


# models/vit.py there: norm, fn 27-28; net 39-43; to_qkv, to_out, scale 61-69; layers 106-112;
# to_patch_embedding 135-141; pos_embedding, cls_token, transformer, mlp_head 143-152.
def spt_vit(
    *,
    dim: int = 24,
    depth: int = 2,
    heads: int = 12,
    patch: int = 4,
    grid: int = 3,
    classes: int = 5,
    spt: bool = True,
    lsa: bool = True,
):
    shapes = {"pos_embedding": (1, 1 + grid**2, dim), "cls_token": (1, 1, dim)}
    if spt:
        shapes |= spt_embedding("to_patch_embedding.merging", dim, patch)
    else:
        shapes |= linear("to_patch_embedding.1", dim, 3 * patch**2)
    for i in range(depth):
        attn, ff = (f"transformer.layers.{i}.{j}" for j in range(2))
        shapes |= norm(f"{attn}.norm", dim) | norm(f"{ff}.norm", dim)
        shapes |= {f"{attn}.fn.scale": (heads,)} if lsa else {}
        shapes |= linear(f"{attn}.fn.to_qkv", 3 * dim, dim, bias=False)
        shapes |= linear(f"{attn}.fn.to_out.0", dim, dim)
        shapes |= linear(f"{ff}.fn.net.0", 2 * dim, dim) | linear(f"{ff}.fn.net.3", dim, 2 * dim)
    return shapes | norm("mlp_head.0", dim) | linear("mlp_head.1", classes, dim)


# models/cait.py there: scale, fn 79-80; norm, fn 87-88; net 95-99; to_q, to_kv, mix_heads_pre_attn,
# mix_heads_post_attn, to_out, scale 112-127; class CaiT: to_patch_embedding, a Sequential also
# around shifted patches, pos_embedding, cls_token, patch_transformer, cls_transformer, mlp_head.
def spt_cait(
    *,
    dim: int = 12,
    depth: int = 2,
    heads: int = 4,
    head_dim: int = 5,
    patch: int = 4,
    grid: int = 3,
    classes: int = 5,
    lsa: bool = True,
):
    shapes = {"pos_embedding": (1, grid**2, dim), "cls_token": (1, 1, dim)}
    shapes |= spt_embedding("to_patch_embedding.0.merging", dim, patch)
    inner = heads * head_dim
    for kind, layers in (("patch", depth), ("cls", 2)):
        for i in range(layers):
            attn, ff = (f"{kind}_transformer.layers.{i}.{j}" for j in range(2))
            shapes |= {f"{attn}.scale": (1, 1, dim), f"{ff}.scale": (1, 1, dim)}
            shapes |= norm(f"{attn}.fn.norm", dim) | norm(f"{ff}.fn.norm", dim)
            shapes |= {f"{attn}.fn.fn.scale": (heads,)} if lsa else {}
            shapes |= {f"{attn}.fn.fn.mix_heads_{k}_attn": (heads, heads) for k in ("pre", "post")}
            shapes |= linear(f"{attn}.fn.fn.to_q", inner, dim, bias=False)
            shapes |= linear(f"{attn}.fn.fn.to_kv", 2 * inner, dim, bias=False)
            shapes |= linear(f"{attn}.fn.fn.to_out.0", dim, inner)
            shapes |= linear(f"{ff}.fn.fn.net.0", 2 * dim, dim)
            shapes |= linear(f"{ff}.fn.fn.net.3", dim, 2 * dim)
    return shapes | norm("mlp_head.0", dim) | linear("mlp_head.1", classes, dim)


# models/swin.py there: scale of WindowAttention, attn_mask of SwinTransformerBlock,
# absolute_pos_embed of SwinTransformer; patch_embed and downsample are ShiftedPatchTokenization.
def spt_swin(
    *,
    dim: int = 6,
    depths: tuple[int, ...] = (1, 2, 1),
    heads: tuple[int, ...] = (1, 2, 3),
    patch: int = 2,
    grid: int = 16,
    classes: int = 5,
):
    shapes = swin(dim, depths, heads, (4, 4, 4), classes)
    for i, depth in enumerate(depths):
        for j in range(depth):
            shapes[f"layers.{i}.blocks.{j}.attn.scale"] = (heads[i],)
    shapes["layers.1.blocks.1.attn_mask"] = ((grid // 8) ** 2, 16, 16)
    shapes["absolute_pos_embed"] = (1, grid**2, dim)
    shapes |= spt_embedding("patch_embed.merging", dim, patch)
    for i in range(len(depths) - 1):
        width = dim * 2**i
        name = f"layers.{i}.downsample.merging"
        shapes |= norm(f"{name}.1", 20 * width) | linear(f"{name}.2", 2 * width, 20 * width)
    return shapes


# Name of the model where the authors' weights do not tell the number of heads at these sizes.
TINY: dict[str, tuple[Callable[..., Shapes], str | None, str]] = {
    "gani_vit": (gani_vit, None, "gani"),
    "gani_cait": (gani_cait, None, "gani"),
    "gani_swin": (gani_swin, None, "gani"),
    "lvvit": (lvvit, "lvvit_small", "lvvit"),
    "t2t_vit": (t2t_vit, "t2t_vit_7", "t2t"),
    "spt_vit": (spt_vit, None, "spt"),
    "spt_vit, plain": (lambda: spt_vit(spt=False, lsa=False), None, "spt"),
    "spt_cait": (spt_cait, None, "spt"),
    "spt_swin": (spt_swin, None, "spt"),
}


@pytest.mark.parametrize("kind", TINY)
def test_every_weight_arrives_once_and_nothing_is_left_over(kind):
    shapes, model, layout = TINY[kind]
    weights = draw(shapes())
    converted = convert(weights, model=model)
    dropped = [name for name in weights if name.endswith(("_index", "_mask"))]
    kept = [value for name, value in weights.items() if name not in dropped]
    state = converted.backbone.model.state_dict().values()
    theirs, ours = (torch.cat([v.flatten().double() for v in side]) for side in (kept, state))
    torch.testing.assert_close(ours.sort().values, theirs.sort().values, rtol=0, atol=0)
    assert converted.layout == layout
    assert converted.num_mapped == len(kept)
    assert all(any(name in note for note in converted.notes) for name in dropped)


# Sizes of the papers' networks, and their parameters in millions as in the papers' tables.
PUBLISHED = {
    "gani_vit 32 px": (gani_vit(dim=192, depth=9, grid=8, classes=10), 2.698, "vit_tiny_patch16_"),
    "gani_vit 64 px": (
        gani_vit(dim=192, depth=9, patch=8, grid=8, classes=200),
        2.762,
        "vit_tiny_patch16_",
    ),
    "gani_cait 32 px": (gani_cait(dim=192, depth=24, grid=8, classes=10), 8.053, "cait_xxs24_"),
    "gani_swin 32 px": (
        gani_swin(dim=96, depths=(2, 6, 4), heads=(3, 6, 12), classes=10),
        7.049,
        "swin_tiny_",
    ),
    "lvvit_t": (lvvit(dim=240, depth=12, patch=16, grid=14, classes=1000, width=64), 8.53, "lvv"),
    "lvvit_l": (
        lvvit(dim=768, depth=24, patch=16, grid=14, classes=1000, width=128),
        150.02,
        "lvvit_large",
    ),
    "t2t_vit_7": (t2t_vit(dim=256, depth=7, grid=14, classes=1000), 4.310, "t2t_vit_7"),
    "t2t_vit_t_14": (
        t2t_vit(dim=384, depth=14, ratio=3, grid=14, classes=1000, kind="transformer"),
        21.541,
        "t2t_vit_t_14",
    ),
    "t2t_vit_14": (
        t2t_vit(dim=384, depth=14, ratio=3, grid=14, classes=1000),
        21.546,
        "t2t_vit_14",
    ),
    "t2t_vit_14_wide": (
        t2t_vit(dim=768, depth=4, ratio=3, grid=14, classes=1000),
        25.16,
        "t2t_vit_14_wide",
    ),
    "t2t_vit_14_se": (
        t2t_vit(dim=384, depth=14, ratio=3, grid=14, classes=1000, block_kind="se"),
        None,
        "t2t_vit_14_se",
    ),
    "t2t_vit_16_ghost": (
        t2t_vit(dim=384, depth=16, ratio=3, grid=14, classes=1000, block_kind="ghost"),
        None,
        "t2t_vit_16_ghost",
    ),
    "t2t_vit_dense": (t2t_vit_dense(grid=14, classes=1000), None, "t2t_vit_dense"),
    "sl_vit": (spt_vit(dim=192, depth=9, grid=8, classes=10), None, "sl_vit"),
    "lee_vit": (
        spt_vit(dim=192, depth=9, grid=8, classes=10, spt=False, lsa=False),
        None,
        "lee_vit",
    ),
    "sl_cait": (
        spt_cait(dim=192, depth=24, head_dim=64, grid=8, classes=10),
        None,
        "sl_cait_unmasked",
    ),
    "sl_swin": (
        spt_swin(dim=96, depths=(2, 6, 4), heads=(3, 6, 12), classes=10),
        None,
        "sl_swin",
    ),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_networks_are_told_by_names_and_shapes_alone(kind):
    shapes, millions, name = PUBLISHED[kind]
    if millions is not None:
        buffers = ("running_mean", "running_var", "tracked", "_index")
        size = sum(math.prod(v) for k, v in shapes.items() if not k.endswith(buffers))
        assert round(size / 1e6, len(str(millions).split(".")[1])) == millions
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in shapes.items()}
        converted = convert(weights)
    assert converted.name.startswith(name)


# -- What the authors' networks compute, from weights under their names


def ln(x: Tensor, w: Weights, name: str, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def fc(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def mlp(x: Tensor, w: Weights, first: str, second: str) -> Tensor:
    return fc(F.gelu(fc(x, w, first)), w, second)


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def softmax_attention(x: Tensor, w: Weights, name: str, heads: int) -> Tensor:
    q, k, v = (heads_of(y, heads) for y in fc(x, w, f"{name}.qkv").chunk(3, dim=-1))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return fc((weights @ v).transpose(1, 2).flatten(2), w, f"{name}.proj")


def run_blocks(
    x: Tensor, w: Weights, heads: int, *, eps: float = 1e-5, divide: float = 1.0, depth: int = 2
) -> Tensor:
    for i in range(depth):
        b = f"blocks.{i}"
        x = x + softmax_attention(ln(x, w, f"{b}.norm1", eps), w, f"{b}.attn", heads) / divide
        x = x + mlp(ln(x, w, f"{b}.norm2", eps), w, f"{b}.mlp.fc1", f"{b}.mlp.fc2") / divide
    return ln(x, w, "norm", eps)


def with_cls(x: Tensor, w: Weights, positions: str = "pos_embed") -> Tensor:
    return torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w[positions]


def cut(images: Tensor, p: int) -> Tensor:
    """Cut into patches laid out by row, column, channel, as einops' (p1 p2 c) does."""
    b, c, height, width = images.shape
    x = images.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, -1, p * p * c)


def shifted(images: Tensor, s: int) -> Tensor:
    """Stack an image and its four diagonal shifts by s pixels, as the authors order them."""
    pad, (h, w) = F.pad(images, (s, s, s, s)), images.shape[-2:]
    corners = [(0, 0), (0, 2 * s), (2 * s, 0), (2 * s, 2 * s)]
    return torch.cat([images, *(pad[..., i : i + h, j : j + w] for i, j in corners)], dim=1)


def test_a_gani_vit_computes_what_its_weights_did():
    w, images = draw(gani_vit()), torch.randn(2, 3, 12, 12)
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4)
    x = run_blocks(with_cls(x.flatten(2).mT, w), w, heads=12, eps=1e-6)
    model = convert(w).backbone.model.eval()
    torch.testing.assert_close(model(images), fc(x[:, 0], w, "head"), rtol=1e-4, atol=1e-5)


def test_a_gani_cait_computes_what_its_weights_did():
    """Linear patch embedding by row, column, colour; talking heads; class attention."""
    w, images = draw(gani_cait()), torch.randn(2, 3, 12, 12)
    x = fc(cut(images, 4), w, "patch_embed.1") + w["pos_embed"]
    for i in range(2):
        b = f"blocks.{i}"
        y = ln(x, w, f"{b}.norm1", 1e-6)
        q, k, v = (heads_of(z, 4) for z in fc(y, w, f"{b}.attn.qkv").chunk(3, dim=-1))
        logits = torch.einsum(
            "bhij,gh->bgij", q @ k.mT * 3**-0.5, w[f"{b}.attn.proj_l.weight"]
        ) + w[f"{b}.attn.proj_l.bias"].reshape(-1, 1, 1)
        weights = torch.einsum(
            "bhij,gh->bgij", logits.softmax(-1), w[f"{b}.attn.proj_w.weight"]
        ) + w[f"{b}.attn.proj_w.bias"].reshape(-1, 1, 1)
        y = fc((weights @ v).transpose(1, 2).flatten(2), w, f"{b}.attn.proj")
        x = x + w[f"{b}.gamma_1"] * y
        y = mlp(ln(x, w, f"{b}.norm2", 1e-6), w, f"{b}.mlp.fc1", f"{b}.mlp.fc2")
        x = x + w[f"{b}.gamma_2"] * y
    cls = w["cls_token"].expand(2, -1, -1)
    for i in range(2):
        b = f"blocks_token_only.{i}"
        u = ln(torch.cat([cls, x], dim=1), w, f"{b}.norm1", 1e-6)
        q = heads_of(fc(u[:, :1], w, f"{b}.attn.q"), 4)
        k, v = (heads_of(fc(u, w, f"{b}.attn.{key}"), 4) for key in "kv")
        y = ((q @ k.mT * 3**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        cls = cls + w[f"{b}.gamma_1"] * fc(y, w, f"{b}.attn.proj")
        y = mlp(ln(cls, w, f"{b}.norm2", 1e-6), w, f"{b}.mlp.fc1", f"{b}.mlp.fc2")
        cls = cls + w[f"{b}.gamma_2"] * y
    logits = fc(ln(cls[:, 0], w, "norm", 1e-6), w, "head")
    model = convert(w).backbone.model.eval()
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)


def test_a_gani_swin_merges_patches_at_the_start_of_the_next_stage():
    w, x = draw(gani_swin()), torch.randn(2, 4, 4, 6)
    parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]  # rows move first
    merged = ln(torch.cat(parts, dim=-1), w, "layers.0.downsample.norm")
    merged = fc(merged, w, "layers.0.downsample.reduction")
    model = convert(w).backbone.model
    torch.testing.assert_close(model.layers[1].downsample(x), merged, rtol=1e-4, atol=1e-5)


def test_a_gani_swin_made_for_32_px_with_patches_of_4_keeps_its_small_last_window():
    converted = convert(draw(gani_swin(patch=4, windows=(4, 4, 2))))
    windows = [stage.blocks[0].window_size for stage in converted.backbone.model.layers]
    assert windows == [(4, 4), (4, 4), (2, 2)]
    assert sides(converted.arguments["img_size"]) == (32, 32)
    assert converted.backbone.grid(64) == (4, 4)


def test_an_lvvit_reads_out_class_token_and_half_the_best_token():
    w, images = draw(lvvit()), torch.randn(2, 3, 12, 12)
    x = images
    for i, (stride, padding) in enumerate(((2, 3), (1, 1), (1, 1)), start=1):
        stem = "patch_embed"
        x = F.conv2d(x, w[f"{stem}.conv{i}.weight"], stride=stride, padding=padding)
        mean, var = (w[f"{stem}.bn{i}.running_{key}"] for key in ("mean", "var"))
        x = F.batch_norm(x, mean, var, w[f"{stem}.bn{i}.weight"], w[f"{stem}.bn{i}.bias"]).relu()
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=2)
    x = run_blocks(with_cls(x.flatten(2).mT, w), w, heads=6, divide=2.0)
    logits = fc(x[:, 0], w, "head") + 0.5 * fc(x[:, 1:], w, "aux_head").max(1)[0]
    model = convert(w, model="lvvit_small").backbone.model.eval()
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)


def performer(x: Tensor, w: Weights, name: str) -> Tensor:
    k, q, v = fc(ln(x, w, f"{name}.norm1"), w, f"{name}.kqv").chunk(3, dim=-1)
    k, q = (
        torch.exp(y @ w[f"{name}.w"].T - y.square().sum(-1, keepdim=True) / 2) / 32**0.5
        for y in (k, q)
    )
    kernel = torch.einsum("btm,bsm->bts", q, k)
    y = kernel @ v / (kernel.sum(-1, keepdim=True) + 1e-8)
    x = v + fc(y, w, f"{name}.proj")
    return x + mlp(ln(x, w, f"{name}.norm2"), w, f"{name}.mlp.0", f"{name}.mlp.2")


def token_transformer(x: Tensor, w: Weights, name: str) -> Tensor:
    x = ln(x, w, f"{name}.norm1")
    q, k, v = fc(x, w, f"{name}.attn.qkv").chunk(3, dim=-1)
    y = (q @ k.mT * x.shape[-1] ** -0.5).softmax(-1) @ v
    x = v + fc(y, w, f"{name}.attn.proj")
    return x + mlp(ln(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1", f"{name}.mlp.fc2")


@pytest.mark.parametrize(
    ("kind", "layer", "name"),
    [("performer", performer, "t2t_vit_7"), ("transformer", token_transformer, "t2t_vit_t_7")],
)
def test_a_t2t_vit_computes_what_its_weights_did(kind, layer, name):
    w, images = draw(t2t_vit(kind=kind)), torch.randn(2, 3, 48, 48)
    x = layer(F.unfold(images, 7, padding=2, stride=4).mT, w, "tokens_to_token.attention1")
    x = F.unfold(x.mT.reshape(2, 64, 12, 12), 3, padding=1, stride=2).mT
    x = layer(x, w, "tokens_to_token.attention2")
    x = F.unfold(x.mT.reshape(2, 64, 6, 6), 3, padding=1, stride=2).mT
    x = run_blocks(with_cls(fc(x, w, "tokens_to_token.project"), w), w, heads=4)
    model = convert(w, model=name).backbone.model.eval()
    torch.testing.assert_close(model(images), fc(x[:, 0], w, "head"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_an_spt_vit_computes_what_its_weights_did_with_and_without_its_two_parts(whole):
    w, images = draw(spt_vit(spt=whole, lsa=whole)), torch.randn(2, 3, 12, 12)
    for name in w:  # of a variance at which what the norms add to it shows
        w[name] *= 0.01 if name.startswith(("cls_token", "pos_emb", "to_patch")) else 1
    if whole:
        x = ln(cut(shifted(images, 2), 4), w, "to_patch_embedding.merging.1")
        x = fc(x, w, "to_patch_embedding.merging.2")
    else:
        x = fc(cut(images, 4), w, "to_patch_embedding.1")
    x = with_cls(x, w, "pos_embedding")
    for i in range(2):
        attn, ff = (f"transformer.layers.{i}.{j}" for j in range(2))
        y = fc(ln(x, w, f"{attn}.norm"), w, f"{attn}.fn.to_qkv")
        q, k, v = (heads_of(z, 12) for z in y.chunk(3, dim=-1))
        scale = w[f"{attn}.fn.scale"].reshape(-1, 1, 1) if whole else 2**-0.5
        logits = q @ k.mT * scale
        if whole:
            logits = logits.masked_fill(torch.eye(10, dtype=torch.bool), -987654321)
        x = x + fc((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), w, f"{attn}.fn.to_out.0")
        x = x + mlp(ln(x, w, f"{ff}.norm"), w, f"{ff}.fn.net.0", f"{ff}.fn.net.3")
    logits = fc(ln(x[:, 0], w, "mlp_head.0"), w, "mlp_head.1")
    model = convert(w).backbone.model.eval()
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)


def test_an_spt_cait_computes_what_its_weights_did():
    """Its mask, a logit of -1e-9 before the heads mix (models/cait.py:147), masks nothing."""
    w, images = draw(spt_cait()), torch.randn(2, 3, 12, 12)

    def layer(x: Tensor, name: str, context: Tensor | None) -> Tensor:
        attn, ff = f"{name}.0", f"{name}.1"
        y = ln(x, w, f"{attn}.fn.norm")
        q = heads_of(fc(y, w, f"{attn}.fn.fn.to_q"), 4)
        kv = fc(y if context is None else context, w, f"{attn}.fn.fn.to_kv")
        k, v = (heads_of(z, 4) for z in kv.chunk(2, dim=-1))
        logits = q @ k.mT * w[f"{attn}.fn.fn.scale"].reshape(-1, 1, 1)
        if context is None:
            logits = logits.masked_fill(torch.eye(9, dtype=torch.bool), -1e-9)
        logits = torch.einsum("bhij,hg->bgij", logits, w[f"{attn}.fn.fn.mix_heads_pre_attn"])
        weights = torch.einsum(
            "bhij,hg->bgij", logits.softmax(-1), w[f"{attn}.fn.fn.mix_heads_post_attn"]
        )
        y = fc((weights @ v).transpose(1, 2).flatten(2), w, f"{attn}.fn.fn.to_out.0")
        x = x + y * w[f"{attn}.scale"]
        y = mlp(ln(x, w, f"{ff}.fn.norm"), w, f"{ff}.fn.fn.net.0", f"{ff}.fn.fn.net.3")
        return x + y * w[f"{ff}.scale"]

    x = ln(cut(shifted(images, 2), 4), w, "to_patch_embedding.0.merging.1")
    x = fc(x, w, "to_patch_embedding.0.merging.2") + w["pos_embedding"]
    cls = w["cls_token"].expand(2, -1, -1)
    for i in range(2):
        x = layer(x, f"patch_transformer.layers.{i}", None)
    for i in range(2):
        cls = layer(cls, f"cls_transformer.layers.{i}", x)
    logits = fc(ln(cls[:, 0], w, "mlp_head.0"), w, "mlp_head.1")
    converted = convert(w)
    torch.testing.assert_close(
        converted.backbone.model.eval()(images), logits, rtol=1e-4, atol=1e-5
    )
    assert not converted.notes


def test_an_spt_swin_merges_shifted_patches_and_adds_its_positions():
    w, x = draw(spt_swin()), torch.randn(2, 16, 16, 6)
    model = convert(w).backbone.model
    positions = w["absolute_pos_embed"].reshape(1, 16, 16, 6)
    torch.testing.assert_close(model.layers[0].downsample(x), x + positions)
    name = "layers.0.downsample.merging"
    merged = ln(cut(shifted(x.permute(0, 3, 1, 2), 1), 2), w, f"{name}.1")
    merged = fc(merged, w, f"{name}.2").reshape(2, 8, 8, 12)
    torch.testing.assert_close(model.layers[1].downsample(x), merged, rtol=1e-4, atol=1e-5)


# -- Files


def stage_1_head(*, dim: int, batch_norm: bool) -> Shapes:
    """Projection head of stage 1 of Gani et al.

    utils/utils_ssl.py:34 calls it mlphead; projection_head.py:22-36 has mlp and last_layer, whose
    weight normalisation keeps weight_g and weight_v.
    """
    step = 3 if batch_norm else 2
    shapes = linear("mlphead.mlp.0", 512, dim) | linear(f"mlphead.mlp.{step}", 512, 512)
    shapes |= linear(f"mlphead.mlp.{2 * step}", 256, 512)
    for i in (1, 4) if batch_norm else ():
        name = f"mlphead.mlp.{i}"
        shapes |= norm(name, 512) | {f"{name}.num_batches_tracked": ()}
        shapes |= {f"{name}.running_{key}": (512,) for key in ("mean", "var")}
    shapes |= {"mlphead.last_layer.weight_g": (1024, 1), "mlphead.last_layer.weight_v": (1024, 256)}
    return shapes


def stage_1_file(path: Path, backbone: Weights, head: Weights, *, parallel: bool) -> None:
    """Write what stage 1 of Gani et al. writes (train_ssl.py, save_dict).

    The student is wrapped for parallel training, the teacher where its head has batch norms; both
    hold a backbone and a mlphead (utils/utils_ssl.py:33-34). The optimizer's rate is a number of
    NumPy, from its schedule.
    """
    teacher = {f"backbone.{name}": value for name, value in backbone.items()} | head
    student = {f"module.{name}": torch.zeros_like(value) for name, value in teacher.items()}
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = np.linspace(0, 1e-4, 5)[3]
    optimizer.step()
    content = {
        "student": student,
        "teacher": {f"module.{k}": v for k, v in teacher.items()} if parallel else teacher,
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(arch="vit", patch_size=4, global_crops_scale=[0.7, 1.0]),
        "view_pred_loss": {"center": torch.zeros(1, 1024)},
    }
    torch.save(content, path)


@pytest.mark.parametrize("kind", ["gani_vit", "gani_cait", "gani_swin"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_stage_1_checkpoint_is_read_without_wrappers_and_projection_head(
    kind, batch_norm, tmp_path
):
    backbone = draw(TINY[kind][0](classes=0))
    head = draw(stage_1_head(dim=24, batch_norm=batch_norm))
    stage_1_file(tmp_path / "checkpoint.pth", backbone, head, parallel=batch_norm)
    weights, read = read_checkpoint(tmp_path / "checkpoint.pth")
    converted = convert(weights)
    left_out = "student, optimizer, epoch, args, view_pred_loss"
    assert read == [f"read 'teacher' of the file; left out {left_out}"]
    assert converted.arguments["num_classes"] == 0
    assert sum("projection head" in note for note in converted.notes) == len(head)
    torch.testing.assert_close(converted.backbone.model.norm.bias.data, backbone["norm.bias"])


def test_rates_that_an_older_numpy_wrote_are_read(tmp_path):
    """NumPy 1 calls its module numpy.core, NumPy 2 numpy._core; published files are older."""
    stage_1_file(tmp_path / "new.pth", draw(gani_vit(classes=0)), {}, parallel=False)
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as new,
        zipfile.ZipFile(tmp_path / "old.pth", "w") as old,
    ):
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core.multiarray" in (tmp_path / "old.pth").read_bytes()
    assert read_checkpoint(tmp_path / "old.pth")[0].keys() == gani_vit(classes=0).keys()


def test_a_checkpoint_of_dinos_own_code_has_its_projection_head_left_out():
    """facebookresearch/dino, utils.py, MultiCropWrapper, calls it head."""
    weights = draw(gani_vit(classes=0)) | draw(linear("head.mlp.0", 512, 24))
    assert sum("projection head" in note for note in convert(weights).notes) == 2


# Where each repository's scripts put the weights: finetune.py and train_ssl.py of Gani et al. and
# main.py of SPT_LSA_ViT (model_state_dict), timm's savers in main.py of TokenLabeling and T2T-ViT
# (state_dict, state_dict_ema), T2T-ViT's transfer_learning.py (net).
@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "state_dict_ema", "net"])
def test_containers_and_the_prefix_of_parallel_training_come_off(container, tmp_path):
    weights = draw(gani_vit())
    content = {container: {f"module.{name}": value for name, value in weights.items()}}
    torch.save(content | {"optimizer": {"state": {}}}, tmp_path / "best.pth")
    read, _ = read_checkpoint(tmp_path / "best.pth")
    assert read.keys() == weights.keys()


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "weights.pth"
    torch.save({"state_dict": draw(gani_vit()), "extra": Code()}, path)
    with pytest.raises(DataError, match=r"refused: .*mkdir"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(DataError, match=r"weights\.pth"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_weight_with_and_without_its_wrapper_is_refused(tmp_path):
    torch.save({"norm.bias": torch.ones(1), "module.norm.bias": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"two weights norm\.bias, one of them as module"):
        read_checkpoint(tmp_path / "w.pth")


def test_files_without_weights_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.pth cannot be read"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "empty.pth")
    with pytest.raises(DataError, match="it holds epoch, weights"):
        read_checkpoint(tmp_path / "empty.pth")
    for empty in ({}, {3: torch.zeros(2)}, [torch.zeros(2)]):
        torch.save(empty, tmp_path / "odd.pth")
        with pytest.raises(
            DataError, match=r"holds no weights .*; it holds (nothing|3|list): write "
        ):
            read_checkpoint(tmp_path / "odd.pth")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(DataError, match=r"text\.safetensors cannot be read"):
        read_checkpoint(tmp_path / "text.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = draw(gani_vit())
    weights["norm.bias"][3] = math.nan
    torch.save(weights, tmp_path / "diverged.pth")
    with pytest.raises(DataError, match=r"NaN or infinite values: norm\.bias: its tr"):
        read_checkpoint(tmp_path / "diverged.pth")


# -- What does not fit


def test_each_mismatch_is_listed_with_its_shapes():
    weights = draw(gani_vit())
    weights["blocks.1.mlp.fc1.weight"] = torch.zeros(40, 24)
    weights["extra.weight"] = torch.zeros(2)
    del weights["norm.bias"]
    with pytest.raises(ConfigError) as error:
        convert(weights)
    message = str(error.value)
    assert "blocks.1.mlp.fc1.weight is (40, 24), needed (48, 24)" in message
    assert "extra.weight (2,) is not in the model" in message
    assert "norm.bias (24,) is not in the weights" in message


def test_what_is_wrong_alike_in_every_block_is_one_line():
    weights = draw(gani_vit(depth=2))
    wanted = {name: value for name, value in weights.items() if not name.endswith("fc1.bias")}
    wanted["blocks.0.norm1.bias"] = torch.zeros(3)
    assert mismatches(weights, wanted) == [
        "blocks.*.mlp.fc1.bias (48,) is not in the model (2 times)",
        "blocks.0.norm1.bias is (24,), needed (3,)",
    ]


@pytest.mark.parametrize("name", ["pos_embed", "cls_token", "patch_embed.proj.weight"])
def test_names_that_fit_with_shapes_that_do_not_are_refused(name):
    with pytest.raises(ConfigError):
        convert(draw(gani_vit()) | {name: torch.zeros(10)})


def test_layouts_that_are_unknown_or_do_not_fit_are_named():
    weights = draw(gani_vit())
    with pytest.raises(UnknownNameError, match="known: gani, lvvit, spt, t2t"):
        convert(weights, layout="deit")
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn.* no network of spt"):
        convert(weights, layout="spt")
    with pytest.raises(ConfigError, match="no network of gani, lvvit, t2t, spt"):
        convert({"conv.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (lvvit(depth=3), "3 blocks of width 12 are none of lvvit_tiny"),
        (spt_vit(lsa=False), "has no counterpart here; sl_vit has both"),
        (spt_cait(lsa=False), "has no counterpart here; sl_cait has both"),
        (t2t_vit() | norm("tokens_to_token.norm", 576), "t2t_vit_12 is the nearest"),
        ({k: v for k, v in gani_vit().items() if k != "pos_embed"}, "lack pos_embed"),
        (gani_vit() | {"pos_embed": (1, 8, 24)}, "7 patches, which make no square"),
    ],
)
def test_networks_without_a_counterpart_are_refused(shapes, message):
    with pytest.raises(ConfigError, match=message):
        convert(draw(shapes))


def test_what_weights_do_not_tell_is_said():
    assert any("12 attention heads" in note for note in convert(draw(gani_vit())).notes)
    assert any("images of 32 px" in note for note in convert(draw(gani_swin())).notes)
    weights = draw(t2t_vit(dim=384, depth=14, ratio=3))
    source = find_source(weights)
    target = source.describe(rename(weights, source.rules)[0], None)
    assert any("t2t_vit_14_resnext" in note for note in target.notes)


# -- Weights for other sizes

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "dynamic_img_size": True}


def vit(**given) -> VisionTransformer:
    arguments = VIT | {"img_size": 32, "patch_size": 4, "num_classes": 10} | given
    model = create_exported("vit_tiny_patch16_224", arguments).model
    assert isinstance(model, VisionTransformer)
    return model


def test_kernels_of_patches_see_an_enlarged_patch_as_they_saw_the_patch():
    source, model = vit(), vit(img_size=64, patch_size=8)
    adapted, notes = adapt(source.state_dict(), model)
    patch = torch.randn(1, 3, 4, 4)
    larger = F.interpolate(patch, (8, 8), mode="bicubic", antialias=True)
    seen = F.conv2d(patch, source.state_dict()["patch_embed.proj.weight"])
    kept = F.conv2d(larger, adapted["patch_embed.proj.weight"])
    torch.testing.assert_close(kept, seen, rtol=1e-3, atol=1e-4)
    assert notes == ["patch_embed.proj.weight resampled from 4 x 4 to 8 x 8"]


def test_positions_of_other_grids_are_resampled_and_the_class_slot_kept():
    source = vit()
    ramp = torch.arange(8.0)[None, :].expand(8, 8)  # by column
    positions = source.state_dict()["pos_embed"]
    positions[0, 1:] = ramp.reshape(64, 1)
    adapted, notes = adapt(source.state_dict(), vit(img_size=(32, 64)))
    found = adapted["pos_embed"][0, 1:, 0].reshape(8, 16)
    torch.testing.assert_close(adapted["pos_embed"][:, :1], positions[:, :1])
    torch.testing.assert_close(found[:, 4:12], (torch.arange(4.0, 12) / 2 - 0.25).expand(8, 8))
    assert notes == ["pos_embed resampled from 8 x 8 to 8 x 16 tokens"]


def test_positions_of_a_turned_image_are_resampled_though_their_number_is_the_same():
    source, model = vit(img_size=(16, 64)), vit(img_size=(64, 16))
    adapted, notes = adapt(source.state_dict(), model, grid=position_grid(source))
    assert notes == ["pos_embed resampled from 4 x 16 to 16 x 4 tokens"]
    assert not torch.equal(adapted["pos_embed"], source.state_dict()["pos_embed"])


@pytest.mark.parametrize(
    ("name", "arguments", "where"),
    [
        ("cait_xxs24_224", {"embed_dim": 12, "depth": 1, "num_heads": 2}, "pos_embed"),
        ("t2t_vit_7", {"embed_dim": 16, "depth": 1, "num_heads": 2}, "pos_embed"),
        (
            "sl_swin",
            {"embed_dim": 6, "depths": (1, 1), "num_heads": (1, 2), "patch_size": 2},
            "layers.0.downsample.pos_embed",
        ),
    ],
)
def test_positions_without_a_class_slot_fixed_or_deeper_are_found_too(name, arguments, where):
    arguments = {"patch_size": 4, "num_classes": 3} | arguments
    source = create_exported(name, arguments | {"img_size": 32}).model
    model = create_exported(name, arguments | {"img_size": 64}).model
    adapted, notes = adapt(source.state_dict(), model)
    assert adapted[where].shape == model.state_dict()[where].shape
    assert [note.split()[0] for note in notes] == [where]


def test_a_classifier_of_other_classes_stays_fresh_and_is_named():
    source, model = vit(), vit(num_classes=100)
    adapted, notes = adapt(source.state_dict(), model)
    assert set(model.load_state_dict(adapted, strict=False).missing_keys) == {
        "head.weight",
        "head.bias",
    }
    assert "head.weight not loaded: 10 classes, the model has 100 classes" in notes
    same, notes = adapt(source.state_dict(), vit())
    assert "head.weight" in same
    assert not notes


def test_weights_of_stage_1_have_no_classifier_and_a_model_of_stage_1_wants_none():
    adapted, notes = adapt(vit(num_classes=0).state_dict(), vit())
    assert "head.weight not loaded: not in the weights" in notes
    adapted, notes = adapt(vit().state_dict(), vit(num_classes=0))
    assert "head.weight" not in adapted
    assert "head.weight not loaded: 10 classes, the model has no such classifier" in notes


def test_both_classifiers_of_an_lvvit_stay_fresh():
    sizes = {"embed_dim": 12, "depth": 1, "img_size": 32, "patch_size": 4}
    source, model = (
        create_exported("lvvit_small", sizes | {"num_classes": classes}).model
        for classes in (10, 3)
    )
    adapted, _ = adapt(source.state_dict(), model)
    missing = model.load_state_dict(adapted, strict=False).missing_keys
    assert set(missing) == {"head.weight", "head.bias", "token_head.weight", "token_head.bias"}


def test_relative_positions_are_resized_to_the_window():
    sizes = {"embed_dim": 6, "depths": (1,), "num_heads": (2,), "patch_size": 2, "num_classes": 3}
    source, model = (
        create_exported(
            "swin_tiny_patch4_window7_224", sizes | {"img_size": 32, "window_size": window}
        ).model
        for window in (4, 8)
    )
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    weights = source.state_dict() | {name: torch.tensor([1.0, -2.0]).repeat(49, 1)}
    adapted, notes = adapt(weights, model)
    torch.testing.assert_close(adapted[name], torch.tensor([1.0, -2.0]).repeat(225, 1))
    assert notes == [f"{name} resized from 49 to 225 relative positions"]


def test_another_width_or_depth_is_an_error_that_lists_names_and_shapes():
    with pytest.raises(ConfigError, match=r"norm\.weight is \(24,\), needed \(32,\)"):
        adapt(vit().state_dict(), vit(embed_dim=32))
    with pytest.raises(ConfigError, match=r"blocks\.2\.norm1\.weight \(24,\) is not in the w"):
        adapt(vit().state_dict(), vit(depth=3))
