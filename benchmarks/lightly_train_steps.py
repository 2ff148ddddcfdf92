"""Steps of lightly-train's own command, timed: other_trainers.py runs this by another interpreter.

It imports nothing of smallvit. Its one argument is a JSON object: ``pretrain``, what
``lightly_train.pretrain`` is called with. The last line is a JSON object: ``seconds``, the time
between optimizer steps, and ``version``.
"""

import importlib
import itertools
import json
import sys
import time

from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    """Train for one pass and print the seconds of each step but the first."""
    lightly_train = importlib.import_module("lightly_train")
    times: list[float] = []
    register_optimizer_step_post_hook(lambda *_: times.append(time.perf_counter()))
    lightly_train.pretrain(**json.loads(sys.argv[1])["pretrain"])
    seconds = [after - before for before, after in itertools.pairwise(times)]
    print()
    print(json.dumps({"seconds": seconds, "version": lightly_train.__version__}))


if __name__ == "__main__":
    main()
