"""What `make bench` measures; see README.md beside this file."""
