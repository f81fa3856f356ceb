"""Rates over records, their intervals, and how far raters and rankings agree."""
