"""English texts in letters alone, as the texts are that Flash was trained on."""
