"""Import: turn a folder of checkpoint files into the history of a branch."""

from ckptstore.imports.plan import Import as Import
from ckptstore.imports.plan import ImportPlan as ImportPlan
from ckptstore.imports.plan import plan_import as plan_import
