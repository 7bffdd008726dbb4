"""Transfer: checkpoints move from one repository to another, by push, pull, fetch and clone.

All of these are one plan and one execution, with source and target exchanged. The plan finds what
the target lacks from the history, the manifests and the pages. The execution copies it, verified,
and then moves the branches and tags by one operation (docs/adr/0061).
"""

from ckptstore.transfer.moves import RefMove as RefMove
from ckptstore.transfer.plan import TransferPlan as TransferPlan
from ckptstore.transfer.plan import TransferReport as TransferReport
