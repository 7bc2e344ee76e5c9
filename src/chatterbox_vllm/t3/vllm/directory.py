"""The directory that vLLM loads T3 from: our `config.json` beside a link to the published file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from chatterbox_vllm.caches.disk import built_once, cache_directory

logger = logging.getLogger(__name__)

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class ModelDirectory:
    """Stands at a place of its own for each content, and stays there: some hundred bytes.

    vLLM looks its compiled code up by the model's path among other things, so a later start finds an earlier one's only
    under the same path. Where the cache cannot be written, a temporary directory serves until `close`.

    Attributes:
        path: the directory, absolute.
    """

    def __init__(self, described: dict[str, Any], weights: Path):
        """
        Args:
            described: what `config.json` says.
            weights: the file to link to.

        Raises:
            OSError: not even a temporary directory can be written.
        """
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        text, target = json.dumps(described, indent=1, sort_keys=True), str(weights.resolve())

        def build(directory: Path) -> None:
            (directory / _CONFIG).write_text(text, encoding="utf-8")
            (directory / _WEIGHTS).symlink_to(target)

        try:
            name = hashlib.sha256(f"{target}\n{text}".encode()).hexdigest()[:32]
            self.path = cache_directory().absolute() / "t3" / name
            built_once(self.path, build)
            if (self.path / _CONFIG).read_text(encoding="utf-8") != text or os.readlink(self.path / _WEIGHTS) != target:
                raise OSError(f"{self.path} holds something else")
        except OSError as error:
            logger.warning(
                "the directory that T3 starts from cannot be kept (%s): on a GPU the next start will compile T3 again; "
                "remove what is in the way, or set CHATTERBOX_VLLM_CACHE to a writable directory",
                error,
            )
            self._temporary = tempfile.TemporaryDirectory(prefix="chatterbox-t3-")
            self.path = Path(self._temporary.name)
            build(self.path)

    def close(self) -> None:
        """Remove what is temporary of it."""
        if self._temporary is not None:
            self._temporary.cleanup()
