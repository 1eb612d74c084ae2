"""An example of pairs: dates as people write them, and in ISO form.

`python -m data.dates --output dates.jsonl` writes them; `configs/seq2seq/dates.yaml` learns them.
"""

import json
import random
import sys
from calendar import day_name, month_name
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from training.config.command_line import StrictParser
from training.runtime.errors import InputError, exit_code
from training.seeds import derive_seed

FIRST, LAST = date(1900, 1, 1), date(2099, 12, 31)


def ways_to_write(day: date) -> list[str]:
    """A date in several forms, none of which leaves a doubt which number is the day."""
    month, weekday = month_name[day.month], day_name[day.weekday()]
    return [
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{weekday}, {day.day} {month} {day.year}",
        f"{weekday[:3]} {month[:3]} {day.day} {day.year}",
        f"{day.day:02}-{month[:3].upper()}-{day.year}",
        f"{day.day}.{day.month}.{day.year}",
    ]


def generate(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Different dates in random forms, with their ISO forms."""
    dice, seen = random.Random(derive_seed(seed, "dates")), set[str]()
    while len(seen) < count:
        day = FIRST + timedelta(days=int(dice.random() * ((LAST - FIRST).days + 1)))
        forms = ways_to_write(day)
        written = forms[int(dice.random() * len(forms))]
        if written not in seen:
            seen.add(written)
            yield written, day.isoformat()


def main() -> None:
    """Write the file."""
    parser = StrictParser(prog="python -m data.dates", description="Write dates and their ISO forms, a pair a line.")
    parser.add_argument("--output", type=str, required=True, help="Where to write them, as JSON lines.")
    parser.add_argument("--count", type=int, default=20_000, help="How many.")
    parser.add_argument("--seed", type=int, default=0, help="Another seed takes other dates.")
    options = parser.parse_args()
    possible = len(ways_to_write(FIRST)) * ((LAST - FIRST).days + 1)
    if not 1 <= options.count <= possible // 2:
        raise InputError(f"count must be at least 1 and at most {possible // 2}, got {options.count}")
    pairs = generate(options.count, options.seed)
    rows = [json.dumps({"source": source, "target": target}) for source, target in pairs]
    try:
        Path(options.output).write_text("".join(f"{row}\n" for row in rows))
    except OSError as error:
        raise InputError(f"cannot write {options.output}: {error.strerror}") from error
    print(f"{options.count:,} dates in {options.output}; learn them with --config configs/seq2seq/dates.yaml")


if __name__ == "__main__":
    sys.exit(exit_code(main))
