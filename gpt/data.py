"""`python -m gpt.data`, which is now `python -m data.text`."""

import sys

from data.text import main
from training.runtime.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
