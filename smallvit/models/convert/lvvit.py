"""Weights of LV-ViT: zihangJiang/TokenLabeling@9dbfd59."""

from smallvit.models.convert.rules import (
    Rule,
    Source,
    Target,
    Weights,
    find_variant,
    image_sizes,
    transformer_sizes,
)
from smallvit.models.lvvit import VARIANTS as LVVIT


def _lvvit(weights: Weights, model: str | None) -> Target:
    patch_size = 2 * weights["patch_embed.proj.weight"].shape[-1]
    sizes = transformer_sizes(weights)
    arguments = {
        **image_sizes(weights, patch_size, num_prefix=1),
        "stem_width": len(weights["patch_embed.conv1.weight"]),
        "token_head": "token_head.weight" in weights,
    }
    return Target(model or find_variant(LVVIT, sizes), arguments | sizes)


SOURCES = (
    Source(
        layout="lvvit",
        marks=(r"patch_embed\.conv1\.weight", r"blocks\.0\.attn\.qkv\.weight"),
        rules=(Rule(r"aux_head\.(\w+)", r"token_head.\1"),),
        describe=_lvvit,
    ),
)
