"""Whether the hub answers: asked once and for a moment, where the library would try for a minute."""

from __future__ import annotations

import queue
import threading

from chatterbox_vllm.checkpoint.hub import first_line, require_hub

PATIENCE = 3.0  # seconds


def why_unreachable(seconds: float = PATIENCE) -> str | None:
    """Why the hub cannot be asked now, in a few words; None where it answers, whatever it says.

    Args:
        seconds: how long to wait for the answer.
    """
    from huggingface_hub import constants  # here, since an import in a thread that is left would hold up others

    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    # Looking up a host's name has no time limit of its own: a thread that still does is left behind.
    threading.Thread(target=lambda: answers.put(_ask(seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return f"{constants.ENDPOINT} did not answer within {seconds:g} s"


def _ask(seconds: float) -> str | None:
    from huggingface_hub import constants, get_session

    try:
        require_hub()
        status = get_session().head(constants.ENDPOINT, timeout=seconds).status_code
    except Exception as error:  # an address that is none has errors of its own, beside those of the network
        return first_line(error)
    return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else None
