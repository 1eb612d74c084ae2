"""Lists in messages: the first of many things, and how many more there are."""

from collections import Counter
from collections.abc import Sequence


def listed(names: Sequence[str], max_listed: int, separator: str = ", ") -> str:
    """The first of some names, and the number of the others."""
    more = len(names) - max_listed
    return separator.join(names[:max_listed]) + (f" and {more:,} more" if more > 0 else "")


def describe(symbols: Counter[str], max_symbols: int = 200) -> str:
    """The most frequent symbols and how often they occur."""
    return listed([f"{shown_symbol(symbol)} {count:,}" for symbol, count in symbols.most_common()], max_symbols)


def shown_symbol(symbol: str) -> str:
    """A symbol in quotes; what cannot be printed is escaped."""
    return repr(symbol) if symbol.isprintable() else ascii(symbol)
