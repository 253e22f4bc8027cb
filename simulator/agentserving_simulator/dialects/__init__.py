"""The APIs that a simulated engine speaks: each reads its requests into `answers.asked`, and writes answers."""
