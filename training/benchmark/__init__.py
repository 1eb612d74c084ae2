"""How fast a configuration trains, where the time of a step goes, and how much memory it takes. Knows no model."""
