"""Stage 1: self-supervised pretraining on the target images, one method a file."""

from smallvit.core.callable_module import make_callable

make_callable(__name__, "smallvit.run.api")
