"""What is learned: one module or folder a task, named in config/choices.py. docs/tasks.md says how one is written."""
