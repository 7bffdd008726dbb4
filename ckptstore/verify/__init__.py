"""Verify: checks every byte and every reference of a repository, and goes on past damage.

It runs beside any number of writers, readers and gc runs (docs/reference/format.md, section 16;
ADR 0038). The order of things:

1. Read each object once and compare it with its name (`inventory`).
2. Read every operation, and from the newest one follow the history and every reference of each
   live checkpoint; a page or structure is read once, however many share it (`references`).
3. Repeat each check that failed, between two looks at the operations (`findings`). Only damage of
   checkpoints that no gc condemned in between is reported, so a gc is never mistaken for damage.
4. Find the checkpoints that suffer, by their pages (`users`), and those that no ref reaches.

Nothing is changed, unless `VerifyReport.repair` is called.
"""

from ckptstore.verify.report import Problem as Problem
from ckptstore.verify.report import Unreachable as Unreachable
from ckptstore.verify.report import VerifyReport as VerifyReport
from ckptstore.verify.run import verify as verify
