"""Batches on their way: `runner` (one task a batch), `stages` (what a batch does in each state), `gateway` (its calls),
`upkeep` (what has expired)."""
