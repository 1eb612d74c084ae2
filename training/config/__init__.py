"""The sections of a configuration, and how they are read from YAML and the command line."""
