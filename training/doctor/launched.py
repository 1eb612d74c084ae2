"""What a launcher starts in the place of a training: it writes some of its variables into a folder, and ends.

Started by `launching.py`, as a file, with the folder and how the variables' names begin. It loads nothing of ours, and
no torch.
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    told = {name: value for name, value in os.environ.items() if name.startswith(tuple(sys.argv[2:]))}
    Path(sys.argv[1], f"{os.getpid()}.json").write_text(json.dumps(told))
