"""What the end-to-end part speaks where its user names no text."""

from __future__ import annotations

from collections.abc import Sequence

from chatterbox_vllm.text.split import split_text
from chatterbox_vllm.tts import ChatterboxTTS

TEXT = (
    "The mill at the end of the valley had stood still for eleven years when the new owner came. She walked around it "
    "twice, looked up at the broken vanes, and asked the boy who had followed her whether he could carry a ladder.\n\n"
    "By evening they had cleared the stairs. There were swallows under the roof, a chair without a seat, and on one of "
    "the beams somebody had written down, year by year, how high the river had risen. The last line said 1987; beneath "
    "it the wood was clean, as if the water had agreed to stop.\n\n"
    '"It did not stop," said the boy. "They only stopped counting." He held the lamp closer, and she took a pencil out '
    "of her coat, wrote the date, and drew a line beside it, though it had not rained for a month.\n\n"
)
_FULL_BATCHES = 4  # on a GPU, so that its beginning and end do not weigh too much


def text_for(tts: ChatterboxTTS) -> str:
    """`TEXT`, on a GPU so often that it has pieces for several batches; on a CPU once, which takes minutes."""
    if tts.device.type != "cuda":
        return TEXT
    wanted = _FULL_BATCHES * tts.t3_stage.options.max_batch_size
    return TEXT * -(-wanted // len(split_text(TEXT)))


def batch_sizes(asked: Sequence[int] | None, tts: ChatterboxTTS) -> list[int]:
    """Those asked for, or one and as many as the engine, its tier perhaps, takes at once."""
    return list(asked or ()) or sorted({1, tts.t3_stage.options.max_batch_size})
