"""Scores of many runs: the rows of a leaderboard and the files that show it."""
