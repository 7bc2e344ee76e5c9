"""`python -m chatterbox_vllm` is the command `chatterbox-vllm`."""

import sys

from chatterbox_vllm.cli import main

sys.exit(main())
