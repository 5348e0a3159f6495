"""One module a task: its settings and its behaviour. `task.Task` says what the rest of kdray needs of one."""
