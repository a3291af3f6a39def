"""Other ways to learn a task without forgetting the last one."""
