"""What was measured on this machine, kept in the user's cache so that it is measured once: a JSON object in a file.

Nothing depends on such a file: where it is lost, broken or cannot be written, things are measured again.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muomni.files import cache_home, write_atomic


@dataclass(frozen=True)
class JsonStore:
    """One such file.

    Attributes:
        name: of the file.
        what: it holds, in the plural, for warnings.
    """

    name: str
    what: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return cache_home() / self.name

    def read(self) -> dict[str, Any]:
        """All of it; empty where there is none, or none that can be used."""
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            warnings.warn(f"{self.path} cannot be used, so {self.what} are measured again: {error}", stacklevel=3)
            return {}
        return value if isinstance(value, dict) else {}

    def add(self, fresh: dict[str, Any]) -> None:
        """Puts entries into it, over those of the same keys."""
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Read again: another process may have added entries meanwhile.
            write_atomic(path, json.dumps(self.read() | fresh, indent=1) + "\n")
        except OSError as error:
            warnings.warn(f"{path} cannot be written, so {self.what} are measured each time: {error}", stacklevel=3)
