"""The Gradio page: text that streams next to a chart of what a token costs."""

import os
from importlib.util import find_spec

from training.runtime.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
# When it is imported, Gradio makes clients of httpx, which fail where a proxy speaks SOCKS and the package for that is
# missing. The page asks nobody for anything, so it can do without.
if find_spec("socksio") is None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelled in (name, name.upper()):
            if os.environ.get(spelled, "").startswith("socks"):
                del os.environ[spelled]
