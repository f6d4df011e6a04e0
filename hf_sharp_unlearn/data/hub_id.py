"""What is an id on the Hub, and what a folder of this machine."""

import os
import re


def hub_id(name: str | None) -> str | None:
    """The name, if it is an id on the Hub and no folder of this machine."""
    if not name or os.path.exists(name) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        return None
    return name
