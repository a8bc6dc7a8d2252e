"""The device, and the lock by which one predict at a time runs on it."""
