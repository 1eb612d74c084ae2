"""Numbers of bytes for people to read."""


def gigabytes(size: float) -> str:
    """A size in GB of 10^9 bytes, or in MB where it is small."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
