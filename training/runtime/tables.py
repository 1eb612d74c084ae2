"""Tables on the terminal."""

from collections.abc import Sequence


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """The first column goes to the left and the others to the right; empty ones are left out."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    for row in [{name: name for name in columns}, *rows]:
        cells = [f"{row[name]:>{widths[name]}}" for name in columns[1:]]
        print("  ".join([f"{row[columns[0]]:{widths[columns[0]]}}", *cells]))
    print()
