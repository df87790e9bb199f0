"""Training. `from muomni import train` gives this package, and calling it runs a recipe: `muomni.run_recipe`."""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **changes: Any) -> Any:
        # A function of this name would hide the package. What it calls stands above this package, which therefore asks
        # the root for it.
        import muomni

        return muomni.run_recipe(*args, **changes)


sys.modules[__name__].__class__ = _CallablePackage
