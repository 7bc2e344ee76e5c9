<<<<<<< HEAD
"""Scripts that train a small Chatterbox from scratch through the package's own modules; see README.md here."""
=======
"""Trains a small Chatterbox checkpoint from scratch. Nobody needs this to use the package. See README.md beside it."""
>>>>>>> v3
