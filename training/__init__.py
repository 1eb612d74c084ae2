"""The loop and all it needs: batches, optimizer, schedule, checkpoint, tracking. Knows no model."""

from training.runtime.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
