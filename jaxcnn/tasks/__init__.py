"""What is learned: one folder a task."""
