"""`program()`: which program, thread and parents a call belongs to, and how HTTP requests carry it."""
