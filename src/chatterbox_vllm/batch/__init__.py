"""Many texts into a directory: `rows` reads them, `folder` keeps what is done, `run` speaks."""
