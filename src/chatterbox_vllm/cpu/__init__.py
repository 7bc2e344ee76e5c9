"""How to compute on a CPU."""
