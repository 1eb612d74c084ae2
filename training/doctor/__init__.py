"""What could stop or spoil a run on this machine, looked for before it is begun."""
