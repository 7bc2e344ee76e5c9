"""For how many rows T3's CUDA graphs are recorded."""

from __future__ import annotations

# Steps between a power of two and the next. A decode step is filled up to the next size with rows that have no
# sequence, which costs little: most of its time goes into the attention of real rows.
_STEPS = 4


def graph_sizes(max_batch_size: int, max_batched_tokens: int) -> tuple[int, ...]:
    """Sizes for decode steps of up to `max_batch_size` rows, and powers of two above for steps that take prompts in.

    Args:
        max_batched_tokens: most rows of a step that takes prompts in; 0 where such steps are no graphs.

    A step that is no graph launches some thousand operations from Python: with 128 requests on an H200 it takes 17 ms
    in place of 6.
    """
    sizes = {1, 2, 4, max_batch_size}
    octave = 8
    while octave <= max_batch_size:
        sizes |= {size for step in range(_STEPS) if (size := octave + step * octave // _STEPS) <= max_batch_size}
        octave *= 2
    size = 1 << max_batch_size.bit_length()
    while size < max_batched_tokens:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes | {max(max_batched_tokens, max_batch_size)}))
