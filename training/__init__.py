"""Scripts that train a small Chatterbox from scratch through the package's own modules; see README.md here."""
