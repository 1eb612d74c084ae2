"""The decoder-only model: configuration, data, model, trainer and generation."""

from training.runtime.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
