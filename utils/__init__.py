"""What the stages share: frames, checkpoints, devices, worker processes, command lines."""
