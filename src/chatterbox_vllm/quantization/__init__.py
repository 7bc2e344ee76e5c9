"""Weights in fewer bits: what can be asked for (`config`), how it is done (`modules`), what is in force (`info`)."""
