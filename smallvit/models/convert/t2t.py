"""Weights of T2T-ViT: yitu-opensource/T2T-ViT@0f63dc9."""

from smallvit.models.convert.rules import (
    Rule,
    Source,
    Target,
    Weights,
    count_classes,
    find_variant,
    image_sizes,
    transformer_sizes,
)
from smallvit.models.t2t_vit import OTHERS, SIZES


def _t2t_vit(weights: Weights, model: str | None) -> Target:
    patch_size = 16 if len(weights["patch_embed.attention1.norm1.weight"]) == 3 * 7 * 7 else 8
    if "patch_embed.attention2.norm1.weight" not in weights:
        patch_size = 4
    images = image_sizes(weights, patch_size, num_prefix=1)
    images["num_classes"] = count_classes(weights, "head.weight")
    if "blocks.0.dense_linear.weight" in weights:
        return Target(model or "t2t_vit_dense", images)
    sizes = images | transformer_sizes(weights)
    if model is not None:
        return Target(model, sizes)
    if "blocks.0.attn.se_layer.fc.0.weight" in weights:
        return Target("t2t_vit_14_se", sizes)
    if "blocks.0.attn.cheap_operation_q.weight" in weights:
        return Target("t2t_vit_16_ghost", sizes)
    plain = {**SIZES, "14_wide": OTHERS["14_wide"]}
    name = find_variant({f"t2t_vit_{name}": values for name, values in plain.items()}, sizes)
    if "patch_embed.attention1.attn.qkv.weight" in weights:
        return Target(name.replace("t2t_vit_", "t2t_vit_t_"), sizes)
    note = "supposed the 6 heads of t2t_vit_14; --model t2t_vit_14_resnext has the same shapes"
    return Target(name, sizes, (note,) if name == "t2t_vit_14" else ())


SOURCES = (
    Source(
        layout="t2t",
        marks=(r"tokens_to_token\.project\.weight",),
        lacks=(r"tokens_to_token\.norm\.weight",),
        rules=(Rule(r"tokens_to_token\.(.*)", r"patch_embed.\1"),),
        describe=_t2t_vit,
    ),
)
