"""What a study will take, from shapes alone: nothing is loaded, and no weight is made."""
