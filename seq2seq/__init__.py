"""The encoder-decoder: its model, tasks, training and decoding."""

from training.runtime.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
