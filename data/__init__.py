"""Where tokens come from, for both models: texts and pairs, their tokens, windows and batches. Knows no model."""

from training.runtime.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
