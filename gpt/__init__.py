"""The decoder-only model: `from gpt import GPT, GPTConfig, load, train`, which load torch when they are asked for."""

from typing import TYPE_CHECKING

from training.runtime.lazy import lazy_names
from training.runtime.threads import let_waiting_threads_sleep

if TYPE_CHECKING:
    from gpt.config import GPTConfig, ModelConfig
    from gpt.model import GPT
    from gpt.task import GPTTask, LoadedGPT
    from gpt.task import load_gpt as load
    from gpt.task import train_gpt as train

__all__ = ["GPT", "GPTConfig", "GPTTask", "LoadedGPT", "ModelConfig", "load", "train"]
_MODULES = {"GPT": "model", "GPTConfig": "config", "GPTTask": "task", "LoadedGPT": "task", "ModelConfig": "config"}
__getattr__ = lazy_names(__name__, _MODULES | {"load": "task.load_gpt", "train": "task.train_gpt"})
let_waiting_threads_sleep()
