"""Models in memory, as `ChatterboxTTS` and `ChatterboxVC` are."""
