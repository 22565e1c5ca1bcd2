"""What a network can learn: a task's loss and metrics, a module each."""
