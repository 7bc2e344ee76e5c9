"""Benchmarks that a user can run: `chatterbox-vllm bench`."""
