"""The decoder-only model: configuration, data, model, trainer and generation."""
