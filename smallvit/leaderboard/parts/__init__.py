"""The parts of a leaderboard, one a file, in the order in which they are measured."""

from smallvit.leaderboard.part import Part
from smallvit.leaderboard.parts.accuracy import ACCURACY
from smallvit.leaderboard.parts.attacks import ATTACKS
from smallvit.leaderboard.parts.corruptions import CORRUPTED
from smallvit.leaderboard.parts.cost import COST
from smallvit.leaderboard.parts.ood import OOD
from smallvit.leaderboard.parts.probes import PROBES

PARTS: tuple[Part, ...] = (ACCURACY, PROBES, ATTACKS, OOD, COST, CORRUPTED)
