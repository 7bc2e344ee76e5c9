"""Trains a small Chatterbox checkpoint from scratch. Nobody needs this to use the package. See README.md beside it."""
