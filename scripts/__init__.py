"""What operators and developers run from the shell, and the code behind it."""
