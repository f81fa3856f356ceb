"""Who decides what a response is: refused, complied or incoherent."""
