"""Where the library of voices is."""

from __future__ import annotations

import os
from pathlib import Path

from chatterbox_vllm.errors import ConfigError


def default_directory() -> Path:
    """CHATTERBOX_VOICES, or this package's place in the user's data directory.

    Raises:
        ConfigError: the user has no home directory.
    """
    if own := os.environ.get("CHATTERBOX_VOICES"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "chatterbox-vllm" / "voices"
    except RuntimeError as error:
        raise ConfigError(f"there is no place for voices ({error}); set CHATTERBOX_VOICES to a directory") from error
