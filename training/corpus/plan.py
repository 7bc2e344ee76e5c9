"""The plan of a corpus: which speaker says which line. Made once (`training.corpus.build`), then spoken by a teacher.

A plan is a directory of two files: ``speakers.json``, a list of `training.data.Speaker`, and ``lines.tsv.xz``, a `Line`
a row. It travels: a hundred bytes a line before compression.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.data import CorpusError, Speaker

COLUMNS = ("id", "speaker", "speed", "held_out", "text", "phonemes", "movement")
_FIRST_COLUMNS = COLUMNS[:-1]  # of plans that leave all pitch as it is
# A speaker is played faster or slower than it speaks by a ratio in twentieths, so that lengths come out whole.
TWENTIETHS = range(16, 26)


@dataclass(frozen=True, slots=True)
class Line:
    """What one speaker says once.

    Attributes:
        id: its number; unique in a plan.
        speaker: index into `Plan.speakers`.
        speed: 1 is the teacher's own pace, 2 twice as fast.
        held_out: whether the sentence or the speaker is kept for evaluation.
        text, phonemes, movement: as in `training.data.Utterance`.
    """

    id: int
    speaker: int
    speed: float
    held_out: bool
    text: str
    phonemes: str
    movement: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Speakers and lines. The lines' order is the order of their worth: every beginning is a corpus by itself."""

    speakers: Sequence[Speaker]
    lines: Sequence[Line]

    def write(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        rows = ["\t".join(COLUMNS)]
        for line in self.lines:
            row = asdict(line) | {"speed": f"{line.speed:.3f}", "held_out": int(line.held_out)}
            rows.append("\t".join(str(row[column]) for column in COLUMNS))
        speakers = json.dumps([asdict(speaker) for speaker in self.speakers], ensure_ascii=False)
        (directory / "speakers.json").write_text(speakers, encoding="utf-8")
        (directory / "lines.tsv.xz").write_bytes(lzma.compress("\n".join(rows).encode(), preset=9))

    @classmethod
    def read(cls, directory: str | Path) -> Plan:
        """Reads a plan.

        Raises:
            CorpusError: a file is missing, or a line does not fit its columns or its speakers.
        """
        directory = Path(directory)
        try:
            speakers = json.loads((directory / "speakers.json").read_text(encoding="utf-8"))
            text = lzma.decompress((directory / "lines.tsv.xz").read_bytes()).decode()
        except FileNotFoundError as error:
            raise CorpusError(f"{directory} is no plan: it has no {Path(error.filename).name}") from None
        header, *rows = text.split("\n")
        columns = tuple(header.split("\t"))
        if columns not in (COLUMNS, _FIRST_COLUMNS):
            raise CorpusError(f"{directory}/lines.tsv.xz does not begin with the columns {' '.join(COLUMNS)}")
        lines = [cls._line(directory, row, len(columns), len(speakers)) for row in rows]
        return cls([Speaker(**speaker) for speaker in speakers], lines)

    @staticmethod
    def _line(directory: Path, row: str, columns: int, speakers: int) -> Line:
        cells = row.split("\t")
        if len(cells) != columns or not 0 <= int(cells[1]) < speakers:
            raise CorpusError(f"{directory}/lines.tsv.xz has a row that does not fit: {row[:80]!r}")
        movement = map(float, cells[6:])
        return Line(int(cells[0]), int(cells[1]), float(cells[2]), cells[3] == "1", cells[4], cells[5], *movement)
