"""What `make bench` measures; results/README.md explains the bars."""
