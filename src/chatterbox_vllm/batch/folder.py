"""The output directory of a batch: what it is a run of, what is done, and that nobody else works in it.

    OUTDIR/<id>.<format>     one audio file a row; a name appears when its file is whole and synced
    OUTDIR/manifest.jsonl    a line a row that is done or has failed, written after its file
    OUTDIR/run.json          what all files depend on (identity.py); a run with other values is refused
    OUTDIR/.lock             locked while a process works here; the lock goes when the process does

Killed between two of these steps, a row has no line yet and is done again, with the same seed; its file is replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from typing_extensions import Self

from chatterbox_vllm.batch.identity import differences
from chatterbox_vllm.caches.atomic import is_partial, whole_file
from chatterbox_vllm.errors import ConfigError, OutputError

MANIFEST, RUN, LOCK = "manifest.jsonl", "run.json", ".lock"
_ENGINE, _NAMED = "engine", "named"  # in the run's file


def named_model(path: Path) -> dict[str, str]:
    """The keywords that name the model of a directory's run; none where there is no run, or a damaged one."""
    try:
        named = json.loads((path / RUN).read_bytes())[_NAMED]
        return {str(keyword): str(name) for keyword, name in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # `Folder.open` tells


class Folder:
    """An output directory under this process's lock. Use it as a context manager.

    Attributes:
        done: a byte for each row: 0 open, 1 spoken, 2 failed.
        seconds: of audio in the rows that are done.

    Raises:
        ConfigError: another process works in it, or it holds something else.
        OutputError: it cannot be made or written.
    """

    OPEN, SPOKEN, FAILED = 0, 1, 2

    def __init__(self, path: Path):
        self.path = path
        self.done = bytearray()
        self.seconds = 0.0
        self._manifest: IO[bytes] | None = None
        self._overwrite = False
        self._engine: dict[str, Any] | None = None  # of the run that goes on
        with self._writing():
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / LOCK).open("ab")
        try:
            # A POSIX lock: unlike flock's it is not handed down to child processes, which may outlive a killed parent.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._lock.close()
            raise ConfigError(
                f"{path}: another process is at work in it; wait for it, or name another directory"
            ) from (error)
        except OSError as error:
            self._lock.close()
            raise OutputError(f"{path}: cannot be locked ({error.strerror}); use a file system with locks") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._manifest is not None:
            self._manifest.close()
        self._lock.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror or error}); make room or mend that, then give the "
                "same command again, without --overwrite: it goes on where it was"
            ) from error

    def open(self, run: dict[str, Any], rows: int, overwrite: bool, retry_failed: bool) -> dict[str, Any]:
        """Begin the run, or go on with it where it was.

        Args:
            run: `what_files_depend_on`. "seed" may be None where the caller takes any: an earlier run's stays then.
            rows: of the input.
            overwrite: begin anew; `begin` removes the earlier run and the files that its manifest names.
            retry_failed: open the rows again that have failed.

        Returns:
            `run` as it is in force.

        Raises:
            ConfigError: the directory holds a run of other values, or files that are none of ours.
            OutputError: it cannot be written.
        """
        with self._writing():
            self._overwrite = overwrite
            self.done = bytearray(rows)
            earlier = None if overwrite else self._read_run()
            if earlier is None and not overwrite:
                self._refuse_strangers()
            if earlier is not None:
                self._engine = earlier.pop(_ENGINE, None)
                earlier.pop(_NAMED, None)
                if run["seed"] is None:
                    run = run | {"seed": earlier.get("seed")}
                self._require_same(earlier, run)
                self._settle(retry_failed)
        return run

    def begin(
        self, run: dict[str, Any], engine: dict[str, Any] | None = None, named: Mapping[str, str] | None = None
    ) -> None:
        """Write down what the run is, unless it goes on, and open the manifest.

        Apart from `open`, so that a model that does not load leaves no run behind and an earlier one alone.

        Args:
            engine: `engine_identity`; None where no row can be spoken, and so no model was loaded.
            named: what the model was asked for by, for `named_model`.

        Raises:
            ConfigError: the run's files so far were spoken by an engine that computes otherwise.
            OutputError: the directory cannot be written.
        """
        with self._writing():
            if self._engine is not None and engine is not None:
                self._require_same(self._engine, engine)
            self._clear_partials()
            if self._overwrite:
                self._forget()
            if not (self.path / RUN).exists() or self._engine is None:
                facts = json.dumps(run | {_ENGINE: engine, _NAMED: dict(named or {})}, indent=1, ensure_ascii=False)
                self._replace(RUN, [facts.encode() + b"\n"])
            self._manifest = (self.path / MANIFEST).open("ab", buffering=0)

    def _require_same(self, earlier: dict[str, Any], now: dict[str, Any]) -> None:
        changed = differences(earlier, now)
        if changed:
            raise ConfigError(
                f"{self.path}: holds a run with other values ({'; '.join(changed)}): go on with those, name another "
                "directory, or start anew with --overwrite"
            )

    def add(self, entry: dict[str, Any]) -> None:
        """Append a row's line to the manifest. It is not synced: a line that is lost is a row that is done again."""
        assert self._manifest is not None, "begin() comes first"
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._writing():
            view = memoryview(line)
            while view:
                view = view[self._manifest.write(view) :]
        self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        self.done[entry["index"]] = self.SPOKEN if entry["error"] is None else self.FAILED
        self.seconds += entry["duration"] or 0.0

    def _entries(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """The manifest's lines; None for one that is torn or otherwise no entry."""
        path = self.path / MANIFEST
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    good = line.endswith(b"\n") and entry.keys() >= {"index", "file", "error", "duration"}
                except (ValueError, AttributeError):
                    good = False
                yield line, entry if good else None

    def _settle(self, retry_failed: bool) -> None:
        """Note what is done, and drop the lines of rows that are to be done again.

        Those are a torn line's, a failed row's where they are retried, and a row's whose file is gone.
        """
        dropped = False
        for _, entry in self._entries():
            if entry is not None and self._stands(entry, retry_failed) and not self.done[entry["index"]]:
                self._count(entry)
            else:
                dropped = True
        if dropped:
            self._replace(MANIFEST, self._kept(retry_failed))

    def _kept(self, retry_failed: bool) -> Iterator[bytes]:
        kept = bytearray(len(self.done))
        for line, entry in self._entries():
            if entry is not None and self._stands(entry, retry_failed) and not kept[entry["index"]]:
                kept[entry["index"]] = 1
                yield line

    def _stands(self, entry: dict[str, Any], retry_failed: bool) -> bool:
        index = entry["index"]
        if not isinstance(index, int) or not 0 <= index < len(self.done):
            return False
        if entry["error"] is not None:
            return not retry_failed
        return isinstance(entry["file"], str) and (self.path / entry["file"]).is_file()

    def _read_run(self) -> dict[str, Any] | None:
        try:
            run = json.loads((self.path / RUN).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            run = None
        if not isinstance(run, dict):
            raise ConfigError(f"{self.path / RUN}: is damaged; start anew with --overwrite or in another directory")
        return run

    def _refuse_strangers(self) -> None:
        stranger = next((n for n in os.listdir(self.path) if n != LOCK and not is_partial(n)), None)
        if stranger is not None:
            raise ConfigError(
                f"{self.path}: holds {stranger!r} and no {RUN}, so it is no batch's; name another directory, or give "
                "--overwrite, which replaces files of the same names and leaves the others"
            )

    def _forget(self) -> None:
        """Remove the earlier run; its run file goes last, so that a kill leaves something to go on with."""
        for _, entry in self._entries():
            if entry is not None and isinstance(entry["file"], str) and "/" not in entry["file"]:
                (self.path / entry["file"]).unlink(missing_ok=True)
        for name in (MANIFEST, RUN):
            (self.path / name).unlink(missing_ok=True)

    def _clear_partials(self) -> None:
        """Remove what a process left that was killed while it wrote; the lock says that none is writing."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if is_partial(entry.name):
                    os.unlink(entry.path)

    def _replace(self, name: str, lines: Any) -> None:
        """Write a file whole or not at all."""
        with whole_file(self.path / name) as file:
            file.writelines(lines)
