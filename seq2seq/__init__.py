"""The encoder-decoder: `from seq2seq import EncoderDecoder, Seq2SeqConfig, load, train`; torch is loaded on demand."""

from typing import TYPE_CHECKING

from training.runtime.lazy import lazy_names
from training.runtime.threads import let_waiting_threads_sleep

if TYPE_CHECKING:
    from seq2seq.config import ModelConfig, Seq2SeqConfig
    from seq2seq.model import EncoderDecoder
    from seq2seq.task import LoadedSeq2Seq, Seq2SeqTask
    from seq2seq.task import load_seq2seq as load
    from seq2seq.task import train_seq2seq as train

__all__ = ["EncoderDecoder", "LoadedSeq2Seq", "ModelConfig", "Seq2SeqConfig", "Seq2SeqTask", "load", "train"]
_OF_TASK = {"LoadedSeq2Seq": "task", "Seq2SeqTask": "task", "load": "task.load_seq2seq", "train": "task.train_seq2seq"}
_OF_CONFIG = {"ModelConfig": "config", "Seq2SeqConfig": "config"}
__getattr__ = lazy_names(__name__, {"EncoderDecoder": "model"} | _OF_CONFIG | _OF_TASK)
let_waiting_threads_sleep()
