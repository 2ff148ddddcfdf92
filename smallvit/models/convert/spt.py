"""Weights of Lee et al.: aanna0701/SPT_LSA_ViT@54bd796."""

import math
import re

import torch

from smallvit.core.errors import ConfigError
from smallvit.models.convert.rules import (
    TABLE,
    Rule,
    Source,
    Target,
    Weights,
    any_match,
    count_numbers,
    image_sizes,
    patch_kernel,
    swin_sizes,
    transformer_sizes,
)


def _sl_vit(weights: Weights, model: str | None) -> Target:
    if "patch_embed.proj.weight" in weights and "blocks.0.attn.temperature" not in weights:
        patch_size = weights["patch_embed.proj.weight"].shape[-1]
        images = image_sizes(weights, patch_size, num_prefix=1)
        note = "supposed 12 attention heads, the paper's: weights do not tell"
        return Target(model or "lee_vit", images | transformer_sizes(weights), (note,))
    patch_size = _shifted_patch(weights, "ViT")
    own = image_sizes(weights, patch_size, num_prefix=1)
    own["num_heads"] = len(weights["blocks.0.attn.temperature"])
    return Target(model or "sl_vit", own | transformer_sizes(weights))


def _sl_cait(weights: Weights, model: str | None) -> Target:
    patch_size = _shifted_patch(weights, "CaiT")
    num_heads = len(weights["blocks.0.attn.temperature"])
    own = {
        **image_sizes(weights, patch_size, num_prefix=0),
        "num_heads": num_heads,
        "head_dim": weights["blocks.0.attn.proj.weight"].shape[1] // num_heads,
        "depth_token_only": count_numbers(r"blocks_token_only\.(\d+)\..*", weights),
    }
    return Target(model or "sl_cait_unmasked", own | transformer_sizes(weights))


def _sl_swin(weights: Weights, model: str | None) -> Target:
    patch_size = _shifted_patch(weights, "Swin")
    name = "layers.0.downsample.pos_embed"
    embed_dim = weights[name].shape[-1]
    own = image_sizes(weights, patch_size, num_prefix=0, name=name)
    return Target(
        model or "sl_swin", own | {"embed_dim": embed_dim} | swin_sizes(weights, embed_dim)
    )


def _other_t2t_vit(weights: Weights, model: str | None) -> Target:
    raise ConfigError(
        "layout spt's T2T-ViT adds the normalised input in each attention once more: no model here "
        "does; t2t_vit_12 is the nearest to train anew"
    )


def _shifted_patch(weights: Weights, kind: str) -> int:
    """Return the patch of shifted patch tokenization: 3 colours of 5 images are in each.

    Raises:
        ConfigError: If the network has only one, or none, of SPT and LSA.
    """
    if "patch_embed.proj.linear.weight" not in weights or not any_match(
        r".*\.attn\.temperature", weights
    ):
        raise ConfigError(
            f"a {kind} of layout spt that has not both shifted patch tokenization and locality "
            f"self-attention has no counterpart here; sl_{kind.lower()} has both"
        )
    return math.isqrt(weights["patch_embed.proj.linear.weight"].shape[1] // 15)


def _next_shifted(match: re.Match[str]) -> str:
    layer = {"1": "norm", "2": "reduction"}[match[2]]
    return f"layers.{int(match[1]) + 1}.downsample.{layer}.{match[3]}"


SPT_ENDS = (
    Rule(r"to_patch_embedding\.(?:0\.)?merging\.1\.(\w+)", r"patch_embed.proj.norm.\1"),
    Rule(r"to_patch_embedding\.(?:0\.)?merging\.2\.(\w+)", r"patch_embed.proj.linear.\1"),
    Rule(r"to_patch_embedding\.1\.weight", "patch_embed.proj.weight", patch_kernel),
    Rule(r"to_patch_embedding\.1\.bias", "patch_embed.proj.bias"),
    Rule(r"pos_embedding", "pos_embed"),
    Rule(r"mlp_head\.0\.(\w+)", r"norm.\1"),
    Rule(r"mlp_head\.1\.(\w+)", r"head.\1"),
)

# Blocks of the ViT, and those of both kinds of the CaiT, after their own prefixes.
SPT_VIT = tuple(
    Rule(rf"transformer\.layers\.(\d+)\.{old}", rf"blocks.\1.{new}")
    for old, new in (
        (r"0\.norm\.(\w+)", r"norm1.\2"),
        (r"0\.fn\.scale", "attn.temperature"),
        (r"0\.fn\.to_qkv\.weight", "attn.qkv.weight"),
        (r"0\.fn\.to_out\.0\.(\w+)", r"attn.proj.\2"),
        (r"1\.norm\.(\w+)", r"norm2.\2"),
        (r"1\.fn\.net\.0\.(\w+)", r"mlp.fc1.\2"),
        (r"1\.fn\.net\.3\.(\w+)", r"mlp.fc2.\2"),
    )
)

SPT_CAIT = tuple(
    Rule(rf"{kind}\.layers\.(\d+)\.{old}", rf"{blocks}.\1.{new}", change)
    for kind, blocks in (
        ("patch_transformer", "blocks"),
        ("cls_transformer", "blocks_token_only"),
    )
    for old, new, change in (
        (r"0\.scale", "gamma_1", torch.flatten),
        (r"0\.fn\.norm\.(\w+)", r"norm1.\2", None),
        (r"0\.fn\.fn\.scale", "attn.temperature", None),
        # Theirs has heads before the mixing in rows, ours in columns.
        (r"0\.fn\.fn\.mix_heads_pre_attn", "attn.mix_logits", torch.t),
        (r"0\.fn\.fn\.mix_heads_post_attn", "attn.mix_weights", torch.t),
        (r"0\.fn\.fn\.to_q\.weight", "attn.qkv.weight[0]", None),
        (r"0\.fn\.fn\.to_kv\.weight", "attn.qkv.weight[1]", None),
        (r"0\.fn\.fn\.to_out\.0\.(\w+)", r"attn.proj.\2", None),
        (r"1\.scale", "gamma_2", torch.flatten),
        (r"1\.fn\.norm\.(\w+)", r"norm2.\2", None),
        (r"1\.fn\.fn\.net\.0\.(\w+)", r"mlp.fc1.\2", None),
        (r"1\.fn\.fn\.net\.3\.(\w+)", r"mlp.fc2.\2", None),
    )
)

SPT_SWIN = (
    Rule(r"patch_embed\.merging\.1\.(\w+)", r"patch_embed.proj.norm.\1"),
    Rule(r"patch_embed\.merging\.2\.(\w+)", r"patch_embed.proj.linear.\1"),
    Rule(r"absolute_pos_embed", "layers.0.downsample.pos_embed"),
    Rule(r"layers\.(\d+)\.downsample\.merging\.(1|2)\.(\w+)", _next_shifted),
    Rule(r"(.*\.attn)\.scale", r"\1.temperature"),
    Rule(r"head\.(\w+)", r"head.fc.\1"),
)


SOURCES = (
    Source(
        layout="spt",
        marks=(r"transformer\.layers\.0\.0\.fn\.to_qkv\.weight",),
        rules=(*SPT_ENDS, *SPT_VIT),
        describe=_sl_vit,
    ),
    Source(
        layout="spt",
        marks=(r"patch_transformer\.layers\.0\.0\.fn\.fn\.to_q\.weight",),
        rules=(*SPT_ENDS, *SPT_CAIT),
        describe=_sl_cait,
    ),
    Source(
        layout="spt",
        marks=(TABLE, r"absolute_pos_embed"),
        rules=SPT_SWIN,
        describe=_sl_swin,
    ),
    Source(layout="spt", marks=(r"tokens_to_token\.norm\.weight",), describe=_other_t2t_vit),
)
