"""The command line. `main` runs a command in this process, `entry` is the installed command."""

from chatterbox_vllm.cli.run import entry, main

__all__ = ["entry", "main"]
