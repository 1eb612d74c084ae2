"""What a run stands on: device, threads, processes, signals, streams, errors."""
