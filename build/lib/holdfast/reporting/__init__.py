"""Tables and figures. Each is drawn from the records by a function that a notebook can call."""
