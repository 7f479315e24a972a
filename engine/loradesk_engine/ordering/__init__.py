"""Ordering files: schema, building, checking and comparing. No torch; the editor and the terminal are thin over it."""
