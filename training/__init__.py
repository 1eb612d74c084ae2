"""The loop and all it needs: batches, optimizer, schedule, checkpoint, tracking. Knows no model."""
