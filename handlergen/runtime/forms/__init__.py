"""The forms: how the module of each is imported, loaded and called; the table of what differs between them."""
