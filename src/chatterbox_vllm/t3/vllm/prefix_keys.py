"""Names for the rows that prompts have in common, as keys of vLLM's prefix cache.

vLLM 0.32 finds out by hashing every block of a prompt's rows that another prompt has begun with the same. The rows of a
voice are most of a prompt, and all its texts begin with them: here their name takes the place of what is in them. With
186 texts for Turbo the hashes took an eighth of the time for which T3's thread held Python's lock.
"""

from __future__ import annotations

from typing import Any

from chatterbox_vllm.t3.options import SharedPrefix

PREFIX = "shared_prefix"  # of `SamplingParams.extra_args`


def name_prefixes() -> None:
    """From now on, in this process. Requests without a `SharedPrefix`, also of other models, are hashed as before."""
    from vllm.v1.core import kv_cache_utils

    hashed = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    if not isinstance(hashed, _Named):
        kv_cache_utils._gen_prompt_embeds_extra_hash_keys = _Named(hashed)


class _Named:
    """Stands before vLLM's function, which says of a block of rows what makes it differ from others."""

    def __init__(self, hashed: Any):
        self.hashed = hashed

    def __call__(self, request: Any, start: int, end: int) -> list[tuple[str, bytes]]:
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        prefix: SharedPrefix | None = extra.get(PREFIX)
        if prefix is None or end > prefix.rows:
            return list(self.hashed(request, start, end))
        return [(PREFIX, f"{start} {prefix.name}".encode())]
