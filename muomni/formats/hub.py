"""Models on the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

from muomni.errors import UserError, first_line
from muomni.files import user_path

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What of a Hub repository is fetched: never pickles, never code.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]

# What goes with a model that is saved, in the Hub's form.
MODEL_CARD = """\
---
{{ card_data }}
---

A model made with μOmni.

```python
from muomni import MuOmni

model = MuOmni.from_pretrained("path of this folder, or its name on the Hub")
print(model.chat("Hello!"))
```
"""


def download(name: str, options: dict[str, Any]) -> Path:
    """A model of the Hub as a local folder.

    Args:
        name: what the user gave, which is no path that exists.
        options: of `snapshot_download`.

    Raises:
        UserError: nothing of that name; says where was looked.
    """
    looked = f"nothing at {user_path(name).absolute()}"
    if not _HUB_NAME.fullmatch(name) or (Path(name).parent.is_dir() and Path(name).parent != Path()):
        raise UserError(f"no run or model {name!r}: {looked}{_beside(user_path(name))}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, **options))
    except HFValidationError:
        why = "it is no name that the Hugging Face Hub could have"
    except LocalEntryNotFoundError:
        why = "the Hugging Face Hub cannot be reached, and the model is not in its local cache"
    except HfHubHTTPError as error:
        why = f"the Hugging Face Hub has no such model, or it is not open to you ({first_line(error)})"
    raise UserError(f"no run or model {name!r}: {looked}, and {why}")


def _beside(path: Path) -> str:
    names = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
    return f"; in {path.parent} there are: {', '.join(names[:10])}" if names else ""
