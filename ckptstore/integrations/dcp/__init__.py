"""torch.distributed.checkpoint: one checkpoint of a training on many ranks.

torch plans what each rank saves and loads, and carries what they have to know of one another. Here
is the storage behind it: each rank puts and reads the chunks of its own shards, and one rank
publishes one checkpoint of whole arrays, which is like any other. Nothing is pickled into it.
`Saver` saves in the background, and with a bounded wait for ranks that are gone. ADR 0067, 0070.
"""

from ckptstore.integrations.dcp.reader import StoreReader as StoreReader
from ckptstore.integrations.dcp.saver import Saver as Saver
from ckptstore.integrations.dcp.stager import Stager as Stager
from ckptstore.integrations.dcp.writer import StoreWriter as StoreWriter

__all__ = ["Saver", "Stager", "StoreReader", "StoreWriter"]
