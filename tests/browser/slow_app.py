"""The page, where each token waits for the seconds in a file `pause`, if there is one.

So its work goes on for as long as a test looks at it, however fast a machine is.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from decoding.cache_benchmark import Reader
from decoding.decoder import Decoder
from demo.app import main
from training.runtime.errors import exit_code


def slowed(read: Callable[..., Any]) -> Callable[..., Any]:
    """The same, a while later."""

    def later(*arguments: Any) -> Any:
        with suppress(OSError, ValueError):
            time.sleep(float(Path("pause").read_text()))
        return read(*arguments)

    return later


if __name__ == "__main__":
    Decoder.read = slowed(Decoder.read)  # type: ignore[method-assign]
    Reader.read = slowed(Reader.read)  # type: ignore[method-assign]
    sys.exit(exit_code(main))
