"""What the environment says of proxies, made such that Gradio can be imported."""

import os
from importlib.util import find_spec


def leave_out_socks() -> None:
    """Gradio makes clients of httpx when it is imported, which end with an error where a proxy speaks SOCKS and the
    package for that is missing. The page asks nobody for anything, so it can do without."""
    if find_spec("socksio") is None:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            for spelled in (name, name.upper()):
                if os.environ.get(spelled, "").startswith("socks"):
                    del os.environ[spelled]
