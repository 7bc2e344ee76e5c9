"""Names that stand for voices, in files that processes may share."""

from __future__ import annotations

from pathlib import Path

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.voices.earlier import EarlierVoices
from chatterbox_vllm.voices.naming import check_label, name_key, named_alike
from chatterbox_vllm.voices.records import Alias, Records


class Aliases:
    """The aliases of a library, each in a file of its own; those of earlier versions are read as well."""

    def __init__(self, directory: Path):
        self.records = Records(directory / "aliases", Alias, lambda a: name_key(a.alias), r"[0-9a-f]{32}")
        self._earlier = EarlierVoices(directory)

    def get(self, name: str) -> str | None:
        """What an alias stands for; None for a name that is none.

        Raises:
            CheckpointError: the file that holds it is damaged.
        """
        found = self.records.get(name_key(name))
        return found.voice if found is not None else self._earlier.aliases().get(name)

    def all(self) -> dict[str, str]:
        """All of them, in the order of their names; damaged ones are left out.

        Raises:
            CheckpointError: the file of earlier versions is damaged.
        """
        found = self._earlier.aliases() | {alias.alias: alias.voice for alias in self.records.all()}
        return dict(sorted(found.items()))

    def put(self, alias: str, voice: str) -> None:
        """Let a name stand for a voice.

        Raises:
            ConfigError: it cannot be a name.
            OutputError: it cannot be written.
        """
        self.records.put(Alias(check_label(alias, "an alias"), voice))

    def delete(self, alias: str) -> None:
        """Take an alias back.

        Raises:
            ConfigError: there is none of that name.
            CheckpointError, OutputError: the file of earlier versions is damaged, or cannot be written.
        """
        removed = self.records.delete(name_key(alias))
        if not (self._earlier.forget_alias(alias) or removed):
            raise ConfigError(f"there is no alias {alias!r}; give one{named_alike(alias, self.all())}")
