"""Which stage goes first where both could work: T3 draws tokens, S3Gen makes sound of them."""

from __future__ import annotations

import time

from chatterbox_vllm.engine.at_s3gen import PiecesAtS3Gen
from chatterbox_vllm.engine.at_t3 import PiecesAtT3
from chatterbox_vllm.engine.job import Job

# A stream whose listener has less than this left to hear, in seconds, needs T3's next tokens soon. A listener who has
# heard the first two chunks of `QUICK` has 1.2 s.
_SOON = 1.0


class Precedence:
    """Says of two stages that would be in each other's way which one waits.

    Args:
        most_waiting: pieces that wait for S3Gen; with half as many it does not wait for T3.
    """

    def __init__(self, at_t3: PiecesAtT3, at_s3gen: PiecesAtS3Gen, most_waiting: int):
        self.at_t3, self.at_s3gen, self.most_waiting = at_t3, at_s3gen, most_waiting

    def t3_first(self) -> bool:
        """Whether S3Gen waits: where it works in this thread, and a listener has heard nothing yet.

        A batch of S3Gen may take as long as hundreds of steps of T3.
        """
        voicing = self.at_s3gen.synthesis
        if not voicing.works_in_poll or voicing.waiting >= self.most_waiting // 2 or self.at_s3gen.streams:
            return False
        return self.at_t3.unheard_streams or (self.at_t3.first_ones and not self.at_s3gen.first_ones)

    def s3gen_first(self) -> bool:
        """Whether T3 waits: where S3Gen works beside it on somebody's first sound, and nobody needs T3 soon.

        They share a card: on an H200 a first chunk takes S3Gen 26 ms alone, and 38 beside T3.
        """
        if self.at_s3gen.synthesis.works_in_poll or not self.at_s3gen.first_sounds:
            return False
        now = time.monotonic()
        return not any(_needs_t3(job, now) for job in self.at_t3.jobs)


def _needs_t3(job: Job, now: float) -> bool:
    """Whether tokens of a request are awaited: by one that is no stream always, since nobody knows how it is used."""
    if job.stream is None:
        return True
    if job.stream.first_heard is None:
        return not job.stream.rendering
    return job.stream.dry_at(job.samples) < now + _SOON
