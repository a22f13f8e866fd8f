"""Takes studies in: receiver, assembler, closer."""
