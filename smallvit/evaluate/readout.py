"""Image logits from class token and patch tokens, in the three ways of token labeling.

Shapes in this file:
    B    images
    C    classes
"""

from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.evaluate.config import Readout
from smallvit.models.tokens import TOKEN_READOUT, AbstractBackbone, Tokens


def read_logits(
    backbone: AbstractBackbone, tokens: Tokens, readout: Readout
) -> Float[Tensor, "B C"]:
    """Return image logits of a batch.

    Args:
        backbone: The network that made the tokens.
        tokens: Its final tokens.
        readout: ``cls``, its classifier on pooled features; ``cls+max``, that plus half of the
            largest token logit of each class; ``mean``, the mean of the token logits. Token logits
            are those of ``AbstractBackbone.classify_tokens``.

    Source:
        ``cls+max``: zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:208-211. There it is
        for LV-ViT alone; here it is for every network.
    """
    if readout == "cls":
        return backbone.classify(tokens.pooled)
    token_logits = backbone.classify_tokens(tokens.patch)
    if readout == "mean":
        return token_logits.float().mean(dim=1)  # a mean in bfloat16 would end in ties
    return backbone.classify(tokens.pooled) + TOKEN_READOUT * token_logits.amax(dim=1)


def own_readout(backbone: AbstractBackbone) -> Readout:
    """Return the readout that gives the logits that the network itself returns."""
    return "cls" if backbone.token_head is None else "cls+max"


def describe_readout(backbone: AbstractBackbone, readout: Readout) -> str:
    """Say what a readout of a network reads, and by which classifier."""
    if backbone.token_head is not None:
        reader = "the network's own token head"
    elif backbone.aux_head is not None:
        reader = "the auxiliary token head"
    else:
        reader = "the image classifier, which tokens share"
    return {
        "cls": "image classifier on pooled features",
        "cls+max": f"image classifier on pooled features + {TOKEN_READOUT} * max over tokens of "
        f"{reader}",
        "mean": f"mean over tokens of {reader}",
    }[readout]


def check_readout(backbone: AbstractBackbone, readout: Readout) -> None:
    """Refuse to read tokens alone by a head that nothing trained.

    Raises:
        ConfigError: If the network's own token head is at zero, where LV-ViT's starts.
    """
    head = backbone.token_head
    if readout == "mean" and isinstance(head, nn.Linear) and not head.weight.any():
        raise ConfigError(
            f"--readout mean: the token head of {backbone.model_name} is at zero, nothing trained "
            "it: take --readout cls, or train it with --token-label"
        )
