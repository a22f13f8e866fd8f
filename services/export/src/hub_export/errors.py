"""What happens next, by name."""


class Refuse(Exception):
    """The request is answered with the outcome `refused`. The text is the reason that the asker reads: what was wrong and what to do."""
