"""`upsnet`: main.py has the table of commands, command.py how each of them behaves."""
