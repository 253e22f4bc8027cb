"""Nothing is shared but what every suite needs: see tests/support."""
