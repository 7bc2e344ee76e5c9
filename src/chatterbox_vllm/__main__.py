"""`python -m chatterbox_vllm` is the command `chatterbox-vllm`."""

from chatterbox_vllm.cli import entry

entry()
