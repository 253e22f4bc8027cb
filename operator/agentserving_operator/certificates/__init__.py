"""A cluster's certificates: what they contain (pure) and who issues them."""
