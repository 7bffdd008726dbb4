"""Bench: the settings that all parts of the table share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.measure import Contender, Patience, Series, compete
from bench.workloads import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The training to measure, the folders, and the number of rounds."""

    training: Training
    cache: Path
    scratch: Path
    rounds: int
    patience: Patience

    def run(self, *contenders: Contender) -> list[Series]:
        """Time contenders against each other."""
        return compete(contenders, rounds=self.rounds, patience=self.patience)
