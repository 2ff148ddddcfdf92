"""Weights of Gani et al.: hananshafi/vits-for-small-scale-datasets@43a7493."""

import re

from smallvit.models.convert.rules import (
    TABLE,
    Rule,
    Source,
    Target,
    Weights,
    count_numbers,
    image_side,
    patch_kernel,
    position_tables,
    swin_sizes,
    transformer_sizes,
    window_sides,
)
from smallvit.models.gani import gani_architecture


def _gani_vit(weights: Weights, model: str | None) -> Target:
    patch_size = weights["patch_embed.proj.weight"].shape[-1]
    name, arguments = gani_architecture(
        "gani_vit", img_size=image_side(weights, patch_size, num_prefix=1), patch_size=patch_size
    )
    note = f"supposed {arguments['num_heads']} attention heads, the paper's: weights do not tell"
    return Target(model or name, arguments | transformer_sizes(weights), (note,))


def _gani_cait(weights: Weights, model: str | None) -> Target:
    patch_size = weights["patch_embed.proj.weight"].shape[-1]
    name, arguments = gani_architecture(
        "gani_cait", img_size=image_side(weights, patch_size, num_prefix=0), patch_size=patch_size
    )
    sizes = transformer_sizes(weights)
    hidden = weights["blocks_token_only.0.mlp.fc1.weight"].shape[0]
    own = {
        "num_heads": len(weights["blocks.0.attn.proj_l.weight"]),
        "depth_token_only": count_numbers(r"blocks_token_only\.(\d+)\..*", weights),
        "mlp_ratio_token_only": hidden / sizes["embed_dim"],
    }
    return Target(model or name, arguments | sizes | own)


def _gani_swin(weights: Weights, model: str | None) -> Target:
    embed_dim, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    tables = position_tables(weights)
    # A window is cut to the map that its stage was built for. The authors' fine-tuned networks for
    # 64 px were built for 32 px, so that the last map, and the window with it, is 2 cells wide.
    image_size = window_sides(tables[-1])[0] * 2 ** (len(tables) - 1) * patch_size
    name, arguments = gani_architecture("gani_swin", img_size=image_size, patch_size=patch_size)
    sizes = {"embed_dim": embed_dim, **swin_sizes(weights, embed_dim)}
    note = f"supposed images of {image_size} px, the least for these windows: weights do not tell"
    return Target(model or name, arguments | sizes, (note,))


def _next_stage(match: re.Match[str]) -> str:
    """Patches are merged at the end of a stage there, at the start of the next in timm."""
    return f"layers.{int(match[1]) + 1}.downsample.{match[2]}"


SOURCES = (
    Source(
        layout="gani",
        marks=(r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.bias"),
        lacks=(r"blocks_token_only\..*",),
        describe=_gani_vit,
    ),
    Source(
        layout="gani",
        marks=(r"patch_embed\.1\.weight", r"blocks_token_only\.0\.gamma_1"),
        rules=(
            Rule(r"patch_embed\.1\.weight", "patch_embed.proj.weight", patch_kernel),
            Rule(r"patch_embed\.1\.bias", "patch_embed.proj.bias"),
        ),
        describe=_gani_cait,
    ),
    Source(
        layout="gani",
        marks=(TABLE,),
        lacks=(r"absolute_pos_embed",),
        rules=(
            Rule(r"layers\.(\d+)\.downsample\.(.*)", _next_stage),
            Rule(r"head\.(\w+)", r"head.fc.\1"),
        ),
        describe=_gani_swin,
    ),
)
