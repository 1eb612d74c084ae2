"""How a trained model reads and writes: sampling, search, steps, benchmark. A model is a protocol to it."""

from training.runtime.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
