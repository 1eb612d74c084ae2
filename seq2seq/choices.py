"""Names that commands and the encoder-decoder share; no torch."""

RECIPES = {
    "sinusoidal": ("sinusoidal", "content", "0.0"),
    "learned": ("learned", "content", "0.0"),
    "rotary": ("rotary", "content", "0.0"),
    "rotary, also across": ("rotary", "start", "0.0"),
    "rotary, from both ends": ("rotary", "both_ends", "0.0"),
    "rotary, random places": ("rotary", "both_ends", "0.5"),
}
"""Ways to know positions: model.positions, model.cross_positions and model.random_positions."""
