"""Retention: which checkpoints stay. Policies are pure values that decide from manifests alone.

A policy decides about the own chain of each branch, the checkpoints that were committed on it. The
head of every branch, every tagged checkpoint and the seed of every branch always stay (ADR 0043).

`policy`, `periodic` and `max_bytes` define the policies, `decide` applies them, and `saved` stores
them in a repository.
"""

from ckptstore.retention.decide import UNMIRRORED_MAX as UNMIRRORED_MAX
from ckptstore.retention.decide import Decision as Decision
from ckptstore.retention.decide import Verdict as Verdict
from ckptstore.retention.decide import decide as decide
from ckptstore.retention.decide import next_to_go as next_to_go
from ckptstore.retention.max_bytes import MaxBytes as MaxBytes
from ckptstore.retention.periodic import KeepEveryNHours as KeepEveryNHours
from ckptstore.retention.periodic import KeepEveryNSteps as KeepEveryNSteps
from ckptstore.retention.periodic import KeepWithin as KeepWithin
from ckptstore.retention.policy import KeepAll as KeepAll
from ckptstore.retention.policy import KeepBest as KeepBest
from ckptstore.retention.policy import KeepIf as KeepIf
from ckptstore.retention.policy import KeepSteps as KeepSteps
from ckptstore.retention.policy import MaxToKeep as MaxToKeep
from ckptstore.retention.policy import Policy as Policy
from ckptstore.retention.policy import Union as Union
from ckptstore.retention.reason import Reason as Reason
from ckptstore.retention.saved import Policies as Policies
from ckptstore.retention.saved import from_json as from_json
from ckptstore.retention.saved import policy_parts as policy_parts
from ckptstore.retention.saved import savable as savable
from ckptstore.retention.saved import saved_policy as saved_policy
from ckptstore.retention.saved import with_policy as with_policy

__all__ = [
    "KeepAll",
    "KeepBest",
    "KeepEveryNHours",
    "KeepEveryNSteps",
    "KeepIf",
    "KeepSteps",
    "KeepWithin",
    "MaxBytes",
    "MaxToKeep",
    "Policy",
    "Reason",
    "Union",
    "Verdict",
    "from_json",
]
