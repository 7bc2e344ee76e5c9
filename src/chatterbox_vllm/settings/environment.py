"""What only the environment sets."""

from __future__ import annotations

from chatterbox_vllm.settings.server import QUANTIZATION_BITS, QUANTIZATION_ENABLED
from chatterbox_vllm.settings.setting import Setting

CACHE_DIRECTORY = Setting(
    "",
    "directory for what this package builds: the small model's files, T3's directories for vLLM",
    unset="chatterbox-vllm in XDG_CACHE_HOME, else in ~/.cache",
    variable="CHATTERBOX_VLLM_CACHE",
)
HEBREW_MODEL = Setting(
    "",
    "file of dicta-onnx's model, which Hebrew texts without diacritics need",
    unset="such texts are refused",
    variable="CHATTERBOX_HEBREW_MODEL",
)
VOICES_DIRECTORY = Setting(
    "",
    "directory of the voices that were saved by name",
    unset="chatterbox-vllm/voices in XDG_DATA_HOME, else in ~/.local/share",
    variable="CHATTERBOX_VOICES",
)
# What only the environment sets; the last two are read by start.sh.
ENVIRONMENT = (
    CACHE_DIRECTORY,
    VOICES_DIRECTORY,
    HEBREW_MODEL,
    QUANTIZATION_ENABLED,
    QUANTIZATION_BITS,
    Setting(
        "",
        "start.sh: which build of vLLM to install, cpu or cuda",
        unset="cuda where the driver lists a GPU, else cpu",
        variable="CHATTERBOX_VLLM_EXTRA",
    ),
    Setting(
        "",
        "start.sh: the Python to make .venv with, 3.11 to 3.13",
        unset="the first that is found",
        variable="CHATTERBOX_VLLM_PYTHON",
    ),
)
