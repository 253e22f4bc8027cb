"""What a visit saw, as conditions, events and differences. Pure."""
