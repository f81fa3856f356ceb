"""The exceptions whose message is meant for the person at the terminal."""


def first_line(error: BaseException) -> str:
    """Of an error's message; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "").strip() or type(error).__name__


def printable(text: str, *, spaces: bool = False) -> str:
    """With control characters spelled out, which a terminal would obey, and line breaks too unless `spaces` stay."""

    def kept(c: str) -> bool:
        return c.isprintable() or (spaces and c.isspace())

    return "".join(c if kept(c) else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what would be right. `status` is the exit status."""

    status = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class NotShown(UserError):
    """All went well, and what was to be shown did not show: nothing is shipped."""

    status = 3
