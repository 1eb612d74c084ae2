"""Many runs of one configuration: settings from a grid, several seeds, and what came out of them."""
