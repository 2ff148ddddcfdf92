"""Scores of many runs: the rows of a leaderboard and the files that show it."""

from smallvit.core.callable_module import make_callable

make_callable(__name__, "smallvit.bench.api")
