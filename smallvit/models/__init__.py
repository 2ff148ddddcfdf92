"""Networks behind one token interface; importing this package registers its models with timm."""

from smallvit.models import resnet

__all__ = ["resnet"]
