"""The one exception whose message is meant for the person at the terminal."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what would be right."""
