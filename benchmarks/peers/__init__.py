"""What `peers.py` is made of: the user's code (`models/`), each peer's server around it (`apps/`), and one module a
peer that says what to install, how to start it, and how it is asked."""
