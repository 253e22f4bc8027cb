"""What a visit saw, as conditions, events and differences from what is desired. Pure but for `settled`, a memory."""
