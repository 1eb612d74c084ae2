"""The page, where each token waits for the seconds in a file `pause`, if there is one.

So its work goes on for as long as a test looks at it, however fast a machine is. What it starts itself is started by
PYTHON_FILE, where that is set.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from decoding.sampling import Sampler
from demo.app import main
from training.runtime.errors import exit_code


def slowed(choose: Callable[..., Any]) -> Callable[..., Any]:
    """The same, a while later."""

    def later(*arguments: Any) -> Any:
        with suppress(OSError, ValueError):
            time.sleep(float(Path("pause").read_text()))
        return choose(*arguments)

    return later


if __name__ == "__main__":
    sys.executable = os.environ.get("PYTHON_FILE", sys.executable)
    Sampler.choose = slowed(Sampler.choose)  # type: ignore[method-assign]
    sys.exit(exit_code(main))
