"""Stage 2: supervised training from labels and, patch by patch, from score maps."""

from smallvit.core.callable_module import make_callable

make_callable(__name__, "smallvit.run.api")
