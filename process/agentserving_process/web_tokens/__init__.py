"""JWTs of an organisation's own issuer as credentials of clients, beside keys.

| module | what it does |
|---|---|
| `jwks` | the issuer's public keys, from a JWK Set (RFC 7517) |
| `verifier` | verifies a token (RFC 7519, practices of RFC 8725) and remembers the valid ones until they expire |
| `watch` | flags, and the file of the keys, which is read again when it changes |

`jwks` and `verifier` are pure: the time is an argument.
"""
