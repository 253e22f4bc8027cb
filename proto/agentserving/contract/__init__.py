"""The contract that is not gRPC: policy value, accounting rule, signed ticket, engine channel messages."""
