"""The exceptions whose message is meant for the person at the terminal."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what would be right. `status` is the exit status."""

    status = 1


class NotShown(UserError):
    """All went well, and what was to be shown did not show: nothing is shipped."""

    status = 3
