"""Gc: checkpoints that no policy keeps expire, and unreachable objects are deleted.

It runs concurrently with any number of writers, readers and gc runs. The order of things
(docs/reference/format.md, section 14.1; ADR 0011, 0013, 0020 and 0035):

1. Holding the storage's lock, which only one gc has at a time, finish a gc that died.
2. Mark what the checkpoints that stay reach; all other objects are garbage.
3. Append an operation that condemns some of it. If other writers appended first, judge again: what
   they refer to stays, and so does what anything keeps now.
4. Move the manifests of condemned checkpoints to history, durably, then delete the condemned
   objects, then record when and why the checkpoints expired.
5. Repeat from 3 until nothing is left, then append an operation that condemns nothing.

All other processes obey the rule in `ckptstore.store.condemned`. So no delete hits anything that is
relied on, whatever any clock shows, and space is free at once.

Object stores have no such lock. There the newest operation names the only gc, for some minutes at a
time (ADR 0060).

`judge` and `plan` decide (2), `remaining` holds what is left to do, `finish`, `execute` and
`deletion` do it (1, 3, 4 and 5), and `ownership` is the right to. What a gc has marked is kept for
the next one of the same handle (`stores`, `marks`; ADR 0028).
"""

from ckptstore.gc.aside import set_aside as set_aside
from ckptstore.gc.execute import GcReport as GcReport
from ckptstore.gc.finish import wait_for_gc as wait_for_gc
from ckptstore.gc.judge import Rules as Rules
from ckptstore.gc.judge import RulesAt as RulesAt
from ckptstore.gc.plan import GcPlan as GcPlan
from ckptstore.gc.plan import expire as expire
from ckptstore.gc.plan import plan_expiry as plan_expiry
from ckptstore.gc.plan import plan_gc as plan_gc
from ckptstore.gc.plan import verdicts as verdicts
from ckptstore.gc.stores import Stores as Stores
