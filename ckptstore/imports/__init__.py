"""Import: a folder of checkpoint files, as people have it, becomes the history of a branch."""

from ckptstore.imports.plan import Import, ImportPlan, plan_import

__all__ = ["Import", "ImportPlan", "plan_import"]
